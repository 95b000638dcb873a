"""What is measured: passes of one model on one image and question, two ways in turn.

The vision pass is made anew each time, answers have a fixed length, EOS ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vtc_demo import cost, engine, registry
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM

from . import references
from .generate import generate, without_eos
from .pairs import Times, medians, paired, pairs, spreads
from .peak_memory import peak_bytes
from .reasons import reasons

REFERENCES = ("vision", "prefill", "ttft", "wall")  # ratios shown beside references with all attention maps
COMPILED = ("prefill", "decode_per_token", "ttft", "wall")  # and beside compiled layers


@dataclass
class Measurements:
    """Of one model, image and question; how often each is made."""

    vlm: VLM
    image: Any
    question: str
    new_tokens: int = 8
    warmups: int = 2
    repeats: int = 5

    def __post_init__(self):
        if self.new_tokens < 2 or self.warmups < 0 or self.repeats < 1:
            raise ValueError(
                "a benchmark needs new_tokens >= 2, warmups >= 0 and repeats >= 1, got "
                f"{self.new_tokens}, {self.warmups} and {self.repeats}"
            )
        self.full = registry.resolve("full")

    # -- one pass -----------------------------------------------------------------------------------------------------
    def run(self, method: Method, how: Callable = engine.run) -> tuple[Times, Run]:
        """One pass of the engine (or of its likes): its stages, and `wall` for the whole call."""
        self.vlm.workspace.forget()  # the vision pass is not to be shared
        start = time.perf_counter()
        run = how(self.vlm, self.image, self.question, method, max_new_tokens=self.new_tokens, ignore_eos=True)
        return run.timings | {"wall": 1000 * (time.perf_counter() - start)}, run

    def generate(self) -> tuple[Times, list[int]]:
        """The same work by `model.generate`. Run it inside `without_eos`."""
        return generate(self.vlm, self.image, self.question, self.new_tokens)

    # -- comparisons -------------------------------------------------------------------------------------------------
    def against_generate(self) -> dict:
        """The engine without reduction and `model.generate`: times of both, ratios generate / engine."""
        with without_eos(self.vlm):
            ours, theirs = pairs(lambda: self.run(self.full), self.generate, self.warmups, self.repeats)
        mine, other = [times for times, _ in ours], [times for times, _ in theirs]
        return {
            "same_answer": all(run.token_ids == ids for (_, run), (_, ids) in zip(ours, theirs)),
            "engine_ms": spreads([{name: row[name] for name in other[0]} for row in mine]),
            "generate_ms": spreads(other),
            "ratios": {name: paired(other, mine, name) for name in other[0]},
        }

    def against_full(self, method: Method, machine: dict[str, float]) -> dict:
        """One method beside the full model: times, costs, ratios full / method and why they are what they are."""
        reference, reduced = pairs(lambda: self.run(self.full), lambda: self.run(method), self.warmups, self.repeats)
        before, after = [times for times, _ in reference], [times for times, _ in reduced]
        whole, run = reference[0][1], reduced[0][1]
        expected = self.expected(whole, run, machine)
        measured = {name: paired(before, after, name) for name in ("prefill", "ttft", "decode_per_token", "wall")}
        times, full_times = spreads(after), spreads(before)
        counted = {
            "prefill_expected": expected,
            "prefill_flops": whole.flops["prefill"] / run.flops["prefill"],
            "total_flops": whole.flops["total"] / run.flops["total"],
            "kv_bytes": whole.kv_bytes / run.kv_bytes,
        }
        return {
            "visual_tokens": run.visual_tokens,
            "equivalent_tokens": run.trace.equivalent_tokens,
            "ms": times,
            "full_ms": full_times,
            "flops": run.flops,
            "kv_bytes": run.kv_bytes,
            "peak_bytes": self.peak(method),
            "ratios": measured | counted,
            "own_work": paired(after, before, "compression", "prefill"),
            "reasons": reasons(medians(full_times), medians(times), expected, medians(measured)),
        }

    def against_reference(self, method: Method) -> dict:
        """One method beside its reference with whole attention maps: times, ratios reference / ours, peak memory."""
        ours, theirs = pairs(
            lambda: self.run(method), lambda: self.run(method, references.run), self.warmups, self.repeats
        )
        mine, other = [times for times, _ in ours], [times for times, _ in theirs]
        run, reference = ours[0][1], theirs[0][1]
        peaks = self.peak(method), self.peak(method, references.run)
        return {
            "same_answer": all(a.token_ids == b.token_ids for (_, a), (_, b) in zip(ours, theirs)),
            "same_tokens": survivors(run) == survivors(reference),
            "ms": spreads(mine),
            "reference_ms": spreads(other),
            "ratios": {name: paired(other, mine, name) for name in REFERENCES},
            "peak_bytes": peaks[0],
            "reference_peak_bytes": peaks[1],
        }

    def against_compiled(self, method: Method, twin: Measurements) -> dict:
        """One method beside itself with compiled decoder layers: times, ratios as is / compiled, seconds of the first
        compiled pass, which is the one that compiles what is not compiled yet."""
        first = twin.run(method)[0]["wall"] / 1000
        plain, fused = pairs(lambda: self.run(method), lambda: twin.run(method), self.warmups, self.repeats)
        before, after = [times for times, _ in plain], [times for times, _ in fused]
        return {
            "same_answer": all(a.token_ids == b.token_ids for (_, a), (_, b) in zip(plain, fused)),
            "first_seconds": first,
            "ms": spreads(before),
            "compiled_ms": spreads(after),
            "ratios": {name: paired(before, after, name) for name in COMPILED},
        }

    def expected(self, whole: Run, run: Run, machine: dict[str, float]) -> float:
        """Ratio of the prefills at the machine's roofline."""
        text = whole.kv_lengths[0] - whole.schedule[0] - (self.new_tokens - 1)  # the last token is not fed back
        schedules, size = (run.schedule, whole.schedule), self.vlm.dtype.itemsize
        roofs = machine["peak_flops"], machine["bandwidth"]
        return cost.expected_speedup(self.vlm.spec, *schedules, text, *roofs, bytes_per_value=size)

    def without_reduction(self) -> dict:
        """What the full model costs, counted."""
        _, run = self.run(self.full)
        return {
            "visual_tokens": run.visual_tokens,
            "flops": run.flops,
            "kv_bytes": run.kv_bytes,
            "peak_bytes": self.peak(self.full),
        }

    def peak(self, method: Method, how: Callable = engine.run) -> int:
        self.vlm.workspace.forget()  # or its release would be part of the balance
        return peak_bytes(lambda: self.run(method, how), self.vlm.device)


def survivors(run: Run) -> list[tuple[str, list[int]]]:
    """Site and anchors of the tokens that each reduction of a run left."""
    assert run.trace is not None  # of a run without an answer
    return [(str(step.site), step.reduction.anchor.tolist()) for step in run.trace.steps]
