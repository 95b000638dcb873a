"""Effects applied: what a layer does differently because a method asked for it. See `core.effects`."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from vtc_demo import cost
from vtc_demo.core.effects import Effect, QuantiseCache, Redistribute, SizeBias, Skip, SparseMLP, ZeroCache, quantised
from vtc_demo.core.operations import others
from vtc_demo.core.tokens import Reduction

from .state import Sequence, Tower

if TYPE_CHECKING:
    from .forward import ForwardPass
    from .language import Prefilled


class CachedTokens(NamedTuple):
    """What a layer's cache holds of the prompt: which of the visual tokens, their places in it, those of all others."""

    tokens: Tensor
    visual: Tensor
    others: Tensor


def pick(effects: SequenceOf[Effect], kind: type[Effect]):
    """The last of that kind, or None."""
    return next((effect for effect in reversed(effects) if isinstance(effect, kind)), None)


# -- proportional attention -------------------------------------------------------------------------------------------
def biased_tower(tower: Tower, effect: SizeBias) -> Tower:
    """size [t] -> a bias for each of the tower's tokens; those behind no token of the method have size 1."""
    bias = torch.zeros(len(tower.hidden), device=tower.hidden.device)
    log = effect.size.to(bias).log()
    if tower.members is None:
        return replace(tower, bias=log)
    return replace(tower, bias=bias.index_put((tower.members,), log[:, None].expand_as(tower.members)))


def biased(seq: Sequence, effect: SizeBias) -> Sequence:
    bias = torch.zeros(seq.hidden.shape[1], device=seq.hidden.device)
    return replace(seq, bias=bias.index_copy(0, seq.visual, effect.size.to(bias).log()))


