"""The parts of a Llama-like decoder layer, for connectors that act between them. Fused attention throughout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import split_heads

Rope = tuple[Tensor, Tensor]


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """x [B, h, S, d] with the rotary positions rope, [B or 1, S, d] each."""
    cos, sin = (part[:, None] for part in rope)
    low, high = x.chunk(2, -1)  # here and not from transformers, whose import would slow down every list of methods
    return x * cos + torch.cat([-high, low], -1) * sin


def states(
    attention: nn.Module, x: Tensor, rope: Rope, cache=None, plus: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed x [B, S, D] -> q, k, v [B, h, S, d] with RoPE; k and v with all that the cache holds.

    plus: what is added to the outputs of the three projections.
    """
    found = [project(x) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
    found = found if plus is None else [a + b for a, b in zip(found, plus, strict=True)]
    q, k, v = (split_heads(y, y.shape[-1] // attention.head_dim) for y in found)
    q, k = apply_rope(q, rope), apply_rope(k, rope)
    if cache is not None:
        k, v = cache.update(k, v, attention.layer_idx)
    return q, k, v


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """q [B, h, S, d], k, v [B, h or fewer, T, d] -> heads side by side [B, S, h * d]. causal: where mask is None."""
    causal = causal and mask is None and q.shape[2] > 1
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2)
