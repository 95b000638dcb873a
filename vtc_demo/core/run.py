"""What a run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .measures import ttft_flops
from .method import Method
from .tokens import Step, Trace


@dataclass(frozen=True)
class Matched:
    """A method at the retention whose cost comes nearest to the target, in the measure `match`.

    reached: what it costs there; on a `Run`, what that run has cost. note: why it is not the target, else empty.
    """

    method: Method
    match: str
    target: float
    reached: float
    note: str = ""

    @property
    def retention(self) -> float:
        return self.method.retention

    def to_dict(self) -> dict:
        """JSON-ready."""
        return {name: getattr(self, name) for name in ("match", "target", "reached", "retention", "note")}


@dataclass
class Run:
    """One answer of one method. timings in milliseconds, flops at 2 per multiply-add; both by stage with their total.

    token_ids: the answer, the end-of-answer token included if it came. kv_bytes, kv_lengths [layers]: the cache at the
    end. vision_shared: the vision pass was made earlier for the same image; its measured time is in the timings.
    matched: how the retention was solved for a given cost, if it was. error: why there is no answer; then the other
    fields are empty.
    """

    method: Method
    answer: str = ""
    token_ids: list[int] = field(default_factory=list)
    trace: Trace | None = None
    timings: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    kv_bytes: int = 0
    kv_lengths: list[int] = field(default_factory=list)
    vision_shared: bool = False
    matched: Matched | None = None
    error: str | None = None

    @property
    def schedule(self) -> list[int]:
        """Visual tokens entering each LLM layer."""
        return self.trace.schedule if self.trace else []

    @property
    def visual_tokens(self) -> int:
        """Visual tokens entering the last LLM layer."""
        return self.schedule[-1] if self.trace else 0

    @property
    def equivalent_tokens(self) -> float:
        """Mean over LLM layers of the visual tokens entering the layer."""
        return self.trace.equivalent_tokens if self.trace else 0.0

    @property
    def ttft_flops(self) -> int:
        """FLOPs up to and with the first token of the answer."""
        return ttft_flops(self.flops, len(self.token_ids))

    def to_dict(self) -> dict:
        """JSON-ready. tokens0: patches of the whole image, the base of every ratio. new_tokens: of the answer.

        cells: where several views are drawn on one grid, the places that hold a patch; the others are blank. None: all.
        soft (of a site): tokens are mixes by cross-attention; a patch's weight is its largest share in one of them.
        """
        trace = self.trace
        return {
            "method": self.method.spec(),
            "title": self.method.card.title,
            "answer": self.answer,
            "new_tokens": len(self.token_ids),
            "tokens0": trace.patches if trace else 0,
            "visual_tokens": self.visual_tokens,
            "schedule": self.schedule,
            "equivalent_tokens": self.equivalent_tokens,
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
            "flops": self.flops,
            "kv_bytes": self.kv_bytes,
            "kv_lengths": self.kv_lengths,
            "grid": list(trace.grid) if trace else [],
            "cells": trace.cells.tolist() if trace and trace.cells is not None else None,
            "sites": [_site(trace, step) for step in trace.steps] if trace else [],
            "effects": [{"site": str(site), **effect.told()} for site, effect in trace.effects] if trace else [],
            "vision_shared": self.vision_shared,
            "matched": self.matched.to_dict() if self.matched else None,
            "error": self.error,
        }


def _site(trace: Trace, step: Step) -> dict:
    fate = trace.fate(step.site)
    return {
        "site": str(step.site),
        "tokens": step.reduction.m,
        "soft": trace.product(step.site).soft,
        "counts": fate.counts,
        "status": trace.on_grid(fate.status).tolist(),
        "weight": [round(w, 3) for w in trace.on_grid(fate.weight).tolist()],
        "home": trace.on_grid(_cells(trace, fate.home), -1).tolist(),
    }


def _cells(trace: Trace, home: Tensor) -> Tensor:
    """Patches as places on the drawn grid; -1 stays."""
    return home if trace.cells is None else trace.cells[home].where(home >= 0, home)
