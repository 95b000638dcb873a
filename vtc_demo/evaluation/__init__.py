"""Accuracy on held-out scenes. `python -m vtc_demo evaluate`, `... evaluate zoo`, `... evaluate zoo-training`."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
OWN_OPTIONS = {"zoo": "zoo", "zoo-training": "zoo_training"}  # what is evaluated by modules of their own


def main(argv: list[str] | None = None) -> int:
    """Evaluate methods on held-out questions, write the record, optionally put the table into a Markdown file."""
    if argv and argv[0] in OWN_OPTIONS:
        return import_module(f".{OWN_OPTIONS[argv[0]]}", __package__).main(argv[1:])
    from vtc_demo import models, registry

    from .accuracy import evaluate, markdown

    parser = argparse.ArgumentParser(prog="vtc_demo evaluate", description="Accuracy on held-out generated scenes.")
    parser.add_argument("methods", nargs="*", default=["full"], help="full, fastervlm@0.25 ... (default: full)")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=int, default=2000, help="how many questions (default 2000)")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    parser.add_argument("--markdown", type=Path, help=f"write the table between {BEGIN} and {END} of this file")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    args = parser.parse_args(argv)
    chosen = [registry.resolve(m) for m in args.methods]
    record = evaluate(models.load_vlm(args.model), chosen, args.questions)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    table = markdown(record)
    if args.markdown:
        fill(args.markdown, table)
    print(json.dumps(record, indent=1) if args.json else table)
    return 0


def fill(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put text between two lines of a file. Raises ValueError without them."""
    head, found, rest = path.read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{path} lacks the lines {begin} and {end}")
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
