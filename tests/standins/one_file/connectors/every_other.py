"""A linear layer on every other patch: a connector without weights, added to a copy of the package by a test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vtc_demo.core.card import Card
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, fixed


class EveryOther(Connector):
    """Linear on the even patches."""

    def __init__(self, dims):
        super().__init__()
        self.linear = nn.Linear(dims.vision, dims.hidden)

    def forward(self, features, grid, budget):
        anchor = torch.arange(1, features.shape[1], 2, device=features.device)
        return Connected(self.linear(features[:, anchor]), anchor)

    def flops(self, n, m):
        return linear_flops(m, self.linear.in_features, self.linear.out_features)


@dataclass(frozen=True)
class EveryOtherPatch(Trained):
    """Every other patch, linearly."""

    connector = EveryOther

    retention: float = fixed(0.5, "always a half: every other patch")


EveryOtherPatch.card = Card(
    name="every-other",
    title="Every other patch",
    family="linear merger",
    summary="Every other patch is mapped to one token.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2501.00002",
    training_free=False,
    deviations=(RECIPE,),
    reported="Nothing.",
    order=209,
)
