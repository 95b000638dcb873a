"""One experiment: what one layer of each kind takes on this machine, and what follows for whole passes of methods."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch

from vtc_demo.models import memory
from vtc_demo.models.loading import find_device, find_dtype

from .. import timing
from .parts import Parts, Point, work
from .passes import Times, points
from .plan import plans
from .record import compare, point_record, row
from .settings import Settings, with_prompts
from .shapes import Shape, pick

LEAST = 2  # passes over all points: a warm-up and a measured one


class LabEvent(NamedTuple):
    """kind: "stage" (data: what is done now), "progress" (data: the share that is done) or "record" (data: a dict)."""

    kind: str
    data: Any


def stream(settings: Settings) -> Generator[LabEvent, None, None]:
    """Measure, as a stream of events that ends with the record. Closing the generator stops the work.

    Raises ValueError for bad settings, for a method that does not suit the shape, if the parts do not fit into memory
    or if `seconds` cannot be enough for one warm-up and one measured round. Decode steps that do not fit into memory,
    and prefills of several prompts that do not fit into memory or into `seconds`, are left out with the reason.
    """
    begun, shape = time.perf_counter(), pick(settings.shape)
    yield LabEvent("stage", "counting the tokens of every method")
    found = plans(shape, settings.methods, settings.tokens, settings.text_tokens)
    yield LabEvent("stage", "measuring how fast this machine computes and reads")
    device = find_device(settings.device)
    settings = with_prompts(settings, device)
    environment, dtype = surroundings(device, settings.dtype)
    roofs = environment["peak_flops"], environment["bandwidth"]
    chosen = points(shape.spec, found, settings)
    expected = {p: work(shape.spec, p, dtype.itemsize).seconds(*roofs) for p in chosen}
    needed = [p for p in chosen if not batched_prefill(p)]
    check_time(sum(expected[p] for p in needed), settings)
    yield LabEvent("stage", f"making one layer of each kind of {shape.title} in {environment['dtype']}")
    parts, jobs, skipped = Parts(shape, device, dtype), {}, {}
    for point in sorted(needed, key=lambda p: -p.batch * p.tokens):
        try:
            jobs[point] = parts.job(point)
        except memory.TooLarge as error:
            if point.kind != "decode":
                raise
            skipped[point] = Skip("memory", str(error))
    add_prefills(parts, jobs, skipped, expected, settings, begun)
    yield LabEvent("stage", "timing the layers in turn")
    left = max(0.0, settings.seconds - (time.perf_counter() - begun))
    times, warm = yield from progress(jobs, device, settings, left, max(shape.spec.layers, shape.spec.vision_layers))
    seconds = Times({point: np.array(row) for point, row in times.items()})
    environment |= raised(environment, shape, seconds, dtype)
    roofs = environment["peak_flops"], environment["bandwidth"]
    expected = {p: work(shape.spec, p, dtype.itemsize).seconds(*roofs) for p in chosen}
    record: dict[str, Any] = {
        "shape": shape.name,
        "title": shape.title,
        "spec": asdict(shape.spec),
        "settings": asdict(settings),
        "environment": environment,
        "warmups": warm,
        "repeats": len(next(iter(times.values()))),
        "points": [point_record(shape.spec, p, seconds.seconds[p], expected[p], dtype) for p in chosen if p in times],
        "skipped": [asdict(point) | skip._asdict() for point, skip in skipped.items()],
    }
    bound = Times({point: np.array([value]) for point, value in expected.items()})
    record["rows"] = [row(shape, plan, settings, seconds, bound, dtype) for plan in found]
    compare(record["rows"], [seconds.of(shape.spec, plan, settings) for plan in found])
    record["seconds"] = time.perf_counter() - begun
    yield LabEvent("record", record)


# -- what is left out -----------------------------------------------------------------------------------------------
class Skip(NamedTuple):
    """Why a point is not timed. cause: "memory" or "time"."""

    cause: str
    reason: str


def batched_prefill(point: Point) -> bool:
    return point.kind == "prefill" and point.batch > 1


def add_prefills(
    parts: Parts, jobs: dict, skipped: dict, expected: dict[Point, float], settings: Settings, begun: float
) -> None:
    """Jobs for prefills of several prompts, the quickest first, as far as memory and time allow; else they are skipped.

    How long they will take is judged by how far the longest prefill of a single prompt stays behind the roofline, in
    its second call: the first one pays for what is made once.
    """
    wished = sorted((p for p in expected if batched_prefill(p)), key=expected.__getitem__)
    if not wished:
        return
    longest = max((p for p in jobs if p.kind == "prefill"), key=lambda p: p.tokens)
    jobs[longest]()
    slower = max(1.0, timing.seconds_per_call(jobs[longest], parts.device) / expected[longest])
    one_round = slower * sum(expected[p] for p in jobs)
    for point in wished:
        longer, left = one_round + slower * expected[point], settings.seconds - (time.perf_counter() - begun)
        if LEAST * longer > left:
            skipped[point] = Skip(
                "time",
                f"With it, one warm-up and one measurement of everything take about {LEAST * longer:.0f} s; of the "
                f"{settings.seconds:g} s allowed {max(0.0, left):.0f} s are left. Allow more seconds.",
            )
            continue
        try:
            jobs[point], one_round = parts.job(point), longer
        except memory.TooLarge as error:
            skipped[point] = Skip("memory", str(error))


# -- the course of it -----------------------------------------------------------------------------------------------
def progress(
    jobs, device, settings: Settings, left: float, layers: int
) -> Generator[LabEvent, None, tuple[dict[Point, list[float]], int]]:
    """The events of the timing; its value is that of `timing.in_turn`."""
    rounds = timing.in_turn(
        jobs, device, warmups=settings.warmups, repeats=settings.repeats, seconds=left, calls=layers
    )
    while True:
        try:
            yield LabEvent("progress", next(rounds))
        except StopIteration as end:
            return end.value


def surroundings(device: torch.device, dtype: str | None) -> tuple[dict, torch.dtype]:
    """(environment with roofs, number format). Without a wish the faster one on a CPU."""
    if dtype is None and device.type == "cpu":
        tried = [(timing.surroundings(device, d), d) for d in (torch.float32, torch.bfloat16)]
        found = max(tried, key=lambda pair: pair[0]["peak_flops"])
    else:
        wanted = find_dtype(dtype, device)
        found = timing.surroundings(device, wanted), wanted
    return {name: value for name, value in found[0].items() if name != "batch"}, found[1]


def raised(environment: dict, shape: Shape, times: Times, dtype: torch.dtype) -> dict[str, float]:
    """The roofs, lifted to the fastest that any point was seen to compute or to move."""
    best = [(work(shape.spec, p, dtype.itemsize), seconds.min()) for p, seconds in times.seconds.items()]
    return {
        "peak_flops": max(environment["peak_flops"], *(float(done.flops / s) for done, s in best)),
        "bandwidth": max(environment["bandwidth"], *(float(done.bytes / s) for done, s in best)),
    }


def check_time(one_round: float, settings: Settings) -> None:
    least = LEAST * one_round
    if least > settings.seconds:
        raise ValueError(
            f"one warm-up and one measurement of everything take at least {least:.0f} s on this machine, more than the "
            f"{settings.seconds:g} s allowed; allow {math.ceil(2 * least)} s, or choose a smaller shape, fewer "
            "methods, tokens or batches"
        )


def run(settings: Settings) -> dict:
    """The record of `stream`."""
    for event in stream(settings):
        last = event.data
    return last
