"""The course of the zoo's training, from its log: a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path

from vtc_demo import registry, world
from vtc_demo.core.assets import MEASUREMENTS

from .zoo_tables import table

LOG = MEASUREMENTS / "zoo_training.jsonl"

Course = list[dict]  # entries by step, counted through from stage to stage


def read(path: Path = LOG) -> dict[str, Course]:
    """Method -> its course, in the order of lists. Of a stage that was begun anew, the last run counts.

    Raises ValueError if the file is no log of the zoo's training.
    """
    found: dict[str, dict[str, dict[int, dict]]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            name, _, part = entry["stage"].partition(" ")
            stage = found.setdefault(name, {}).setdefault(part, {})
            for later in [step for step in stage if step >= entry["step"]]:
                del stage[later]
            stage[entry["step"]] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a log of `train zoo`: {type(error).__name__}: {error}") from None
    known = [name for name in registry.trained() if name in found]
    if not known:
        raise ValueError(f"{path} has no entry of a method of the zoo; it is written by: python -m vtc_demo train zoo")
    return {name: _joined(found[name]) for name in known}


def _joined(stages: dict[str, dict[int, dict]]) -> Course:
    course, before = [], 0
    for part, stage in stages.items():
        course += [entry | {"step": before + step, "part": part} for step, entry in stage.items()]
        before += max(stage)
    return course


def title(name: str) -> str:
    return registry.trained()[name].card.title


def ends(course: Course) -> list[int]:
    """The last step of each stage."""
    return list({entry["part"]: entry["step"] for entry in course}.values())


def told(course: Course) -> Course:
    """The entries nearest to a quarter and to half of the steps, and those at the end of each stage."""
    last = course[-1]["step"]
    near = [min(course, key=lambda entry: abs(entry["step"] - share * last)) for share in (0.25, 0.5)]
    return sorted(
        {e["step"]: e for e in (*near, *(e for e in course if e["step"] in ends(course)))}.values(), key=_step
    )


def _step(entry: dict) -> int:
    return entry["step"]


def markdown(courses: dict[str, Course]) -> str:
    """A line per method: percent right per kind at a quarter and half of the steps and at the end of each stage."""
    lines = []
    for name, course in courses.items():
        entries = told(course)
        cells = [" / ".join(_percent(entry.get(kind)) for entry in entries) for kind in world.KINDS]
        steps = " / ".join(str(entry["step"]) for entry in entries)
        lines.append([title(name), steps, " / ".join(f"{entry['loss']:.2f}" for entry in entries), *cells])
    note = (
        "Steps are counted through; percent of whole answers that are right, each word given those before it, in the "
        "batches since the entry before and at the budgets that training drew: not held-out."
    )
    return f"{table(['method', 'steps', 'loss', *world.KINDS], lines)}\n\n{note}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"
