"""Attention rows on demand: exactly the rows that a method asks for, from a layer's own q and k.

The layers themselves run a fused kernel that returns no weights. A probe holds one layer together with the hidden
states that entered it, and repeats the first half of its attention for some rows. It books the FLOPs it spends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from . import cost

CHUNK = 1 << 25  # scores computed at a time


def softmax_rows(q: Tensor, k: Tensor, scale: float, rows: Tensor | None, mean: bool = False) -> Tensor:
    """q [heads, r, d], k [kv_heads, n, d] -> softmax(q k^T * scale), [heads, r, n] float32; mean over heads: [r, n].

    rows [r]: places of the queries among the keys for a causal mask; None: every key is seen. Each group of
    heads / kv_heads queries shares one key head (GQA). With `mean`, no more than CHUNK scores are held at a time.
    """
    heads, (kv_heads, n, d) = q.shape[0], k.shape
    k = k.transpose(1, 2)  # [kv_heads, d, n]
    step = max(1, CHUNK // (heads * n))
    parts = []
    for start in range(0, q.shape[1], step):
        grouped = q[:, start : start + step].reshape(kv_heads, -1, d)  # [kv_heads, heads / kv_heads * step, d]
        scores = (grouped @ k).view(heads, -1, n) * scale  # [heads, step, n]
        if rows is not None:
            future = torch.arange(n, device=k.device) > rows[start : start + step, None]  # [step, n]
            scores = scores.masked_fill(future, float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float32)
        parts.append(weights.mean(0) if mean else weights)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def mean_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q [heads, r, d], k [kv_heads, n, d] -> mean over heads of q k^T * scale, [r, n] float32, without a mask.

    One product over the heads side by side, so that no scores of single heads are held.
    """
    heads = q.shape[0]
    k = k.repeat_interleave(heads // k.shape[0], 0)
    q, k = (x.transpose(0, 1).flatten(1).float() for x in (q, k))  # [r, heads * d], [n, heads * d]
    return (q @ k.T) * (scale / heads)


class EncoderProbe:
    """One CLIP encoder layer and the tokens that entered it, [n, C]."""

    def __init__(self, layer: nn.Module, entered: Tensor):
        self.layer, self.entered, self.flops = layer, entered, 0
        self._normed = self._keys = None

    @property
    def tokens(self) -> int:
        return self.entered.shape[0]

    def _heads(self, x: Tensor) -> Tensor:
        """[n, C] -> [heads, n, d]"""
        attention = self.layer.self_attn
        return x.view(x.shape[0], attention.num_heads, attention.head_dim).transpose(0, 1)

    def _input(self) -> Tensor:
        if self._normed is None:
            self._normed = self.layer.layer_norm1(self.entered)
        return self._normed

    def keys(self) -> Tensor:
        """k_proj output, bias included, [heads, n, d]; computed once."""
        if self._keys is None:
            self._keys = self._heads(self.layer.self_attn.k_proj(self._input()))
            width = self.entered.shape[1]
            self.flops += cost.linear_flops(self.tokens, width, width)
        return self._keys

    def attention(self, rows: Tensor, mean: bool = False) -> Tensor:
        """rows [r] int64 -> [heads, r, n] float32, or its mean over the heads [r, n]."""
        return softmax_rows(self._queries(rows), self.keys(), self.layer.self_attn.scale, None, mean)

    def logits(self, rows: Tensor) -> Tensor:
        """rows [r] int64 -> [r, n] float32, see `mean_logits`."""
        return mean_logits(self._queries(rows), self.keys(), self.layer.self_attn.scale)

    def _queries(self, rows: Tensor) -> Tensor:
        """[heads, r, d]; books them and their scores."""
        attention = self.layer.self_attn
        heads, width = attention.num_heads, self.entered.shape[1]
        self.flops += cost.rows_attention_flops(
            len(rows), self.tokens, heads, attention.head_dim, width, heads, project_keys=False
        )
        return self._heads(attention.q_proj(self._input()[rows]))


class DecoderProbe:
    """One decoder layer and the sequence that entered it, [S, C].

    rope: (cos, sin) each [S, d] at the sequence's positions. cached: the layer's keys after RoPE [kv_heads, S, d] if it
    has run, which spares projecting them again.
    """

    def __init__(self, layer: nn.Module, entered: Tensor, rope: tuple[Tensor, Tensor], cached: Tensor | None = None):
        self.layer, self.entered, self.rope, self.cached, self.flops = layer, entered, rope, cached, 0

    @property
    def tokens(self) -> int:
        return self.entered.shape[0]

    def _turned(self, projected: Tensor, rows: Tensor | slice) -> Tensor:
        """[r, heads * d] -> [heads, r, d] with RoPE."""
        cos, sin = (part[rows] for part in self.rope)
        x = projected.view(projected.shape[0], -1, self.layer.self_attn.head_dim)  # [r, heads, d]
        return (x * cos[:, None] + rotate_half(x) * sin[:, None]).transpose(0, 1)

    def keys(self) -> Tensor:
        if self.cached is None:
            attention, everything = self.layer.self_attn, slice(None)
            projected = attention.k_proj(self.layer.input_layernorm(self.entered))
            self.cached = self._turned(projected, everything)
            self.flops += cost.linear_flops(self.tokens, self.entered.shape[1], projected.shape[1])
        return self.cached

    def attention(self, rows: Tensor, mean: bool = False) -> Tensor:
        """rows [r] int64 -> [heads, r, S] float32, causal, or its mean over the heads [r, S]."""
        return softmax_rows(self._queries(rows), self.keys(), self.layer.self_attn.scaling, rows, mean)

    def logits(self, rows: Tensor) -> Tensor:
        """rows [r] int64 -> [r, S] float32 in both directions, see `mean_logits`."""
        return mean_logits(self._queries(rows), self.keys(), self.layer.self_attn.scaling)

    def _queries(self, rows: Tensor) -> Tensor:
        """[heads, r, d] with RoPE; books them and their scores."""
        attention, keys = self.layer.self_attn, self.keys()
        q = self._turned(attention.q_proj(self.layer.input_layernorm(self.entered[rows])), rows)
        heads, kv_heads = q.shape[0], keys.shape[0]
        self.flops += cost.rows_attention_flops(
            len(rows), self.tokens, heads, attention.head_dim, self.entered.shape[1], kv_heads, project_keys=False
        )
        return q


class EncoderHalves:
    """A CLIP encoder layer in two steps, [1, n, C] each, for a method that acts between them."""

    @staticmethod
    def attend(layer: nn.Module, h: Tensor) -> Tensor:
        return h + layer.self_attn(layer.layer_norm1(h), attention_mask=None)[0]

    @staticmethod
    def feed(layer: nn.Module, h: Tensor) -> Tensor:
        return h + layer.mlp(layer.layer_norm2(h))


class DecoderHalves:
    """A Llama-like decoder layer in two steps, [1, S, C] each."""

    @staticmethod
    def attend(layer: nn.Module, h: Tensor, **state) -> Tensor:
        return h + layer.self_attn(hidden_states=layer.input_layernorm(h), **state)[0]

    @staticmethod
    def feed(layer: nn.Module, h: Tensor) -> Tensor:
        return h + layer.mlp(layer.post_attention_layernorm(h))
