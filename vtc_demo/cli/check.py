"""Hold the methods of a folder to the contract. Exit code 1 on findings."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from .common import add_json


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a folder with method files")
    add_json(parser)


def run(args: Namespace) -> int:
    from vtc_demo import registry
    from vtc_demo.methods import contract

    results = registry.check_folder(args.folder)
    if args.json:
        print(json.dumps({name: [vars(f) for f in findings] for name, findings in results.items()}, indent=1))
    else:
        print(contract.report(results))
    return int(any(results.values()))
