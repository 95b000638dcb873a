"""Bytes of the KV cache and the weights; the roofline: the least time that FLOPs and bytes take."""

from __future__ import annotations

from itertools import pairwise

from .counts import run_flops
from .spec import ModelSpec, count


def kv_bytes_per_layer(
    spec: ModelSpec, schedule, text_tokens: int, new_tokens: int = 0, bytes_per_value: int = 2
) -> list[int]:
    """Bytes of keys and values that each layer's cache holds, [layers]. bytes_per_value: 2 for bf16, 4 for float32.

    new_tokens: answer tokens generated. The last one is never fed back, so new_tokens - 1 of them are in the cache;
    0 and 1 both mean the cache right after the prefill. Raises ValueError for a bad schedule or a negative count.
    """
    visual, text = spec.check_schedule(schedule), count("text_tokens", text_tokens)
    fed_back = max(0, count("new_tokens", new_tokens) - 1)
    entry = 2 * spec.kv_heads * spec.head_dim * count("bytes_per_value", bytes_per_value)  # a key and a value
    return [entry * (n + text + fed_back) for n in visual]


def kv_bytes(spec: ModelSpec, schedule, text_tokens: int, new_tokens: int = 0, bytes_per_value: int = 2) -> int:
    """Bytes of the whole KV cache: the sum of `kv_bytes_per_layer`."""
    return sum(kv_bytes_per_layer(spec, schedule, text_tokens, new_tokens, bytes_per_value))


def weight_bytes(spec: ModelSpec, bytes_per_value: int = 2) -> dict[str, int]:
    """Bytes of the matrices that a pass reads, by stage: vision, projector, prefill (decoder layers), lm_head, total.

    Norms, biases and the embedding tables (of which a pass reads a few rows) are left out.
    """
    w, d = spec.vision_width, spec.hidden
    vision_layer = 4 * w * w + (3 if spec.vision_mlp_gated else 2) * w * spec.vision_mlp
    layer = 2 * d * (spec.heads + spec.kv_heads) * spec.head_dim + (3 if spec.mlp_gated else 2) * d * spec.intermediate
    values = {
        "vision": spec.channels * spec.frames * spec.patch_size**2 * w + spec.vision_layers * vision_layer,
        "projector": sum(a * b for a, b in pairwise(spec.projector)),
        "prefill": spec.layers * layer,
        "lm_head": d * spec.vocab,
    }
    out = {stage: n * count("bytes_per_value", bytes_per_value) for stage, n in values.items()}
    return out | {"total": sum(out.values())}


def roofline(flops: float, bytes: float, peak_flops: float, bandwidth: float) -> float:
    """Least seconds for `flops` and `bytes` on a device of peak_flops (FLOP/s) and bandwidth (byte/s)."""
    if not (peak_flops > 0 and bandwidth > 0):
        raise ValueError(f"peak_flops and bandwidth must be positive, got {peak_flops} and {bandwidth}")
    if flops < 0 or bytes < 0:
        raise ValueError(f"flops and bytes must not be negative, got {flops} and {bytes}")
    return max(flops / peak_flops, bytes / bandwidth)


def expected_speedup(
    spec: ModelSpec,
    schedule,
    full_schedule,
    text_tokens: int,
    peak_flops: float,
    bandwidth: float,
    *,
    batch: int = 1,
    overhead: int = 0,
    bytes_per_value: int = 2,
) -> float:
    """Prefill time under `full_schedule` over that under `schedule`, both at the roofline; at most the FLOPs ratio.

    A pass computes batch x (prefill + overhead + LM head); it reads the decoder's weights once and writes
    batch KV caches. Other activation traffic and launch times are left out: they make the measured figure smaller.
    """
    batch = count("batch", batch)
    weights = weight_bytes(spec, bytes_per_value)

    def work(lengths, overhead: int) -> tuple[int, int]:
        parts = run_flops(spec, lengths, text_tokens, overhead=overhead)
        moved = batch * kv_bytes(spec, lengths, text_tokens, bytes_per_value=bytes_per_value)
        return (
            batch * (parts["prefill"] + parts["lm_head"] + parts["compression"]),
            weights["prefill"] + weights["lm_head"] + moved,
        )

    full, reduced = work(full_schedule, 0), work(schedule, overhead)
    if not reduced[0]:
        raise ValueError("nothing to compute; give a batch of at least 1")
    times = roofline(*full, peak_flops, bandwidth) / roofline(*reduced, peak_flops, bandwidth)
    return min(times, full[0] / reduced[0])
