"""Pure functions that several methods share. Nothing here waits for the device."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor


def top(scores: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` largest of scores [n], ascending, [keep] int64. Among equals the lowest index wins.

    A stable sort, because the order of equals in `torch.topk` differs between devices.
    """
    return scores.argsort(descending=True, stable=True)[:keep].sort().values


def others(chosen: Tensor, n: int) -> Tensor:
    """The indices of range(n) that are not in chosen [k] (unique), ascending, [n - k] int64."""
    taken = torch.zeros(n, dtype=torch.uint8, device=chosen.device).index_fill_(0, chosen, 1)
    return taken.argsort(stable=True)[: n - chosen.shape[0]]


def grid_within(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """Rows and columns of a smaller grid: at most `keep` cells, its shape as near to `grid` as possible.

    For every number of rows as many columns as fit; of these the one nearest in aspect ratio (fewer rows on a tie).
    """
    height, width = grid
    shapes = [(r, min(width, keep // r)) for r in range(1, min(height, keep) + 1)]

    def stretch(shape):  # exact, or equal shapes would differ in the last bit
        ratio = Fraction(shape[0] * width, shape[1] * height)
        return max(ratio, 1 / ratio)

    return min(shapes, key=lambda s: (stretch(s), s[0]))


def check_grid(name: str, grid: tuple[int, int], n: int) -> None:
    """Raise ValueError unless the n tokens are one grid of patches."""
    if n != grid[0] * grid[1]:
        raise ValueError(f"{name} works on one {grid[0]} x {grid[1]} grid of patches, but {n} visual tokens came")


def boundaries(layers: int, stages: int = 3) -> tuple[int, ...]:
    """First layers of stages 2 to `stages` + 1 when `layers` are cut in equal parts: 8, 16, 24 of 32."""
    return tuple(layers * k // (stages + 1) for k in range(1, stages + 1))
