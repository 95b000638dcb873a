"""Time that can be believed: stages that exclude each other, repeats with median and spread, the environment."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

STAGES = ("preprocess", "vision", "projector", "compression", "prefill", "decode")


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


def spread(values: list[float]) -> dict[str, float]:
    """median, iqr (distance of the quartiles) and n of a list of figures."""
    if not values:
        raise ValueError("no values to summarise; measure at least once")
    if len(values) == 1:
        return {"median": values[0], "iqr": 0.0, "n": 1}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "iqr": high - low, "n": len(values)}


def repeat(once: Callable[[], dict[str, float]], warmups: int = 2, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Call `once` (figures by name) warmups + repeats times; the spread of every figure over the repeats."""
    if warmups < 0 or repeats < 1:
        raise ValueError(f"need warmups >= 0 and repeats >= 1, got {warmups} and {repeats}")
    for _ in range(warmups):
        once()
    rows = [once() for _ in range(repeats)]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a figure depends on besides the code, JSON-ready."""
    return {
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "backend": "sdpa",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "batch": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """The device in words, with the product's name where it is known."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{device.type} ({name})" if name else device.type
