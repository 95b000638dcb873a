"""Time methods at the shapes of real models, with random weights."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace

from .common import add_device, add_number, add_option, add_record, deliver, threads

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def add_options(parser: ArgumentParser) -> None:
    from vtc_demo.benchmark.lab import Settings, catalogue

    standard = Settings()
    several = {"nargs": "+", "type": int, "metavar": "N"}
    add_option(parser, "--shape", ", ".join(catalogue()), standard.shape)
    add_option(parser, "--methods", "beside the full model", standard.methods, nargs="+", metavar="METHOD")
    add_option(parser, "--tokens", "visual tokens left (default: a ninth)", **several)
    add_number(parser, "--text-tokens", "of the prompt", standard.text_tokens)
    add_number(parser, "--new-tokens", "answer length", standard.new_tokens, low=2)
    add_option(parser, "--batches", "answers at once", standard.batches, **several)
    add_option(parser, "--prefill-batches", "prompts at once (default: 1 8, on a GPU 1 8 32)", **several)
    add_option(parser, "--seconds", "no round begins after", standard.seconds, type=float, metavar="S")
    add_number(parser, "--warmups", "rounds not counted", standard.warmups)
    add_number(parser, "--repeats", "rounds measured", standard.repeats)
    add_number(parser, "--threads", "CPU threads (default: torch's)")
    add_device(parser, on_a_cpu="the fastest")
    add_record(parser)


def run(args: Namespace) -> int:
    from vtc_demo.benchmark import lab

    names = ("shape", "text_tokens", "new_tokens", "seconds", "warmups", "repeats", "device", "dtype")
    settings = lab.Settings(
        **{name: getattr(args, name) for name in names},
        methods=tuple(args.methods),
        tokens=tuple(args.tokens or lab.default_tokens(args.shape)),
        batches=tuple(args.batches),
        prefill_batches=tuple(args.prefill_batches or ()),
    )
    with threads(args.threads):
        record = follow(settings)
    deliver(args, json.dumps(record, indent=1), lab.table(record))
    return 0


def follow(settings) -> dict:
    """The record, with a progress bar on stderr."""
    from tqdm import tqdm

    from vtc_demo.benchmark import lab

    with tqdm(total=100, file=sys.stderr, bar_format=BAR, leave=False) as bar:  # an error is a line alone
        for event in lab.stream(settings):
            if event.kind == "stage":
                bar.set_description(event.data)
            elif event.kind == "progress":
                bar.update(100 * event.data - bar.n)
        bar.update(100 - bar.n)
    return event.data
