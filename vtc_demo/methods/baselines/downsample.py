"""A smaller input picture: the baseline that saves work in the vision tower too."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.shape import ModelShape


@dataclass(frozen=True)
class Downsample(Method):
    """Shrinks the image before the model looks at it."""

    def sites(self, shape):
        return ()

    def reduce(self, context):
        return None

    def image_side(self, shape: ModelShape) -> int | None:
        cells = isqrt(self.keep(shape.patches))
        return None if cells >= max(shape.grid) else cells * shape.patch_size


Downsample.card = Card(
    name="downsample",
    title="Smaller image",
    family="baseline",
    summary="The picture is made smaller before the model looks at it, so fewer patches arise in the first place.",
    sites=("input_image",),
    faithfulness="baseline",
    deviations=(
        "The picture stays square: the count is the largest square number within the budget (169 for 192 of 576).",
        "The tower runs with interpolated position embeddings, which it may not have been trained for.",
    ),
    order=4,
)
