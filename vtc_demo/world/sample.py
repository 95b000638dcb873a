"""Random scenes. The same arguments give the same scene; splits never share a random stream."""

from __future__ import annotations

import random

import numpy as np

from .render import card_size
from .scene import MAX_ITEMS, PATCH, Background, Item, Scene, Tag, _apart
from .vocabulary import COLOURS, PATTERNS, THINGS, WORDS

SPLITS = ("demo", "train", "eval")
GAP = 4  # px between boxes


def sample(seed: int, split: str = "demo", size: int = 336, items: int | None = None) -> Scene:
    """Return scene number `seed` of a split.

    `size` is the canvas side in px (multiple of 14, at least 112). `items` asks for that many items (0-12); default 2-8
    at 336 px and 1-4 at 168 px. When not all fit, the scene has fewer. Raises ValueError for an unknown split, a
    negative seed, a bad size or a bad number of items.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from: {', '.join(SPLITS)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size % PATCH or not 112 <= size <= 1344:
        raise ValueError(f"size must be a multiple of {PATCH} between 112 and 1344, got {size!r}")
    if items is not None and (isinstance(items, bool) or not isinstance(items, int) or not 0 <= items <= MAX_ITEMS):
        raise ValueError(f"items must be an integer from 0 to {MAX_ITEMS}, got {items!r}")
    seeded = np.random.default_rng([SPLITS.index(split), size, int(seed)])
    rng = random.Random(int(seeded.integers(1 << 62)))
    if items is None:
        items = rng.randint(*_counts(size))
    background = Background(rng.choice(PATTERNS), round(rng.random(), 3), rng.randrange(1 << 30))
    boxes: list[tuple[int, int, int, int]] = []
    tag = _tag(rng, size, boxes) if rng.random() < 0.75 else None
    things, colours = list(THINGS), list(COLOURS)
    if rng.random() < 0.5:
        things, colours = rng.sample(things, 2), rng.sample(colours, rng.randint(2, 3))
    placed = [_item(rng, size, things, colours, boxes) for _ in range(items)]
    return Scene(tuple(item for item in placed if item), tag, background, size)


def _counts(size: int) -> tuple[int, int]:
    if size >= 336:
        return 2, min(MAX_ITEMS, round(8 * (size / 336) ** 2))
    return (2 if size >= 252 else 1), max(1, round(8 * size / 336))


def _spot(rng: random.Random, size: int, width: int, height: int, boxes: list, tries: int) -> tuple[int, int] | None:
    """A free place for a box that keeps `GAP` px from the others and from the edge; returns left and top."""
    if size - width < 2 * GAP or size - height < 2 * GAP:
        return None
    for _ in range(tries):
        left, top = rng.randint(GAP, size - width - GAP), rng.randint(GAP, size - height - GAP)
        box = (left, top, left + width, top + height)
        if all(_apart(box, other, GAP) for other in boxes):
            boxes.append(box)
            return left, top
    return None


def _tag(rng: random.Random, size: int, boxes: list) -> Tag | None:
    if rng.random() < 0.65:
        text = str(rng.randint(10, 99) if rng.random() < 0.5 else rng.randint(100, 999))
    else:
        text = rng.choice(WORDS).upper()
    height = rng.choice((24, 26, 28, 30))
    width, tall = card_size(text, height)
    spot = _spot(rng, size, width, tall, boxes, 1)
    return spot and Tag(text, spot[0] + width // 2, spot[1] + tall // 2, height)


def _item(rng: random.Random, size: int, things: list, colours: list, boxes: list) -> Item | None:
    thing, colour = rng.choice(things), rng.choice(colours)
    small, big = 2 * rng.randint(18, 23), 2 * rng.randint(30, 35 if size < 250 else 42)
    for side in (big, small) if rng.random() < 0.5 else (small,):  # where a big one does not fit, a small one may
        if spot := _spot(rng, size, side, side, boxes, 40):
            return Item(thing, colour, side, spot[0] + side // 2, spot[1] + side // 2)
    return None
