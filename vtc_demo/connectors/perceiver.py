"""Flamingo's perceiver resampler: learned latents read the picture, and themselves, in a few blocks.

arXiv 2204.14198.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtc_demo.core.card import Card
from vtc_demo.core.parameters import param
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, strongest
from .layers import Attention, feed_forward, feed_forward_flops


class ResamplerBlock(nn.Module):
    """Pre-norm cross-attention whose keys are the picture and the latents, then feed-forward; no biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.context_norm, self.latent_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, bias=False)
        self.feed_norm, self.feed = nn.LayerNorm(width), feed_forward(width, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """latents [B, m, C], context [B, n, C] -> (latents, attention over context and latents [B, m, n + m])."""
        normed = self.latent_norm(latents)
        read, weights = self.attention(normed, torch.cat([self.context_norm(context), normed], 1))
        latents = latents + read
        return latents + self.feed(self.feed_norm(latents)), weights


class Resampler(nn.Module):
    """The first `budget` latents through the blocks; the context is never changed."""

    def __init__(self, width: int, latents: int, depth: int, heads: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, latents, width))
        self.blocks = nn.ModuleList(ResamplerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, context: Tensor, budget: int) -> tuple[Tensor, Tensor]:
        """context [B, n, C] -> ([B, m, C], shares of the context [B, m, n]).

        Shares: the attention to the context, averaged over heads and blocks and scaled to add up to 1; what latents
        read of each other is left out.
        """
        x = self.latents[:, :budget].expand(len(context), -1, -1)
        seen = x.new_zeros(())
        for block in self.blocks:
            x, weights = block(x, context)
            seen = seen + weights[..., : context.shape[1]]
        return self.norm(x), seen / seen.sum(-1, keepdim=True)

    def flops(self, n: int, m: int) -> int:
        """n: length of the context."""
        width = self.norm.normalized_shape[0]
        return sum(block.attention.flops(m, n + m) + feed_forward_flops(m, width) for block in self.blocks)


class PerceiverConnector(Connector):
    """The resampler on the patches, then a linear layer to the decoder's width."""

    def __init__(self, dims, latents: int = 144, depth: int = 3, heads: int = 4):
        super().__init__()
        self.resampler = Resampler(dims.vision, latents, depth, heads)
        self.out = nn.Linear(dims.vision, dims.hidden)

    def forward(self, features, grid, budget):
        x, weight = self.resampler(features[:, 1:], budget)  # [B, m, C], [B, m, n]
        weight = nn.functional.pad(weight, (1, 0))
        return Connected(self.out(x), strongest(weight), weight, soft=True)

    def flops(self, n, m):
        return self.resampler.flops(n, m) + linear_flops(m, self.out.in_features, self.out.out_features)

    def draw(self, chance, n):
        return {"budget": round(self.resampler.latents.shape[1] * 16 ** -chance.random())}


@dataclass(frozen=True)
class PerceiverResampler(Trained):
    """Learned latents read the picture in three blocks; the results stand in the sequence as tokens."""

    connector = PerceiverConnector

    retention: float = param(
        64 / 576, "share of the visual tokens that is kept, never more than 144 tokens", low=0.01, high=1.0, step=0.01
    )


PerceiverResampler.card = Card(
    name="perceiver-resampler",
    title="Perceiver resampler",
    family="learned queries",
    summary="A few learned slots read the picture several times over; each slot becomes one token.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2204.14198",
    code="mlfoundations/open_flamingo",
    training_free=False,
    deviations=(
        RECIPE,
        "The tokens stand in the sequence, as in Idefics2; for Flamingo's own way see gated-cross-attention.",
        "Depth 3 and width 128 in place of depth 6 and width 1024; no frame embeddings, as in OpenFlamingo.",
        "144 latents of which the first ones serve a smaller budget, trained with a random number per step; "
        "the paper has 64, always all.",
    ),
    reported="Flamingo: 64 tokens from any number of patches or frames.",
    order=205,
)
