"""Accuracy and surviving evidence against tokens, FLOPs and time."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from .common import (
    GROWING,
    add_methods,
    add_model,
    add_number,
    add_option,
    add_record,
    check_methods,
    deliver,
    follow,
    load_folders,
    load_model,
    output_file,
)


def add_options(parser: ArgumentParser) -> None:
    from vtc_demo.evaluation.sweep import TOKENS

    add_option(parser, "--tokens", "visual tokens kept", TOKENS, nargs="+", type=int, metavar="N")
    add_number(parser, "--questions", "how many questions per point", 200)
    add_option(parser, "--kinds", "kinds of question (default: all, equally many of each)", nargs="+", metavar="KIND")
    add_option(parser, "--csv", "the record as CSV, a line per point and kind", type=output_file, metavar="FILE")
    add_methods(parser, "methods, or folders with method files (default: all that need no training)")
    add_model(parser)
    add_record(parser, GROWING)


def run(args: Namespace) -> int:
    from vtc_demo import registry
    from vtc_demo.evaluation import records, sweep_table
    from vtc_demo.evaluation.sweep import BASELINES, sweep_events

    names = load_folders(args)
    check_methods(names)
    chosen = names or [c.name for c in registry.list_methods() if c.training_free and c.name not in BASELINES]
    resume = records.read(args.out) if args.out and args.out.exists() else None
    options = {"questions": args.questions, "resume": resume} | ({"kinds": args.kinds} if args.kinds else {})
    record = follow(sweep_events(load_model(args), chosen, args.tokens, **options), args.out)
    if args.csv:
        records.write(args.csv, records.to_csv(record))
    deliver(args, records.to_json(record).rstrip(), sweep_table.table(record))
    return 0
