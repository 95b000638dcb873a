"""FiCoCo-V: filter, correlate, compress inside the vision encoder (arXiv 2411.17686)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import check_grid
from vtc_demo.core.parameters import param
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site

from ..maths import ficoco

DEPTH = 24  # encoder layers of the published model


def released_layer(logits: Tensor, count: int, cells: Tensor, grid: tuple[int, int], lam=0.35, eps=ficoco.EPS):
    """One layer of the released code, its defects included: (Reduction, discarded, target, alpha).

    logits [n, n]: head mean before the softmax; token 0 is taken for CLS. The weights are swapped, targets may be any
    of the n tokens, and places before the discard are used after it (negative ones, where more than half goes and the
    released code stops, count from the end). Rows: kept tokens by rising importance, token 0
    last. discarded [count] and the rows of target, alpha [count, k] are in the order of discarding.
    """
    n = logits.shape[0]
    score = ficoco.redundancy_v(ficoco.unit(logits[1:, 1:].mean(1)), ficoco.unit(logits[0, 1:]), 1 - lam)
    order = 1 + ficoco.penalise(score, cells[1:], grid).argsort(descending=True, stable=True)
    discarded, kept = order[:count], torch.cat([order[count:], torch.zeros_like(order[:1])])
    chance = logits[discarded].softmax(-1)
    target, alpha = ficoco.targets(chance, ficoco.fan_out(n, eps, strict=True))
    place = torch.where(target >= n - count, target - count, target) % (n - count)
    return ficoco.compress(kept, discarded, place, alpha, n)[0], discarded, target, alpha


@dataclass(frozen=True)
class FiCoCoV(Method):
    """The same number of patches goes at each encoder layer of the second half."""

    inside = True

    retention: float = param(0.25, "share of the patches that is left", low=0.01, high=1.0, step=0.01)
    per_layer: int = param(0, "patches discarded at each layer; 0: solved from retention", low=0, high=9999, step=1)
    start: int = param(12, "first reduced layer of a 24-layer encoder, scaled to the depth", low=0, high=23, step=1)
    lam: float = param(0.35, "weight of likeness against CLS attention in the filter", low=0.0, high=1.0, step=0.05)
    eps: float = param(0.998, "quantile of the correlation from which a token is a target", low=0.0, high=1.0)
    penalty: bool = param(True, "spread the discards: double the worst score of each 2 x 2 window")
    scores: str = param("probs", "attention after or before the softmax", choices=("probs", "logits"))
    released: bool = param(False, "compute as the released code does, defects included")

    def layers(self, shape: ModelShape) -> range:
        first = ficoco.scaled(self.card.name, self.start, shape.vision_layers, DEPTH, shape.feature_layer)
        return range(first, shape.feature_layer + 1)

    def sites(self, shape):
        if self.released and not shape.has_cls:
            raise ValueError(f"{self.card.name}: the released code needs a CLS token; use released=False")
        after = (Site("projector"),) if self.released else ()
        return tuple(Site("vision_layer", layer) for layer in self.layers(shape)) + after

    def left(self, shape: ModelShape, layer: int) -> int:
        """Patches left inside encoder layer `layer`."""
        layers = self.layers(shape)
        left = ficoco.even(shape.patches, self.keep(shape.patches), len(layers), self.per_layer)
        return left[layers.index(layer)]

    def reduce(self, context):
        n, device = len(context.hidden), context.hidden.device
        if context.site.kind == "projector":  # LLaVA drops the first token, whatever it is by now
            return Reduction.select(torch.arange(1, n, device=device), n)
        if "cells" not in context.memory:
            check_grid(self.card.name, context.shape.grid, n - context.extra)
            context.memory["cells"] = torch.arange(n, device=device) - context.extra
        cells = context.memory["cells"]
        count = self._count(context)
        if count <= 0:
            return None
        if self.released:
            reduction, *_ = released_layer(context.logits("all"), count, cells, context.shape.grid, self.lam, self.eps)
        else:
            reduction = self._paper(context, cells, count)
        context.memory["cells"] = cells[reduction.anchor]
        return reduction

    def _count(self, context) -> int:
        """Patches discarded at this layer; not above 0 if there are few enough."""
        extra = 1 if self.released else context.extra
        return len(context.hidden) - extra - self.left(context.shape, context.site.layer)

    def _paper(self, context, cells: Tensor, count: int) -> Reduction:
        extra, logits = context.extra, self.scores == "logits"
        pairs = context.logits("all") if logits else context.attention("all", heads="mean")  # [n, n]
        visual = pairs[extra:, extra:].mean(1 if logits else 0)
        cls = pairs[0, extra:] if extra else ficoco.no_cls(context.keys().float().mean(0))
        if logits:
            visual, cls = ficoco.unit(visual), ficoco.unit(cls)
        score = ficoco.redundancy_v(visual, cls, self.lam)
        score = ficoco.penalise(score, cells[extra:], context.shape.grid) if self.penalty else score

        def correlate(discarded, candidates):
            block = pairs[discarded][:, candidates]
            return block.softmax(-1) if logits else block

        return ficoco.reduce(score, correlate, extra, count, self.eps)

    def overhead_flops(self, context):
        """Row or column means; without CLS the likeness of keys to their mean; with logits a softmax per discard."""
        if context.site.kind == "projector" or (count := self._count(context)) <= 0:
            return 0
        n, dim = context.hidden.shape
        keys = 0 if context.extra or self.released else n * dim + 9 * n * dim // context.shape.vision_heads
        chance = count * n if self.released or self.scores == "logits" else 0
        return n * n + keys + chance


FiCoCoV.card = Card(
    name="ficoco-v",
    title="FiCoCo-V",
    family="merging",
    summary="Inside the image encoder, layer by layer, patches much like the others are folded into the few that "
    "they correlate with.",
    sites=("vision_layer",),
    faithfulness="from the paper",
    paper="arXiv 2411.17686",
    code="kawhiiiileo/FiCoCo",
    deviations=(
        "The sum over attention in the filter runs over the attention a patch receives, as the prose says; the "
        "formula's sum over the attention it gives is nearly the same for every patch. scores=logits takes row "
        "means before the softmax, at length 1, as released.",
        "Retention is what the encoder leaves; the number per layer is solved for it (published: only r=42).",
        "Starts at layer 12 of 24; other depths scale it.",
        "The eps-quantile of a row always leaves the same number of targets: 2 from 501 candidates on, else 1.",
        "released=True: weights of the filter swapped, logits, targets among all tokens and not renumbered after "
        "the discard, order by score with CLS last, so that the next layer takes a patch for CLS and LLaVA drops "
        "a patch instead. Each of it is a defect; outputs of one layer match the released code.",
        "Not copied even then: the released grid is shared by all images and marks the wrong cells as gone, so "
        "that the same image gives different results; here each image has its own grid with true places.",
    ),
    reported="LLaVA-1.5-7B at 3.3 / 2.4 / 1.5 TFLOPs: SQA 67.8 / 68.3 / 68.4 of 69.5, TextVQA 55.7 / 55.6 / 55.5 "
    "of 58.2, GQA 58.5 / 57.6 / 54.9 of 62.5.",
    finding=(  # assets/measurements/embedded_ablations.json
        "In ablations on 250 questions, asked for 128 tokens: 66.4 as it is, 68.0 without the local penalty (about "
        "6 points either way)."
    ),
    order=31,
)
