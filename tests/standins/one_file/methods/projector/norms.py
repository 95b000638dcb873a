"""Norms: a pruner before the language model, which a test adds to a copy of the package."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import top
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site


@dataclass(frozen=True)
class Norms(Method):
    """Keeps the patches with the largest norm."""

    power: float = param(2.0, "order of the norm", low=1.0, high=8.0, step=0.5)

    def sites(self, shape):
        return (Site("projector"),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        scores = context.hidden[context.extra :].float().norm(p=self.power, dim=-1)
        return Reduction.select(context.extra + top(scores, self.keep(n - context.extra)), n)

    def overhead_flops(self, context):
        n, dim = context.hidden.shape
        return 2 * n * dim


Norms.card = Card(
    name="norms",
    title="Largest norms",
    family="pruning by norm",
    summary="The patches with the strongest signal are kept.",
    sites=("projector",),
    faithfulness="from the paper",
    paper="arXiv 2501.00001",
    code="nobody/norms",
    deviations=("None known.",),
    reported="Nothing.",
    order=15,
)
