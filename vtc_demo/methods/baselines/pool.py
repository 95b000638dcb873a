"""Average pooling on the patch grid, after the projector."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import check_grid, grid_within
from vtc_demo.core.pooling import average
from vtc_demo.core.tokens import Site


@dataclass(frozen=True)
class Pool(Method):
    """Averages blocks of neighbouring visual tokens."""

    gridded = True

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        n, grid = context.hidden.shape[0], context.shape.grid
        check_grid(self.card.name, grid, n)
        return average(grid, *grid_within(grid, self.keep(n))).to(context.hidden.device)


Pool.card = Card(
    name="pool",
    title="Average pooling",
    family="pooling",
    summary="Neighbouring patches are averaged into one, like shrinking the picture after a first look.",
    sites=("llm_input",),
    faithfulness="baseline",
    paper="arXiv 2408.03326",
    code="LLaVA-VL/LLaVA-NeXT",
    deviations=(
        "Adaptive blocks instead of a fixed stride: any budget is possible and no row or column is ignored.",
        "The count is rows x columns of the best-fitting grid and may lie below the budget (182 for 192 of 576).",
        "Only averaging: a maximum is no weighted sum of tokens, and bilinear skips patches at stride 3.",
    ),
    reported="LLaVA-OneVision uses 196 tokens per video frame for 32 frames (trained with pooling).",
    order=3,
)
