"""Trained connectors beside methods that need no training, on the embedded model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from . import PROGRAM
from .common import GROWING, add_number, add_option, add_record, deliver, follow, quiet, threads


def add_options(parser: ArgumentParser) -> None:
    from vtc_demo.evaluation.zoo import QUESTIONS, TOKENS

    parser.add_argument("names", nargs="*", metavar="NAME", help="trained methods; default: all whose weights are here")
    add_option(parser, "--tokens", "visual tokens kept", TOKENS, nargs="+", type=int, metavar="N")
    add_number(parser, "--questions", "per point", QUESTIONS)
    add_option(parser, "--markdown", "fill in the tables of the zoo in this page", type=Path, metavar="FILE")
    add_number(parser, "--threads", "CPU threads", 1)
    add_record(parser, GROWING)


def run(args: Namespace) -> int:
    from vtc_demo import models
    from vtc_demo.evaluation import page, records, zoo, zoo_tables

    if args.markdown:
        page.check(args.markdown, "zoo")
    resume = records.read(args.out) if args.out and args.out.exists() else None
    quiet()
    with threads(args.threads):
        vlm = models.load_vlm("embedded", device="cpu")
        record = follow(zoo.events(vlm, args.names, args.tokens, args.questions, resume), args.out)
    record["command"] = f"{PROGRAM} {args.command}"
    table = zoo_tables.markdown(record)
    if args.markdown:
        page.fill(args.markdown, "zoo", table)
    deliver(args, records.to_json(record).rstrip(), table)
    return 0
