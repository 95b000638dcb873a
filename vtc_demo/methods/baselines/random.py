"""Random patches: the baseline that every pruning criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site


def draw(n: int, keep: int, seed: int) -> Tensor:
    """`keep` of n indices without replacement, ascending, [keep] int64 on the CPU.

    Drawn on the CPU, so that a seed means the same patches on every device. A larger `keep` contains the smaller one.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:keep].sort().values


@dataclass(frozen=True)
class Random(Method):
    """Keeps patches drawn at random from the seed of the run."""

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        return Reduction.select(draw(n, self.keep(n), context.seed).to(context.hidden.device), n)


Random.card = Card(
    name="random",
    title="Random",
    family="baseline",
    summary="Patches are picked blindly; a method that does not beat this has learned nothing about the image.",
    sites=("llm_input",),
    faithfulness="baseline",
    order=1,
)
