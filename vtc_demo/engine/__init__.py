"""The one inference loop: encode -> project -> prefill -> decode, asking the method at each of its sites.

Read it in this order: `answer` (the way of one question), `vision` (encode, project), `language` (prefill, step),
`state` (what they hand on), `hooks` and `context` (what a method is asked and shown). `backend` is what they run on:
a model, or in `shape_only` shapes alone.

Nothing is patched and no state is kept between runs: tokens that a method drops are gone from the hidden states and
from the caches of all later layers. Batch 1, greedy decoding, fused attention (SDPA) without a mask, which means causal
in the prefill and everything in a decode step. Where the visual tokens stand in the prompt is said by the layout: one
span, rows with line breaks between them, tiles of one picture, or several pictures.
"""

from .answer import MAX_NEW_TOKENS, PassEvent, check_length, first_turn, run, stream, warm_up
from .cancel import Cancel, Stopped
from .forward import ForwardPass

__all__ = [
    "MAX_NEW_TOKENS",
    "Cancel",
    "ForwardPass",
    "PassEvent",
    "Stopped",
    "check_length",
    "first_turn",
    "run",
    "stream",
    "warm_up",
]  # fmt: skip
