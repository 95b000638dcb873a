"""FiCoCo-L: filter, correlate, compress inside the language model (arXiv 2411.17686)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.parameters import param
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Site

from ..maths import ficoco

DEPTH = 32  # decoder layers of the published model


def released_layer(pairs: Tensor, visual: Tensor, text: Tensor, count: int, beta=0.6, gamma=0.6, eps=ficoco.EPS):
    """One layer of the released code, its defects included: (Reduction, discarded, target, alpha).

    pairs [S, S]: head mean of the logits before the mask; visual [n], text [t]: places. The visual term is a sum,
    the text bridge lacks 1 / t, discarded tokens can be targets (what they receive is lost), nothing is divided. The
    first visual token is protected. discarded [count] falls in score; target [count, k] are visual tokens.
    """
    block, out, back = pairs[visual][:, visual], pairs[visual][:, text], pairs[text][:, visual]
    n = block.shape[0]
    score = ficoco.redundancy_l(block.sum(1), out.mean(1), beta)
    discarded = 1 + score[1:].argsort(descending=True, stable=True)[:count]
    correlation = ficoco.bridge(block[discarded], out[discarded], back, gamma, mean=False)
    correlation = correlation.scatter(1, discarded[:, None], -torch.inf)  # not to itself
    target, alpha = ficoco.targets(correlation.softmax(-1), ficoco.fan_out(n, eps, strict=True))
    gone = torch.zeros(n, dtype=torch.bool, device=pairs.device).index_fill_(0, discarded, True)
    kept = gone.to(torch.uint8).argsort(stable=True)[: n - count]
    place = (~gone).cumsum(0).sub(1).clamp(min=0)[target]  # in `kept`; of no matter where the weight is 0
    weight = torch.where(gone[target], 0.0, alpha)
    return ficoco.compress(kept, discarded, place, weight, n, divide=False)[0], discarded, target, alpha


@dataclass(frozen=True)
class FiCoCoL(Method):
    """The same number of visual tokens goes at each decoder layer from an early one on."""

    inside = True

    retention: float = param(
        0.25, "share of the visual tokens that is kept, as mean over the layers", low=0.01, high=1.0, step=0.01
    )
    per_layer: int = param(0, "tokens discarded at each layer; 0: solved from retention", low=0, high=9999, step=1)
    start: int = param(4, "first reduced layer of a 32-layer decoder, scaled to the depth", low=0, high=30, step=1)
    beta: float = param(0.6, "weight of likeness against text attention in the filter", low=0.0, high=1.0, step=0.05)
    gamma: float = param(0.6, "weight of direct correlation against the text bridge", low=0.0, high=1.0, step=0.05)
    eps: float = param(0.998, "quantile of the correlation from which a token is a target", low=0.0, high=1.0)
    scores: str = param("logits", "attention after or before mask and softmax", choices=("probs", "logits"))
    released: bool = param(False, "compute as the released code does, defects included")

    @property
    def positions(self):
        return "renumber" if self.released else "keep"

    def layers(self, shape: ModelShape) -> range:
        first = ficoco.scaled(self.card.name, self.start, shape.llm_layers, DEPTH, shape.llm_layers - 2)
        return range(first, shape.llm_layers - 1)

    def sites(self, shape):
        return tuple(Site("llm_layer", layer) for layer in self.layers(shape))

    def left(self, shape: ModelShape, layer: int, base: int) -> int:
        """Visual tokens left inside decoder layer `layer`."""
        layers, wanted = self.layers(shape), self.keep(shape.patches)
        left = ficoco.ramp(base, wanted, layers.start, shape.llm_layers, self.per_layer)
        return left[layers.index(layer)]

    def reduce(self, context):
        count = self._count(context)
        if count <= 0:
            return None
        visual, text = context.visual, context.text
        if self.released:
            reduction, *_ = released_layer(context.logits("all"), visual, text, count, self.beta, self.gamma, self.eps)
            return reduction
        logits = self.scores == "logits"
        pairs = context.logits("all") if logits else context.attention("all", heads="mean")  # [S, S]
        block, back = pairs[visual][:, visual], pairs[text][:, visual]
        out = pairs[visual][:, text] if logits else back.T  # [n, text]
        score = ficoco.redundancy_l(block.mean(1 if logits else 0), out.mean(1), self.beta)

        def correlate(discarded, candidates):
            found = ficoco.bridge(block[discarded][:, candidates], out[discarded], back[:, candidates], self.gamma)
            return found.softmax(-1) if logits else found

        return ficoco.reduce(score, correlate, 0, count, self.eps)

    def overhead_flops(self, context):
        """Means over the attention map, and per discard and token left: bridge, weights of both terms, softmax."""
        if (count := self._count(context)) <= 0:
            return 0
        n, text = len(context.hidden), len(context.text)
        left = n if self.released else n - count
        return n * n + n * text + count * left * (2 * text + 5)

    def _count(self, context) -> int:
        """Tokens discarded at this layer; not above 0 if there are few enough."""
        return len(context.hidden) - self.left(context.shape, context.site.layer, context.base)


FiCoCoL.card = Card(
    name="ficoco-l",
    title="FiCoCo-L",
    family="merging",
    summary="Inside the language model, layer by layer, patches that the prompt does not need are folded into the "
    "few that they correlate with, directly or by way of the text.",
    sites=("llm_layer",),
    faithfulness="from the paper",
    paper="arXiv 2411.17686",
    code="kawhiiiileo/FiCoCo",
    deviations=(
        "scores=logits: head mean of the scores before mask and softmax, as released, because a causal model has "
        "no attention from the image to the question behind it. scores=probs: the attention that a token receives "
        "from visual and from text tokens, and text attention to both ends of a bridge.",
        "With logits, the weights are the softmax of a row over the tokens left, as released over all tokens.",
        "Retention is the mean over the layers of the tokens entering them; the number per layer is solved for it. "
        "A mean below what the layers before the start cost is out of reach; then one token is left in the end.",
        "Starts inside layer 4 of 32, the paper's 4th (released: 5); other depths scale it. The last layer is left "
        "out: nothing reads what it does to visual tokens.",
        "The bridge has the factor 1/M of the text; the appendix omits it.",
        "released=True: sum instead of mean over visual tokens, no 1/M, first visual token protected, discarded "
        "tokens as targets, no division by 1 + sum of weights, positions numbered anew at each layer. Outputs of "
        "one layer match the released code.",
        "Not copied even then: the released code takes the first 576 places for the image, system prompt and all; "
        "here the true span is used.",
    ),
    reported="LLaVA-1.5-7B at 3.3 / 2.4 / 1.5 TFLOPs: SQA 69.6 / 69.4 / 69.5 of 69.5, TextVQA 56.6 / 56.3 / 55.7 "
    "of 58.2, GQA 61.1 / 60.6 / 53.2 of 62.5.",
    finding=(
        "With 8 layers the default start cannot average below 145 tokens, so 128 and 64 are that run, and one "
        "token is left at the end. In ablations on 250 questions, asked for 128 tokens: 46.8 as it is, 42.8 "
        "started at layer 0 (about 6 points either way)."
    ),
    order=32,
)
