"""The words that figures, cards, tables and texts share, in the order of the pass: sites, stages, quantities."""

from __future__ import annotations

from typing import NamedTuple


class SiteWords(NamedTuple):
    """short: in a row of labels; place: where methods act; station: one stop of a pass, its layer behind it."""

    short: str
    place: str
    station: str


SITES = {
    "input_image": SiteWords("input", "image", "smaller image"),
    "vision_layer": SiteWords("encoder", "encoder", "encoder layer"),
    "projector": SiteWords("projector", "projector", "projector"),
    "llm_input": SiteWords("LLM input", "LLM input", "LLM input"),
    "llm_layer": SiteWords("LLM", "LLM layers", "LLM layer"),
    "kv_cache": SiteWords("cache", "cache", "KV cache"),
}


def station(site: str) -> str:
    """ "llm_layer(2)" -> "LLM layer 2"."""
    kind, _, layer = site.partition("(")
    name = SITES[kind].station if kind in SITES else kind
    return f"{name} {layer.rstrip(')')}".strip()


# Stages of one answer. They exclude each other, so their times add up; the LM head's time is in prefill and decode.
STAGES = {
    "preprocess": "preprocessing",
    "vision": "vision tower",
    "projector": "projector",
    "compression": "method's own work",
    "prefill": "prefill",
    "decode": "decoding",
}
TTFT_STAGES = tuple(STAGES)[:-1]  # up to the first token
LM_HEAD = "LM head"  # a stage of its own in FLOPs and in the latency lab

# What a run is doing, told while it waits for its result; "matching" comes before the pass.
DOING = {
    "matching": "finding the equal cost",
    "preprocess": "preparing the picture",
    "vision": "looking at the picture",
    "projector": "projecting",
    "prefill": "reading the tokens",
    "decode": "answering",
}

QUANTITIES = {
    "accuracy": "Accuracy",
    "evidence": "Evidence that survives",
    "final_tokens": "Visual tokens at the last LLM layer",
    "equivalent_tokens": "Mean visual tokens per LLM layer",
    "flops": "FLOPs up to the first token",
    "ttft_ms": "Measured time to the first token, ms (median)",
}
