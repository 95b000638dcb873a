"""What a hook may ask for that is no reduction: a small closed set, applied by the engine and listed in the trace.

Indices of tokens are among the visual tokens that are left at the site, after the reduction that came with the effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Effect:
    """Base of all. sites: the kinds of site at which it can be asked for."""

    sites: ClassVar[tuple[str, ...]] = ()

    def to(self, device) -> Effect:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()})

    def reordered(self, order: Tensor) -> Effect:
        """The same for tokens in another order: new token j was token order[j]."""
        rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if given.get("size") is not None:
            given["size"] = given["size"][order]
        if given.get("tokens") is not None:
            given["tokens"] = rank[given["tokens"]]
        return type(self)(**given)

    def told(self) -> dict:
        """JSON-ready: its kind, settings, and how many tokens or neurons it names."""
        out: dict = {"effect": type(self).__name__}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                out[f.name] = len(value)
            elif value is None or isinstance(value, str | int | float | bool):
                out[f.name] = value
        return out


@dataclass(frozen=True, eq=False)
class SizeBias(Effect):
    """Proportional attention: log(size) is added to the scores of each token's key, from this layer on.

    size [n]: how many patches each token stands for, above 0. Later reductions keep the bias of each anchor until a new
    one is given.
    """

    sites = ("vision_layer", "llm_layer")
    size: Tensor


@dataclass(frozen=True, eq=False)
class Redistribute(Effect):
    """The attention weights of one layer are changed before they meet the values, in the prefill and in every step.

    edit(weights [heads, r, S], visual [n]) -> weights of the same shape; visual: the places of the visual tokens among
    the S keys. rows: of the last position alone (in a step: the new token), or all.
    """

    sites = ("llm_layer",)
    edit: Callable[[Tensor, Tensor], Tensor]
    rows: Literal["last", "all"] = "last"

    def __post_init__(self):
        one_of(self, "rows", ("last", "all"))


@dataclass(frozen=True, eq=False)
class Skip(Effect):
    """These tokens pass one layer unchanged: `part="layer"` (they leave nothing in its cache) or its MLP alone."""

    sites = ("llm_layer",)
    tokens: Tensor
    part: Literal["layer", "mlp"] = "layer"

    def __post_init__(self):
        one_of(self, "part", ("layer", "mlp"))


@dataclass(frozen=True, eq=False)
class QuantiseCache(Effect):
    """Cache entries of these tokens (None: all visual ones) are held in `bits` bits, in every layer that holds them.

    Per token and head the range of its values is cut into 2^bits - 1 equal steps; range and start are held as two
    numbers of the cache's own type, and count.
    """

    sites = ("kv_cache",)
    bits: int = 8
    tokens: Tensor | None = None

    def __post_init__(self):
        one_of(self, "bits", tuple(range(1, 9)))


@dataclass(frozen=True, eq=False)
class ZeroCache(Effect):
    """Cache entries of these tokens become 0 instead of leaving, as some released codes do. They keep their bytes."""

    sites = ("kv_cache",)
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class SparseMLP(Effect):
    """After the prompt (decode steps, further turns) the MLP of this layer computes these inner neurons [p] alone."""

    sites = ("llm_layer",)
    neurons: Tensor


def one_of(effect: Effect, name: str, choices: tuple) -> None:
    if getattr(effect, name) not in choices:
        given = f"{type(effect).__name__}({name}={getattr(effect, name)!r})"
        raise ValueError(f"{given}; choose {', '.join(map(str, choices[:-1]))} or {choices[-1]}")


def quantised(x: Tensor, bits: int) -> Tensor:
    """x [..., d] rounded to 2^bits - 1 equal steps between the least and the largest value of each row."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return torch.where(step > 0, ((x - low) / step.where(step > 0, torch.ones_like(step))).round() * step + low, x)
