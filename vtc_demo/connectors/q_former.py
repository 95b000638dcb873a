"""BLIP-2's Q-Former: learned queries that attend to each other and, in every second layer, to the picture.

arXiv 2301.12597. Layer 0 is the first with cross-attention, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vtc_demo.core.card import Card
from vtc_demo.core.parameters import param
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, strongest
from .layers import Attention, feed_forward, feed_forward_flops

EPS = 1e-12


class QFormerLayer(nn.Module):
    """Post-norm: self-attention, cross-attention if the layer has it, feed-forward."""

    def __init__(self, width: int, context: int, heads: int, crosses: bool):
        super().__init__()
        self.attention, self.attention_norm = Attention(width, width, heads), nn.LayerNorm(width, eps=EPS)
        self.cross = Attention(width, context, heads) if crosses else None
        self.cross_norm = nn.LayerNorm(width, eps=EPS) if crosses else None
        self.feed, self.feed_norm = feed_forward(width), nn.LayerNorm(width, eps=EPS)

    def forward(self, x, features):
        """x [B, m, width], features [B, 1 + n, C] -> (x, weights of the cross-attention [B, m, 1 + n] or None)."""
        x, weights = self.attention_norm(x + self.attention(x, x)[0]), None
        if self.cross is not None:
            read, weights = self.cross(x, features)
            x = self.cross_norm(x + read)
        return self.feed_norm(x + self.feed(x)), weights


class QFormerConnector(Connector):
    """The first `budget` of `queries` learned queries, then a linear layer to the decoder's width.

    Provenance: the cross-attention, averaged over heads and layers; what queries pass on among themselves is left out.
    """

    def __init__(self, dims, queries: int = 144, layers: int = 4, every: int = 2, heads: int = 4):
        super().__init__()
        width = dims.vision
        self.feature_norm = nn.LayerNorm(dims.vision)
        self.queries = nn.Parameter(0.02 * torch.randn(1, queries, width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.layers = nn.ModuleList(QFormerLayer(width, dims.vision, heads, i % every == 0) for i in range(layers))
        self.out = nn.Linear(width, dims.hidden)

    def forward(self, features, grid, budget):
        features = self.feature_norm(features)  # [B, 1 + n, C]
        x = self.norm(self.queries[:, :budget]).expand(len(features), -1, -1)  # [B, m, width]
        seen = []
        for layer in self.layers:
            x, weights = layer(x, features)
            seen += [] if weights is None else [weights]
        weight = torch.stack(seen).mean(0)  # [B, m, 1 + n]
        return Connected(self.out(x), strongest(weight), weight, soft=True)

    def flops(self, n, m):
        width, total = self.out.in_features, linear_flops(m, self.out.in_features, self.out.out_features)
        for layer in self.layers:
            total += layer.attention.flops(m, m) + feed_forward_flops(m, width)
            total += 0 if layer.cross is None else layer.cross.flops(m, 1 + n)
        return total

    def draw(self, chance, n):
        most = self.queries.shape[1]
        return {"budget": round(most * 16 ** -chance.random())}


@dataclass(frozen=True)
class QFormer(Trained):
    """Learned queries read the picture by cross-attention; their outputs are the visual tokens."""

    connector = QFormerConnector

    retention: float = param(
        64 / 576, "share of the visual tokens that is kept, never more than 144 tokens", low=0.01, high=1.0, step=0.01
    )


QFormer.card = Card(
    name="q-former",
    title="Q-Former",
    family="learned queries",
    summary="A fixed set of learned questions reads the whole picture; each answer becomes one token.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2301.12597",
    code="salesforce/LAVIS",
    training_free=False,
    deviations=(
        RECIPE,
        "No first stage with contrastive, matching and captioning losses, and no BERT initialisation.",
        "4 layers of width 128 in place of 12 of width 768; the layers compute what BLIP-2's do.",
        "144 queries of which the first ones serve a smaller budget, trained with a random number per step; "
        "the paper has 32, always all.",
    ),
    reported="BLIP-2: 32 tokens from 257.",
    order=204,
)
