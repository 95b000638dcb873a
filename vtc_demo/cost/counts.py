"""FLOPs of a run, 2 per multiply-add.

Counted: every matrix product of the tower (patch embedding included), the projector, the decoder and the LM head, and
the two products of attention over the pairs that a causal mask leaves (n(n+1)/2 of n*n). Not counted: norms, softmax,
activations, RoPE, biases, embedding look-ups. A kernel that computes masked pairs does more than is counted here.
"""

from __future__ import annotations

from itertools import pairwise

from .spec import ModelSpec, count, counts


def linear_flops(tokens: int, d_in: int, d_out: int) -> int:
    """[tokens, d_in] @ [d_in, d_out]."""
    return 2 * tokens * d_in * d_out


def mlp_flops(tokens: int, width: int, inner: int, gated: bool) -> int:
    """Up and down projection, and the gate where there is one."""
    return (3 if gated else 2) * linear_flops(tokens, width, inner)


def causal_pairs(n: int) -> int:
    """(query, key) pairs that a causal mask leaves among n tokens: row i sees i + 1 keys."""
    return n * (n + 1) // 2


def attention_flops(pairs: int, heads: int, head_dim: int) -> int:
    """Scores (q . k) and their use (p @ v) for `pairs` (query, key) pairs in every query head."""
    return 2 * 2 * pairs * heads * head_dim


def rows_attention_flops(
    rows: int, keys: int, heads: int, head_dim: int, d_model: int, kv_heads: int, project_keys: bool = True
) -> int:
    """Attention on demand: q for `rows` tokens, k for `keys` tokens, and all rows x keys scores. No values.

    project_keys=False where the keys are at hand already, for instance in the KV cache. Masked scores are computed
    and therefore counted.
    """
    q = linear_flops(rows, d_model, heads * head_dim)
    k = linear_flops(keys, d_model, kv_heads * head_dim) if project_keys else 0
    return q + k + 2 * rows * keys * heads * head_dim


def vision_flops(
    spec: ModelSpec,
    schedule: list[int],
    patches: int,
    mlp: list[int] | None = None,
    pairs: list[int] | None = None,
) -> int:
    """The tower, all crops. schedule: tokens of one crop entering each encoder layer; patches: embedded per crop.

    mlp: tokens through each layer's MLP, where they are fewer. pairs: (query, key) pairs of each layer, where the
    spans that attend to each other are not those of the spec.
    """
    w = spec.vision_width
    total = linear_flops(patches, spec.channels * spec.frames * spec.patch_size**2, w)  # convolution, stride = kernel
    for layer, (n, fed) in enumerate(zip(schedule, schedule if mlp is None else mlp)):
        local = spec.window and layer not in spec.full_layers
        keys = min(n, spec.window) if local else n
        total += linear_flops(n, w, 4 * w)  # q, k, v, output
        total += attention_flops(n * keys if pairs is None else pairs[layer], 1, w)  # all heads together are w wide
        total += mlp_flops(fed, w, spec.vision_mlp, spec.vision_mlp_gated)
    return spec.crops * total


def projector_flops(spec: ModelSpec, tokens: int) -> int:
    return sum(linear_flops(tokens, a, b) for a, b in pairwise(spec.projector))


def decoder_linear_flops(spec: ModelSpec, tokens: int) -> int:
    """Projections and MLP of one decoder layer."""
    q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return linear_flops(tokens, spec.hidden, 2 * q_width + 2 * kv_width) + mlp_flops(
        tokens, spec.hidden, spec.intermediate, spec.mlp_gated
    )


def prefill_flops(spec: ModelSpec, lengths: list[int]) -> int:
    """All decoder layers; lengths: tokens entering each, visual and text."""
    return sum(
        decoder_linear_flops(spec, n) + attention_flops(causal_pairs(n), spec.heads, spec.head_dim) for n in lengths
    )


