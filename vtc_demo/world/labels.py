"""Ground truth per patch, from the same masks that are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .render import glyph_boxes, glyph_ink, sprite
from .scene import PATCH
from .vocabulary import CHARACTERS, COLOURS, THINGS

if TYPE_CHECKING:
    from .scene import Scene, Tag

TAG = 255  # in the owner map
SHARE = 0.2  # of a patch's pixels
_THING = {name: i + 1 for i, name in enumerate(THINGS)}
_COLOUR = {name: i + 1 for i, name in enumerate(COLOURS)}


def owner_map(scene: Scene) -> np.ndarray:
    """Return uint8 [size, size]: 0 background, i + 1 for item i, 255 the tag's card. Later items cover earlier ones."""
    owner = np.zeros((scene.size, scene.size), np.uint8)
    for i, item in enumerate(scene.items):
        x0, y0, x1, y1 = item.box
        owner[y0:y1, x0:x1][sprite(item.thing, x1 - x0).solid] = i + 1
    if scene.tag is not None:
        x0, y0, x1, y1 = scene.tag.box
        owner[y0:y1, x0:x1] = TAG
    return owner


def visible_items(scene: Scene) -> tuple[int, ...]:
    """Return the indices of items of which at least a tenth of the mask is not covered."""
    counts = np.bincount(scene.owner.ravel(), minlength=256)
    whole = [sprite(item.thing, item.box[2] - item.box[0]).solid.sum() for item in scene.items]
    return tuple(i for i, total in enumerate(whole) if counts[i + 1] >= 0.1 * total)


def _span(low: int, high: int) -> tuple[int, int]:
    return low // PATCH, -(-high // PATCH)


def _cover(scene: Scene, index: int) -> tuple[slice, slice, np.ndarray]:
    """Patch rows, patch columns and visible pixels of item `index` in each of those patches."""
    x0, y0, x1, y1 = scene.items[index].box
    (r0, r1), (c0, c1) = _span(y0, y1), _span(x0, x1)
    mine = scene.owner[r0 * PATCH : r1 * PATCH, c0 * PATCH : c1 * PATCH] == index + 1
    rows = np.add.reduce(mine.view(np.uint8).reshape(r1 - r0, PATCH, -1), axis=1, dtype=np.uint8)
    return slice(r0, r1), slice(c0, c1), rows.reshape(r1 - r0, c1 - c0, PATCH).sum(2)


def dense_labels(scene: Scene) -> dict[str, np.ndarray]:
    """Return per-patch labels, each int64 [g, g] with g = size // 14; 0 means none.

    `thing`: index in THINGS + 1 of the item that covers most of the patch, if it covers at least 20 % of its pixels.
    `colour`: index in COLOURS + 1 of the same item. `size`: 1 small, 2 big. `anchor`: 1 where an item's centre lies.
    `char`: 1..10 the digits, 11..36 the letters: the character whose glyph box overlaps the patch most, from 20 %.
    `ordinal`: 1..4, which character of the tag it is.
    """
    g = scene.grid
    out = {name: np.zeros((g, g), np.int64) for name in ("thing", "colour", "size", "anchor", "char", "ordinal")}
    best = np.full((g, g), SHARE * PATCH * PATCH)
    for i in scene.seen:
        item = scene.items[i]
        rows, columns, count = _cover(scene, i)
        wins = count > best[rows, columns]
        best[rows, columns][wins] = count[wins]
        out["thing"][rows, columns][wins] = _THING[item.thing]
        out["colour"][rows, columns][wins] = _COLOUR[item.colour]
        out["size"][rows, columns][wins] = 1 if item.size == "small" else 2
        x0, y0, x1, y1 = item.box
        out["anchor"][(y0 + y1) // 2 // PATCH, (x0 + x1) // 2 // PATCH] = 1
    if scene.tag is not None:
        _label_text(scene.tag, scene.grid, out["char"], out["ordinal"])
    return out


def _label_text(tag: Tag, grid: int, char: np.ndarray, ordinal: np.ndarray) -> None:
    boxes = np.asarray(glyph_boxes(tag))  # [n, 4]
    edges = np.arange(grid) * PATCH
    wide, high = (
        np.clip(np.minimum(boxes[:, hi, None], edges + PATCH) - np.maximum(boxes[:, lo, None], edges), 0, None)
        for lo, hi in ((0, 2), (1, 3))
    )  # [n, g] px of each patch column / row that the box covers
    area = high[:, :, None] * wide[:, None, :]  # [n, g, g]
    first = area.argmax(0)
    hit = area.max(0) >= SHARE * PATCH * PATCH
    codes = np.array([CHARACTERS.index(c) + 1 for c in tag.text])
    char[hit] = codes[first[hit]]
    ordinal[hit] = first[hit] + 1


def _patches(pixels: np.ndarray) -> np.ndarray:
    g = pixels.shape[0] // PATCH
    return np.asarray(pixels.reshape(g, PATCH, g, PATCH).any((1, 3)))


def item_patches(scene: Scene, indices: tuple[int, ...]) -> np.ndarray:
    """Return bool [g, g]: patches with a visible pixel of one of these items."""
    out = np.zeros((scene.grid, scene.grid), bool)
    for i in indices:
        rows, columns, count = _cover(scene, i)
        out[rows, columns] |= count > 0
    return out


def text_patches(scene: Scene) -> np.ndarray:
    """Return bool [g, g]: patches with ink of the tag's text."""
    ink = np.zeros((scene.size, scene.size), bool)
    if scene.tag is not None:
        for (x0, y0, x1, y1), mask in zip(glyph_boxes(scene.tag), glyph_ink(scene.tag), strict=True):
            ink[y0:y1, x0:x1] |= mask
    return _patches(ink)


def background_patches(scene: Scene) -> np.ndarray:
    """Return bool [g, g]: patches that no item and no tag covers."""
    return ~_patches(scene.owner > 0)
