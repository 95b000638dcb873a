"""The recipe of the embedded VLM: the tower on dense labels, then connector and decoder on packed questions.

Small pictures first (12 x 12 patches at random places of the 24 x 24 grid, objects at their final size), the full
picture at the end. Open questions come first; existence and relations join once colours and things are known.
Relations begin with "left or right of?": asked as yes or no from the start they stayed at chance.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from . import build
from .data import DenseScenes, PackedQuestions
from .loop import Stage, run_stage
from .objectives import AnswerObjective, DenseObjective

OPEN = dict(colour=2, object=2, size=1, counting=2, reading=2, background=0.5, existence=0.5, relation=0)
MIXED = dict(colour=2, object=1, size=1, counting=3, reading=1.5, background=0.25, existence=2, relation=3)
SIDE = dict(colour=0.7, existence=0.3, counting=0.7, side=6, relation=2)
HARD = dict(colour=0.75, object=0.5, size=0.75, counting=4, reading=1, background=0.15, existence=1.5, relation=10)
FULL = dict(colour=1, object=0.75, size=1.5, counting=8, reading=1.5, background=0.25, existence=2, relation=5)
COUNT = dict(colour=0.7, object=0.7, size=1.5, counting=12, reading=1, background=0.25, existence=1.5, relation=3.5)
MORE = COUNT | dict(counting=18)


def tower_stages(scale: float = 1.0) -> list[Stage]:
    n = lambda steps: max(2, int(steps * scale))  # noqa: E731
    return [
        Stage("tower-168", n(620), 64, 3e-3, partial(dense, window=12), cooldown=0.3),
        Stage("tower-336", n(560), 16, 1.5e-3, partial(dense, window=24, first=10**7), warmup=20, cooldown=0.2),
    ]


def answer_stages(tokenizer, scale: float = 1.0) -> list[Stage]:
    n = lambda steps: max(2, int(steps * scale))  # noqa: E731
    small = partial(packed, tokenizer=tokenizer, window=12)
    full = partial(packed, tokenizer=tokenizer, window=24, text=288)
    return [
        Stage("open-168", n(600), 16, 2e-3, partial(small, weights=OPEN), cooldown=0.01),
        Stage("mixed-168", n(450), 16, 2e-3, partial(small, weights=MIXED, first=2 * 10**7), warmup=20, cooldown=0.01),
        Stage("side-168", n(1000), 8, 1e-3, partial(small, weights=SIDE, first=4 * 10**7), warmup=20, cooldown=0.01),
        Stage("hard-168", n(2000), 8, 1e-3, partial(small, weights=HARD, first=5 * 10**7), warmup=20, cooldown=0.3),
        Stage("full-336", n(1300), 8, 1e-3, partial(full, weights=FULL, first=3 * 10**7), warmup=20, cooldown=0.5),
        Stage("count-336", n(380), 8, 6e-4, partial(full, weights=COUNT, first=6 * 10**7), warmup=20, cooldown=0.95),
        Stage("more-336", n(1000), 8, 6e-4, partial(full, weights=MORE, first=9 * 10**7), warmup=20, cooldown=0.95),
    ]


def dense(start: int, length: int, window: int, first: int = 0):
    return DenseScenes(first + start, length, window)


def packed(start: int, length: int, window: int, tokenizer, weights, first: int = 0, text: int = 192):
    return PackedQuestions(first + start, length, window, tokenizer, weights=weights, text=text)


def train_embedded(
    folder: Path,
    out: Path,
    scale: float = 1.0,
    workers: int = 1,
    batch: int | None = None,
    start: Path | None = None,
    only: list[str] | None = None,
) -> Path:
    """Train (or go on training) in `folder`; write the model to `out` in transformers format. Returns `out`.

    scale multiplies every stage's steps; batch replaces their batch sizes. start: a saved model to go on from. only:
    the stages to run; default all of them, with `start` the last. Raises ValueError for an unknown stage.
    """
    torch.manual_seed(0)
    processor = build.build_processor()
    model = build.build_model(processor) if start is None else build.load(start)
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    towers, answers = tower_stages(scale), answer_stages(processor.tokenizer, scale)
    names = [stage.name for stage in (*towers, *answers)]
    wanted = only or (names if start is None else names[-1:])
    if unknown := set(wanted) - set(names):
        raise ValueError(f"unknown stages: {', '.join(sorted(unknown))}; choose from: {', '.join(names)}")
    tower = DenseObjective(model.model.vision_tower, mean, std)
    for stage in towers:
        if stage.name in wanted:
            run_stage(replace(stage, batch=batch or stage.batch), tower, folder, workers)
    objective = AnswerObjective(model, mean, std, processor.tokenizer.encode("user:"))  # freezes the tower
    for stage in answers:
        if stage.name in wanted:
            objective.hint = 0.25 if stage.name.endswith("168") else 0.1  # on full pictures the answers lead
            run_stage(replace(stage, batch=batch or stage.batch), objective, folder, workers)
    build.save(model.eval().cpu(), processor, out)
    return out
