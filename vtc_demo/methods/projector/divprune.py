"""DivPrune: keep the subset whose tokens are as different from one another as possible (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site


def cosine_distance(tokens: Tensor) -> Tensor:
    """tokens [n, C] -> 1 - cosine similarity, [n, n] float32. Half precision would change ties and the first pick."""
    unit = tokens.float()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # a zero vector is at distance 1 from all
    return 1 - unit @ unit.T


def farthest_first(distance: Tensor, keep: int) -> Tensor:
    """Greedy max-min selection over distance [n, n]: indices in the order of selection, [keep] int64.

    First the token whose nearest neighbour is farthest away, then always the one farthest from all chosen so far; ties
    go to the lowest index. A running minimum [n] makes this O(keep * n); the picks are those of the full search.
    """
    n = distance.shape[0]
    if n == 1:
        return torch.zeros(1, dtype=torch.long, device=distance.device)
    nearest = distance.topk(2, dim=0, largest=False).values[1]  # second smallest of each column; the smallest is itself
    picks = [nearest.argmax().view(1)]
    gap = torch.full_like(nearest, float("inf"))  # [n] distance to the chosen set
    for _ in range(keep - 1):
        gap = torch.minimum(gap, distance.index_select(0, picks[-1])[0])  # indexing with a 0-d tensor would sync
        gap = gap.index_fill(0, picks[-1], -float("inf"))  # never chosen twice, even among identical tokens
        picks.append(gap.argmax().view(1))
    return torch.cat(picks)


@dataclass(frozen=True)
class DivPrune(Method):
    """Keeps mutually dissimilar tokens."""

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        order = farthest_first(cosine_distance(context.hidden), self.keep(n))
        return Reduction.select(order.sort().values, n)

    def overhead_flops(self, context):
        n, dim = context.hidden.shape
        return 3 * n * dim + 2 * n * n * dim + n * n  # unit length, similarities, distances from them


DivPrune.card = Card(
    name="divprune",
    title="DivPrune",
    family="diversity/coverage",
    summary="Patches are picked one by one, each as different as possible from those already picked.",
    sites=("llm_input",),
    faithfulness="matches released code",
    paper="arXiv 2503.02175",
    code="vbdi/divprune",
    deviations=(
        "The default keeps 25%; the released scripts keep 9.8%.",
        "The true place of the image in the prompt is used; the released code assumes 35 tokens before it.",
        "A token is never picked twice; the released code can do so when only copies of picked ones remain.",
        "Like the paper's, this greedy search approximates the best subset.",
    ),
    reported="Best reported accuracy over 16 image and video datasets without fine-tuning, at 9.8% of the tokens.",
    order=12,
)
