"""The uncompressed model, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.parameters import param


@dataclass(frozen=True)
class Full(Method):
    """Keeps every visual token."""

    retention: float = param(1.0, "always 1: all tokens are kept", low=1.0, high=1.0)

    def sites(self, shape):
        return ()

    def reduce(self, context):
        return None


Full.card = Card(
    name="full",
    title="Full",
    family="baseline",
    summary="Nothing is removed: the model sees every patch of the image.",
    sites=(),
    faithfulness="baseline",
    order=0,
)
