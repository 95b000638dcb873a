"""Average pooling on the patch grid, after the projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..tokens import Reduction, Site
from .base import Card, Method
from .common import check_grid, grid_within


def blocks(size: int, parts: int) -> list[range]:
    """The ranges that adaptive pooling averages along an axis; they overlap where `parts` does not divide `size`."""
    return [range(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]


def average(grid: tuple[int, int], rows: int, columns: int) -> Reduction:
    """Adaptive average pooling of a grid to rows x columns, as a reduction on the CPU.

    Every patch of a block weighs 1 / block size; the new token stands at the block's centre patch (the upper left one
    of an even block). Equal to `torch.nn.functional.adaptive_avg_pool2d`.
    """
    height, width = grid
    new, old, weight, anchor = [], [], [], []
    for ys in blocks(height, rows):
        for xs in blocks(width, columns):
            patches = [y * width + x for y in ys for x in xs]
            new += [len(anchor)] * len(patches)
            old += patches
            weight += [1 / len(patches)] * len(patches)
            anchor.append(ys[(len(ys) - 1) // 2] * width + xs[(len(xs) - 1) // 2])
    tensor = torch.tensor
    return Reduction(tensor(new), tensor(old), tensor(weight), rows * columns, height * width, tensor(anchor))


@dataclass(frozen=True)
class Pool(Method):
    """Averages blocks of neighbouring visual tokens."""

    card: ClassVar[Card] = Card(
        name="pool",
        title="Average pooling",
        family="pooling",
        summary="Neighbouring patches are averaged into one, like shrinking the picture after a first look.",
        sites=("llm_input",),
        faithfulness="baseline",
        paper="arXiv 2408.03326",
        code="LLaVA-VL/LLaVA-NeXT",
        deviations=(
            "Adaptive blocks instead of a fixed stride: any budget is possible and no row or column is ignored.",
            "The count is rows x columns of the best-fitting grid and may lie below the budget (182 for 192 of 576).",
            "Only averaging: a maximum is no weighted sum of tokens, and bilinear skips patches at stride 3.",
        ),
        reported="LLaVA-OneVision uses 196 tokens per video frame for 32 frames (trained with pooling).",
        order=3,
    )

    gridded = True

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, view):
        n, grid = view.hidden.shape[0], view.shape.grid
        check_grid(self.card.name, grid, n)
        return average(grid, *grid_within(grid, self.keep(n))).to(view.hidden.device)

    def overhead_flops(self, site, n, dim, shape):
        rows, columns = grid_within(shape.grid, self.keep(n))
        along = lambda size, parts: sum(map(len, blocks(size, parts)))  # noqa: E731
        return 2 * along(shape.grid[0], rows) * along(shape.grid[1], columns) * dim
