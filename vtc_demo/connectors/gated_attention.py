"""Gated cross-attention: Flamingo's way to feed the resampled tokens, outside the sequence. arXiv 2204.14198.

The block is that of Idefics, which is an open port of Flamingo: RMSNorm, the decoder's kind of gated MLP, tanh gates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtc_demo.core.card import Card
from vtc_demo.core.parameters import param
from vtc_demo.cost import attention_flops, linear_flops, mlp_flops

from .base import RECIPE, Connected, Connector, Trained, split_heads, strongest
from .decoder import fused
from .perceiver import Resampler


class GatedBlock(nn.Module):
    """Cross-attention to the picture, then a gated MLP; each through a tanh gate that starts at 0. No biases."""

    def __init__(self, width: int, context: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
        self.norm, self.feed_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q_proj, self.o_proj = linear(width, width), linear(width, width)
        self.k_proj, self.v_proj = linear(context, width), linear(context, width)
        self.gate_proj, self.up_proj, self.down_proj = linear(width, inner), linear(width, inner), linear(inner, width)
        self.gate, self.feed_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, m, C] -> keys and values [B, h, m, d]; without a norm, because the resampler ends with one."""
        return split_heads(self.k_proj(tokens), self.heads), split_heads(self.v_proj(tokens), self.heads)

    def forward(self, h: Tensor, k: Tensor, v: Tensor, sees: Tensor | None) -> Tensor:
        """h [B, S, D]; sees [S]: rows that come after the picture, None: all. Others read nothing."""
        read = self.o_proj(fused(split_heads(self.q_proj(self.norm(h)), self.heads), k, v, None, causal=False))
        read = read if sees is None else read * sees[:, None]
        h = h + self.gate.tanh() * read
        x = self.feed_norm(h)
        fed = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return h + self.feed_gate.tanh() * fed


class GatedConnector(Connector):
    """The perceiver resampler, and a gated block before every `every`-th decoder layer."""

    outside = True

    def __init__(self, dims, latents: int = 144, depth: int = 2, heads: int = 4, every: int = 2):
        super().__init__()
        self.resampler = Resampler(dims.vision, latents, depth, heads)
        before = [k for k in range(dims.layers) if (k + 1) % every == 0]
        block = lambda: GatedBlock(dims.hidden, dims.vision, dims.heads, dims.intermediate)  # noqa: E731
        self.layers = nn.ModuleDict({str(k): block() for k in before})

    def forward(self, features, grid, budget):
        tokens, weight = self.resampler(features[:, 1:], budget)  # [B, m, C], [B, m, n]
        weight = nn.functional.pad(weight, (1, 0))
        return Connected(tokens, strongest(weight), weight, soft=True)

    def flops(self, n, m):
        return self.resampler.flops(n, m)

    def draw(self, chance, n):
        return {"budget": round(self.resampler.latents.shape[1] * 16 ** -chance.random())}

    def layer_memory(self, lm, tokens, place):
        return {int(k): block.keys(tokens) for k, block in self.layers.items()}

    def layer_memory_flops(self, m):
        return sum(2 * linear_flops(m, b.k_proj.in_features, b.k_proj.out_features) for b in self.layers.values())

    def run(self, k, layer, h, held, sees, **how):
        if k in held:
            h = self.layers[str(k)](h, *held[k], sees)
        return layer(h, **how)

    def layer_flops(self, rows, m):
        total = 0
        for block in self.layers.values():
            width, inner = block.up_proj.in_features, block.up_proj.out_features
            total += 2 * linear_flops(rows, width, width) + attention_flops(rows * m, 1, width)
            total += mlp_flops(rows, width, inner, gated=True)
        return total


@dataclass(frozen=True)
class GatedCrossAttention(Trained):
    """The resampled tokens stay outside the sequence; new blocks between the layers read them."""

    connector = GatedConnector

    retention: float = param(
        64 / 576, "share of the visual tokens that is held, never more than 144", low=0.01, high=1.0, step=0.01
    )


GatedCrossAttention.card = Card(
    name="gated-cross-attention",
    title="Gated cross-attention",
    family="attention rework",
    summary="No visual token enters the sequence: new blocks between the layers let the words read the picture.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2204.14198",
    code="mlfoundations/open_flamingo",
    training_free=False,
    deviations=(
        RECIPE,
        "The decoder is tuned; Flamingo's is frozen.",
        "The block is Idefics' variant (RMSNorm, gated MLP, one gate each), before every second layer.",
        "No image token stands in the text; words before the picture read nothing.",
        "144 latents of which the first ones serve a smaller budget, trained with a random number per step. The "
        "count shown is of the tokens held beside the sequence.",
    ),
    reported="Flamingo: 64 tokens per image, read by blocks before every 1st, 4th or 7th layer.",
    order=210,
)
