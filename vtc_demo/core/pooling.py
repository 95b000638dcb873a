"""Average pooling on a patch grid, as a reduction."""

from __future__ import annotations

import torch

from .tokens import Reduction


def blocks(size: int, parts: int) -> list[range]:
    """The ranges that adaptive pooling averages along an axis; they overlap where `parts` does not divide `size`."""
    return [range(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]


def average(grid: tuple[int, int], rows: int, columns: int) -> Reduction:
    """Adaptive average pooling of a grid to rows x columns, as a reduction on the CPU.

    Every patch of a block weighs 1 / block size; the new token stands at the block's centre patch (the upper left one
    of an even block). Equal to `torch.nn.functional.adaptive_avg_pool2d`.
    """
    height, width = grid
    new: list[int] = []
    old: list[int] = []
    weight: list[float] = []
    anchor: list[int] = []
    for ys in blocks(height, rows):
        for xs in blocks(width, columns):
            patches = [y * width + x for y in ys for x in xs]
            new += [len(anchor)] * len(patches)
            old += patches
            weight += [1 / len(patches)] * len(patches)
            anchor.append(ys[(len(ys) - 1) // 2] * width + xs[(len(xs) - 1) // 2])
    tensor = torch.tensor
    return Reduction(tensor(new), tensor(old), tensor(weight), rows * columns, height * width, tensor(anchor))
