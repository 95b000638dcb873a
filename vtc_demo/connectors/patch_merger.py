"""Qwen2-VL's patch merger: each 2 x 2 block of patches side by side, through an MLP. arXiv 2409.12191."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vtc_demo.core.card import Card
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, blocks, even_shares, fixed


class MergerConnector(Connector):
    """LayerNorm per patch, then the four patches of a block as one vector through Linear, GELU, Linear."""

    side = 2

    def __init__(self, dims):
        super().__init__()
        wide = self.side**2 * dims.vision
        self.ln_q = nn.LayerNorm(dims.vision, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, dims.hidden))

    def forward(self, features, grid, budget):
        members = blocks(grid, self.side, features.device)  # [m, 4]
        patches = self.ln_q(features[:, 1:])  # [B, n, C]
        joined = patches[:, members].flatten(2)  # [B, m, 4 C], channels (row in block, column in block, c)
        return Connected(self.mlp(joined), 1 + members[:, 0], even_shares(members, patches.shape[1]))

    def flops(self, n, m):
        return sum(linear_flops(m, layer.in_features, layer.out_features) for layer in (self.mlp[0], self.mlp[2]))


@dataclass(frozen=True)
class PatchMerger(Trained):
    """Four neighbouring patches become one token, nothing averaged before the first linear layer."""

    connector = MergerConnector

    retention: float = fixed(0.25, "always a quarter: blocks of 2 x 2")


PatchMerger.card = Card(
    name="patch-merger",
    title="Patch merger",
    family="linear merger",
    summary="Each 2 x 2 block of patches is laid side by side and mapped to one token.",
    sites=("projector",),
    faithfulness="matches released code",
    paper="arXiv 2409.12191",
    code="QwenLM/Qwen2-VL",
    training_free=False,
    deviations=(
        RECIPE,
        "The tower is fixed and trained without the merger; its patches come in raster order and are put into "
        "blocks here. Positions count through the tokens on one axis, not on the merged grid.",
        "In the mask every patch of a block has an equal share: the block enters the first layer whole.",
    ),
    reported="A quarter of the tokens as the built-in default of the model; the report has no ablation of it.",
    order=201,
)
