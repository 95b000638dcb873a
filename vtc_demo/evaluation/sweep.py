"""Methods x budgets on the same held-out questions: accuracy and surviving evidence against tokens, FLOPs and time.

Scene by scene, so that a sweep that is stopped has asked every point the same questions, and the vision pass of a scene
is shared by all methods that may share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from vtc_demo import engine, registry, world
from vtc_demo.core import environment
from vtc_demo.core.images import Pictures
from vtc_demo.models import VLM

from .questions import balanced
from .records import Asked, SweepPoint, key_of, rows

BASELINES = ("full", "random", "uniform", "pool", "downsample")
TOKENS = (32, 64, 128, 192)
MAX_QUESTIONS = 20_000
SAME = ("device", "dtype", "backend", "torch", "transformers", "threads")  # of the environment, to go on with a record


class SweepEvent(NamedTuple):
    """kind: "progress" (data: {"done", "total" passes, "label"}), "partial" (data: a function that makes the record of
    all scenes so far) or "done" (data: the record)."""

    kind: str
    data: Any


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep measures: the points, how many questions, of which kinds."""

    points: tuple[SweepPoint, ...]
    questions: int
    kinds: tuple[str, ...]

    @property
    def passes(self) -> int:
        return len(self.points) * self.questions


def plan(
    chosen: Iterable, tokens: Iterable[int], patches: int, questions: int = 200, kinds: Iterable[str] = world.KINDS
) -> SweepPlan:
    """Points for the baselines and the chosen methods (anything `methods.resolve` takes) at each number of visual
    tokens out of `patches`. Raises ValueError for bad input."""
    tokens, kinds = _budgets(tokens, patches), tuple(dict.fromkeys(kinds))
    if isinstance(questions, bool) or not isinstance(questions, int) or not 1 <= questions <= MAX_QUESTIONS:
        raise ValueError(f"questions must be a whole number from 1 to {MAX_QUESTIONS}, got {questions!r}")
    next(balanced(1, kinds))  # a wrong kind shows here
    points = {}
    for name in (*BASELINES, *chosen):
        if isinstance(name, str) and "@" in name:
            raise ValueError(f"{name!r}: a sweep sets the retention itself; name the method alone and give tokens")
        for point in _points(registry.resolve(name), tokens, patches):
            points[point.key] = point
    return SweepPlan(tuple(points.values()), questions, kinds)


