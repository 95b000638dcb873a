"""The JSON-ready record: what was counted and measured, point by point and method by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from vtc_demo import cost

from .. import timing
from .parts import Point, work
from .passes import Times, contexts, tower
from .plan import Plan
from .settings import BATCHED, Settings
from .shapes import Shape


def spread(seconds: np.ndarray | None) -> dict[str, float] | None:
    return None if seconds is None else timing.spread(seconds.tolist())


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
        "own_flops": plan.own,
        "kv_bytes": cost.kv_bytes(spec, plan.cached, plan.text, settings.new_tokens, dtype.itemsize),
        "notes": notes(spec, plan, settings, times),
        "ms": by_stage(ms, spread),
        "expected_ms": by_stage(least, lambda value: None if value is None else float(value[0])),
    }


def by_stage(times: dict[str, Any], figure: Callable) -> dict[str, Any]:
    """`figure` of every time, JSON-ready; of those by batch, of each batch."""
    return {
        stage: {str(batch): figure(one) for batch, one in value.items()} if stage in BATCHED else figure(value)
        for stage, value in times.items()
    }


def notes(spec: cost.ModelSpec, plan: Plan, settings: Settings, times: Times) -> list[str]:
    """What a reader must know of this row."""
    out, method = [], plan.method
    known = {(p.kind, p.tokens, p.batch) for p in times.seconds}
    asked = {(p.kind, p.tokens, 1) for p in tower(spec, plan)}
    asked |= {("prefill", n + plan.text, batch) for n in plan.schedule for batch in settings.prefill_batches}
    asked |= {("decode", n, batch) for n in contexts(plan, settings.new_tokens) for batch in settings.batches}
    if any(times.at(*one) is not None for one in asked - known):
        out.append("some lengths lie on a straight line between two that were timed")
    if plan.uncounted:
        out.append(f"its own work is not counted: {plan.uncounted}")
    if method.adaptive:
        out.append("its counts depend on the picture; these are of noise on random weights")
    if method.inside:
        out.append("it cuts between attention and MLP; each layer is timed with the tokens that enter it")
    return out


def compare(rows: list[dict], times: list[dict]) -> None:
    """Add to every row the ratios full / method: measured in the same rounds, and at the roofline."""
    full, whole = rows[0], times[0]

    def ratio(top, bottom):
        return None if top is None or bottom is None else timing.spread((top / bottom).tolist())

    quotient = lambda a, b: None if a is None or b is None else a / b  # noqa: E731
    for found, own in zip(rows, times):
        found["ratios"] = {stage: ratio(whole[stage], own[stage]) for stage in ("prefill", "ttft")}
        least, bound = full["expected_ms"], found["expected_ms"]
        found["expected_ratios"] = {stage: least[stage] / bound[stage] for stage in ("prefill", "ttft")}
        for part in BATCHED:
            found["ratios"][part] = {str(b): ratio(whole[part][b], own[part][b]) for b in own[part]}
            found["expected_ratios"][part] = {b: quotient(least[part][b], bound[part][b]) for b in bound[part]}
