"""Checks of exercises: they fail with a sentence that helps, not with a traceback."""

from __future__ import annotations

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """What is still wrong with an exercise. A notebook shows the message alone."""

    def _render_traceback_(self) -> list[str]:  # IPython asks an exception for this
        return [f"✗ {self}"]


def check(condition, message: str) -> None:
    """Raise CheckFailed(message) unless the condition holds. message: what is wrong and where to look."""
    if not bool(condition):
        raise CheckFailed(message)


def check_equal(got, wanted, message: str, tolerance: float = 1e-5) -> None:
    """Raise CheckFailed unless two tensors (or numbers, lists) have the same shape and values.

    The message is followed by what came out and what was wanted. tolerance: a share of the largest wanted value.
    """
    if not isinstance(got, Tensor | int | float | list | tuple):
        raise CheckFailed(f"{message} Got {type(got).__name__}, wanted a tensor or number.")
    a, b = (torch.as_tensor(x).double() for x in (got, wanted))
    if a.shape != b.shape:
        raise CheckFailed(f"{message} Got the shape {tuple(a.shape)}, wanted {tuple(b.shape)}.")
    scale = b.abs().max().item() if b.numel() else 0.0
    if not torch.allclose(a, b, rtol=0, atol=tolerance * (scale or 1.0)):
        raise CheckFailed(f"{message} Got {short(a)}, wanted {short(b)}.")


def done(message: str = "") -> None:
    """The last line of a check cell: says that it passed."""
    print(f"✓ {message}".rstrip())


def short(values: Tensor) -> str:
    """The first values of a tensor, in few digits."""
    flat = values.flatten().tolist()
    shown = ", ".join(f"{v:.4g}" for v in flat[:6]) + (", ..." if len(flat) > 6 else "")
    return shown if values.ndim == 0 else f"[{shown}]"


def refused(names: dict, attempt: str, checking: str, error: str, message: str = "") -> None:
    """Run an attempt at an exercise and its check on a copy of the notebook's names; fail unless the check raises
    `error` (the name of an exception) with `message` in it. Used by the tests of the course.
    """
    aside = dict(names)
    exec(attempt, aside)
    try:
        exec(checking, aside)
    except Exception as raised:
        if type(raised).__name__ != error or message not in str(raised):
            raise RuntimeError(f"wanted {error} {message!r}, got {type(raised).__name__}: {raised}") from raised
    else:
        raise RuntimeError(f"the check accepts this attempt:\n{attempt}")
