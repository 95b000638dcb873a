"""What was found here about a method, in words: taken from the recorded measurements, never typed."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from .. import methods
from ..methods.base import Card

RECORDS = Path(__file__).resolve().parents[2] / "assets" / "measurements"
BUDGETS = (192, 128, 64)  # those of the papers' tables
BASELINES = ("random", "uniform", "pool")


def finding(card: Card, records: Path = RECORDS) -> str:
    """Accuracy beside the baselines, speed beside the full model, then what the card itself adds ("" if nothing).

    records: folder with embedded_sweep.json and bench-cpu.json; what is not recorded is not told.
    """
    sweep, bench = _sweep(records), _bench(records)
    parts = [_accuracy(card.name, sweep), _speed(bench.get(card.name)), card.finding]
    return " ".join(part for part in parts if part)


def _accuracy(name: str, rows: dict) -> str:
    if name == "full" or not all((m, n) in rows for m in (name, *BASELINES) for n in BUDGETS):
        return ""
    mine = [rows[name, n] for n in BUDGETS]
    told = " / ".join(f"{_percent(r['all'])} ({100 * r['all']['low']:.0f}-{100 * r['all']['high']:.0f})" for r in mine)
    others = "; ".join(f"{m} {_line(rows, m)}" for m in BASELINES if m != name)
    kinds = ", ".join(
        f"{kind} {' / '.join(_percent(r['kinds'][kind]) for r in mine)}"
        + ("" if name == "random" else f" against {_line(rows, 'random', kind)} for random")
        for kind in ("reading", "counting")
    )
    return (
        f"Embedded VLM, {mine[0]['all']['n']} held-out questions, percent right (95 % interval) when asked for "
        f"192 / 128 / 64 tokens: {told}. Baselines: {others}. By kind: {kinds}."
    )


def _line(rows: dict, name: str, kind: str | None = None) -> str:
    return " / ".join(_percent(rows[name, n]["kinds"][kind] if kind else rows[name, n]["all"]) for n in BUDGETS)


def _percent(share: dict) -> str:
    return f"{100 * share['accuracy']:.0f}"


def _speed(row: dict | None) -> str:
    if row is None or row["method"]["method"] == "full":
        return ""
    return (
        f"At 64 tokens on one CPU thread the first token comes {row['ratios']['ttft']['median']:.1f} times as fast as "
        f"in the full model; own work is {100 * row['own_work']['median']:.0f} % of the full prefill."
    )


def _rows(file: Path) -> list[dict]:
    """The rows of a record that were run at default settings."""
    if not file.is_file():
        return []
    known = {card.name for card in methods.list_methods()}
    rows = [row for row in json.loads(file.read_text())["rows"] if row["method"]["method"] in known]
    return [row for row in rows if row["method"] == _default(row["method"])]


def _default(spec: dict) -> dict:
    return methods.resolve({k: spec[k] for k in ("method", "retention")}).spec()


@lru_cache(maxsize=2)
def _sweep(records: Path) -> dict[tuple[str, int], dict]:
    return {(row["method"]["method"], row["tokens"]): row for row in _rows(records / "embedded_sweep.json")}


@lru_cache(maxsize=2)
def _bench(records: Path) -> dict[str, dict]:
    return {r["method"]["method"]: r for r in _rows(records / "bench-cpu.json") if r["budget"] == 64}
