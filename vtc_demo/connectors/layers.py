"""Blocks that several connectors are made of."""

from __future__ import annotations

from torch import Tensor, nn

from vtc_demo.cost import linear_flops

from .base import attend, attend_flops, split_heads


class Attention(nn.Module):
    """Multi-head attention with projections of its own, no mask. width: of queries and output; context: of keys."""

    def __init__(self, width: int, context: int, heads: int, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(context, width, bias=bias)
        self.v_proj = nn.Linear(context, width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, m, width], context [B, n, context] -> output [B, m, width], head mean of the weights [B, m, n]."""
        q = split_heads(self.q_proj(x), self.heads)
        k, v = (split_heads(project(context), self.heads) for project in (self.k_proj, self.v_proj))
        out, weights = attend(q, k, v)
        return self.o_proj(out), weights

    def flops(self, m: int, n: int) -> int:
        width, context = self.q_proj.out_features, self.k_proj.in_features
        return 2 * linear_flops(m, width, width) + 2 * linear_flops(n, context, width) + attend_flops(m, n, width)


def feed_forward(width: int, ratio: int = 4, bias: bool = True) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(
        nn.Linear(width, ratio * width, bias=bias), nn.GELU(), nn.Linear(ratio * width, width, bias=bias)
    )


def feed_forward_flops(tokens: int, width: int, ratio: int = 4) -> int:
    return 2 * linear_flops(tokens, width, ratio * width)
