"""VisionZip: dominant patches by CLS attention, the others averaged by key similarity (arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import others, top
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site

from ..maths.received import patch_attention


def split(keep: int) -> tuple[int, int]:
    """Dominant (CLS included) and contextual tokens, 54 : 10 as published (128 -> 108 + 20, 192 -> 162 + 30)."""
    dominant = max(1, round(keep * 54 / 64))
    return dominant, keep - dominant


def compress(scores: Tensor, metric: Tensor, dominant: int, contextual: int, average: bool = False) -> Reduction:
    """The reduction of one image.

    scores [patches]: attention of CLS to each patch. metric [extra + patches, d]: head mean of the layer's keys. The
    leading `extra` tokens count among the `dominant`. Rows: dominant tokens in ascending order, then contextual
    tokens, each standing at its target. A row of a contextual token is its target plus the mean of the tokens assigned
    to it, so its weights sum to 2 (released code); with `average` it is the mean over target and assigned (sum 1).
    """
    n = metric.shape[0]
    extra = n - scores.shape[0]
    lead = torch.arange(min(extra, dominant), device=scores.device)
    kept = torch.cat([lead, extra + top(scores, dominant - lead.shape[0])])  # [dominant]
    if contextual == 0:
        return Reduction.select(kept, n)
    rest = others(kept, n)  # [n - dominant]
    step = max(1, rest.shape[0] // contextual)
    place = torch.arange(contextual, device=rest.device) * step  # targets lie evenly in the list of the rest
    target, source = rest[place], rest[others(place, rest.shape[0])]
    group = assign(metric, source, target)  # [sources] in [0, contextual)
    size = torch.zeros(contextual, device=rest.device).index_add_(0, group, torch.ones_like(group, dtype=torch.float32))
    target_weight = 1 / (size + 1) if average else torch.ones_like(size)
    source_weight = (1 / (size + 1) if average else 1 / size)[group]
    return Reduction.merge(
        torch.cat([kept, target]),
        source,
        dominant + group,
        n,
        source_weight=source_weight,
        anchor_weight=torch.cat([torch.ones_like(kept, dtype=torch.float32), target_weight]),
    )


def assign(metric: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """For each source the target with the largest cosine similarity (ties: the first), [sources] int64."""
    metric = torch.nn.functional.normalize(metric.float(), dim=-1)
    return (metric[source] @ metric[target].T).argmax(1)  # [sources, targets] -> [sources]


@dataclass(frozen=True)
class VisionZip(Method):
    """Keeps dominant patches and averages the rest into contextual tokens."""

    average: bool = param(False, "contextual tokens are true means (released code: target plus mean of its group)")

    def sites(self, shape):
        return (Site("projector"),)

    def reduce(self, context):
        dominant, contextual = split(self.keep(context.hidden.shape[0] - context.extra))
        metric = context.keys().float().mean(0)  # [heads, n, d] -> [n, d]
        return compress(patch_attention(context), metric, dominant, contextual, self.average)

    def overhead_flops(self, context):
        """Head mean of the keys, their norms and division by them, similarities of the others to the targets."""
        n, dim = context.hidden.shape
        dominant, contextual = split(self.keep(n - context.extra))
        width, sources = dim // context.shape.vision_heads, n - dominant - contextual
        similarity = 3 * n * width + 2 * sources * contextual * width
        return n * dim + (similarity if contextual else 0)


VisionZip.card = Card(
    name="visionzip",
    title="VisionZip",
    family="pruning by vision attention",
    summary="The patches the image encoder looked at most are kept; all others are averaged into a few tokens.",
    sites=("projector",),
    faithfulness="matches released code",
    paper="arXiv 2412.04467",
    code="dvlab-research/VisionZip",
    deviations=(
        "Any budget is split 5.4 : 1 between dominant and contextual tokens, as 64, 128 and 192 are.",
        "As released, a contextual token is its target plus the mean of its group, about twice the norm of a mean; "
        "`average` gives the true mean.",
        "As released, the CLS token is kept and counts as one dominant token.",
        "Encoder without CLS token: the attention a patch receives, averaged over all rows, takes the place of CLS "
        "attention, and all dominant tokens are patches.",
        "The optional tuning of the projector is not covered.",
    ),
    reported="About 95% of performance with 10% of the tokens; prefill about 8x faster on LLaVA-NeXT.",
    order=11,
)
