"""One layer at a time: the FLOPs it computes and the bytes it must move, and so its place on a roofline.

The FLOPs are those of `run_flops`, split up: over the layers of a pass they add up to its stages. Bytes are the
weights, read once whatever the batch, and the keys and values that a prefill writes or a decode step reads; activations
are left out. bytes_per_value: 2 for bf16, 4 for float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from .counts import attention_flops, causal_pairs, decoder_linear_flops, linear_flops, projector_flops, vision_flops
from .memory import roofline, weight_bytes
from .spec import ModelSpec


class Work(NamedTuple):
    """What one call computes and moves."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes

    def seconds(self, peak_flops: float, bandwidth: float) -> float:
        """At the roofline, see `roofline`."""
        return roofline(self.flops, self.bytes, peak_flops, bandwidth)


def _entry_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """A key and a value of one token in one layer."""
    return 2 * spec.kv_heads * spec.head_dim * bytes_per_value


def _layer_weights(spec: ModelSpec, bytes_per_value: int) -> int:
    return weight_bytes(replace(spec, layers=1), bytes_per_value)["prefill"]


def layer_prefill(spec: ModelSpec, tokens: int, batch: int = 1, bytes_per_value: int = 2) -> Work:
    """One decoder layer on `batch` prompts of `tokens` tokens each, visual and text."""
    flops = decoder_linear_flops(spec, tokens) + attention_flops(causal_pairs(tokens), spec.heads, spec.head_dim)
    written = batch * tokens * _entry_bytes(spec, bytes_per_value)
    return Work(batch * flops, _layer_weights(spec, bytes_per_value) + written)


def layer_decode(spec: ModelSpec, context: int, batch: int = 1, bytes_per_value: int = 2) -> Work:
    """One decoder layer on a new token of each of `batch` answers; context: cache entries of each, the new one too."""
    flops = decoder_linear_flops(spec, 1) + attention_flops(context, spec.heads, spec.head_dim)
    read = batch * context * _entry_bytes(spec, bytes_per_value)
    return Work(batch * flops, _layer_weights(spec, bytes_per_value) + read)


def tower_layer(spec: ModelSpec, tokens: int, full: bool, bytes_per_value: int = 2) -> Work:
    """One encoder layer on every crop, `tokens` each; full: it attends to all of them, windows or not."""
    one = replace(spec, vision_layers=1, full_layers=(0,) if full else ())
    weights = weight_bytes(one, bytes_per_value)["vision"] - weight_bytes(_no_layers(spec), bytes_per_value)["vision"]
    return Work(vision_flops(one, [tokens], 0), weights)


def tower_embedding(spec: ModelSpec, patches: int, bytes_per_value: int = 2) -> Work:
    """The patch embedding of every crop, `patches` each."""
    return Work(vision_flops(spec, [], patches), weight_bytes(_no_layers(spec), bytes_per_value)["vision"])


def _no_layers(spec: ModelSpec) -> ModelSpec:
    return replace(spec, vision_layers=0)


def projector(spec: ModelSpec, tokens: int, bytes_per_value: int = 2) -> Work:
    """The projector on `tokens` rows."""
    return Work(projector_flops(spec, tokens), weight_bytes(spec, bytes_per_value)["projector"])


def lm_head(spec: ModelSpec, batch: int = 1, bytes_per_value: int = 2) -> Work:
    """The LM head on the last position of `batch` answers."""
    weights = weight_bytes(spec, bytes_per_value)["lm_head"]
    return Work(linear_flops(batch, spec.hidden, spec.vocab), weights)
