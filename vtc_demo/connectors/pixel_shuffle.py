"""Pixel shuffle (space to depth) of InternVL, then its MLP. arXiv 2404.16821."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vtc_demo.core.card import Card
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, blocks, even_shares, fixed


def pixel_shuffle(x: Tensor, side: int, version: int = 2) -> Tensor:
    """x [B, rows, columns, C] -> [B, rows / side, columns / side, side^2 C]; channels (row in block, column, c).

    version 1 leaves out the last transposition of the released code, a defect kept for old checkpoints: the grid comes
    out as [B, columns / side, rows / side, ...], its tokens in column order.
    """
    b, rows, columns, c = x.shape
    x = x.reshape(b, rows, columns // side, side * c).transpose(1, 2)
    x = x.reshape(b, columns // side, rows // side, side * side * c)
    return x.transpose(1, 2) if version == 2 else x


class ShuffleConnector(Connector):
    """Version 2, then LayerNorm, Linear, GELU, Linear."""

    side = 2

    def __init__(self, dims):
        super().__init__()
        wide = self.side**2 * dims.vision
        self.layer_norm = nn.LayerNorm(wide)
        self.linear_1 = nn.Linear(wide, dims.hidden)
        self.linear_2 = nn.Linear(dims.hidden, dims.hidden)

    def forward(self, features, grid, budget):
        members = blocks(grid, self.side, features.device)  # [m, 4], which also checks the grid
        patches = features[:, 1:].unflatten(1, grid)  # [B, rows, columns, C]
        deep = self.layer_norm(pixel_shuffle(patches, self.side).flatten(1, 2))  # [B, m, 4 C]
        tokens = self.linear_2(nn.functional.gelu(self.linear_1(deep)))  # [B, m, D]
        return Connected(tokens, 1 + members[:, 0], even_shares(members, grid[0] * grid[1]))

    def flops(self, n, m):
        wide, d = self.linear_1.in_features, self.linear_1.out_features
        return linear_flops(m, wide, d) + linear_flops(m, d, d)


@dataclass(frozen=True)
class PixelShuffle(Trained):
    """Resolution moves into channels: a 2 x 2 block of patches becomes one token four times as wide."""

    connector = ShuffleConnector

    retention: float = fixed(0.25, "always a quarter: blocks of 2 x 2")


PixelShuffle.card = Card(
    name="pixel-shuffle",
    title="Pixel shuffle",
    family="space-to-depth",
    summary="Each 2 x 2 block of patches is stacked into one deep vector and mapped to one token.",
    sites=("projector",),
    faithfulness="matches released code",
    paper="arXiv 2404.16821",
    code="OpenGVLab/InternVL",
    training_free=False,
    deviations=(
        RECIPE,
        "Version 2, in raster order. Version 1 of the released code hands over the grid transposed.",
        "In the mask every patch of a block has an equal share: the block enters the first layer whole.",
    ),
    reported="InternVL 1.5 keeps a quarter of the tokens, 256 per tile of 448 pixels.",
    order=202,
)
