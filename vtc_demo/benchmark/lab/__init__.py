"""The Latency lab: what compression gains at the shapes of real models, on the machine at hand, without their weights.

One layer of each kind is made in its true size with random values and timed; a pass is the sum over its layers. How
many tokens a method leaves at each layer comes from a pass of the engine through a model of the same depth, a few
values wide. A method's own work is counted where it can be, but not timed: `python -m vtc_demo bench` measures that.
Methods that need trained weights are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from .experiment import Event, run, stream
from .plan import check, offered
from .report import reasons, table
from .settings import Settings
from .shapes import catalogue, pick

__all__ = ["Event", "Settings", "catalogue", "check", "main", "offered", "pick", "reasons", "run", "stream", "table"]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vtc_demo lab", description="Time methods at the shapes of real models, with random weights."
    )
    standard = Settings()
    parser.add_argument("--shape", default=standard.shape, help=f"{', '.join(catalogue())} (default: {standard.shape})")
    parser.add_argument(
        "--methods", nargs="+", default=standard.methods, metavar="METHOD", help="beside the full model"
    )
    parser.add_argument("--tokens", nargs="+", type=int, metavar="N", help="visual tokens left (default: a ninth)")
    parser.add_argument("--text-tokens", type=int, default=standard.text_tokens, metavar="N", help="of the prompt")
    parser.add_argument("--new-tokens", type=int, default=standard.new_tokens, metavar="N", help="answer length")
    parser.add_argument("--batches", nargs="+", type=int, default=standard.batches, metavar="N", help="answers at once")
    parser.add_argument(
        "--prefill-batches", nargs="+", type=int, metavar="N", help="prompts at once (default: 1 8, on a GPU 1 8 32)"
    )
    parser.add_argument("--seconds", type=float, default=standard.seconds, help="no round begins after (default: 40)")
    parser.add_argument("--warmups", type=int, default=standard.warmups, help="rounds not counted (default: 2)")
    parser.add_argument("--repeats", type=int, default=standard.repeats, help="rounds measured (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the fastest on a CPU, else bfloat16)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the experiment, print a table or JSON, optionally write the record."""
    args = arguments().parse_args(argv)
    names = ("shape", "text_tokens", "new_tokens", "seconds", "warmups", "repeats", "device", "dtype")
    settings = Settings(
        **{name: getattr(args, name) for name in names},
        methods=tuple(args.methods),
        tokens=tuple(args.tokens) if args.tokens else default_tokens(args.shape),
        batches=tuple(args.batches),
        prefill_batches=tuple(args.prefill_batches) if args.prefill_batches else None,
    )
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads {args.threads} must be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        record = follow(settings)
    finally:
        torch.set_num_threads(before)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1) if args.json else table(record))
    return 0


def default_tokens(shape: str) -> tuple[int, ...]:
    """One ninth of the visual tokens: 64 of 576, 320 of 2,880."""
    return (max(1, pick(shape).visual // 9),)


def follow(settings: Settings) -> dict:
    """The record, with a progress bar on stderr."""
    with tqdm(total=100, file=sys.stderr, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}") as bar:
        for event in stream(settings):
            if event.kind == "stage":
                bar.set_description(event.data)
            elif event.kind == "progress":
                bar.update(100 * event.data - bar.n)
        bar.update(100 - bar.n)
    return event.data
