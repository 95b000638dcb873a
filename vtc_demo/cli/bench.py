"""Time methods against the full model, and the engine against model.generate."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from .common import (
    add_methods,
    add_model,
    add_number,
    add_option,
    add_record,
    check_methods,
    deliver,
    load_folders,
    load_model,
    tell,
    threads,
)


def add_options(parser: ArgumentParser) -> None:
    from vtc_demo.benchmark.bench import TOKENS

    add_option(parser, "--tokens", "visual tokens left", TOKENS, nargs="+", type=int, metavar="N")
    about = "also beside the way of released codes, where a method has one"
    parser.add_argument("--references", action="store_true", help=about)
    parser.add_argument("--compile", action="store_true", help="also with decoder layers compiled by torch.compile")
    add_number(parser, "--new-tokens", "answer length", 8, low=2)
    add_number(parser, "--warmups", "passes not counted", 2, low=0)
    add_number(parser, "--repeats", "pairs measured", 5)
    add_option(parser, "--scene", "generated scene", 0, type=int, metavar="SEED")
    add_methods(parser, "methods, or folders with method files (default: all)")
    add_number(parser, "--threads", "CPU threads", 1)
    add_model(parser)
    add_record(parser)


def run(args: Namespace) -> int:
    from vtc_demo import world
    from vtc_demo.benchmark.bench import bench
    from vtc_demo.benchmark.tables import table

    names = load_folders(args)
    check_methods(names)
    scene = world.sample(seed=args.scene)
    options = {"new_tokens": args.new_tokens, "warmups": args.warmups, "repeats": args.repeats}
    options |= {"with_references": args.references, "with_compiled": args.compile, "progress": tell}
    with threads(args.threads):
        record = bench(load_model(args), scene.image, scene.questions[0].text, names, args.tokens, **options)
    deliver(args, json.dumps(record, indent=1), table(record))
    return 0