def _budgets(tokens: Iterable[int], patches: int) -> list[int]:
    tokens, least = list(tokens), -(-patches // 100)
    wrong = [n for n in tokens if isinstance(n, bool) or not isinstance(n, int) or not least <= n < patches]
    if wrong or not tokens:
        got = ", ".join(map(repr, wrong)) or "none"
        raise ValueError(
            f"tokens must be whole numbers from {least} to {patches - 1} (the model has {patches}), got {got}"
        )
    return sorted(set(tokens))


def _points(method, tokens: list[int], patches: int) -> list[SweepPoint]:
    if not any(p["name"] == "retention" for p in registry.parameters(method.card.name)):
        return [SweepPoint(method, None)]
    return [SweepPoint(registry.resolve(method, retention=n / patches), n) for n in tokens]


def sweep(vlm: VLM, chosen: Iterable, tokens: Iterable[int] = TOKENS, **options) -> dict:
    """The record of a whole sweep; arguments as in `sweep_events`."""
    for event in sweep_events(vlm, chosen, tokens, **options):
        last = event.data
    return last


def sweep_events(
    vlm: VLM,
    chosen: Iterable,
    tokens: Iterable[int] = TOKENS,
    *,
    questions: int = 200,
    kinds: Iterable[str] = world.KINDS,
    resume: dict | None = None,
) -> Generator[SweepEvent, None, None]:
    """Run a sweep; an event per pass and per scene, the last being "done". Closing the generator stops it.

    resume: the record of a sweep of the same points and kinds, of the same weights on the same kind of machine, to go
    on from; `questions` may be more than it has. Bad input raises ValueError here, before the first event. A point that
    does not suit the model or a scene's picture is left out and named under "left_out" in the record.
    """
    work = SweepRun(vlm, plan(chosen, tokens, vlm.shape.patches, questions, kinds))
    if resume is not None:
        work.go_on_from(resume)
    return work.events()


@dataclass
class SweepRun:
    """A sweep under way."""

    vlm: VLM
    plan: SweepPlan
    asked: Asked = field(default_factory=Asked)
    left_out: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.points = list(self.plan.points)
        self.about = {
            "sweep": 1,  # version of this format
            "model": {"name": self.vlm.name, "weights": fingerprint(self.vlm.model), "patches": self.vlm.shape.patches},
            "split": "eval",
            "kinds": list(self.plan.kinds),
            "environment": environment.environment(self.vlm.device, self.vlm.dtype),
        }

    def go_on_from(self, record: dict) -> None:
        """Take over what a record has. Raises ValueError if it is of something else."""
        for what in ("model", "kinds"):
            if record[what] != self.about[what]:
                raise ValueError(
                    f"the record to go on from has another {what}: {record[what]}, here {self.about[what]}"
                )
        for what in SAME:
            was, now = record["environment"].get(what), self.about["environment"][what]
            if was != now:
                raise ValueError(f"the record to go on from was made with {what} {was!r}, here it is {now!r}")
        out = {key_of(p["method"]) for p in record["left_out"]}
        known = {key_of(row["method"]): row["samples"] for row in record["rows"]}
        self.points = [p for p in self.points if p.key not in out]
        if set(known) != {p.key for p in self.points}:
            raise ValueError("the record to go on from is of other methods or tokens; give those it was made with")
        for point in self.points:
            point.restore(known[point.key])
        self.left_out, self.about["environment"] = list(record["left_out"]), record["environment"]
        self.asked = Asked(list(record["asked"]["scenes"]), list(record["asked"]["kinds"]))

    def events(self) -> Generator[SweepEvent, None, None]:
        engine.warm_up(self.vlm)
        begun, at = len(self.asked.kinds), 0
        for seed, scene, questions in balanced(max(self.plan.questions, begun), self.plan.kinds):
            new = questions[max(0, begun - at) :]
            at += len(questions)
            if not new:
                continue
            yield from self._scene(seed, scene, new)
            self.asked.scenes += [seed] * len(new)
            self.asked.kinds += [q.kind for q in new]
            if at < self.plan.questions:
                yield SweepEvent("partial", self.record)
        yield SweepEvent("done", self.record())

    def _scene(self, seed: int, scene: world.Scene, questions: list[world.Question]) -> Iterator[SweepEvent]:
        pictures = Pictures.open(scene.image)
        for point in list(self.points):
            try:
                for question in questions:
                    run = engine.run(self.vlm, pictures, question.text, point.method, seed=seed)
                    point.add(run, question)
                    yield SweepEvent("progress", self._progress(point))
            except ValueError as error:
                self.points.remove(point)
                spec = point.method.spec()
                self.left_out.append({"method": spec, "tokens": point.tokens, "reason": str(error)})
                if not self.points:
                    raise

    def _progress(self, point: SweepPoint) -> dict:
        total = len(self.points) * max(self.plan.questions, len(self.asked.kinds))
        return {"done": sum(len(p.right) for p in self.points), "total": total, "label": point.label}

    def record(self) -> dict:
        """JSON-ready: where, on what and of how many questions, then the rows."""
        asked = {"scenes": list(self.asked.scenes), "kinds": list(self.asked.kinds)}
        counts = {"questions": len(self.asked.kinds), "scenes": len(set(self.asked.scenes)), "asked": asked}
        return self.about | counts | {"left_out": list(self.left_out), "rows": rows(self.points, self.asked)}


@torch.inference_mode()
def fingerprint(model: torch.nn.Module) -> str:
    """The same for models of the same weights: a hash of every parameter's name, shape and first values."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
