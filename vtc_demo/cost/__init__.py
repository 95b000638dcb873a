"""Analytic cost of a run, from (ModelSpec, schedule) alone: FLOPs, KV-cache bytes, roofline.

Nothing here touches a model or a tensor. Our own convention (`run_flops`, `flops(..., "true")`) counts 2 FLOPs per
multiply-add; the conventions of published papers are offered by name in CONVENTIONS so that their tables can be
reproduced. Never compare numbers of two conventions.
"""

from . import layers
from .conventions import CONVENTIONS, Convention, flops
from .counts import attention_flops, causal_pairs, linear_flops, mlp_flops, rows_attention_flops, run_flops, turn_flops
from .layers import Work
from .memory import expected_speedup, kv_bytes, kv_bytes_per_layer, roofline, weight_bytes
from .spec import SPECS, ModelSpec

__all__ = [
    "CONVENTIONS",
    "SPECS",
    "Convention",
    "ModelSpec",
    "Work",
    "attention_flops",
    "causal_pairs",
    "expected_speedup",
    "flops",
    "kv_bytes",
    "kv_bytes_per_layer",
    "layers",
    "linear_flops",
    "mlp_flops",
    "roofline",
    "rows_attention_flops",
    "run_flops",
    "turn_flops",
    "weight_bytes",
]
