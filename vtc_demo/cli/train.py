"""Train the embedded model, which assets/models ships; resumes by itself. For the connectors see `train zoo`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from .common import add_json, add_number, add_option, output_folder


def add_options(parser: ArgumentParser) -> None:
    from vtc_demo.core.assets import ASSETS

    parser.add_argument("what", choices=["embedded", "zoo"], help="the model to train")
    add_folders(parser, Path("runs") / "embedded", ASSETS / "models" / "embedded", "checkpoints and log")
    about = "multiplies every number of steps, 0.01 for a trial"
    add_option(parser, "--scale", about, 1.0, type=positive, metavar="X")
    add_number(parser, "--batch", "items per step, in place of the recipe's")
    add_option(parser, "--start", "go on from a saved model", type=Path, metavar="FOLDER")
    add_option(
        parser, "--only", "run these stages; default: all, with --start the last one", nargs="+", metavar="STAGE"
    )
    add_number(parser, "--workers", "processes that draw scenes", 1, low=0)


def run(args: Namespace) -> int:
    if args.what == "zoo":
        raise ValueError("zoo comes first and has options of its own; see: python -m vtc_demo train zoo --help")
    from vtc_demo.training.recipe import train_embedded

    out = train_embedded(args.folder, args.out, args.scale, args.workers, args.batch, args.start, args.only)
    print(report([out], args.folder, args.json))
    return 0


def add_folders(parser: ArgumentParser, folder: Path, out: Path, kept: str) -> None:
    """--folder, --out and --json, as in every training; see `report`. kept: what lies in the folder."""
    parser.add_argument("--folder", type=output_folder, default=folder, help=f"{kept} (default: {folder.as_posix()})")
    parser.add_argument("--out", type=output_folder, default=out, metavar="FOLDER", help="where the result goes")
    add_json(parser, "print what was written and the last row of each stage's log as JSON")


def positive(text: str) -> float:
    """The type of an option that takes a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def report(wrote: list[Path], folder: Path, as_json: bool) -> str:
    """What a training wrote, a line each; or as JSON, with the last row of the log of every stage in `folder`."""
    if not as_json:
        return "\n".join(f"wrote {out}" for out in wrote)
    rows = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    stages = {row["stage"]: row for row in rows}
    return json.dumps({"wrote": [str(out) for out in wrote], "stages": list(stages.values())}, indent=1)
