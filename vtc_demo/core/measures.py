"""What a right answer is and what counts as FLOPs up to the first token: one definition for page, bench and records."""

from __future__ import annotations

from collections.abc import Mapping


def right(answer: str, truth: str) -> bool:
    """Whether the answer is all of the truth and nothing else; case, spaces and a closing full stop do not count."""
    plain = [" ".join(text.casefold().split()).strip(" .") for text in (answer, truth)]
    return plain[0] == plain[1]


def ttft_flops(flops: Mapping[str, int], new_tokens: int) -> int:
    """FLOPs of a pass up to and with the LM head that gives the first token of the answer.

    flops: by stage with their total, as in `Run.flops`; its lm_head ran once for each of the new_tokens of the answer.
    Raises ValueError for an answer of no token.
    """
    if new_tokens < 1:
        raise ValueError(f"an answer has at least one token, got {new_tokens}")
    later = flops.get("lm_head", 0) * (new_tokens - 1) // new_tokens + flops.get("decode", 0)
    return flops["total"] - later