def causal(bias: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """bias [S] of the keys -> a mask [1, 1, rows, S] for the last `rows` positions."""
    n = len(bias)
    future = torch.ones(rows, n, dtype=torch.bool, device=bias.device).triu(n - rows + 1)
    return bias.expand(rows, n).masked_fill(future, float("-inf"))[None, None].to(dtype)


# -- tokens that pass a layer by --------------------------------------------------------------------------------------
def run_layer(work: ForwardPass, k: int, seq: Sequence, memory, sees, effects: list[Effect], cache: DynamicCache):
    """(the sequence after decoder layer k, the sequence that entered its attention, visual tokens through its MLP)."""
    backend, skip, edit = work.backend, pick(effects, Skip), pick(effects, Redistribute)
    sub = seq
    if skip is not None and skip.part == "layer":
        sub = seq.reduce(Reduction.select(others(skip.tokens, len(seq.visual)), len(seq.visual)), renumber=False)
    mask = None if sub.bias is None else causal(sub.bias, sub.hidden.shape[1], sub.hidden.dtype)
    how = {"attention_mask": mask, "position_embeddings": sub.rope, "past_key_values": cache, "use_cache": True}
    if edit is None and not (skip is not None and skip.part == "mlp"):
        hidden = backend.layer(k, sub.hidden, memory, sees, **how)
        return _back(seq, sub, hidden, skip), sub, len(sub.visual)
    hidden = backend.attend(k, sub.hidden, **how)
    if edit is not None:
        rows = torch.arange(sub.hidden.shape[1], device=hidden.device)
        rows = rows[-1:] if edit.rows == "last" else rows
        hidden = redistributed(work, k, sub, hidden, rows, edit, cache)
    if skip is not None and skip.part == "mlp":
        fed = others(sub.visual[skip.tokens], hidden.shape[1])  # places that go through the MLP
        hidden = hidden.index_copy(1, fed, backend.feed(k, hidden[:, fed]))
        return _back(seq, sub, hidden, skip), sub, len(sub.visual) - len(skip.tokens)
    return _back(seq, sub, backend.feed(k, hidden), skip), sub, len(sub.visual)


def _back(seq: Sequence, sub: Sequence, hidden: Tensor, skip: Skip | None) -> Sequence:
    """The whole sequence with what the layer made of those that went through it."""
    if skip is None or skip.part == "mlp":
        return replace(seq, hidden=hidden)
    gone = seq.visual[skip.tokens]
    return replace(seq, hidden=seq.hidden.index_copy(1, others(gone, seq.hidden.shape[1]), hidden))


# -- attention weights, changed ---------------------------------------------------------------------------------------
def redistributed(
    work: ForwardPass, k: int, seq: Sequence, attended: Tensor, rows: Tensor, effect: Redistribute, cache: DynamicCache
) -> Tensor:
    """attended [1, S, D] with the attention of some rows [r] made anew from changed weights."""
    probe = work.backend.probe(k, seq, cache.layers[k].keys[0])
    weights = effect.edit(probe.attention(rows), seq.visual)  # [heads, r, S]
    out = work.backend.attention_output(k, weights, cache.layers[k].values[0])  # [r, D]
    work.hooks.overhead += probe.flops + _value_flops(work, len(rows), weights.shape[-1])
    return attended.index_copy(1, rows, seq.hidden[:, rows] + out[None])


def affected_step(
    work: ForwardPass, k: int, hidden: Tensor, prefilled: Prefilled, bias: Tensor | None, how: dict
) -> Tensor:
    """Decoder layer k on new tokens [1, q, D] over its cache of n, with changed weights or fewer neurons.

    bias [n]: added to the scores of each key.
    """
    backend, effects = work.backend, prefilled.effects[k]
    edit, few = pick(effects, Redistribute), pick(effects, SparseMLP)
    attended = backend.attend(k, hidden, use_cache=True, **how)
    if edit is not None:
        layer, q = prefilled.cache.layers[k], hidden.shape[1]
        probe = backend.step_probe(k, hidden, how["position_embeddings"], layer.keys[0], bias)
        n = layer.keys.shape[-2]
        places = torch.arange(n - q, n, device=hidden.device)
        weights = edit.edit(probe.attention(places - (n - q), at=places), prefilled.held[k].visual)  # [heads, q, n]
        attended = hidden + backend.attention_output(k, weights, layer.values[0])[None]
        work.hooks.overhead += probe.flops + _value_flops(work, q, n)
    if few is None:
        return backend.feed(k, attended)
    return backend.sparse_feed(k, attended, few.neurons)


def spared_by_sparse(work: ForwardPass, prefilled: Prefilled, steps: int) -> int:
    """FLOPs that decode steps do not spend on inner neurons that are left out."""
    spec, spared = work.vlm.spec, 0
    for effects in prefilled.effects.values():
        few = pick(effects, SparseMLP)
        if few is not None:
            spared += steps * cost.mlp_flops(1, spec.hidden, spec.intermediate - len(few.neurons), spec.mlp_gated)
    return spared


def _value_flops(work: ForwardPass, rows: int, keys: int) -> int:
    """Weights times values, and the output projection, of rows that are made a second time."""
    spec = work.vlm.spec
    width = spec.heads * spec.head_dim
    return cost.linear_flops(rows, keys, width) + cost.linear_flops(rows, width, spec.hidden)


# -- the cache --------------------------------------------------------------------------------------------------------
def edit_cache(cache: DynamicCache, held: list[CachedTokens], alive: Tensor, effects: list[Effect]) -> int:
    """Quantise or zero entries in place. Returns the bytes that quantising spares."""
    spared = 0
    for effect in effects:
        if not isinstance(effect, QuantiseCache | ZeroCache):
            continue
        for layer, here in zip(cache.layers, held, strict=True):
            named = alive if effect.tokens is None else alive[effect.tokens]
            places = here.visual[torch.isin(here.tokens, named.to(here.tokens.device))]
            for name in ("keys", "values"):
                entries = getattr(layer, name)
                old = entries[:, :, places]
                new = torch.zeros_like(old) if isinstance(effect, ZeroCache) else quantised(old, effect.bits)
                setattr(layer, name, entries.index_copy(2, places, new))
                if isinstance(effect, QuantiseCache):
                    rows = old.numel() // old.shape[-1]
                    kept = old.numel() * effect.bits // 8 + 2 * rows * old.element_size()
                    spared += max(0, old.numel() * old.element_size() - kept)
    return spared
