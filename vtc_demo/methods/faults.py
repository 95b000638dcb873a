"""What can be wrong with the answer of a hook, in words."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtc_demo.core.effects import Effect, Redistribute, SizeBias
from vtc_demo.core.method import Method, Outcome, parts
from vtc_demo.core.tokens import Reduction

from .rehearsal import HEADS, TEXT, SeededContext, reductions


def faults(outcome: Outcome, context: SeededContext, method: Method | type[Method]) -> Iterator[str]:
    """What is wrong with an answer at a site."""
    left = context.n
    for part in parts(outcome):
        if not isinstance(part, Reduction | Effect):
            yield f"reduce() must return a Reduction, Effects or None, not {type(part).__name__}"
            return
    found = reductions(outcome)
    if len(found) > 1:
        yield f"{len(found)} Reductions at one site; give one"
    for reduction in found:
        yield from _faults_of_reduction(reduction, context.n, int(not method.withdraws))
        left = reduction.m
    for part in parts(outcome):
        if isinstance(part, Effect):
            yield from _faults_of_effect(part, context, left, method)


def _faults_of_reduction(reduction: Reduction, n: int, least: int) -> Iterator[str]:
    if reduction.n != n:
        yield f"the Reduction is one of {reduction.n} tokens, but {n} are here"
    if not least <= reduction.m <= reduction.n:
        yield f"{reduction.m} tokens are left; at least {least} and at most {reduction.n} must be"
    if reduction.scores is not None and reduction.scores.shape != (n,):
        yield f"Reduction.scores needs one score for each of the {n} tokens"
    for name, size in (("new", reduction.m), ("old", reduction.n), ("anchor", reduction.n)):
        index = getattr(reduction, name)
        if index.dtype != torch.int64:
            yield f"Reduction.{name} must be int64, not {index.dtype}"
        elif bool(len(index)) != bool(reduction.m) or (len(index) and not 0 <= index.min() <= index.max() < size):
            yield f"Reduction.{name} must hold indices from 0 to {size - 1}"
    if reduction.anchor.shape != (reduction.m,) or reduction.new.shape != reduction.old.shape:
        yield "Reduction.anchor needs one entry per new token, and new and old must be equally long"
    elif reduction.weight is None:
        if not torch.equal(reduction.old, reduction.anchor):
            yield "a kept token stands at its own place: Reduction.anchor must equal Reduction.old"
        elif not torch.equal(reduction.old, reduction.old.unique()):
            yield "kept indices must ascend, none twice (core.operations.top sorts them)"
    elif reduction.weight.shape != reduction.new.shape or not torch.isfinite(reduction.weight).all():
        yield "a merge needs one finite weight per entry"


def _faults_of_effect(
    effect: Effect, context: SeededContext, left: int, method: Method | type[Method]
) -> Iterator[str]:
    """left: visual tokens after the reduction that came with it."""
    name, site = type(effect).__name__, context.site
    if site.kind not in effect.sites:
        yield f"{name} cannot be asked for at {site}; it is for {', '.join(effect.sites)}"
    elif method.inside and site.layer is not None:
        yield f"{name} cannot be asked for between attention and MLP"
    tokens, neurons = getattr(effect, "tokens", None), getattr(effect, "neurons", None)
    if tokens is not None and not _indices(tokens, left):
        yield f"{name}.tokens must be int64 indices from 0 to {left - 1}, of the tokens that are left, none twice"
    if neurons is not None and not _indices(neurons):
        yield f"{name}.neurons must be int64 indices from 0 on, none twice"
    if isinstance(effect, SizeBias) and not (effect.size.shape == (left,) and _positive(effect.size)):
        yield f"SizeBias.size needs one size above 0 for each of the {left} tokens that are left"
    if isinstance(effect, Redistribute):
        yield from _faults_of_edit(effect, context, left)


def _indices(x: Tensor, limit: int | None = None) -> bool:
    """Whether x is a row of int64, each from 0 on and below the limit, none twice."""
    if x.dtype != torch.int64 or x.dim() != 1:
        return False
    low, high = (int(x.min()), int(x.max())) if len(x) else (0, -1)
    return len(x.unique()) == len(x) and low >= 0 and (limit is None or high < limit)


def _positive(x: Tensor) -> bool:
    return bool((torch.isfinite(x) & (x > 0)).all())


def _faults_of_edit(effect: Redistribute, context: SeededContext, left: int) -> Iterator[str]:
    """The edit is tried on one row, as in a decode step, of weights over all tokens that are left."""
    keys = left + sum(TEXT)
    weights = torch.rand(HEADS, 1, keys, generator=torch.Generator().manual_seed(context.seed)).softmax(-1)
    before, made = weights.clone(), effect.edit(weights, TEXT[0] + torch.arange(left))
    if not isinstance(made, Tensor) or made.shape != before.shape or not torch.isfinite(made).all():
        yield f"Redistribute.edit must give finite weights of the shape that it gets, {tuple(before.shape)}"
    if not torch.equal(weights, before):
        yield "Redistribute.edit changed the weights that it got; work on a copy"
