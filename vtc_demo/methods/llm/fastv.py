"""FastV: after a shallow LLM layer, drop the visual tokens that the end of the prompt ignores (arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import top
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site


def select(last_row: Tensor, visual: Tensor, keep: int) -> Tensor:
    """The visual tokens that the last prompt token attends to most.

    last_row [heads, S]: its post-softmax attention over the sequence. visual [n]: places of the visual tokens.
    Returns [keep] int64 in [0, n), ascending. Rank: mean over heads.
    """
    return top(last_row.mean(0)[visual], keep)


@dataclass(frozen=True)
class FastV(Method):
    """One cut inside the LLM, ranked by the last prompt token's attention."""

    retention: float = param(
        0.25, "share of the visual tokens that is kept from the given layer on", low=0.01, high=1.0, step=0.01
    )
    layer: int = param(2, "first layer (0-based) that runs on fewer tokens", low=1, high=99, step=1)

    def sites(self, shape):
        if shape.llm_layers < 2:
            raise ValueError("fastv: a cut needs a layer before it; this model has fewer than 2 decoder layers")
        if self.layer >= shape.llm_layers:
            raise ValueError(
                f"fastv: layer={self.layer} does not exist; this model has decoder layers 0 to {shape.llm_layers - 1} "
                f"and can be cut at layer 1 to {shape.llm_layers - 1}"
            )
        return (Site("llm_layer", self.layer),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        last_row = context.attention("last", of="previous")[:, 0]  # [heads, 1, S] -> [heads, S]
        return Reduction.select(select(last_row, context.visual, self.keep(n)), n)


FastV.card = Card(
    name="fastv",
    title="FastV",
    family="pruning by text attention",
    summary="After a few layers of the language model, the patches to which the question pays least attention go.",
    sites=("llm_layer",),
    faithfulness="matches released code",
    paper="arXiv 2403.06764",
    code="pkunlp-icler/FastV",
    deviations=(
        "Ranked by the last prompt token's attention, as all released versions do; the paper says by that of all.",
        "Layer 2 is the paper's default; the released demo cuts at layer 3.",
        "Ranked once per answer, with a KV cache; the first release had none and ranked again at every new token.",
        "The released evaluation helper runs the layer before the cut twice, doubling its cache; not copied.",
        "Equal scores: the lowest index wins; the released top-k leaves their order open.",
    ),
    reported="45% fewer FLOPs on LLaVA-1.5-13B (layer 2, half of the tokens): A-OKVQA 81.3 against 81.9.",
    order=20,
)
