"""torch's counter, which tells modules apart, with the kernels that it does not know, or without any kernel."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtc_demo.core.flop_counting import CPU_ATTENTION


def counter() -> FlopCounterMode:
    if not CPU_ATTENTION:
        pytest.skip("this torch has no CPU flash attention operator to count")
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


def _none(*args, **kwargs):
    return 0


NO_KERNELS = {
    op: _none for op in (*CPU_ATTENTION, getattr(torch.ops.aten, "_scaled_dot_product_flash_attention", None)) if op
}
