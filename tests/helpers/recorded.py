"""What the attention modules of a whole pass compute, by a plain softmax, for any family."""

import copy
from typing import NamedTuple

import tiny
import torch
from torch import Tensor
from transformers import AttentionInterface


class Seen(NamedTuple):
    """Of one attention module: weights [heads, n, n], keys (with RoPE) and values [kv, n, d] of each batch row."""

    weights: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]


@torch.no_grad()
def recorded(vlm, images) -> dict[str, Seen]:
    """By the attention module's name, of transformers' own pass over the prompt."""
    found = {}
    model = copy.deepcopy(vlm.model)
    names = {id(module): name for name, module in model.named_modules()}

    def record(module, q, k, v, mask=None, scaling=None, **_):
        seen = found.setdefault(names[id(module)], Seen([], [], []))
        seen.keys.extend(k), seen.values.extend(v)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = q @ k.transpose(2, 3) * scaling
        if module.is_causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
        weights = scores.softmax(-1)
        seen.weights.extend(weights)
        return (weights @ v).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("record", record)
    model.set_attn_implementation("record")
    model(**vlm.generate_inputs(images, tiny.QUESTION))
    return found


def of_layer(vlm, found, layer) -> Seen:
    """layer: a module of the VLM's own model."""
    name = next(name for name, module in vlm.model.named_modules() if module is layer)
    return next(seen for key, seen in found.items() if key.startswith(name + "."))


class TowerLayer:
    """One encoder layer as methods see it: tokens of all views, g of the tower behind each.

    weights [heads, n, n]: 0 between views; of a group the sum over its keys and the mean over its rows. keys (with
    RoPE), values [heads, n, d].
    """

    def __init__(self, vlm, found, i, layout):
        seen = of_layer(vlm, found, vlm.adapter.encoder_layers(vlm.model)[i])
        block = torch.stack([torch.block_diag(*head) for head in zip(*seen.weights, strict=True)])  # [heads, N, N]
        sources = torch.arange(block.shape[1])[:, None] if layout.sources is None else layout.sources
        self.weights = block[:, :, sources].sum(-1)[:, sources].mean(2)
        self.keys = torch.cat(seen.keys, 1)[:, sources].mean(2)
        self.values = torch.cat(seen.values, 1)[:, sources].mean(2)
