"""Keeps the first tokens."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site

from ..maths.ends import ends


@dataclass(frozen=True)
class KeepFirst(Method):
    """Keeps the first tokens."""

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        return Reduction.select(ends(n, self.keep(n), False, context.hidden.device), n)


KeepFirst.card = Card(
    name="keep-first",
    title="The first tokens",
    family="position",
    summary="Only the first tokens are kept.",
    sites=("llm_input",),
    faithfulness="in the style of",
    deviations=("No published method.",),
)
