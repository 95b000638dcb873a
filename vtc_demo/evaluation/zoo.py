"""The trained zoo beside the methods that need no training.

All answer the same questions at the same counts of visual tokens. Methods that put no token into the sequence have no
such count; each is compared with the others at the same FLOPs. The record is that of a sweep (`records`), with what is
known of the weights (`zoo`) and which points cost the same (`equal_flops`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vtc_demo import engine, registry, world
from vtc_demo.benchmark.budgets import at_budgets
from vtc_demo.comparison.matching import Matcher
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.core.method import Method
from vtc_demo.models import VLM

from .questions import balanced
from .records import SweepPoint
from .sweep import SweepEvent, SweepPlan, SweepRun

TOKENS = (144, 64)
QUESTIONS = 300
NEAR = 0.005  # of the FLOPs: so near a cost is equal


@dataclass
class ZooPoint(SweepPoint):
    """A point that also adds up the FLOPs of each stage."""

    stages: dict[str, int] = field(default_factory=dict)

    def add(self, run, question):
        super().add(run, question)
        for stage, flops in run.flops.items():
            self.stages[stage] = self.stages.get(stage, 0) + flops

    def samples(self):
        return super().samples() | {"stages": self.stages}

    def restore(self, samples):
        super().restore(samples)
        self.stages = dict(samples["stages"])


def events(
    vlm: VLM,
    names: Sequence[str] = (),
    tokens: Sequence[int] = TOKENS,
    questions: int = QUESTIONS,
    resume: dict | None = None,
) -> Iterator[SweepEvent]:
    """Events as of `sweep.sweep_events`; the last holds the record.

    names: trained methods (default: all whose weights are here). resume: a record of the same to go on from. Raises
    ValueError for bad input before the first event.
    """
    names = list(names) or [name for name in registry.trained() if weights_on_disk.has(name)]
    if not names:
        raise ValueError(
            f"no trained connector lies in {weights_on_disk.FOLDER}; train them with: python -m vtc_demo train zoo"
        )
    if strangers := [name for name in names if name not in registry.trained()]:
        raise ValueError(f"{', '.join(strangers)}: not of the zoo; choose from {', '.join(registry.trained())}")
    if questions < 1:
        raise ValueError(f"questions must be 1 or more, got {questions}")
    chosen = points([*free(), *names], tokens, vlm.shape.patches)
    equal = equal_flops(vlm, [p.method for p in chosen if outside(p.method)])
    known = {point.key: point for point in chosen}
    for group in equal:
        for spec in group["others"]:
            point = ZooPoint(registry.resolve(spec), round(spec["retention"] * vlm.shape.patches))
            known.setdefault(point.key, point)
    work = SweepRun(vlm, SweepPlan(tuple(known.values()), questions, tuple(world.KINDS)))
    projector = sum(p.numel() for p in vlm.model.model.multi_modal_projector.parameters())
    about = {"zoo": {name: weights(name) for name in names}, "projector_parameters": projector, "equal_flops": equal}
    work.about |= about
    if resume is not None:
        if {key: resume.get(key) for key in about} != about:
            raise ValueError("the record to go on from is of other weights, methods or tokens; remove it")
        work.go_on_from(resume)
    return work.events()


def free() -> list[str]:
    """The methods that need no training."""
    return [card.name for card in registry.list_methods() if registry.get(card.name).connector is None]


def outside(method: Method) -> bool:
    """Whether it puts no visual token into the sequence."""
    return method.connector is not None and method.connector.outside


def points(names: Sequence[str], tokens: Sequence[int], patches: int) -> list[ZooPoint]:
    """One point per method and count of tokens; one alone where the count is built in."""
    found = [column for name in names for column in at_budgets(name, tokens, patches)]
    return [ZooPoint(method, None if n == patches else n) for n, method in found]


def weights(name: str) -> dict:
    """What is known of a method's weights: steps of training, parameters of the connector, a hash of the file."""
    facts = json.loads((weights_on_disk.FOLDER / name / weights_on_disk.FACTS).read_text(encoding="utf-8"))
    digest = hashlib.sha256((weights_on_disk.FOLDER / name / weights_on_disk.WEIGHTS).read_bytes()).hexdigest()[:16]
    return {"steps": facts["steps"], "batch": facts["batch"], "parameters": facts["parameters"], "weights": digest}


# -- equal FLOPs ----------------------------------------------------------------------------------------------------
def equal_flops(vlm: VLM, chosen: Sequence[Method]) -> list[dict]:
    """Per cost that occurs among the methods chosen: which have it (`methods`), FLOPs up to the first token on the
    first question (`target`), training-free methods at that cost (`others`) and why the rest cannot have it.

    Costs that differ by less than a visual token's are one.
    """
    _, scene, (question, *_) = next(balanced(1))
    groups: list[dict] = []
    for method in chosen:
        run = engine.run(vlm, scene.image, question.text, method, max_new_tokens=1)
        matcher = Matcher(vlm, scene.image, question.text, "flops", target=float(run.flops["total"]))
        same = next((g for g in groups if abs(g["target"] - matcher.target) < matcher.worth), None)
        if same is None:
            same = {"target": matcher.target, "methods": []} | _at_cost(matcher)
            groups.append(same)
        same["methods"].append(method.spec())
    return groups


def _at_cost(matcher: Matcher) -> dict:
    solved = [matcher.solve(registry.resolve(name)) for name in free() if name != "full"]
    near = {m.method.card.name for m in solved if abs(m.reached - m.target) <= NEAR * m.target}
    return {
        "others": [m.method.spec() for m in solved if m.method.card.name in near],
        "cannot": {m.method.card.name: m.note for m in solved if m.method.card.name not in near},
    }
