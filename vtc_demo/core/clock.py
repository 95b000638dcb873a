"""Seconds by stage, synchronised with the device. Stages exclude each other, so they add up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from .vocabulary import STAGES


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


class Stopwatch:
    """Seconds per stage. One stage runs at a time, so a nested stage is not counted twice and the stages add up."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.stage: str | None = None
        self._since = 0.0

    def enter(self, stage: str | None) -> str | None:
        """End the running stage, begin `stage` (None: stand still) and return the one that was ended."""
        if self.stage is not None or stage is not None:
            synchronise(self.device)
        now = time.perf_counter()
        if self.stage is not None:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        ended, self.stage, self._since = self.stage, stage, now
        return ended

    def add(self, stage: str, seconds: float) -> None:
        """Count what was done earlier as if it were done now."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def pause(self, item) -> Iterator[Any]:
        """Yield `item` with the clock standing still: what the reader of a stream does is not our time."""
        stage = self.enter(None)
        yield item
        self.enter(stage)


def timings_ms(seconds: dict[str, float], decode_steps: int) -> dict[str, float]:
    """Milliseconds by stage; ttft is their sum up to the first token. decode_per_token is 0 if there was no step."""
    ms = {stage: 1000 * seconds.get(stage, 0.0) for stage in STAGES}
    decode = ms.pop("decode")
    ttft = sum(ms.values())
    per_token = decode / decode_steps if decode_steps else 0.0
    return ms | {"ttft": ttft, "decode_per_token": per_token, "decode": decode, "total": ttft + decode}
