"""Write a Hugging Face Space, ready to push, into a folder."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("kind", choices=("docker", "zerogpu"), help="docker: CPU or a GPU of its own; zerogpu: shared")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty, or the checkout of such a Space")
    parser.add_argument("--name", metavar="OWNER/SPACE", help="where it will be pushed to, for the printed command")


def run(args: Namespace) -> int:
    from vtc_demo.deploy import spaces

    spaces.write(args.kind, args.folder, args.name)
    print(spaces.next_steps(args.kind, args.folder, args.name))
    return 0
