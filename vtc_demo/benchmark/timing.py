"""Time that can be believed: stages that exclude each other, repeats with median and spread, the environment."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Generator, Hashable
from typing import Any

import torch

from vtc_demo.core.clock import synchronise
from vtc_demo.core.environment import environment

SHORT = 0.02  # seconds: a job this long or longer is called once per round
LARGEST = 1 << 14  # side of the matrices with which the roofs are looked for


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


def seconds_per_call(work: Callable, device: torch.device, calls: int = 1) -> float:
    """Of `calls` calls in a row, synchronised at both ends."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronise(device)
    return (time.perf_counter() - start) / calls


def in_turn(
    jobs: dict[Hashable, Callable],
    device: torch.device,
    *,
    warmups: int = 2,
    repeats: int = 5,
    seconds: float = math.inf,
    calls: int = 1,
) -> Generator[float, None, tuple[dict[Any, list[float]], int]]:
    """Time several jobs in rounds, so that what else the machine does meets all of them alike.

    A generator of the share that is done; its value is ({job: [seconds per call, one per round]}, warm-ups made).
    calls: how often a short job is called in a row at most (a job of 20 ms or more: once). No round begins that would
    end after `seconds`, except one warm-up and one measured round, the least. Warm-ups beyond the first are made only
    if all repeats still fit. Closing the generator stops the work. Raises ValueError for counts below 1.
    """
    if warmups < 1 or repeats < 1 or calls < 1:
        raise ValueError(f"need warmups, repeats and calls >= 1, got {warmups}, {repeats} and {calls}")
    deadline, often, lasted = time.perf_counter() + seconds, dict.fromkeys(jobs, 1), 0.0
    rounds: list[dict[Hashable, float]] = []

    def fits(more: int) -> bool:
        return time.perf_counter() + more * lasted <= deadline

    warm = 0
    while warm < 1 or len(rounds) < 1 or (len(rounds) < repeats and fits(1)):
        warming = warm < 1 or (not rounds and warm < warmups and fits(1 + repeats))
        begin, row = time.perf_counter(), {}
        for done, (name, work) in enumerate(jobs.items()):
            row[name] = seconds_per_call(work, device, often[name])
            yield (warm + len(rounds) + (done + 1) / len(jobs)) / (warmups + repeats)
        lasted = time.perf_counter() - begin
        if warming:
            warm += 1
            often = {name: max(1, min(calls, round(SHORT / max(row[name], 1e-9)))) for name in jobs}
        else:
            rounds.append(row)
    return {name: [row[name] for row in rounds] for name in jobs}, warm


@torch.inference_mode()
def roofs(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """peak_flops: FLOP/s of a product of square matrices. bandwidth: byte/s of a large copy, or of a matrix times a
    vector if that is faster. Both are the best of a few tries, at sizes that double until a try takes 20 ms.
    """
    peak = bandwidth = lasted = 0.0
    side, read = 512, 1 << 27
    best = lambda work: min(seconds_per_call(work, device) for _ in range(5))  # noqa: E731
    while lasted < SHORT and side <= LARGEST:
        side *= 2
        a = torch.randn(side, side, device=device).to(dtype)
        peak = max(peak, 2 * side**3 / (lasted := best(lambda a=a: a @ a)))
    lasted = 0.0
    while lasted < SHORT and read <= LARGEST**2:
        read *= 2  # bytes
        source = torch.ones(read // (dtype.itemsize * 1024), 1024, device=device, dtype=dtype)
        target, vector = torch.empty_like(source), torch.ones(1024, device=device, dtype=dtype)
        copied, lasted = (best(work) for work in (lambda: target.copy_(source), lambda: source @ vector))  # noqa: B023
        bandwidth = max(bandwidth, 2 * read / copied, read / lasted)
    return {"peak_flops": peak, "bandwidth": bandwidth}


def surroundings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The environment, how busy the machine is, and its roofs."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {"cores": os.cpu_count(), "load_average": busy}
    waiting = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return environment(device, dtype) | machine | waiting | roofs(device, dtype)
