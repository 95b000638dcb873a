"""FiCoCo: at each of several layers filter, correlate, compress (arXiv 2411.17686); variants V, L and VL.

All sites lie inside their layer, between attention and MLP. Layers count from 0. This file holds the maths of one layer
and the counts; the methods are in ficoco_v.py, ficoco_l.py and ficoco_vl.py.
"""

from __future__ import annotations

from math import ceil, floor

import torch
from torch import Tensor

from vtc_demo.core.operations import others, top
from vtc_demo.core.tokens import Reduction

EPS = 0.998
WINDOW = 2


# -- how many -------------------------------------------------------------------------------------------------------
def scaled(name: str, start: int, depth: int, published: int, last: int) -> int:
    """The first reduced layer: `start` of a model with `published` layers, carried over to `depth` layers.

    ValueError if it lies behind layer `last`, the last one whose reduction has an effect.
    """
    layer = round(start * depth / published)
    if layer > last:
        raise ValueError(
            f"{name}: start={start} of {published} is layer {layer} of this model's {depth}, but the last layer that "
            f"can be reduced is {last}; choose a lower start"
        )
    return layer


def even(n: int, left: int, sites: int, per_layer: int = 0) -> list[int]:
    """Tokens left after each of `sites` layers, falling evenly from n to `left`, or by `per_layer`; at least one."""
    if per_layer:
        return [max(1, n - per_layer * i) for i in range(1, sites + 1)]
    return [n - round((n - left) * i / sites) for i in range(1, sites + 1)]


def ramp(n: int, mean: float, start: int, depth: int, per_layer: int = 0) -> list[int]:
    """Tokens left inside layers start .. depth - 2, falling by the same number at each, so that the mean of the tokens
    entering the `depth` layers comes nearest to `mean`. At least one token: a lower mean is out of reach.
    """
    sites = depth - 1 - start

    def counts(step):
        return [max(1, round(n - step * i)) for i in range(1, sites + 1)]

    if per_layer:
        return counts(per_layer)

    def miss(step):
        return (n * (start + 1) + sum(counts(step))) / depth - mean

    low, high = 0.0, float(n)
    for _ in range(60):  # the mean falls with the step
        middle = (low + high) / 2
        low, high = (middle, high) if miss(middle) > 0 else (low, middle)
    return counts(min((low, high), key=lambda step: abs(miss(step))))


# -- filter ---------------------------------------------------------------------------------------------------------
def redundancy_v(visual: Tensor, cls: Tensor, lam: float) -> Tensor:
    """lam * visual - (1 - lam) * cls, [patches]: much like the others and unimportant to the whole image."""
    return lam * visual - (1 - lam) * cls


def no_cls(keys: Tensor) -> Tensor:
    """What takes the place of CLS attention without a CLS token: minus the cosine of each patch's key to their mean.

    keys [patches, d], head mean -> [patches].
    """
    return -torch.nn.functional.cosine_similarity(keys.mean(0, keepdim=True), keys, dim=-1)


def unit(x: Tensor) -> Tensor:
    """x [n] at length 1."""
    return torch.nn.functional.normalize(x, dim=0)


def penalise(score: Tensor, cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Local penalty: in each 2 x 2 window of the grid the highest score is doubled if positive, else halved.

    So discards spread over the image. score [n]; cells [n]: the patch at which each token stands, -1 for none, which
    is left alone. Among equals the first.
    """
    n, across = score.shape[0], -(-grid[1] // WINDOW)
    total = across * -(-grid[0] // WINDOW)
    row, column = cells // grid[1], cells % grid[1]
    window = torch.where(cells < 0, total, row // WINDOW * across + column // WINDOW)  # [n]
    best = score.new_full((total + 1,), -torch.inf).scatter_reduce(0, window, score, "amax")
    place = torch.arange(n, device=score.device)
    first = place.new_full((total + 1,), n).scatter_reduce(
        0, window, torch.where(score == best[window], place, n), "amin"
    )
    chosen = (first[window] == place) & (cells >= 0)
    return torch.where(chosen, torch.where(score > 0, 2 * score, score / 2), score)


def redundancy_l(visual: Tensor, text: Tensor, beta: float) -> Tensor:
    """beta * visual - (1 - beta) * text, [n]: much like the others and unimportant to the prompt."""
    return beta * visual - (1 - beta) * text


# -- correlate --------------------------------------------------------------------------------------------------------
def bridge(direct: Tensor, out: Tensor, back: Tensor, gamma: float, mean: bool = True) -> Tensor:
    """gamma * direct + (1 - gamma) * out @ back, over the number of text tokens if `mean` (not in the released code).

    direct [r, n]; out [r, text], from the tokens to the text; back [text, n] -> [r, n].
    """
    return gamma * direct + (1 - gamma) * (out @ back) / (back.shape[0] if mean else 1)


def fan_out(columns: int, eps: float, strict: bool = False) -> int:
    """How many of `columns` different values are at or above their eps-quantile (strict: above it); at least one.

    The quantile interpolates between the values at its two neighbouring ranks, so this number is the same in each row.
    """
    rank = round(eps * (columns - 1), 9)
    return max(1, columns - 1 - floor(rank) if strict else columns - ceil(rank))


def targets(correlation: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of correlation [r, t] (not negative) and their shares, [r, count] both."""
    value, column = correlation.sort(dim=-1, descending=True, stable=True)
    value, column = value[:, :count], column[:, :count]
    return column, value / value.sum(-1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)


# -- compress -------------------------------------------------------------------------------------------------------
def compress(
    kept: Tensor, discarded: Tensor, target: Tensor, alpha: Tensor, n: int, divide: bool = True
) -> tuple[Reduction, Tensor]:
    """X_j <- (X_j + sum_i alpha_ij X_i) / (1 + sum_i alpha_ij); also the denominators [m].

    kept [m], discarded [r]: places among the n tokens; target, alpha [r, k]: places in `kept` and weights. Without
    `divide` (released L) the sum stays undivided.
    """
    gained = alpha.new_zeros(kept.shape[0]).index_add_(0, target.flatten(), alpha.flatten())
    whole = 1 + gained if divide else torch.ones_like(gained)
    reduction = Reduction.merge(
        kept,
        discarded.repeat_interleave(target.shape[1]),
        target.flatten(),
        n,
        source_weight=alpha.flatten() / whole[target.flatten()],
        anchor_weight=1 / whole,
    )
    return reduction, 1 + gained


def reduce(score: Tensor, correlate, extra: int, count: int, eps: float = EPS) -> Reduction:
    """One layer as in the paper: discard the `count` highest of score [n - extra] and fold them into what is left.

    The `extra` leading tokens (CLS) are neither discarded nor targets. correlate(discarded, candidates) gives
    C [count, candidates], not negative; both are places among the n tokens.
    """
    n = score.shape[0] + extra
    discarded = extra + top(score, count)
    kept = others(discarded, n)
    candidates = kept[extra:]
    column, alpha = targets(correlate(discarded, candidates), fan_out(candidates.shape[0], eps))
    return compress(kept, discarded, extra + column, alpha, n)[0]
