"""The course of the zoo's training, from its log."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .common import add_option, output_file


def add_options(parser: ArgumentParser) -> None:
    about = "default: assets/measurements/zoo_training.jsonl"
    parser.add_argument("log", nargs="?", type=Path, metavar="LOG", help=about)
    add_option(parser, "--markdown", "fill in the table of the course in this page", type=Path, metavar="FILE")
    add_option(parser, "--picture", "write the curves as SVG", type=output_file, metavar="FILE")


def run(args: Namespace) -> int:
    from vtc_demo.evaluation import page, records, zoo_training
    from vtc_demo.figures import zoo

    courses = zoo_training.read(args.log or zoo_training.LOG)
    table = zoo_training.markdown(courses)
    if args.markdown:
        page.fill(args.markdown, "zoo-training", table)
    if args.picture:
        records.write(args.picture, zoo.picture(courses))
    print(table)
    return 0
