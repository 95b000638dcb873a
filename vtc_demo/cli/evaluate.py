"""Accuracy on held-out generated scenes."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .common import add_model, add_number, add_option, add_record, deliver, load_model


def add_options(parser: ArgumentParser) -> None:
    about = "full, fastervlm@0.25 ... (default: full)"
    parser.add_argument("methods", nargs="*", default=["full"], metavar="METHOD", help=about)
    add_number(parser, "--questions", "how many questions", 2000)
    add_option(parser, "--markdown", "fill in the table of accuracies in this page", type=Path, metavar="FILE")
    add_model(parser)
    add_record(parser)


def run(args: Namespace) -> int:
    from vtc_demo import registry
    from vtc_demo.evaluation import accuracy, page

    chosen = [registry.resolve(name) for name in args.methods]
    if args.markdown:
        page.check(args.markdown, "accuracy")
    record = accuracy.evaluate(load_model(args), chosen, args.questions)
    table = accuracy.markdown(record)
    if args.markdown:
        page.fill(args.markdown, "accuracy", table)
    deliver(args, json.dumps(record, indent=1), table)
    return 0
