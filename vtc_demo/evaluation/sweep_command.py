"""`python -m vtc_demo sweep`: a sweep from the shell, its record as JSON and CSV, and its table."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

SAVE_SECONDS = 20  # between two savings of an unfinished record


def main(argv: list[str] | None = None) -> int:
    """Run a sweep, or go on with the one in --out."""
    from vtc_demo import models, registry

    from . import records
    from .sweep import BASELINES, TOKENS, sweep_events

    args = _parser(TOKENS).parse_args(argv)
    for folder in args.methods_dir:
        registry.load_folder(folder)
    chosen = args.methods or [c.name for c in registry.list_methods() if c.training_free and c.name not in BASELINES]
    resume = records.read(args.out) if args.out and args.out.exists() else None
    vlm = models.load_vlm(args.model, device=args.device, dtype=args.dtype)
    options = {"questions": args.questions, "resume": resume} | ({"kinds": args.kinds} if args.kinds else {})
    record = follow(sweep_events(vlm, chosen, args.tokens, **options), args.out)
    if args.csv:
        records.write(args.csv, records.to_csv(record))
    print(records.to_json(record).rstrip() if args.json else table(record))
    return 0


def _parser(tokens: tuple[int, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vtc_demo sweep", description="Accuracy and surviving evidence against tokens, FLOPs and time."
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="default: all that need no training")
    parser.add_argument("--tokens", nargs="+", type=int, default=tokens, metavar="N", help="visual tokens kept")
    parser.add_argument("--questions", type=int, default=200, help="how many questions per point (default 200)")
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="kinds of question (default: all, equally many of each)"
    )
    parser.add_argument("--out", type=Path, help="the record as JSON, saved as it grows; if it exists, go on with it")
    parser.add_argument("--csv", type=Path, help="the record as CSV, a line per point and kind")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--model", default="embedded", help="embedded, a folder or a hub id (default: embedded)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--methods-dir", action="append", default=[], metavar="FOLDER", help="a folder of methods")
    return parser


def follow(events, out: Path | None) -> dict:
    """The record at the end; on the way a progress bar, and the record so far in `out`."""
    from tqdm import tqdm

    from . import records

    saved = time.monotonic()
    with tqdm(unit="pass", mininterval=1) as bar:
        for kind, data in events:
            if kind == "progress":
                bar.total = data["total"]
                bar.set_postfix_str(data["label"], refresh=False)
                bar.update(data["done"] - bar.n)
            elif kind == "done":
                record = data
            elif out and time.monotonic() - saved > SAVE_SECONDS:
                records.write(out, records.to_json(data()))
                saved = time.monotonic()
    if out:
        records.write(out, records.to_json(record))
    return record


def table(record: dict) -> str:
    """One line per point, by budget and then by accuracy."""
    patches, where = record["model"]["patches"], record["environment"]
    head = ("method", "tokens", "mean", "accuracy (95 %)", "minus random", "evidence", "TTFT ms")
    lines = [_line(*head)]
    for row in sorted(record["rows"], key=lambda row: (-(row["tokens"] or patches), -row["all"]["right"])):
        share, less = row["all"], row["minus"]["random"]
        accuracy = f"{100 * share['accuracy']:.1f} ({100 * share['low']:.1f}-{100 * share['high']:.1f})"
        gain = f"{100 * less['mean']:+.1f} ({100 * less['low']:+.1f} to {100 * less['high']:+.1f})" if less else ""
        evidence = "" if share["evidence"] is None else f"{100 * share['evidence']['mean']:.0f} %"
        tokens = (f"{row[name]:.4g}" for name in ("final_tokens", "equivalent_tokens"))
        lines.append(_line(row["title"], *tokens, accuracy, gain, evidence, f"{row['ttft_ms']['median']:.1f}"))
    lines += [f"left out: {p['method']['method']} at {p['tokens']} tokens: {p['reason']}" for p in record["left_out"]]
    machine = ", ".join([where["device"], where["dtype"], f"{where['threads']} threads"])
    lines.append(f"{record['questions']} questions on {record['scenes']} held-out scenes, in percent. ")
    lines[-1] += f"{record['model']['name']}, {where['date'][:10]}, {machine}"
    return "\n".join(lines)


def _line(title: str, tokens: str, mean: str, accuracy: str, gain: str, evidence: str, ttft: str) -> str:
    return f"{title:<22}{tokens:>7}{mean:>7}  {accuracy:<20}{gain:<22}{evidence:>8}{ttft:>9}"