def decode_flops(spec: ModelSpec, lengths: list[int], steps: int) -> int:
    """`steps` passes of one token without the LM head. Step t (from 1) sees the layer's prefill entries and t more."""
    linear = steps * decoder_linear_flops(spec, 1)
    return sum(linear + attention_flops(steps * n + causal_pairs(steps), spec.heads, spec.head_dim) for n in lengths)


def turn_flops(spec: ModelSpec, lengths: list[int], fed: int, new_tokens: int) -> dict[str, int]:
    """A further turn of a chat: `fed` prompt tokens over caches of `lengths` [layers] entries, then the answer.

    The stages of `run_flops`; those that only the first turn has are 0.
    """
    pairs = [fed * n + causal_pairs(fed) for n in lengths]
    out = dict.fromkeys(("vision", "projector", "compression"), 0) | {
        "prefill": sum(decoder_linear_flops(spec, fed) + attention_flops(p, spec.heads, spec.head_dim) for p in pairs),
        "lm_head": linear_flops(new_tokens, spec.hidden, spec.vocab),
        "decode": decode_flops(spec, [n + fed for n in lengths], max(0, new_tokens - 1)),
    }
    return out | {"total": sum(out.values())}


def run_flops(
    spec: ModelSpec,
    schedule,
    text_tokens: int,
    new_tokens: int = 1,
    encoder_schedule=None,
    projector_tokens: int | None = None,
    overhead: int = 0,
    patches: int | None = None,
    cache_schedule=None,
    mlp_schedule=None,
    encoder_mlp_schedule=None,
    encoder_pairs=None,
) -> dict[str, int]:
    """FLOPs by stage: vision, projector, compression, prefill, lm_head, decode and their sum, total. Batch 1.

    schedule [layers]: visual tokens entering each LLM layer; text_tokens: prompt tokens around them.
    new_tokens: answer tokens. The first comes from the prefill, so decode is new_tokens - 1 passes; the LM head runs
    once per answer token, on the last position only.
    encoder_schedule [vision_layers]: tokens of one crop entering each encoder layer, CLS included (default: all).
    projector_tokens: rows through the projector; default spec.visual_tokens.
    patches: patches embedded per crop; default spec.patches (give it when the input image was scaled).
    overhead: FLOPs of the method itself (scores, merges), reported as compression.
    cache_schedule [layers]: visual tokens in each layer's cache while decoding, if trimmed (default: schedule).
    mlp_schedule [layers], encoder_mlp_schedule [vision_layers]: tokens through the MLPs, if fewer.
    encoder_pairs [vision_layers]: (query, key) pairs of each encoder layer, if not those of the spec.
    Raises ValueError for a schedule of the wrong length or a negative count.
    """
    visual = spec.check_schedule(schedule)
    encoder = spec.full_encoder_schedule if encoder_schedule is None else encoder_schedule
    encoder = counts("encoder_schedule", encoder, spec.vision_layers, "encoder layer run")
    text, answer = count("text_tokens", text_tokens), count("new_tokens", new_tokens)
    rows = spec.visual_tokens if projector_tokens is None else count("projector_tokens", projector_tokens)
    embedded = spec.patches if patches is None else count("patches", patches)
    lengths = [n + text for n in visual]
    cached = lengths if cache_schedule is None else [n + text for n in spec.check_schedule(cache_schedule)]
    fed = encoder if encoder_mlp_schedule is None else encoder_mlp_schedule
    fed = counts("encoder_mlp_schedule", fed, spec.vision_layers, "encoder layer run")
    prefill = prefill_flops(spec, lengths)
    if mlp_schedule is not None:
        spared = sum(visual) - sum(spec.check_schedule(mlp_schedule))
        prefill -= mlp_flops(spared, spec.hidden, spec.intermediate, spec.mlp_gated)
    out = {
        "vision": vision_flops(spec, encoder, embedded, fed, encoder_pairs),
        "projector": projector_flops(spec, rows),
        "compression": count("overhead", overhead),
        "prefill": prefill,
        "lm_head": linear_flops(answer, spec.hidden, spec.vocab),
        "decode": decode_flops(spec, cached, max(0, answer - 1)),
    }
    return out | {"total": sum(out.values())}
