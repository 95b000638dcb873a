"""Text and tables with numbers from the run, as Markdown output of a cell."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import torch
from IPython.display import Markdown, display

import vtc_demo as vtc
from vtc_demo.core.measures import right
from vtc_demo.core.units import quantity


def say(text: str) -> None:
    """Show Markdown: prose whose numbers were just computed, written as an f-string."""
    display(Markdown(textwrap.dedent(text).strip()))


def table(rows: Iterable[Iterable], header: Iterable[str]) -> None:
    """Show a table. Floats are written with three digits; columns of numbers are right-aligned."""
    header, rows = list(header), [[cell(value) for value in row] for row in rows]
    numeric = [all(row[i][:1] in tuple("+-0123456789") for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if number else "---" for number in numeric], *rows]
    display(Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines)))


def cell(value) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def results(runs: Iterable, question=None) -> None:
    """A row per run of `vtc.run` or `vtc.compare(...).runs`: answer, visual tokens, FLOPs, KV cache.

    question: of a scene (`scene.questions[i]`); then also whether the answer is right and how much evidence survived.
    Times are left out: they belong to a measurement with repeats.
    """
    runs = list(runs)
    evidence = None if question is None else torch.from_numpy(question.evidence)
    header = ["method", "answer", "visual tokens", "mean per layer", "FLOPs", "KV cache"]
    rows = []
    for run in runs:
        row = [run.method.card.title, run.answer, run.visual_tokens, f"{run.trace.equivalent_tokens:.0f}"]
        row += [quantity(run.flops["total"]), quantity(run.kv_bytes, "B")]
        if question is not None:
            row[1] += " ✓" if right(run.answer, question.answer) else " ✗"
            row.append(f"{100 * run.trace.evidence_kept(evidence):.0f} %")
        rows.append(row)
    if question is not None:
        header.append("evidence kept")
        say(f"**{question.text}** Truth: {question.answer}.")
    table(rows, header)


def report(name: str) -> None:
    """What the paper of a method reports and how faithful the package's version is, from the method's card."""
    card = vtc.registry.get(name).card
    lines = [f"**{card.title}** ({card.paper or 'no paper'}): {card.faithfulness}."]
    if card.reported:
        lines += ["", f"*The paper reports:* {card.reported}"]
    if card.deviations:
        lines += ["", "*Here it deviates:*", "", *(f"- {line}" for line in card.deviations)]
    if card.finding:
        lines += ["", f"*Found here, on the embedded VLM:* {card.finding}"]
    display(Markdown("\n".join(lines)))


def facts(values: dict[str, object]) -> None:
    """A table of two columns: what, and how much."""
    table(values.items(), ["what", "how much"])
