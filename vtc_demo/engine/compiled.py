"""Decoder layers compiled by `torch.compile`: fewer kernels and fewer calls per layer, the same answers.

Where a layer's work is small, in a decode step above all, calling its operators is a good part of its time; compiled,
what stands between the matrix products is fused. One compiled function serves every layer of a model and every count of
tokens: sizes are dynamic, and the layer's own number is not looked at. It is made on first use, once for a prefill and
once for a decode step. No CUDA graphs: they want fixed sizes, and caches here grow by a token per step and are of
another length in every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vtc_demo.core.workspace import Workspace
from vtc_demo.models import VLM

RECOMPILES = 32  # versions of one function: other dtypes, devices and memory layouts


class LayerCache:
    """What a layer asks of a cache, for one layer alone: keys and values [1, KV heads, n, d], or None at first."""

    def __init__(self, keys: Tensor | None, values: Tensor | None):
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], -2), torch.cat([self.values, values], -2)
        self.keys, self.values = keys, values
        return keys, values


def block(layer: nn.Module, h: Tensor, keys: Tensor | None, values: Tensor | None, **how):
    """A decoder layer as a function: (h, keys, values) -> (h, keys, values) with those of h's tokens behind the old."""
    cache = LayerCache(keys, values)
    h = layer(h, past_key_values=cache, use_cache=True, **how)
    return h, cache.keys, cache.values


def run(compiled: Callable, k: int, layer: nn.Module, h: Tensor, past_key_values: DynamicCache, **how) -> Tensor:
    """`layer(h, ...)` by way of the compiled `block`; layer k's part of the cache grows as it would."""
    how.pop("use_cache")
    if k == len(past_key_values.layers):
        h, keys, values = compiled(layer, h, None, None, **how)
        past_key_values.update(keys, values, k)
        return h
    held = past_key_values.layers[k]
    h, held.keys, held.values = compiled(layer, h, held.keys, held.values, **how)
    return h


def compile_vlm(vlm: VLM) -> VLM:
    """The same model with compiled decoder layers; weights are shared.

    Layers that a method enters (FiCoCo-L drops between attention and MLP) and those of a trained connector run as
    before. Raises ValueError where nothing can be compiled.
    """
    cpp = {"options": {"cpp_wrapper": True}} if vlm.device.type == "cpu" else {}  # else Python calls every kernel
    how: dict[str, Any] = {"dynamic": True, "recompile_limit": RECOMPILES, "isolate_recompiles": True} | cpp
    check(vlm.device, how)
    return replace(vlm, compiled=torch.compile(block, **how), workspace=Workspace())


def check(device: torch.device, how: dict) -> None:
    """Compile next to nothing; raise ValueError with what is missing if that fails."""
    try:
        torch.compile(lambda x: x.sin() + 1, **how)(torch.zeros(3, device=device))
    except Exception as error:  # torch names a missing compiler in many ways
        reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200].rstrip(".")
        raise ValueError(
            f"cannot compile on {device.type}: {reason}. torch.compile needs a C++ compiler (g++ or clang++)"
            f"{' and triton' if device.type == 'cuda' else ''}; install it or leave compiling out"
        ) from error
