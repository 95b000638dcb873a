"""Accuracy on held-out scenes. `python -m vtc_demo evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"


def main(argv: list[str] | None = None) -> int:
    """Evaluate methods on held-out questions, write the record, optionally put the table into a Markdown file."""
    from .. import methods, models
    from .accuracy import evaluate, markdown

    parser = argparse.ArgumentParser(prog="vtc_demo evaluate", description="Accuracy on held-out generated scenes.")
    parser.add_argument("methods", nargs="*", default=["full"], help="full, fastervlm@0.25 ... (default: full)")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=int, default=2000, help="how many questions (default 2000)")
    parser.add_argument("--out", type=Path, help="write the record as JSON")
    parser.add_argument("--markdown", type=Path, help=f"write the table between {BEGIN} and {END} of this file")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    args = parser.parse_args(argv)
    chosen = [methods.resolve(m) for m in args.methods]
    record = evaluate(models.load_vlm(args.model), chosen, args.questions)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    table = markdown(record)
    if args.markdown:
        text = args.markdown.read_text()
        head, _, rest = text.partition(BEGIN)
        if not rest or END not in rest:
            raise ValueError(f"{args.markdown} lacks the lines {BEGIN} and {END}")
        args.markdown.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    print(json.dumps(record, indent=1) if args.json else table)
    return 0
