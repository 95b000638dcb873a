"""One experiment: what one layer of each kind takes on this machine, and what follows for whole passes of methods."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import cost, measure
from ..models import _device as find_device
from ..models import _dtype as find_dtype
from ..models import memory
from .parts import Kind, Parts, Point, work
from .plan import Plan, plans
from .shapes import Shape, pick

LIMITS = {
    "prefill": 6,
    "tower": 4,
    "tower full": 4,
    "decode": 3,
}  # lengths timed of a kind; between them straight lines
LEAST = 2  # passes over all points: a warm-up and a measured one


class Event(NamedTuple):
    """kind: "stage" (data: what is done now), "progress" (data: the share that is done) or "record" (data: a dict)."""

    kind: str
    data: Any


@dataclass(frozen=True)
class Settings:
    """What to measure.

    methods: each at all of `tokens` visual tokens, beside the full model. text_tokens: of the prompt. new_tokens:
    answer length; a decode step is timed at the mean cache length of such an answer. batches: answers decoded at
    once. seconds: after which no further round begins. dtype None: on a CPU the faster of float32 and bfloat16.
    """

    shape: str = "llava-1.5-7b"
    methods: tuple[str, ...] = ("fastervlm", "fastv")
    tokens: tuple[int, ...] = (64,)
    text_tokens: int = 64
    new_tokens: int = 64
    batches: tuple[int, ...] = (1, 8)
    seconds: float = 20.0
    warmups: int = 2
    repeats: int = 5
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self):
        whole = {"text_tokens": self.text_tokens, "new_tokens": self.new_tokens}
        whole |= {f"batch {b}": b for b in self.batches} | {"warmups": self.warmups, "repeats": self.repeats}
        for name, value in whole.items():
            low = 2 if name == "new_tokens" else 1
            if not low <= value <= 8192:
                raise ValueError(f"{name} must be a whole number from {low} to 8192, got {value}")
        if not 1 <= self.seconds <= 3600:
            raise ValueError(f"seconds must be from 1 to 3600, got {self.seconds:g}")


# -- what to time ---------------------------------------------------------------------------------------------------
def sampled(values, limit: int) -> list[int]:
    """At most `limit` of the values, ascending: the ends, and between them those nearest to an even spread."""
    values = sorted(set(values))
    if len(values) <= limit:
        return values
    wanted = np.linspace(values[0], values[-1], limit)
    return sorted({min(values, key=lambda v: abs(v - w)) for w in wanted})


def contexts(plan: Plan, new_tokens: int) -> list[int]:
    """Cache entries of every layer in a decode step, the new token's own included: the mean over an answer's steps."""
    return [n + plan.text + new_tokens // 2 for n in plan.cached]


def tower(spec: cost.ModelSpec, plan: Plan) -> list[Point]:
    """Everything the tower does in a pass, point by point."""
    patches = spec.patches if plan.side is None else (plan.side // spec.patch_size) ** 2
    kinds = ["tower full" if spec.window and i in spec.full_layers else "tower" for i in range(spec.vision_layers)]
    layers = [Point(kind, n) for kind, n in zip(kinds, plan.encoder, strict=True)]
    return [Point("embed", patches + spec.extra, side=plan.side), *layers]


def points(spec: cost.ModelSpec, found: list[Plan], settings: Settings) -> list[Point]:
    """What is timed, so that the time of every pass follows."""
    lengths: dict[Kind, list[int]] = {"prefill": [n + plan.text for plan in found for n in plan.schedule]}
    lengths["decode"] = [n for plan in found for n in contexts(plan, settings.new_tokens)]
    out = []
    for plan in found:
        out.append(Point("projector", plan.projected))
        for point in tower(spec, plan):
            if point.kind == "embed":
                out.append(point)
            else:
                lengths.setdefault(point.kind, []).append(point.tokens)
    for kind, values in lengths.items():
        batches = settings.batches if kind == "decode" else (1,)
        out += [Point(kind, n, batch) for batch in batches for n in sampled(values, LIMITS[kind])]
    out += [Point("lm_head", 1, batch) for batch in (1, *settings.batches)]
    return list(dict.fromkeys(out))


# -- times of whole passes ------------------------------------------------------------------------------------------
class Times:
    """Seconds of points, [rounds] each (or [1], at the roofline), and of what is put together from them."""

    def __init__(self, seconds: dict[Point, np.ndarray]):
        self.seconds = seconds
        self.lines: dict[tuple[Kind, int], list[Point]] = {}
        for point in sorted(seconds, key=lambda p: p.tokens):
            self.lines.setdefault((point.kind, point.batch), []).append(point)

    def at(self, kind: Kind, tokens: int, batch: int = 1) -> np.ndarray | None:
        """Seconds at a number of tokens, on a straight line between the points around it; None outside of them."""
        line = self.lines.get((kind, batch), [])
        low = max((p for p in line if p.tokens <= tokens), key=lambda p: p.tokens, default=None)
        high = min((p for p in line if p.tokens >= tokens), key=lambda p: p.tokens, default=None)
        if low is None or high is None:
            return None
        share = 0 if low == high else (tokens - low.tokens) / (high.tokens - low.tokens)
        return (1 - share) * self.seconds[low] + share * self.seconds[high]

    def over(self, kind: Kind, lengths, batch: int = 1) -> np.ndarray | None:
        """Seconds of all layers; None if one of them is not known."""
        parts = {n: self.at(kind, n, batch) for n in set(lengths)}
        return None if any(p is None for p in parts.values()) else sum(parts[n] for n in lengths)

    def of(self, spec: cost.ModelSpec, plan: Plan, settings: Settings) -> dict[str, Any]:
        """Milliseconds of a pass by stage, [rounds] each; decode: of one step, by batch, None where it does not fit."""
        vision = sum(self.seconds[p] if p.kind == "embed" else self.at(p.kind, p.tokens) for p in tower(spec, plan))
        out = {
            "vision": vision,
            "projector": self.seconds[Point("projector", plan.projected)],
            "prefill": self.over("prefill", [n + plan.text for n in plan.schedule]),
            "lm_head": self.at("lm_head", 1),
        }
        out = {stage: 1000 * value for stage, value in out.items()}
        steps = {}
        for batch in settings.batches:
            layers = self.over("decode", contexts(plan, settings.new_tokens), batch)
            steps[batch] = None if layers is None else 1000 * (layers + self.at("lm_head", 1, batch))
        return out | {"ttft": sum(out.values()), "decode": steps}


# -- the experiment -------------------------------------------------------------------------------------------------
def stream(settings: Settings) -> Iterator[Event]:
    """Measure, as a stream of events that ends with the record. Closing the generator stops the work.

    Raises ValueError for bad settings, for a method that does not suit the shape, if the parts do not fit into memory
    or if `seconds` cannot be enough for one warm-up and one measured round.
    """
    begun, shape = time.perf_counter(), pick(settings.shape)
    yield Event("stage", "counting the tokens of every method")
    found = plans(shape, settings.methods, settings.tokens, settings.text_tokens)
    yield Event("stage", "measuring how fast this machine computes and reads")
    device = find_device(settings.device)
    environment, dtype = surroundings(device, settings.dtype)
    roofs = environment["peak_flops"], environment["bandwidth"]
    chosen = points(shape.spec, found, settings)
    expected = {p: work(shape.spec, p, dtype.itemsize).seconds(*roofs) for p in chosen}
    check_time(sum(expected.values()), settings)
    yield Event("stage", f"making one layer of each kind of {shape.title} in {environment['dtype']}")
    parts, jobs, skipped = Parts(shape, device, dtype), {}, {}
    for point in sorted(chosen, key=lambda p: -p.batch * p.tokens):
        try:
            jobs[point] = parts.job(point)
        except memory.TooLarge as error:
            if point.kind != "decode":
                raise
            skipped[point] = str(error)
    yield Event("stage", "timing the layers in turn")
    left = max(0.0, settings.seconds - (time.perf_counter() - begun))
    times, warm = yield from progress(jobs, device, settings, left, max(shape.spec.layers, shape.spec.vision_layers))
    seconds = Times({point: np.array(row) for point, row in times.items()})
    environment |= raised(environment, shape, seconds, dtype)
    roofs = environment["peak_flops"], environment["bandwidth"]
    expected = {p: work(shape.spec, p, dtype.itemsize).seconds(*roofs) for p in chosen}
    record = {
        "shape": shape.name,
        "title": shape.title,
        "spec": asdict(shape.spec),
        "settings": asdict(settings),
        "environment": environment,
        "warmups": warm,
        "repeats": len(next(iter(times.values()))),
        "points": [point_record(shape.spec, p, seconds.seconds[p], expected[p], dtype) for p in chosen if p in times],
        "skipped": [asdict(point) | {"reason": reason} for point, reason in skipped.items()],
    }
    bound = Times({point: np.array([value]) for point, value in expected.items()})
    record["rows"] = [row(shape, plan, settings, seconds, bound, dtype) for plan in found]
    compare(record["rows"], [seconds.of(shape.spec, plan, settings) for plan in found])
    record["seconds"] = time.perf_counter() - begun
    yield Event("record", record)


def progress(jobs, device, settings: Settings, left: float, layers: int) -> Iterator[Event]:
    """The events of the timing; its value is that of `measure.in_turn`."""
    timing = measure.in_turn(
        jobs, device, warmups=settings.warmups, repeats=settings.repeats, seconds=left, calls=layers
    )
    while True:
        try:
            yield Event("progress", next(timing))
        except StopIteration as end:
            return end.value


def surroundings(device: torch.device, dtype: str | None) -> tuple[dict, torch.dtype]:
    """(environment with roofs, number format). Without a wish the faster one on a CPU."""
    if dtype is None and device.type == "cpu":
        tried = [(measure.surroundings(device, d), d) for d in (torch.float32, torch.bfloat16)]
        found = max(tried, key=lambda pair: pair[0]["peak_flops"])
    else:
        wanted = find_dtype(dtype, device)
        found = measure.surroundings(device, wanted), wanted
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


# -- records --------------------------------------------------------------------------------------------------------
def spread(seconds: np.ndarray | None) -> dict[str, float] | None:
    return None if seconds is None else measure.spread(seconds.tolist())


def point_record(spec: cost.ModelSpec, point: Point, seconds: np.ndarray, expected: float, dtype: torch.dtype) -> dict:
    flops, bytes_ = work(spec, point, dtype.itemsize)
    counted = {"flops": flops, "bytes": bytes_, "expected_ms": 1000 * expected}
    return asdict(point) | counted | {"ms": spread(1000 * seconds)}


def row(shape: Shape, plan: Plan, settings: Settings, times: Times, bound: Times, dtype: torch.dtype) -> dict:
    """What is counted for one pass, and its times: measured and at the roofline."""
    spec, method = shape.spec, plan.method
    ms, least = (t.of(spec, plan, settings) for t in (times, bound))
    counted = cost.run_flops(
        spec,
        plan.schedule,
        plan.text,
        settings.new_tokens,
        encoder_schedule=plan.encoder,
        projector_tokens=plan.projected,
        patches=None if plan.side is None else (plan.side // spec.patch_size) ** 2,
        cache_schedule=plan.cached,
    )
    return {
        "method": method.spec(),
        "title": method.card.title,
        "budget": method.keep(shape.visual),
        "schedule": list(plan.schedule),
        "cached": list(plan.cached),
        "text_tokens": plan.text,
        "equivalent_tokens": plan.equivalent_tokens,
        "flops": counted,
        "kv_bytes": cost.kv_bytes(spec, plan.cached, plan.text, settings.new_tokens, dtype.itemsize),
        "notes": notes(spec, plan, settings, times),
        "ms": {stage: spread(value) for stage, value in ms.items() if stage != "decode"}
        | {"decode": {str(b): spread(value) for b, value in ms["decode"].items()}},
        "expected_ms": {stage: float(value[0]) for stage, value in least.items() if stage != "decode"}
        | {"decode": {str(b): None if v is None else float(v[0]) for b, v in least["decode"].items()}},
    }


def notes(spec: cost.ModelSpec, plan: Plan, settings: Settings, times: Times) -> list[str]:
    """What a reader must know of this row."""
    out, method = [], plan.method
    known = {(p.kind, p.tokens) for p in times.seconds}
    asked = {("prefill", n + plan.text) for n in plan.schedule}
    asked |= {(p.kind, p.tokens) for p in tower(spec, plan)} | {
        ("decode", n) for n in contexts(plan, settings.new_tokens)
    }
    if asked - known:
        out.append("some lengths lie on a straight line between two that were timed")
    if method.adaptive:
        out.append("its counts depend on the picture; these are of noise on random weights")
    if method.inside:
        out.append("it cuts between attention and MLP; each layer is timed with the tokens that enter it")
    return out


def compare(rows: list[dict], times: list[dict]) -> None:
    """Add to every row the ratios full / method: measured in the same rounds, and at the roofline."""
    full, whole = rows[0], times[0]

    def ratio(top, bottom):
        return None if top is None or bottom is None else measure.spread((top / bottom).tolist())

    for found, own in zip(rows, times):
        found["ratios"] = {stage: ratio(whole[stage], own[stage]) for stage in ("prefill", "ttft")}
        found["ratios"]["decode"] = {str(b): ratio(whole["decode"][b], own["decode"][b]) for b in own["decode"]}
        least, bound = full["expected_ms"], found["expected_ms"]
        quotient = lambda a, b: None if a is None or b is None else a / b  # noqa: E731
        found["expected_ratios"] = {stage: least[stage] / bound[stage] for stage in ("prefill", "ttft")}
        found["expected_ratios"]["decode"] = {
            b: quotient(least["decode"][b], bound["decode"][b]) for b in bound["decode"]
        }
