"""In the style of FocusLLaVA: a scale per window of the picture, then text-guided dropping. arXiv 2411.14228."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from vtc_demo.core.card import Card
from vtc_demo.core.operations import boundaries, top
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, blocks
from .decoder import states

WINDOW, SCALES = 4, (1, 2, 4)
BALANCE = 0.1  # weight of the load-balance loss; with 0.01 every window went to one scale


@cache
def slots() -> tuple[tuple[Tensor, ...], Tensor]:
    """(places in a window of the patches of each token, per scale [16 / s^2, s^2]; scale number of each token [21])."""
    groups = tuple(blocks((WINDOW, WINDOW), s) for s in SCALES)
    return groups, torch.cat([torch.full((len(g),), i) for i, g in enumerate(groups)])


def pooled(windows: Tensor) -> tuple[Tensor, Tensor]:
    """windows [B, w, 16, C] -> max-pooled tokens of all scales [B, w, 21, C], and the share of the channels in which
    each patch was the largest, [B, w, 21, 16]."""
    values, shares = [], []
    for group in slots()[0]:
        group = group.to(windows.device)
        value, which = windows[:, :, group].max(3)  # [B, w, t, C] each
        place = group[torch.arange(len(group), device=windows.device)[:, None], which]  # in the window
        share = windows.new_zeros(*value.shape[:3], windows.shape[2])
        shares.append(share.scatter_add_(3, place, torch.full_like(value, 1 / value.shape[-1]).detach()))
        values.append(value)
    return torch.cat(values, 2), torch.cat(shares, 2)


def packed(present: Tensor) -> tuple[Tensor, Tensor]:
    """present [B, s] -> (places of those present, in order, filled up to the longest row [B, m]; which are real)."""
    counts = present.sum(1)
    order = present.byte().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    return order, torch.arange(order.shape[1], device=present.device) < counts[:, None]


class FocusConnector(Connector):
    """Windows of 4 x 4 patches, each at the scale that the router picks: 16, 4 or 1 max-pooled tokens, an MLP per
    scale, times the gate. The budget is left to the sampler in the decoder."""

    def __init__(self, dims):
        super().__init__()
        c, d = dims.vision, dims.hidden
        self.router = nn.Linear(c, len(SCALES))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(c, d), nn.GELU(), nn.Linear(d, d)) for _ in SCALES)

    def forward(self, features, grid, budget):
        patches, members = features[:, 1:], blocks(grid, WINDOW, features.device)  # [B, n, C], [w, 16]
        windows = patches[:, members]  # [B, w, 16, C]
        gate = self.router(windows.mean(2)).softmax(-1)  # [B, w, 3]
        chosen = gate.argmax(-1)  # [B, w]
        scale = slots()[1].to(features.device)  # [21]
        order, real = packed((scale == chosen[..., None]).flatten(1))  # [B, m]
        window, slot = order // len(scale), order % len(scale)
        values, shares = pooled(windows)
        row = torch.arange(len(patches), device=features.device)[:, None]
        tokens = self.experts(values[row, window, slot], scale[slot]) * gate[row, window, scale[slot]][..., None]
        weight = features.new_zeros(*order.shape, features.shape[1])
        weight.scatter_(2, 1 + members[window], shares[row, window, slot])
        first = torch.cat([group[:, 0] for group in slots()[0]]).to(features.device)  # upper left place of each slot
        anchor = 1 + members[window, first[slot]]
        return Connected(tokens, anchor, weight, present=real, loss=self.balance(gate, chosen))

    def experts(self, x: Tensor, scale: Tensor) -> Tensor:
        """x [B, m, C] through the MLP of each token's scale [B, m] -> [B, m, D]."""
        out = x.new_zeros(*x.shape[:2], self.layers[0][2].out_features)
        for i, expert in enumerate(self.layers):
            here = (scale == i).nonzero(as_tuple=True)
            out = out.index_put(here, expert(x[here]).to(out))
        return out

    @staticmethod
    def balance(gate: Tensor, chosen: Tensor) -> Tensor:
        """Load balance: smallest if windows and gates are spread evenly over the scales."""
        share = torch.stack([(chosen == i).float().mean() for i in range(len(SCALES))])
        return BALANCE * len(SCALES) * (share * gate.mean((0, 1))).sum()

    def narrow(self, k, lm, entered, rope, mask, pack):
        """Per question, the visual tokens that its words look at least are hidden from its words."""
        cuts = boundaries(len(lm.layers))
        if k not in cuts:
            return mask
        counts = [keep_count(c, pack.budget, 1 + cuts.index(k), len(cuts)) for c in pack.counts.tolist()]
        with torch.no_grad():
            looks = question_looks(lm.layers[k - 1], entered, rope, mask, pack)  # [B, questions, n]
            rank = looks.argsort(dim=-1, descending=True, stable=True).argsort(-1)
            kept = rank < torch.tensor(counts, device=rank.device)[:, None, None]
        own = kept[torch.arange(len(kept), device=rank.device)[:, None], pack.block.clamp(min=0)]  # [B, text, n]
        text, mask = pack.block.shape[1], mask.clone()
        mask[:, -text:, pack.first : pack.first + pack.visual] &= own
        return mask

    def flops(self, n, m):
        c, d = self.layers[0][0].in_features, self.layers[0][0].out_features
        return linear_flops(n // WINDOW**2, c, len(SCALES)) + linear_flops(m, c, d) + linear_flops(m, d, d)

    def draw(self, chance, n):
        return {"budget": round(n * 16 ** -chance.random())}


def question_looks(layer: nn.Module, entered: Tensor, rope, mask: Tensor, pack) -> Tensor:
    """Attention of each question's words to each visual token in a layer, mean over heads and words, [B, questions, n].

    entered [B, S, D]: what entered the layer.
    """
    text = pack.block.shape[1]
    q, k, _ = states(layer.self_attn, layer.input_layernorm(entered), rope)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q[:, :, -text:] @ k.transpose(-1, -2) * layer.self_attn.scaling  # [B, h, text, S]
    weights = scores.masked_fill(~mask[:, None, -text:], float("-inf")).softmax(-1).mean(1)  # [B, text, S]
    words = nn.functional.one_hot(pack.block.clamp(min=0)).to(weights) * pack.asks[..., None]  # [B, text, questions]
    mean = words / words.sum(1, keepdim=True).clamp(min=1)
    return mean.transpose(1, 2) @ weights[..., pack.first : pack.first + pack.visual]


def keep_count(entered: int, final: int, stage: int, stages: int) -> int:
    """Tokens left after stage 1, 2, ... of `stages`: an even ratio from `entered` to `final`, never more."""
    return entered if final >= entered else round(entered * (final / entered) ** (stage / stages))


@dataclass(frozen=True)
class FocusLLaVA(Trained):
    """Dull windows of the picture become few tokens; later the question decides what stays."""

    connector = FocusConnector
    adaptive = True

    retention: float = param(64 / 576, "share of the patches left after the last cut", low=0.02, high=1.0, step=0.01)

    def sites(self, shape):
        return (Site("projector"), *(Site("llm_layer", k) for k in boundaries(shape.llm_layers)))

    def reduce(self, context):
        if context.site.kind == "projector":
            return None
        cuts = boundaries(context.shape.llm_layers)
        n, stage = context.hidden.shape[0], 1 + cuts.index(context.site.layer)
        keep = keep_count(context.base, self.keep(context.shape.patches), stage, len(cuts))
        if keep >= n:
            return None
        looks = context.attention("after", heads="mean").mean(0)[context.visual]  # of the question at each, [n]
        return Reduction.select(top(looks, max(1, keep)), n)


FocusLLaVA.card = Card(
    name="focusllava",
    title="FocusLLaVA-style",
    family="learned sampler",
    summary="A router gives each region as many tokens as it deserves; inside the model the question drops more.",
    sites=("projector", "llm_layer"),
    faithfulness="in the style of",
    paper="arXiv 2411.14228",
    training_free=False,
    deviations=(
        RECIPE,
        "No code is public and only the abstract and short summaries could be read: window size, router, one scale "
        "per window, cuts before the layers at a quarter, half and three quarters of the depth are choices made "
        "here.",
        "The budget is the count after the last cut; how many tokens enter is the router's choice.",
        "In training, questions share one picture: a token dropped for one question stays visible to the other "
        "visual tokens.",
    ),
    reported="Better than LLaVA-NeXT on several benchmarks with 39 % of its visual tokens (summary).",
    order=207,
)
