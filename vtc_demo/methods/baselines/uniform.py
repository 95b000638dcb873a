"""Evenly spaced patches: a baseline that looks at neither image nor question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import check_grid, grid_within
from vtc_demo.core.tokens import Reduction, Site


def spread(n: int, k: int) -> list[int]:
    """k of range(n), each in the middle of one of k equal parts."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def evenly(grid: tuple[int, int], keep: int) -> Tensor:
    """`keep` patches spread over the grid, ascending, [keep] int64 on the CPU.

    First a regular sub-grid with the aspect of the grid, then patches spread evenly over the rest, in raster order.
    """
    height, width = grid
    rows, columns = grid_within(grid, keep)
    regular = [y * width + x for y in spread(height, rows) for x in spread(width, columns)]
    rest = sorted(set(range(height * width)) - set(regular))
    return torch.tensor(sorted(regular + [rest[i] for i in spread(len(rest), keep - len(regular))]))


@dataclass(frozen=True)
class Uniform(Method):
    """Keeps patches at even distances."""

    gridded = True

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        n, grid = context.hidden.shape[0], context.shape.grid
        check_grid(self.card.name, grid, n)
        return Reduction.select(evenly(grid, self.keep(n)).to(context.hidden.device), n)


Uniform.card = Card(
    name="uniform",
    title="Uniform",
    family="baseline",
    summary="Patches are picked at even distances, like reading every third word of a page.",
    sites=("llm_input",),
    faithfulness="baseline",
    order=2,
)
