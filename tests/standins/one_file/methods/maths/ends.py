"""The first or the last tokens of a sequence: maths that two files share."""

import torch
from torch import Tensor


def ends(n: int, keep: int, last: bool, device=None) -> Tensor:
    """`keep` of n indices from one end, ascending int64."""
    start = n - keep if last else 0
    return torch.arange(start, start + keep, device=device)
