"""How much attention the patches of a picture receive in the encoder."""

from __future__ import annotations

from torch import Tensor

from vtc_demo.core.method import HookContext


def patch_attention(context: HookContext) -> Tensor:
    """How much the encoder attends to each patch, [n - extra] float32.

    Head mean of the CLS row over the patch columns, not renormalised. In a tower without CLS: the attention that each
    patch receives, averaged over all heads and rows.
    """
    if context.extra:
        return context.attention("cls", heads="mean").mean(0)[context.extra :]  # a row per view
    return context.received()  # in chunks of rows, so that no map over all pairs is held
