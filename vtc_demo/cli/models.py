"""List the models the app offers, and whether they fit here."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from .common import add_device, add_json


def add_options(parser: ArgumentParser) -> None:
    add_device(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    from vtc_demo import models

    rows, table = models.offers(args.device, args.dtype)
    print(json.dumps(rows, indent=1) if args.json else table)
    return 0
