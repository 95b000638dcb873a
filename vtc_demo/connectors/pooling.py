"""Pooling after the MLP, as in LLaVA-OneVision: average, maximum or bilinear, to any grid. arXiv 2408.03326."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vtc_demo.core.card import Card
from vtc_demo.core.operations import grid_within
from vtc_demo.core.parameters import param
from vtc_demo.core.pooling import average

from .base import RECIPE, Connected, Trained
from .llava_mlp import MLPConnector

MODES = ("average", "max", "bilinear")


def pool(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """x [B, D, rows, columns] -> [B, D, *size]. Adaptive blocks; bilinear without antialias or aligned corners."""
    if mode == "bilinear":
        return F.interpolate(x, size=size, mode="bilinear")
    return F.adaptive_avg_pool2d(x, size) if mode == "average" else F.adaptive_max_pool2d(x, size)


@cache
def shares(grid: tuple[int, int], size: tuple[int, int], mode: str) -> tuple[Tensor, Tensor]:
    """(shares [m, 1 + n], anchors [m]) of the linear modes; for "max", of the blocks it looks at."""
    blocks = average(grid, *size)
    weight = blocks.dense()
    if mode == "bilinear":
        n = grid[0] * grid[1]
        weight = pool(torch.eye(n).view(1, n, *grid), size, mode)[0].flatten(1).T
    return F.pad(weight, (1, 0)), 1 + blocks.anchor


def winners(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Share of the channels in which each patch is the largest of its block, [B, m, 1 + n]. x [B, D, rows, columns]."""
    _, places = F.adaptive_max_pool2d(x, size, return_indices=True)  # [B, D, *size]
    places = places.flatten(2).transpose(1, 2)  # [B, m, D]
    out = torch.zeros(*places.shape[:2], 1 + grid[0] * grid[1], device=x.device)
    return out.scatter_add_(2, 1 + places, torch.full(places.shape, 1 / x.shape[1], device=x.device))


class PoolConnector(MLPConnector):
    """The MLP on every patch, then its outputs pooled to the largest grid within the budget."""

    def forward(self, features, grid, budget, mode="average"):
        size = grid_within(grid, budget)
        x = super().forward(features, grid, budget).tokens.transpose(1, 2).unflatten(2, grid)  # [B, D, rows, columns]
        tokens = pool(x, size, mode).flatten(2).transpose(1, 2)  # [B, m, D]
        weight, anchor = (t.to(features.device) for t in shares(grid, size, mode))
        return Connected(tokens, anchor, winners(x.detach(), grid, size) if mode == "max" else weight)

    def draw(self, chance, n):
        return {"budget": round(n * 16 ** -chance.random()), "mode": chance.choice(MODES)}


@dataclass(frozen=True)
class TrainedPool(Trained):
    """Neighbouring tokens are pooled to a smaller grid; decoder and projector were trained with it."""

    connector = PoolConnector

    retention: float = param(0.25, "share of the visual tokens that is kept", low=0.02, high=1.0, step=0.01)
    mode: str = param("average", "how a block becomes one token", choices=MODES)

    def options(self):
        return {"mode": self.mode}


TrainedPool.card = Card(
    name="trained-pool",
    title="Pooling, trained",
    family="pooling",
    summary="Neighbouring tokens are pooled to a smaller grid, by a model that was trained with pooled tokens.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2408.03326",
    code="LLaVA-VL/LLaVA-NeXT",
    training_free=False,
    deviations=(
        RECIPE,
        "Trained with a random grid and mode per step, so that one checkpoint serves every budget and mode.",
        "Adaptive blocks in place of a fixed stride, and no line breaks between rows; at stride 2 the three modes "
        "are those of the released code.",
        "Bilinear without antialias skips patches at strides above 2, as the released code does.",
        "In the mask a patch's share of a maximum is the share of channels in which it was the largest.",
    ),
    reported="LLaVA-OneVision uses 196 tokens per video frame for 32 frames.",
    order=203,
)
