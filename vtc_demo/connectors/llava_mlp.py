"""The reference: LLaVA-1.5's two-layer MLP on every patch, no token fewer. arXiv 2310.03744."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vtc_demo.core.card import Card
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, fixed


class MLPConnector(Connector):
    """Linear, GELU (erf), Linear on each patch; CLS is left out."""

    def __init__(self, dims):
        super().__init__()
        self.linear_1 = nn.Linear(dims.vision, dims.hidden)
        self.linear_2 = nn.Linear(dims.hidden, dims.hidden)

    def forward(self, features, grid, budget):
        patches = features[:, 1:]  # [B, n, C]
        tokens = self.linear_2(nn.functional.gelu(self.linear_1(patches)))  # [B, n, D]
        return Connected(tokens, torch.arange(1, 1 + patches.shape[1], device=features.device))

    def flops(self, n, m):
        c, d = self.linear_1.in_features, self.linear_1.out_features
        return linear_flops(n, c, d) + linear_flops(n, d, d)


@dataclass(frozen=True)
class LlavaMLP(Trained):
    """Every patch becomes one token: what the other connectors are measured against."""

    connector = MLPConnector

    retention: float = fixed(1.0, "always 1: one token per patch")


LlavaMLP.card = Card(
    name="llava-mlp",
    title="MLP projector",
    family="baseline",
    summary="Every patch is mapped on its own and becomes one token; the reference for the trained connectors.",
    sites=("projector",),
    faithfulness="matches released code",
    paper="LLaVA-1.5, arXiv 2310.03744",
    code="haotian-liu/LLaVA",
    training_free=False,
    deviations=(RECIPE,),
    reported="LLaVA-1.5 feeds 576 tokens per image of 336 x 336 pixels; no compression.",
    order=200,
)
