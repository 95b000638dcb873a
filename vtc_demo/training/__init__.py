"""Recipes for everything shipped in assets/models. `python -m vtc_demo train embedded`, `... train zoo`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vtc_demo.core.assets import ASSETS

JSON_HELP = "print what was written and the last row of each stage's log as JSON"


def main(argv: list[str] | None = None) -> int:
    """`train embedded [--folder runs/embedded] [--out assets/models/embedded] [--scale 1.0] [--workers 1]`; the zoo has
    options of its own, see `zoo.main`."""
    if argv and argv[0] == "zoo":
        from . import zoo

        return zoo.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="vtc_demo train", description="Train what assets/models ships; resumes by itself."
    )
    parser.add_argument("what", choices=["embedded", "zoo"], help="the model to train")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "embedded", help="checkpoints and log")
    parser.add_argument("--out", type=Path, default=ASSETS / "models" / "embedded", help="where the model goes")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps (0.01 for a trial)")
    parser.add_argument("--batch", type=int, help="items per step, in place of the recipe's")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="go on from a saved model")
    parser.add_argument(
        "--only", nargs="+", metavar="STAGE", help="run these stages; default: all, with --start the last one"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    args = parser.parse_args(argv)
    from .recipe import train_embedded

    out = train_embedded(args.folder, args.out, args.scale, args.workers, args.batch, args.start, args.only)
    print(report([out], args.folder, args.json))
    return 0


def report(wrote: list[Path], folder: Path, as_json: bool) -> str:
    """What a training wrote, a line each; or as JSON, with the last row of the log of every stage in `folder`."""
    if not as_json:
        return "\n".join(f"wrote {out}" for out in wrote)
    rows = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    stages = {row["stage"]: row for row in rows}
    return json.dumps({"wrote": [str(out) for out in wrote], "stages": list(stages.values())}, indent=1)
