"""PyramidDrop: drop visual tokens in stages, the deeper the fewer (arXiv 2410.17247)."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import boundaries
from vtc_demo.core.parameters import param
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site

from .fastv import select

STAGES = 3


def keep_count(base: int, ratio: float) -> int:
    """int() of the initial count `base` times the ratio, as released (no rounding carried on); at least one."""
    return max(1, int(base * ratio))


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Three cuts inside the LLM, each ranked with the weights of the layer about to run."""

    positions = "renumber"

    retention: float = param(
        0.125,
        "share of the visual tokens that is left after the last of three stages; each stage keeps its cube root",
        low=0.01,
        high=1.0,
        step=0.005,
    )

    @property
    def factor(self) -> float:
        """The share that one stage keeps, the paper's lambda."""
        return self.ratios[0]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Share of the initial tokens after each stage, rounded: the last bit of a root must not cost int() a token."""
        return tuple(round(self.retention ** (k / STAGES), 12) for k in range(1, STAGES + 1))

    def sites(self, shape: ModelShape):
        if shape.llm_layers < STAGES + 1:
            raise ValueError(
                f"pyramiddrop: {STAGES} cuts need at least {STAGES + 1} decoder layers, this model has "
                f"layers 0 to {shape.llm_layers - 1}"
            )
        return tuple(Site("llm_layer", layer) for layer in boundaries(shape.llm_layers))

    def reduce(self, context):
        n = context.hidden.shape[0]
        stage = boundaries(context.shape.llm_layers).index(context.site.layer)
        last_row = context.attention("last", of="next")[:, 0]  # [heads, 1, S] -> [heads, S]
        keep = min(n, keep_count(context.base, self.ratios[stage]))
        return Reduction.select(select(last_row, context.visual, keep), n)


PyramidDrop.card = Card(
    name="pyramiddrop",
    title="PyramidDrop",
    family="pruning by text attention",
    summary="The language model starts with all patches and drops a share of them at each quarter of its depth.",
    sites=("llm_layer",),
    faithfulness="matches released code",
    paper="arXiv 2410.17247",
    code="Cooperx521/PyramidDrop",
    deviations=(
        "Cuts at 1/4, 1/2 and 3/4 of the layers: as released (8, 16, 24) for 32 layers, rounded down otherwise.",
        "The share left at the end is set; each cut keeps its cube root (0.125: half each time, as released).",
        "As released, tokens are ranked by the last prompt token alone, with the weights of the following layer.",
        "As released, positions are numbered anew after each cut.",
        "The released code rebuilds a padding mask with the old length; no padding is used here.",
    ),
    reported="40% less training time and 55% fewer inference FLOPs on LLaVA-NeXT at comparable accuracy.",
    order=21,
)
