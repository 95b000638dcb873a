"""The record of `evaluation.zoo` as Markdown: accuracy at equal tokens, accuracy at equal FLOPs, what each costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vtc_demo import registry
from vtc_demo.core.units import quantity

from . import paired

REFERENCE = "llava-mlp"  # the connector that compresses nothing, under the same recipe


def markdown(record: dict) -> str:
    """All tables, each under a heading of its own, and where they come from."""
    return "\n\n".join([*accuracy(record), *equal_flops(record), costs(record), source(record)])


def is_trained(row: dict) -> bool:
    return row["method"]["method"] in registry.trained()


def is_outside(row: dict) -> bool:
    """Whether it puts no visual token into the sequence."""
    return is_trained(row) and registry.trained()[row["method"]["method"]].connector.outside


def find(record: dict, spec: dict) -> dict | None:
    """The row of a method; None if it was left out."""
    return next((row for row in record["rows"] if row["method"] == spec), None)


# -- accuracy at equal tokens ---------------------------------------------------------------------------------------
def groups(record: dict) -> dict[str, list[dict]]:
    """Heading -> rows at the same count of tokens; within each, trained ones first and the most accurate first."""
    matched = [spec for group in record["equal_flops"] for spec in group["others"]]
    budgets = sorted({r["tokens"] for r in record["rows"] if r["tokens"] and r["method"] not in matched}, reverse=True)
    every = [row for row in record["rows"] if row["tokens"] is None and not is_outside(row)]
    found = {f"Every one of {record['model']['patches']} tokens": every}
    for n in budgets:
        same = (row for row in record["rows"] if row["tokens"] == n and row["method"] not in matched)
        found[f"Asked for {n} tokens"] = [row for row in same if not is_outside(row)]
    found["No visual token in the sequence"] = [row for row in record["rows"] if is_outside(row)]
    return {title: sorted(rows, key=_rank) for title, rows in found.items() if rows}


def _rank(row: dict) -> tuple:
    return not is_trained(row), -row["all"]["right"]


def accuracy(record: dict) -> list[str]:
    """A table per count of tokens: percent right and its 95 % interval, by kind of question."""
    asked = record["asked"]["kinds"]
    kinds = {kind: asked.count(kind) for kind in record["kinds"] if kind in asked}
    heads = ["method", "tokens", f"all (n {record['questions']})", "minus reference"]
    heads += [f"{kind} (n {n})" for kind, n in kinds.items()]
    reference = next((row for row in record["rows"] if row["method"]["method"] == REFERENCE), None)
    return [
        f"### {title}\n\n" + table(heads, [_accuracies(record, row, reference, kinds) for row in rows])
        for title, rows in groups(record).items()
    ]


def _accuracies(record: dict, row: dict, reference: dict | None, kinds: Iterable[str]) -> list[str]:
    less = difference(record, row, reference) if reference and is_trained(row) and row is not reference else ""
    parts = (share(row["kinds"][kind]) for kind in kinds)
    return [name(row), f"{row['equivalent_tokens']:.4g}", share(row["all"]), less, *parts]


def name(row: dict) -> str:
    """The title, bold if it was trained here; how many tokens it holds beside the sequence."""
    if not is_trained(row):
        return row["title"]
    return f"**{row['title']}**" + (f" ({row['tokens']} beside)" if is_outside(row) and row["tokens"] else "")


def share(part: dict) -> str:
    return f"{100 * part['accuracy']:.0f} ({100 * part['low']:.0f}-{100 * part['high']:.0f})"


# -- accuracy at equal FLOPs ----------------------------------------------------------------------------------------
def equal_flops(record: dict) -> list[str]:
    """A table per cost: the methods that have it, training-free ones solved for it, and the difference, paired."""
    return [_equal(record, group) for group in record["equal_flops"]]


def _equal(record: dict, group: dict) -> str:
    rows = [row for spec in group["methods"] if (row := find(record, spec))]
    others = [row for spec in group["others"] if (row := find(record, spec))]
    others.sort(key=_rank)
    heads = [
        "method",
        "tokens",
        "FLOPs",
        f"all (n {record['questions']})",
        *(f"{_plain(row)} minus this" for row in rows),
    ]
    lines = [[name(row), *_at(row), *("" for _ in rows)] for row in rows]
    lines += [[name(other), *_at(other), *(difference(record, row, other) for row in rows)] for other in others]
    cannot = ", ".join(f"{registry.get(m).card.title} ({note})" for m, note in group["cannot"].items())
    title = f"### Equal FLOPs: {', '.join(_plain(row) for row in rows)}"
    return f"{title}\n\n{table(heads, lines)}" + (f"\n\nNot at this cost: {cannot}." if cannot else "")


def _plain(row: dict) -> str:
    return name(row).replace("**", "")


def _at(row: dict) -> list[str]:
    return [f"{row['equivalent_tokens']:.4g}", quantity(row["flops"]), share(row["all"])]


def difference(record: dict, row: dict, other: dict) -> str:
    """Accuracy of one minus that of the other on the same questions, in points, 95 % bootstrap over scenes."""
    right, reference = ([int(digit) for digit in each["samples"]["right"]] for each in (row, other))
    found = paired.difference(reference, right, record["asked"]["scenes"])
    assert found is not None  # of no question
    return f"{100 * found.mean:+.0f} ({100 * found.low:+.0f} to {100 * found.high:+.0f})"


# -- cost -----------------------------------------------------------------------------------------------------------
def costs(record: dict) -> str:
    """What each costs, means over the questions; time is the median of one pass per question."""
    heads = [
        "method",
        "tokens at the last layer",
        "mean over layers",
        "parameters of connector or projector",
        "its FLOPs",
    ]
    heads += ["overhead", "prefill", "all to the first token", "KV cache", "TTFT, ms (IQR)"]
    rows = [row for rows in groups(record).values() for row in rows]
    return "### Cost\n\n" + table(heads, [_cost(record, row) for row in rows])


def _cost(record: dict, row: dict) -> list[str]:
    n, trained = record["questions"], record["zoo"].get(row["method"]["method"])
    stage = lambda s: quantity(row["samples"]["stages"][s] / n)  # noqa: E731
    parameters = trained["parameters"] if trained else record["projector_parameters"]
    counts = [f"{row['final_tokens']:.4g}", f"{row['equivalent_tokens']:.4g}", f"{parameters:,}"]
    flops = [stage("projector"), stage("compression"), stage("prefill"), quantity(row["flops"])]
    time = f"{row['ttft_ms']['median']:.1f} ({row['ttft_ms']['iqr']:.1f})"
    asked = f" at {row['tokens']}" if row["tokens"] and not is_outside(row) else ""
    return [name(row) + asked, *counts, *flops, quantity(row["kv_bytes"], "B"), time]


# -- words ----------------------------------------------------------------------------------------------------------
def recipe(facts: dict) -> str:
    """How long one was trained, in words."""
    return f"{' + '.join(map(str, facts['steps']))} steps of {facts['batch']} pictures"


def source(record: dict) -> str:
    """Of what all this was measured."""
    where, recipes = record["environment"], sorted({recipe(facts) for facts in record["zoo"].values()})
    left = "".join(f" Left out: {p['method']['method']} at {p['tokens']}: {p['reason']}." for p in record["left_out"])
    return (
        f"Bold: trained here, {' or '.join(recipes)}. {record['questions']} questions on "
        f"{record['scenes']} held-out scenes, every kind equally often; exact match, percent (95 % interval). Tokens "
        "are the mean over the decoder's layers. Minus reference: points beside the MLP projector, which is trained "
        "alike and compresses nothing, on the same questions (95 % bootstrap over scenes). Time is one pass per "
        f"question, the median. {where['date'][:10]}, {where['device']}, {where['dtype']}, {where['threads']} "
        f"thread{'s' if where['threads'] != 1 else ''}.{left}"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
