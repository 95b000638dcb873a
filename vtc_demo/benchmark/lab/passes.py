"""Which layers are timed at which lengths, and how the time of a whole pass follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from vtc_demo import cost

from .parts import Kind, Point
from .plan import Plan
from .settings import Settings

LIMITS = {"prefill": 6, "tower": 4, "tower full": 4, "decode": 3}  # lengths timed of a kind; straight lines between
PROMPTS = 3  # and of a prefill of several prompts, which takes long


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
    full = [bool(spec.window) and i in spec.full_layers for i in range(spec.vision_layers)]
    layers = [Point("tower full" if whole else "tower", n) for whole, n in zip(full, plan.encoder, strict=True)]
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
        for batch in {"decode": settings.batches, "prefill": settings.prefill_batches}.get(kind, (1,)):
            limit = PROMPTS if kind == "prefill" and batch > 1 else LIMITS[kind]
            out += [Point(kind, n, batch) for n in sampled(values, limit)]
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
        parts = {n: part for n in set(lengths) if (part := self.at(kind, n, batch)) is not None}
        return sum((parts[n] for n in lengths), np.zeros(1)) if parts.keys() == set(lengths) else None

    def of(self, spec: cost.ModelSpec, plan: Plan, settings: Settings) -> dict[str, Any]:
        """Milliseconds of a pass by stage, [rounds] each; decode: of one step, by batch, batched_prefill: of all
        prompts, by batch; None where that was not timed."""
        every = tower(spec, plan)
        vision: list[Any] = [self.seconds[p] if p.kind == "embed" else self.at(p.kind, p.tokens) for p in every]
        lengths = [n + plan.text for n in plan.schedule]
        out: dict[str, Any] = {
            "vision": sum(vision),
            "projector": self.seconds[Point("projector", plan.projected)],
            "prefill": self.over("prefill", lengths),
            "lm_head": self.at("lm_head", 1),
        }
        out = {stage: 1000 * value for stage, value in out.items()}
        steps = {}
        for batch in settings.batches:
            layers = self.over("decode", contexts(plan, settings.new_tokens), batch)
            steps[batch] = None if layers is None else 1000 * (layers + self.at("lm_head", 1, batch))
        prompts = {batch: self.over("prefill", lengths, batch) for batch in settings.prefill_batches}
        prompts = {batch: None if value is None else 1000 * value for batch, value in prompts.items()}
        return out | {"ttft": sum(out.values()), "decode": steps, "batched_prefill": prompts}
