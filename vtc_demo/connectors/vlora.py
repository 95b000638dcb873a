"""VLoRA: the picture becomes low-rank updates of the decoder's weights, no token at all. arXiv 2405.20339."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtc_demo.core.card import Card
from vtc_demo.cost import linear_flops

from .base import RECIPE, Connected, Connector, Trained, fixed, strongest
from .decoder import fused, states
from .layers import Attention, feed_forward, feed_forward_flops

TYPES = "qkvom"  # projections of the attention, and a branch around the MLP


class GeneratorBlock(nn.Module):
    """Pre-norm: self-attention, attention to the picture (which is not normed), feed-forward."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(width), Attention(width, width, heads)
        self.cross_norm, self.cross = nn.LayerNorm(width), Attention(width, width, heads)
        self.feed_norm, self.feed = nn.LayerNorm(width), feed_forward(width)

    def forward(self, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, d], picture [B, n, d] -> (x, weights of the cross-attention [B, L, n])."""
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, normed)[0]
        read, weights = self.cross(self.cross_norm(x), picture)
        x = x + read
        return x + self.feed(self.feed_norm(x)), weights


class Generator(nn.Module):
    """For one type of weight: a query per layer, and from each a factor A [width, rank]."""

    def __init__(self, width: int, heads: int, depth: int, layers: int, size: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, layers, width))
        self.blocks = nn.ModuleList(GeneratorBlock(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, size)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """picture [B, n, d] -> ([B, L, size], attention to the picture, mean over blocks [B, L, n])."""
        x, seen = self.queries.expand(len(picture), -1, -1), []
        for block in self.blocks:
            x, weights = block(x, picture)
            seen.append(weights)
        return self.head(self.norm(x)), torch.stack(seen).mean(0)

    def flops(self, n: int) -> int:
        layers, width = self.queries.shape[1:]
        block = 0
        for part in self.blocks:
            block += part.self_attention.flops(layers, layers) + part.cross.flops(layers, n)
            block += feed_forward_flops(layers, width)
        return block + linear_flops(layers, width, self.head.out_features)


class VLoRAConnector(Connector):
    """Generators of A per type; B per type and layer is learned and starts at 0. Update of a projection: B A^T.

    tokens: the factors A of all types, [B, layers, types * D * rank]. Provenance: what each layer's queries attend to.
    """

    outside = True

    def __init__(self, dims, width: int = 64, heads: int = 4, depth: int = 2, rank: int = 8):
        super().__init__()
        kv, q = dims.kv_heads * dims.head_dim, dims.heads * dims.head_dim
        self.rank, self.inputs = rank, dict(zip(TYPES, (dims.hidden,) * 3 + (q, dims.hidden), strict=True))
        outputs = dict(zip(TYPES, (q, kv, kv, dims.hidden, dims.hidden), strict=True))
        self.enter = nn.Linear(dims.vision, width)
        self.place = nn.Parameter(torch.randn(1, dims.patches, width))
        self.layers = nn.ModuleDict(
            {t: Generator(width, heads, depth, dims.layers, self.inputs[t] * rank) for t in TYPES}
        )
        self.constant = nn.ParameterDict({t: nn.Parameter(torch.zeros(dims.layers, outputs[t], rank)) for t in TYPES})

    def forward(self, features, grid, budget):
        picture = self.enter(features[:, 1:]) + self.place  # [B, n, d]
        made = [generator(picture) for generator in self.layers.values()]
        weight = nn.functional.pad(torch.stack([seen for _, seen in made]).mean(0), (1, 0))  # [B, L, 1 + n]
        return Connected(torch.cat([a for a, _ in made], -1), strongest(weight), weight, soft=True)

    def flops(self, n, m):
        return linear_flops(n, *self.enter.weight.T.shape) + sum(g.flops(n) for g in self.layers.values())

    def layer_memory(self, lm, tokens, place):
        sizes = [self.inputs[t] * self.rank for t in TYPES]
        factors = [a.unflatten(-1, (-1, self.rank)) for a in tokens.split(sizes, -1)]  # [B, L, in, rank] each
        return {k: tuple(a[:, k] for a in factors) for k in range(tokens.shape[1])}

    def update(self, kind: str, k: int, x: Tensor, held) -> Tensor:
        """x [B, S, in] -> B (A^T x), [B, S, out]."""
        return (x @ held[k][TYPES.index(kind)]) @ self.constant[kind][k].T

    def run(self, k, layer, h, held, sees, **how):
        attention, x = layer.self_attn, layer.input_layernorm(h)
        plus = tuple(self.update(kind, k, x, held) for kind in "qkv")
        found = states(attention, x, how["position_embeddings"], how.get("past_key_values"), plus)
        out = fused(*found, how["attention_mask"], causal=True)
        h = h + attention.o_proj(out) + self.update("o", k, out, held)
        x = layer.post_attention_layernorm(h)
        return h + layer.mlp(x) + self.update("m", k, x, held)

    def layer_flops(self, rows, m):
        both = [self.inputs[t] + self.constant[t].shape[1] for t in TYPES]
        return m * linear_flops(rows, self.rank, sum(both))


@dataclass(frozen=True)
class VLoRA(Trained):
    """The picture changes the weights; the sequence holds words alone."""

    connector = VLoRAConnector

    retention: float = fixed(1.0, "fixed: the whole picture goes into the weights, no token into the sequence")


VLoRA.card = Card(
    name="vlora",
    title="VLoRA",
    family="weights instead of tokens",
    summary="The picture is turned into low-rank changes of the language model's weights; no token stands for it.",
    sites=("projector",),
    faithfulness="in the style of",
    paper="arXiv 2405.20339",
    code="FeipengMa6/VLoRA",
    training_free=False,
    deviations=(
        RECIPE,
        "Width 64, 2 blocks, rank 8, in all 8 layers; the released fine-tuning has 512, 8, 64, in every fourth of 32.",
        "No image token stands in the text, masked or not.",
        "The mask shows what the queries that make the weights attend to, one row per layer.",
    ),
    reported="Comparable to LLaVA-1.5-style models on several benchmarks, with text alone in the input (abstract).",
    order=213,
)
