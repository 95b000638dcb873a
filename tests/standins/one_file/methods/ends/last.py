"""Keeps the last tokens."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site

from ..maths.ends import ends


@dataclass(frozen=True)
class KeepLast(Method):
    """Keeps the last tokens."""

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        return Reduction.select(ends(n, self.keep(n), True, context.hidden.device), n)


KeepLast.card = Card(
    name="keep-last",
    title="The last tokens",
    family="position",
    summary="Only the last tokens are kept.",
    sites=("llm_input",),
    faithfulness="in the style of",
    deviations=("No published method.",),
)
