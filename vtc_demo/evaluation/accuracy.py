"""Exact-match accuracy and surviving evidence on held-out scenes, by question kind, with 95 % Wilson intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from .. import engine, measure, world
from ..methods import resolve
from ..methods.base import Method
from ..models import VLM

PER_SCENE = 16


def held_out(n: int) -> Iterator[tuple[world.Scene, list[world.Question]]]:
    """Scenes of the evaluation split with their questions, n questions in all, every kind equally likely."""
    seed = 0
    while n > 0:
        scene = world.sample(seed, split="eval")
        questions = world.ask(scene, np.random.default_rng(seed), n=min(n, PER_SCENE))
        if questions:
            yield scene, questions
        n -= len(questions)
        seed += 1


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def evaluate(vlm: VLM, methods: list[Method], questions: int = 2000, progress: bool = True) -> dict:
    """Run every method on the same questions. Returns a JSON-ready record with the environment.

    An answer is right if it equals the truth, all of it. evidence_kept is the mean share of the evidence patches that
    are kept or merged at the end of the pass.
    """
    tallies = [defaultdict(list) for _ in methods]
    tokens = [[] for _ in methods]
    evidence = [[] for _ in methods]
    bar = tqdm(total=questions, unit="question", disable=not progress, mininterval=2)
    for scene, asked in held_out(questions):
        key = engine.picture_key(scene.image)
        for i, method in enumerate(methods):
            for q in asked:
                run = engine.run(vlm, scene.image, q.text, method, key=key)
                tallies[i][q.kind].append(run.answer == q.answer)
                tokens[i].append(run.trace.equivalent_tokens)
                evidence[i].append(run.trace.evidence_kept(torch.from_numpy(q.evidence)))
        bar.update(len(asked))
    bar.close()
    rows = [
        {
            "method": method.spec(),
            "title": method.card.title,
            "equivalent_tokens": round(sum(tokens[i]) / len(tokens[i]), 1),
            "evidence_kept": round(float(np.nanmean(evidence[i])), 4),
            "kinds": {kind: _share(tallies[i][kind]) for kind in world.KINDS},
            "all": _share([hit for hits in tallies[i].values() for hit in hits]),
        }
        for i, method in enumerate(methods)
    ]
    return {
        "questions": questions,
        "split": "eval",
        "rows": rows,
        "environment": measure.environment(vlm.device, vlm.dtype),
    }


def _share(hits: list[bool]) -> dict:
    right, n = sum(hits), len(hits)
    low, high = wilson(right, n)
    return {
        "right": right,
        "n": n,
        "accuracy": round(right / max(1, n), 4),
        "low": round(low, 4),
        "high": round(high, 4),
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
