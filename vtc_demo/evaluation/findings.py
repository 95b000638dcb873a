"""What was found here about a method, in words: taken from the recorded measurements, never typed."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from vtc_demo import registry
from vtc_demo.core.assets import MEASUREMENTS
from vtc_demo.core.card import Card

from .zoo_tables import is_outside, recipe

RECORDS = MEASUREMENTS
BUDGETS = (192, 128, 64)  # those of the papers' tables
BASELINES = ("random", "uniform", "pool")
NOT_MEASURED = "Not measured here yet."


def finding(card: Card, records: Path = RECORDS) -> str:
    """Accuracy beside the baselines, speed beside the full model, then what the card itself adds.

    records: folder with embedded_sweep.json, bench-cpu.json and, for trained connectors, zoo.json. A method without
    recorded accuracy is NOT_MEASURED; of "full", which all others are compared with, nothing is told.
    """
    if card.name == "full":
        return card.finding
    if card.name in registry.trained():
        parts = [_trained(card.name, _zoo(records)) or NOT_MEASURED, card.finding]
    else:
        accuracy = _accuracy(card.name, _sweep(records)) or NOT_MEASURED
        parts = [accuracy, _speed(_bench(records).get(card.name)), card.finding]
    return " ".join(part for part in parts if part)


def _accuracy(name: str, rows: dict) -> str:
    if not all((m, n) in rows for m in (name, *BASELINES) for n in BUDGETS):
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
    if row is None:
        return ""
    return (
        f"At 64 tokens on one CPU thread the first token comes {row['ratios']['ttft']['median']:.1f} times as fast as "
        f"in the full model; overhead is {100 * row['own_work']['median']:.0f} % of the full prefill."
    )


# -- trained connectors ---------------------------------------------------------------------------------------------
REFERENCE = "llava-mlp"  # trained alike, compresses nothing
BESIDE = ("random", "pool", "divprune")  # training-free methods that stand beside


def _trained(name: str, record: dict | None) -> str:
    if record is None or name not in record["zoo"]:
        return ""
    rows = [row for row in record["rows"] if row["method"]["method"] == name]
    if not rows:
        return ""
    told = "; ".join(f"{_asked(row)}{_share(row['all'])}" for row in rows)
    facts = record["zoo"][name]
    parts = [
        f"Trained here for {recipe(facts)}. Embedded VLM, {rows[0]['all']['n']} held-out questions, percent right "
        f"(95 % interval): {told}.",
        _reference(name, record),
        _equal_flops(name, record) or _equal_tokens(rows, record),
        f"By kind: {_kinds(rows)}.",
        f"{facts['parameters']:,} parameters.",
        _first_token(rows, record),
    ]
    return " ".join(part for part in parts if part)


def _asked(row: dict) -> str:
    if not row["tokens"]:
        return ""
    return f"with {row['tokens']} beside the sequence " if is_outside(row) else f"at {row['tokens']} tokens "


def _share(part: dict) -> str:
    return f"{_percent(part)} ({100 * part['low']:.0f}-{100 * part['high']:.0f})"


def _reference(name: str, record: dict) -> str:
    row = next((row for row in record["rows"] if row["method"]["method"] == REFERENCE), None)
    return (
        "" if row is None or name == REFERENCE else f"Trained alike, the MLP without compression: {_share(row['all'])}."
    )


def _equal_tokens(rows: list[dict], record: dict) -> str:
    """Methods that need no training, on the shipped weights, at the same tokens."""
    budgets = [row["tokens"] for row in rows]
    found = []
    for name in BESIDE if None not in budgets else ("full",):
        same = {row["tokens"]: row["all"] for row in record["rows"] if row["method"]["method"] == name}
        if set(budgets) <= set(same):
            found.append(f"{name} {' / '.join(_percent(same[n]) for n in budgets)}")
    return f"Without training, on the shipped weights, at the same tokens: {'; '.join(found)}." if found else ""


def _equal_flops(name: str, record: dict) -> str:
    """The same at equal FLOPs, for methods without a token in the sequence."""
    by_spec = {json.dumps(row["method"]): row for row in record["rows"]}
    found = []
    for group in record["equal_flops"]:
        for spec in (spec for spec in group["methods"] if spec["method"] == name):
            others = [by_spec[json.dumps(other)] for other in group["others"] if json.dumps(other) in by_spec]
            said = ", ".join(f"{o['method']['method']} {_percent(o['all'])}" for o in others if _beside(o))
            row = by_spec.get(json.dumps(spec))
            found += [f"{_asked(row)}{said}"] if row and said else []
    return f"Without training, on the shipped weights, at equal FLOPs: {'; '.join(found)}." if found else ""


def _beside(row: dict) -> bool:
    return row["method"]["method"] in BESIDE


def _kinds(rows: list[dict]) -> str:
    told = (" / ".join(_percent(row["kinds"][kind]) for row in rows) for kind in rows[0]["kinds"])
    return ", ".join(f"{kind} {shares}" for kind, shares in zip(rows[0]["kinds"], told, strict=True))


def _first_token(rows: list[dict], record: dict) -> str:
    full = next((row for row in record["rows"] if row["method"]["method"] == "full"), None)
    if full is None:
        return ""
    times = " / ".join(f"{full['ttft_ms']['median'] / row['ttft_ms']['median']:.1f}" for row in rows)
    threads = record["environment"]["threads"]
    on = "one CPU thread" if threads == 1 else f"{threads} CPU threads"
    return f"On {on} the first token comes {times} times as fast as in the full model."


# -- records --------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=2)
def _zoo(records: Path) -> dict | None:
    file = records / "zoo.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _rows(file: Path) -> list[dict]:
    """The rows of a record that were run at default settings."""
    if not file.is_file():
        return []
    known = {card.name for card in registry.list_methods()}
    rows = [row for row in json.loads(file.read_text())["rows"] if row["method"]["method"] in known]
    return [row for row in rows if row["method"] == _default(row["method"])]


def _default(spec: dict) -> dict:
    return registry.resolve({k: spec[k] for k in ("method", "retention")}).spec()


@lru_cache(maxsize=2)
def _sweep(records: Path) -> dict[tuple[str, int], dict]:
    return {(row["method"]["method"], row["tokens"]): row for row in _rows(records / "embedded_sweep.json")}


@lru_cache(maxsize=2)
def _bench(records: Path) -> dict[str, dict]:
    return {r["method"]["method"]: r for r in _rows(records / "bench-cpu.json") if r["budget"] == 64}
