"""The ways in which published papers count, by name, so that their tables can be reproduced.

All count the decoder layers only, attention without the causal half, and neither tower, projector nor LM head. They
differ in what a multiply-add is worth, in the gate of the MLP, in the text tokens and in sum or mean. `true` is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal, NamedTuple

from .counts import run_flops
from .spec import ModelSpec, count


class Convention(NamedTuple):
    """description: the formula in words of n (tokens entering the layer), d (hidden), m (intermediate), d_kv.

    counts: which tokens, over what; unit: MACs (1 per multiply-add) or FLOPs (2).
    layer(spec, n) -> the count of one decoder layer; None where the convention is not a sum over decoder layers.
    """

    description: str
    counts: str
    unit: Literal["MACs", "FLOPs"]
    layer: Callable[[ModelSpec, int], int] | None
    text: bool
    mean: bool = False


def two_matrix_macs(spec: ModelSpec, n: int) -> int:
    """4nd^2 + 2n^2 d + 2ndm: the gate of the MLP is left out."""
    d, m = spec.hidden, spec.intermediate
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m


def three_matrix_macs(spec: ModelSpec, n: int) -> int:
    """4nd^2 + 2n^2 d + 3ndm."""
    return two_matrix_macs(spec, n) + n * spec.hidden * spec.intermediate


def three_matrix_flops(spec: ModelSpec, n: int) -> int:
    return 2 * three_matrix_macs(spec, n)


def grouped_query_flops(spec: ModelSpec, n: int) -> int:
    """2 x (2nd^2 + 2n d d_kv + 2n^2 d + 3ndm): keys and values are d_kv wide."""
    d, m, d_kv = spec.hidden, spec.intermediate, spec.kv_heads * spec.head_dim
    return 2 * (2 * n * d * d + 2 * n * d * d_kv + 2 * n * n * d + 3 * n * d * m)


CONVENTIONS: dict[str, Convention] = {
    "true": Convention(
        "2 per multiply-add, GQA, gated MLP, causal attention",
        "tower, projector, prefill and LM head",
        "FLOPs",
        None,
        True,
    ),
    "fastv": Convention(
        "4nd^2 + 2n^2 d + 2ndm", "visual + text, mean over layers", "MACs", two_matrix_macs, text=True, mean=True
    ),
    "divprune": Convention("4nd^2 + 2n^2 d + 2ndm", "visual + text, summed", "MACs", two_matrix_macs, text=True),
    "pyramiddrop": Convention("4nd^2 + 2n^2 d + 3ndm", "visual only, summed", "MACs", three_matrix_macs, text=False),
    "sparsevlm": Convention("4nd^2 + 2n^2 d + 3ndm", "visual + text, summed", "MACs", three_matrix_macs, text=True),
    "vica": Convention("2 x (4nd^2 + 2n^2 d + 3ndm)", "visual only, summed", "FLOPs", three_matrix_flops, text=False),
    "llm-viewer": Convention(
        "2 x (4nd^2 + 2n^2 d + 3ndm)", "visual + text, summed", "FLOPs", three_matrix_flops, text=True
    ),
    "gqa": Convention(
        "2 x (2nd^2 + 2n d d_kv + 2n^2 d + 3ndm)", "visual + text, summed", "FLOPs", grouped_query_flops, text=True
    ),
}


def flops(spec: ModelSpec, schedule, text_tokens: int, convention: str = "true") -> int | float:
    """The cost of the first token in one convention; its unit is CONVENTIONS[convention].unit.

    schedule [layers]: visual tokens entering each LLM layer. `true` is the total of `run_flops` for a full tower and
    one new token; the overhead of a method and a shortened encoder are for `run_flops`. A float for `fastv` (a mean).
    Raises ValueError for an unknown convention, a schedule of the wrong length or a negative count.
    """
    if convention not in CONVENTIONS:
        close = get_close_matches(str(convention), CONVENTIONS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown convention {convention!r}; choose one of {', '.join(CONVENTIONS)}.{hint}")
    how = CONVENTIONS[convention]
    visual, text = spec.check_schedule(schedule), count("text_tokens", text_tokens)
    if how.layer is None:
        return run_flops(spec, visual, text)["total"]
    total = sum(how.layer(spec, n + text if how.text else n) for n in visual)
    return total / spec.layers if how.mean else total
