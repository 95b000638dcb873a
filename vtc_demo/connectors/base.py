"""What a connector is: a trained module between the vision tower and the decoder, and the method that offers it.

A connector turns the features of the tower into visual tokens and says from which patches each was made. Those that
rework the attention also hold something for the decoder's layers (`layer_memory`) and run them (`run`); the others
leave both alone. FLOPs are counted as in `vtc_demo.cost`: every matrix product, 2 per multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vtc_demo.core.method import Method
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.cost import linear_flops

from . import files

RECIPE = (
    "Trained here on generated scenes with the shared, frozen tower of the embedded model, on answers alone: first the "
    "connector with a frozen decoder, then both."
)
LayerMemory = dict[int, tuple[Tensor, ...]]  # decoder layer -> what it holds of the picture


@dataclass(frozen=True)
class Dims:
    """The widths that a connector joins: tower, decoder and its heads."""

    vision: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    layers: int
    patches: int

    @classmethod
    def of(cls, config) -> Dims:
        """From the config of a LLaVA model."""
        vision, text = config.vision_config, config.text_config
        return cls(
            vision.hidden_size,
            text.hidden_size,
            text.num_attention_heads,
            text.num_key_value_heads,
            getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            text.intermediate_size,
            text.num_hidden_layers,
            (vision.image_size // vision.patch_size) ** 2,
        )


class Connected(NamedTuple):
    """tokens [B, m, D] and where they come from.

    anchor [B, m] or [m]: the tower's token (0 is CLS) at whose place each stands. weight [B, m, 1 + n] or [m, 1 + n]:
    the share of each tower token in each, rows sum to 1; None: each is made of its anchor alone. soft: these are
    attention weights. present [B, m]: which are no padding; None: all. loss: what training adds to its own.
    """

    tokens: Tensor
    anchor: Tensor
    weight: Tensor | None = None
    soft: bool = False
    present: Tensor | None = None
    loss: Tensor | float = 0.0

    def reduction(self, n: int) -> Reduction:
        """Provenance of the tokens of one picture with n tower tokens."""
        anchor = self.anchor if self.anchor.dim() == 1 else self.anchor[0]
        if self.weight is None:
            return Reduction.select(anchor, n)
        weight = self.weight if self.weight.dim() == 2 else self.weight[0]
        return Reduction.from_dense(weight.detach().float(), anchor, self.soft)


class Connector(nn.Module):
    """Base of all. Its constructor takes `Dims`."""

    outside: ClassVar[bool] = False  # its tokens stay out of the decoder's sequence

    def forward(self, features: Tensor, grid: tuple[int, int], budget: int, **options) -> Connected:
        """features [B, 1 + n, C], CLS first, then the patches of a grid in raster order. budget: tokens asked for."""
        raise NotImplementedError

    def flops(self, n: int, m: int) -> int:
        """Of `forward`, from n patches to m tokens."""
        raise NotImplementedError

    def draw(self, chance: Random, n: int) -> dict[str, Any]:
        """Budget and options of one training step on pictures of n patches."""
        return {"budget": n}

    def layer_memory(self, lm: nn.Module, tokens: Tensor, place: int) -> LayerMemory:
        """What decoder layers hold of the tokens [B, m, D]. place: position of the first word after the picture."""
        return {}

    def layer_memory_flops(self, m: int) -> int:
        return 0

    def run(self, k: int, layer: nn.Module, h: Tensor, held: LayerMemory, sees: Tensor | None, **how) -> Tensor:
        """Decoder layer k on h [B, S, D]. sees [S] bool: which tokens come after the picture; None: all. `how` as for
        a Llama layer: attention_mask (None: causal), position_embeddings, past_key_values."""
        return layer(h, **how)

    def narrow(self, k: int, lm: nn.Module, entered: Tensor | None, rope, mask: Tensor, pack) -> Tensor:
        """In training, before decoder layer k: the mask [B, S, S] without what the method drops there.

        entered [B, S, D]: what entered layer k - 1. pack: see `training.zoo.Pack`.
        """
        return mask

    def layer_flops(self, rows: int, m: int) -> int:
        """Of all layers beyond the decoder's own, on `rows` tokens of the sequence."""
        return 0


@dataclass(frozen=True)
class Trained(Method):
    """A connector as a method. Its weights lie in assets/models/zoo; without them it is not listed."""

    connector: ClassVar[type[Connector]]

    @classmethod
    def available(cls):
        return files.has(cls.card.name)

    def sites(self, shape):
        return (Site("projector"),)

    def reduce(self, context):
        """The connector itself acts at the projector; nothing is left to choose."""
        return None

    def options(self) -> dict[str, Any]:
        """What `Connector.forward` is given besides the budget: hyper-parameters of its own."""
        return {}


def fixed(share: float, why: str):
    """The retention of a connector whose count of tokens is built in."""
    return param(share, why, low=share, high=share)


def blocks(grid: tuple[int, int], side: int, device=None) -> Tensor:
    """Places of the patches of each side x side block, [rows / side * columns / side, side * side], raster order of
    blocks and of the patches in each. Raises ValueError if the grid does not divide."""
    rows, columns = grid
    if rows % side or columns % side:
        raise ValueError(f"blocks of {side} x {side} do not tile a grid of {rows} x {columns} patches")
    places = torch.arange(rows * columns, device=device).view(rows // side, side, columns // side, side)
    return places.transpose(1, 2).reshape(-1, side * side)


def even_shares(members: Tensor, n: int) -> Tensor:
    """members [m, g]: patches in each token -> their equal shares [m, 1 + n], CLS first."""
    share = torch.zeros(len(members), 1 + n, device=members.device)
    return share.scatter_(1, 1 + members, 1 / members.shape[1])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, h * d] -> [B, h, S, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, h, m, d], k, v [B, h, n, d] -> output [B, m, h * d] and the head mean of the weights [B, m, n]."""
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights.detach().mean(1)


def attend_flops(queries: int, keys: int, width: int) -> int:
    """Scores and their use; width: all heads together."""
    return 2 * linear_flops(queries, width, keys)


def strongest(weight: Tensor) -> Tensor:
    """weight [..., m, 1 + n] -> the patch with the largest share in each token, as a tower token, [..., m]."""
    return weight[..., 1:].argmax(-1) + 1
