"""Exact-match accuracy and surviving evidence on held-out scenes, by question kind, with 95 % Wilson intervals."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from tqdm import tqdm

from vtc_demo import engine, world
from vtc_demo.core import environment
from vtc_demo.core.images import Pictures
from vtc_demo.core.measures import right
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM
from vtc_demo.registry import resolve

from .intervals import share
from .questions import held_out


def graded(run: Run, question: world.Question) -> tuple[bool, float]:
    """(right, evidence): see `measures.right`; the share of the evidence patches that are
    kept or merged at the end of the pass, nan without evidence."""
    assert run.trace is not None  # of a run without an answer
    return right(run.answer, question.answer), run.trace.evidence_kept(torch.from_numpy(question.evidence))


def evaluate(vlm: VLM, methods: list[Method], questions: int = 2000, progress: bool = True) -> dict:
    """Run every method on the same questions. Returns a JSON-ready record with the environment.

    Right answers and evidence_kept (a mean) as in `graded`. Methods that draw at random draw anew for every scene.
    """
    tallies: list[dict[str, list[bool]]] = [defaultdict(list) for _ in methods]
    tokens: list[list[float]] = [[] for _ in methods]
    evidence: list[list[float]] = [[] for _ in methods]
    bar = tqdm(total=questions, unit="question", disable=not progress, mininterval=2)
    for seed, (scene, asked) in enumerate(held_out(questions)):
        pictures = Pictures.open(scene.image)
        for i, method in enumerate(methods):
            for q in asked:
                run = engine.run(vlm, pictures, q.text, method, seed=seed)
                hit, kept = graded(run, q)
                tallies[i][q.kind].append(hit)
                tokens[i].append(run.equivalent_tokens)
                evidence[i].append(kept)
        bar.update(len(asked))
    bar.close()
    rows = [
        {
            "method": method.spec(),
            "title": method.card.title,
            "equivalent_tokens": round(sum(tokens[i]) / len(tokens[i]), 1),
            "evidence_kept": round(float(np.nanmean(evidence[i])), 4),
            "kinds": {kind: share(tallies[i][kind]) for kind in world.KINDS},
            "all": share([hit for hits in tallies[i].values() for hit in hits]),
        }
        for i, method in enumerate(methods)
    ]
    return {
        "questions": questions,
        "split": "eval",
        "rows": rows,
        "environment": environment.environment(vlm.device, vlm.dtype),
    }


def label(row: dict) -> str:
    """Title, retention and the hyper-parameters that differ from their defaults."""
    spec = dict(row["method"])
    plain = resolve(spec.pop("method")).spec()
    share = spec.pop("retention")
    changed = [f"{name}={value}" for name, value in spec.items() if value != plain[name]]
    if share < 1:
        changed.insert(0, f"{100 * share:.3g} %")
    return row["title"] + (f" ({', '.join(changed)})" if changed else "")


def markdown(record: dict) -> str:
    """One row per method, one column per kind, percent right; the interval is that of all questions."""
    kinds = list(record["rows"][0]["kinds"])
    head = ["method", "tokens", "all (95 % CI)", *kinds]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row in record["rows"]:
        total = row["all"]
        cells = [label(row), f"{row['equivalent_tokens']:g}"]
        cells += [f"{100 * total['accuracy']:.1f} ({100 * total['low']:.1f}-{100 * total['high']:.1f})"]
        cells += [f"{100 * row['kinds'][kind]['accuracy']:.1f}" for kind in kinds]
        lines.append(" | ".join(cells))
    where = record["environment"]
    note = f"{record['questions']} held-out questions, exact match, in percent. "
    note += f"{where['date'][:10]}, {where['device']}, {where['dtype']}."
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{note}"
