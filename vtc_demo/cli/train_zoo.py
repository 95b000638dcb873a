"""Train the connectors of assets/models/zoo; resumes by itself."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .common import add_number, tell
from .train import add_folders, report


def add_options(parser: ArgumentParser) -> None:
    from vtc_demo.connectors import files
    from vtc_demo.models import EMBEDDED
    from vtc_demo.training.zoo import ALIGN, BATCH, IMAGES, TUNE

    parser.add_argument("names", nargs="*", metavar="NAME", help="methods; default: all that need training")
    add_folders(parser, Path("runs") / "zoo", files.FOLDER, "features, checkpoints and log")
    add_number(parser, "--steps", "with the decoder frozen", ALIGN)
    add_number(parser, "--tune", "of connector and decoder together", TUNE)
    add_number(parser, "--batch", "pictures per step", BATCH)
    add_number(parser, "--images", "pictures whose features are kept, 151 kB each", IMAGES)
    parser.add_argument("--start", type=Path, default=EMBEDDED, metavar="FOLDER", help="model to start from")


def run(args: Namespace) -> int:
    from vtc_demo.training.zoo import train_zoo

    counts = (args.steps, args.tune, args.batch, args.images)
    made = train_zoo(args.names, args.folder, args.out, *counts, args.start, progress=tell)
    print(report(made, args.folder, args.json))
    return 0
