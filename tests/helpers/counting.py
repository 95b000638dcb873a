"""Counting the FLOPs of what runs, with the kernels that torch's counter does not know, or without any kernel."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


def count_cpu_attention(q, k, v, *args, out_shape=None, **kwargs):
    """The CPU kernel that the counter does not know; q, k, v arrive as shapes [B, heads, tokens, head_dim]."""
    batch, heads, rows, dim = q
    return 2 * batch * heads * rows * k[-2] * (dim + v[-1])


def counter() -> FlopCounterMode:
    op = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if op is None:
        pytest.skip("this torch has no CPU flash attention operator to count")
    return FlopCounterMode(display=False, custom_mapping={op: count_cpu_attention})


def _none(*args, **kwargs):
    return 0


NO_KERNELS = {
    op: _none
    for name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
    if (op := getattr(torch.ops.aten, name, None)) is not None
}
