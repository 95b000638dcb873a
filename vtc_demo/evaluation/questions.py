"""Which held-out questions are asked. The same arguments give the same questions, and fewer are the first of more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from vtc_demo import world

PER_SCENE = 16
FEW = 4  # of different kinds per scene where questions are balanced


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


def balanced(n: int, kinds: Sequence[str] = world.KINDS) -> Iterator[tuple[int, world.Scene, list[world.Question]]]:
    """(number of the scene, scene, questions): n questions in all, equally many of each kind.

    At most four per scene and no two of a kind, always of the kinds that were asked least so far. Scenes of the
    evaluation split; those to which no kind applies are passed over. Raises ValueError for an unknown kind.
    """
    if unknown := [k for k in kinds if k not in world.KINDS]:
        raise ValueError(f"unknown question kinds: {', '.join(unknown)}; choose from: {', '.join(world.KINDS)}")
    if not kinds or n < 1:
        raise ValueError(f"need at least one kind of question and one question, got {len(kinds)} and {n}")
    asked: Counter[str] = Counter()
    seed = 0
    while n > 0:
        scene = world.sample(seed, split="eval")
        found = _one_of_each(scene, seed, kinds)
        rarest = sorted(found, key=lambda kind: asked[kind])[: min(FEW, n)]
        if rarest:
            yield seed, scene, [found[kind] for kind in rarest]
        asked.update(rarest)
        n -= len(rarest)
        seed += 1


def _one_of_each(scene: world.Scene, seed: int, kinds: Sequence[str]) -> dict[str, world.Question]:
    """kind -> question, for the kinds that apply to the scene."""
    rng, found = np.random.default_rng(seed), {}
    for kind in kinds:
        try:
            found[kind] = world.ask(scene, rng, n=1, weights={kind: 1.0})[0]
        except ValueError:  # the kind does not apply
            continue
    return found
