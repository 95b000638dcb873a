"""What several commands share: options, checks of what was typed, loading, progress, and the result at the end."""

from __future__ import annotations

import os
import sys
import time
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SAVE_SECONDS = 20  # between two savings of an unfinished record


# -- options ----------------------------------------------------------------------------------------------------------
def add_option(parser: ArgumentParser, name: str, about: str, default=None, **options) -> None:
    """An option whose default, if there is one, is told in its help; one of several words as they would be typed."""
    if default is not None:
        told = f"{default:g}" if isinstance(default, float) else default
        told = " ".join(map(str, default)) if "nargs" in options else told
        about += f" (default: {told})"
    parser.add_argument(name, default=default, help=about, **options)


def add_number(parser: ArgumentParser, name: str, about: str, default: int | None = None, low: int = 1) -> None:
    """An option that takes one whole number, `low` or more."""
    add_option(parser, name, about, default, type=at_least(low), metavar="N")


def add_model(parser: ArgumentParser) -> None:
    """--model, --device, --dtype; see `load_model`."""
    add_option(parser, "--model", "embedded, a folder or a hub id", "embedded")
    add_device(parser)


def add_device(parser: ArgumentParser, on_a_cpu: str = "float32") -> None:
    """--device, --dtype. on_a_cpu: the default dtype there, in words."""
    add_option(parser, "--device", "cpu or cuda (default: cuda if there is one)")
    add_option(parser, "--dtype", f"float32, bfloat16 or float16 (default: {on_a_cpu} on a CPU, else bfloat16)")


def add_methods(parser: ArgumentParser, about: str, metavar: str = "METHOD|FOLDER") -> None:
    """--methods, --methods-dir; see `load_folders`."""
    parser.add_argument("--methods", nargs="+", default=[], metavar=metavar, help=about)
    parser.add_argument("--methods-dir", action="append", default=[], metavar="FOLDER", help="a folder of methods")


def add_json(parser: ArgumentParser, about: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=about)


def add_record(parser: ArgumentParser, out: str = "write the record as JSON") -> None:
    """--json, --out; see `deliver`. out: what --out does."""
    add_json(parser, "print the record as JSON")
    add_option(parser, "--out", out, type=output_file, metavar="FILE")


GROWING = "the record as JSON, saved as it grows; if it exists, go on with it"


# -- what may be typed ------------------------------------------------------------------------------------------------
def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number, `low` or more."""

    def whole(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < low:
            raise ArgumentTypeError(f"must be a whole number, {low} or more, got {text!r}")
        return int(text)

    return whole


def output_file(text: str) -> Path:
    """The type of an option that names a file to write: refused now if it cannot be written after hours of work."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text} is a folder; name a file")
    _check_writable(path)
    return path


def output_folder(text: str) -> Path:
    """The type of an option that names a folder to write into."""
    path = Path(text)
    _check_writable(path)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"{text} is a file; name a folder")
    return path


def _check_writable(path: Path) -> None:
    """Whether the path, or the nearest folder above it that exists, can be written."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if there != path and not there.is_dir():
        raise ArgumentTypeError(f"{there} is a file, so there is no {path}; name another place")
    if not os.access(there, os.W_OK):
        raise ArgumentTypeError(f"{there} cannot be written; name another place")


# -- loading ----------------------------------------------------------------------------------------------------------
def load_folders(args: Namespace) -> list[str]:
    """Load the method folders named in the arguments; what is left of `--methods` are names of methods."""
    from vtc_demo import registry

    names = [m for m in args.methods if not Path(m).is_dir()]
    for folder in [*args.methods_dir, *(m for m in args.methods if m not in names)]:
        registry.load_folder(folder)
    return names


def check_methods(names: Iterable[str]) -> None:
    """ValueError for an unknown method, before anything takes long."""
    from vtc_demo import registry

    for name in names:
        registry.resolve(name)


def load_model(args: Namespace):
    """The model that was asked for. A model of the hub may take minutes: only then are bars of progress shown."""
    from vtc_demo import models

    quiet(bars=args.model != "embedded" and not Path(args.model).is_dir())
    return models.load_vlm(args.model, device=args.device, dtype=args.dtype)


def quiet(bars: bool = False) -> None:
    """No advice of libraries between our lines; bars: but those of progress."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if not bars:
        transformers.logging.disable_progress_bar()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes with `count` threads; None: as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- progress and result ----------------------------------------------------------------------------------------------
def tell(line: str) -> None:
    """A line of progress on stderr, so that stdout is the result alone."""
    print(line, file=sys.stderr, flush=True)


def follow(events, out: Path | None) -> dict:
    """The record with which the events of a sweep end; on the way a progress bar, and the record so far in `out`."""
    from tqdm import tqdm

    from vtc_demo.evaluation import records

    saved = time.monotonic()
    with tqdm(unit="pass", mininterval=1) as bar:
        for kind, data in events:
            if kind == "progress":
                bar.total = data["total"]
                bar.set_postfix_str(data["label"], refresh=False)
                bar.update(data["done"] - bar.n)
            elif kind == "partial" and out and time.monotonic() - saved > SAVE_SECONDS:
                records.write(out, records.to_json(data()))
                saved = time.monotonic()
    return data


def deliver(args: Namespace, text: str, table: str) -> None:
    """Write a record (text: as JSON) where --out says, and print it or the table."""
    from vtc_demo.evaluation import records

    if args.out:
        records.write(args.out, text + "\n")
    print(text if args.json else table)
