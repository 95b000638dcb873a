"""What to measure, as asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

BATCHED = {"decode": "batches", "batched_prefill": "prefill_batches"}  # part of a record's row -> the setting


@dataclass(frozen=True)
class Settings:
    """What to measure.

    methods: each at all of `tokens` visual tokens, beside the full model. text_tokens: of the prompt. new_tokens:
    answer length; a decode step is timed at the mean cache length of such an answer. batches: answers decoded at
    once. prefill_batches: prompts prefilled at once, none: see `prompt_batches`; one prompt is always timed. seconds:
    after which no further round begins. dtype None: on a CPU the faster of float32 and bfloat16.
    """

    shape: str = "llava-1.5-7b"
    methods: tuple[str, ...] = ("fastervlm", "fastv")
    tokens: tuple[int, ...] = (64,)
    text_tokens: int = 64
    new_tokens: int = 64
    batches: tuple[int, ...] = (1, 8)
    prefill_batches: tuple[int, ...] = ()
    seconds: float = 40.0
    warmups: int = 2
    repeats: int = 5
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self):
        whole = {"text_tokens": self.text_tokens, "new_tokens": self.new_tokens}
        whole |= {f"batch {b}": b for b in self.batches} | {"warmups": self.warmups, "repeats": self.repeats}
        whole |= {f"prefill batch {b}": b for b in self.prefill_batches}
        for name, value in whole.items():
            low = 2 if name == "new_tokens" else 1
            if not low <= value <= 8192:
                raise ValueError(f"{name} must be a whole number from {low} to 8192, got {value}")
        if not 1 <= self.seconds <= 3600:
            raise ValueError(f"seconds must be from 1 to 3600, got {self.seconds:g}")


def prompt_batches(device: str) -> tuple[int, ...]:
    """Prompts prefilled at once where nothing else is asked for. device: its type."""
    return (1, 8) if device == "cpu" else (1, 8, 32)


def with_prompts(settings: Settings, device: torch.device) -> Settings:
    """With the batches of prompts spelt out, one prompt among them: it is part of the time to the first token."""
    wished = settings.prefill_batches or prompt_batches(device.type)
    return replace(settings, prefill_batches=tuple(sorted({1, *wished})))
