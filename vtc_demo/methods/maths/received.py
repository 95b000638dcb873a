"""How much attention the patches of a picture receive in the encoder."""

from __future__ import annotations

from torch import Tensor

from vtc_demo.core.method import HookContext


def patch_attention(context: HookContext) -> Tensor:
    """How much the encoder attends to each patch, [n - extra] float32.

    Head mean of the CLS row over the patch columns, not renormalised. In a tower without CLS: the attention that each
    patch receives, averaged over all heads and rows.
    """
    rows = "cls" if context.extra else "all"
    return context.attention(rows, heads="mean").mean(0)[context.extra :]  # [rows, n] -> [n - extra]


def patch_attention_flops(context: HookContext) -> int:
    """Of `patch_attention` beyond the attention: the mean over its rows."""
    n = context.hidden.shape[0]
    return n if context.extra else n * n
