"""Moving tokens: joining reductions, putting one in order, scaling a grid of patches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .tokens import Reduction


def concatenate_blocks(parts: list[tuple[Tensor, Reduction | None]], n: int) -> Reduction:
    """One reduction of n tokens from those of disjoint parts: (which tokens [p], their reduction or None for all).

    Scores are those of the parts, nan where none were given.
    """
    new, old, weight, anchor, m = [], [], [], [], 0
    given = [(which, one or Reduction.identity(len(which), which.device)) for which, one in parts]
    selects = all(one.is_selection for _, one in given)
    for which, one in given:
        new.append(one.new + m)
        old.append(which[one.old])
        weight.append(torch.ones_like(one.old, dtype=torch.float32) if one.weight is None else one.weight.float())
        anchor.append(which[one.anchor])
        m += one.m
    soft, scores = any(one.soft for _, one in given), None
    ranked = [(which, one.scores) for which, one in given if one.scores is not None]
    if ranked:
        scores = torch.full((n,), torch.nan, device=ranked[0][0].device)
        scores = scores.index_copy(
            0, torch.cat([which for which, _ in ranked]), torch.cat([s.float() for _, s in ranked])
        )
    return Reduction(
        torch.cat(new), torch.cat(old), None if selects else torch.cat(weight), m, n, torch.cat(anchor), soft, scores
    )


def in_order(reduction: Reduction) -> Reduction:
    """The same reduction with its rows in ascending order of their anchors."""
    order = reduction.anchor.argsort(stable=True)
    if reduction.is_selection:
        return Reduction.select(reduction.anchor[order], reduction.n, reduction.scores)
    place = torch.empty_like(order)
    place[order] = torch.arange(reduction.m, device=order.device)
    return replace(reduction, new=place[reduction.new], anchor=reduction.anchor[order])


def shrink(grid: tuple[int, int], small: tuple[int, int], extra: int) -> Reduction:
    """From a grid of patches to a coarser one over the same image, weighted by shared area; soft.

    The `extra` leading tokens are left alone. A coarse patch stands at the fine patch under its centre.
    """
    rows, columns = (overlap(n, m) for n, m in zip(grid, small))  # [m, n] each
    area = torch.kron(rows, columns)  # [small patches, patches]
    matrix = torch.block_diag(torch.eye(extra), area)
    places = [((torch.arange(m) + 0.5) * n / m).long() for n, m in zip(grid, small)]
    centre = (places[0][:, None] * grid[1] + places[1]).flatten() + extra
    return Reduction.from_dense(matrix, torch.cat([torch.arange(extra), centre]), soft=True)


def overlap(n: int, m: int) -> Tensor:
    """Share of each of n fine cells in each of m coarse cells over the same length, [m, n]; rows sum to 1."""
    fine, coarse = torch.arange(n) / n, torch.arange(m) / m
    low = torch.maximum(fine, coarse[:, None])
    high = torch.minimum(fine + 1 / n, coarse[:, None] + 1 / m)
    share = (high - low).clamp(min=0) * m
    return torch.where(share > 1e-4, share, 0.0)
