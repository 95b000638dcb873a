"""Hyper attention of mPLUG-Owl3: in a few layers the words' own queries also read the picture. arXiv 2408.04840.

Two released versions: "gated" runs both attentions side by side and blends them, "fused" runs one softmax over both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vtc_demo.core.card import Card
from vtc_demo.cost import attention_flops, linear_flops

from .base import RECIPE, Trained, fixed
from .decoder import apply_rope, fused, states
from .llava_mlp import MLPConnector

Pair = tuple[Tensor, Tensor]  # keys and values


class HyperConnector(MLPConnector):
    """The MLP on every patch; new key and value projections in every `every`-th layer from layer 0 on."""

    outside = True
    gated: ClassVar[bool]

    def __init__(self, dims, every: int = 2):
        super().__init__(dims)
        self.head_dim, self.heads = dims.head_dim, dims.heads
        kv = dims.kv_heads * dims.head_dim
        at = range(0, dims.layers, every)
        self.layers = nn.ModuleDict({str(k): nn.Linear(dims.hidden, 2 * kv) for k in at})
        if self.gated:
            width = dims.heads * dims.head_dim
            self.gates = nn.ParameterDict({str(k): nn.Parameter(torch.zeros(width)) for k in at})

    def layer_memory(self, lm, tokens, place):
        """Keys and values [B, h, n, d] of each hyper layer, under that layer's own norm; all keys of the picture stand
        at one position (MI-RoPE)."""
        rope = lm.rotary_emb(tokens, torch.full((1, 1), place, device=tokens.device))
        out = {}
        for k, project in self.layers.items():
            x = project(lm.layers[int(k)].input_layernorm(tokens))  # [B, n, h * 2 * d]
            pairs = x.unflatten(-1, (-1, 2, self.head_dim))  # [B, n, h, 2, d], key and value per head
            key, value = (pairs[..., i, :].transpose(1, 2) for i in (0, 1))
            out[int(k)] = apply_rope(key, rope), value
        return out

    def layer_memory_flops(self, m):
        return sum(linear_flops(m, layer.in_features, layer.out_features) for layer in self.layers.values())

    def run(self, k, layer, h, held, sees, **how):
        if k not in held:
            return layer(h, **how)
        mask, attention = how["attention_mask"], layer.self_attn
        x = layer.input_layernorm(h)
        q, key, value = states(attention, x, how["position_embeddings"], how.get("past_key_values"))
        mix = self.blend if self.gated else self.join
        h = h + attention.o_proj(mix(k, q, (key, value), held[k], mask, sees))
        return h + layer.mlp(layer.post_attention_layernorm(h))

    def blend(self, k: int, q: Tensor, text: Pair, picture: Pair, mask: Tensor | None, sees: Tensor | None) -> Tensor:
        """(1 - g) * text + g * picture with g = sigmoid of a learned vector; 0 for words before the picture."""
        gate = self.gates[str(k)].sigmoid()
        gate = gate if sees is None else gate * sees[:, None]
        return (1 - gate) * fused(q, *text, mask, causal=True) + gate * fused(q, *picture, None, causal=False)

    def join(self, k: int, q: Tensor, text: Pair, picture: Pair, mask: Tensor | None, sees: Tensor | None) -> Tensor:
        """One softmax over the keys of the picture and of the text."""
        key, value = (torch.cat([a, b], 2) for a, b in zip(picture, text, strict=True))
        if sees is not None or mask is not None:
            mask = joined_mask(q.shape[2], text[0].shape[2], picture[0].shape[2], mask, sees, q.device)
        return fused(q, key, value, mask, causal=False)

    def layer_flops(self, rows, m):
        return len(self.layers) * attention_flops(rows * m, self.heads, self.head_dim)


def joined_mask(rows: int, keys: int, m: int, mask: Tensor | None, sees: Tensor | None, device) -> Tensor:
    """Which of m picture keys and `keys` text keys each of the last `rows` words sees, [B or 1, 1, rows, m + keys]."""
    if mask is None:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)[None, None]
    sees = torch.ones(rows, dtype=torch.bool, device=device) if sees is None else sees
    return torch.cat([sees[:, None].expand(*mask.shape[:2], rows, m), mask], -1)


class HyperGatedConnector(HyperConnector):
    """With a gate per channel, as in the first release."""

    gated = True


class HyperFusedConnector(HyperConnector):
    """With one softmax, as in the second release."""

    gated = False


@dataclass(frozen=True)
class HyperGated(Trained):
    """Self-attention and attention to the picture side by side, blended by a gate."""

    connector = HyperGatedConnector

    retention: float = fixed(1.0, "always 1: every patch is held, none stands in the sequence")


@dataclass(frozen=True)
class HyperFused(Trained):
    """One softmax over the words and the picture."""

    connector = HyperFusedConnector

    retention: float = fixed(1.0, "always 1: every patch is held, none stands in the sequence")


_COMMON = (
    RECIPE,
    "Written after two ports of the released code, whose own files could not be read.",
    "The picture has no token in the text: its keys stand at the position of the first word after it.",
    "In 4 of 8 layers (0, 2, 4, 6); the paper uses 4 of 28. New projections start at random.",
)

HyperGated.card = Card(
    name="hyper-gated",
    title="Hyper attention, gated",
    family="attention rework",
    summary="No visual token enters the sequence: in a few layers the words also look at the picture, by a gate.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2408.04840",
    code="X-PLUG/mPLUG-Owl",
    training_free=False,
    deviations=(*_COMMON, "The gate is a learned vector, as in the code; the paper describes one that adapts."),
    reported="mPLUG-Owl3: one text token per image; up to six times as fast on long image sequences (model page).",
    order=211,
)

HyperFused.card = Card(
    name="hyper-fused",
    title="Hyper attention, fused",
    family="attention rework",
    summary="No visual token enters the sequence: in a few layers words and picture share one attention.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2408.04840",
    code="X-PLUG/mPLUG-Owl",
    training_free=False,
    deviations=(*_COMMON, "The second release, without a gate."),
    reported="mPLUG-Owl3 (241101): NextQA 82.3, MVBench 59.5, TextVQA 71.4 (README of the released code).",
    order=212,
)
