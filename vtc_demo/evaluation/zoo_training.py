"""The course of the zoo's training, from its log: a table and a picture."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from vtc_demo import registry, world
from vtc_demo.core.assets import MEASUREMENTS

from .zoo_tables import table

LOG = MEASUREMENTS / "zoo_training.jsonl"
HUES = dict(zip(world.KINDS, ("#64748b", "#ea580c", "#7c3aed", "#0891b2", "#dc2626", "#65a30d", "#db2777", "#2563eb")))

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


# -- picture --------------------------------------------------------------------------------------------------------
COLUMNS, WIDE, HIGH, GAP, TOP, LEFT = 4, 200, 120, 44, 74, 44  # px: of a panel, between panels, and around them


def picture(courses: dict[str, Course]) -> str:
    """SVG: a panel per method, a curve per kind of question, percent right over steps."""
    rows = -(-len(courses) // COLUMNS)
    width, height = LEFT + COLUMNS * (WIDE + GAP), TOP + rows * (HIGH + GAP + 14)
    last = max(course[-1]["step"] for course in courses.values())
    panels = [
        _panel(title(name), course, last, LEFT + i % COLUMNS * (WIDE + GAP), TOP + i // COLUMNS * (HIGH + GAP + 14))
        for i, (name, course) in enumerate(courses.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="Inter, Segoe UI, Roboto, Arial, sans-serif" font-size="11" fill="#334155">'
        f"<title>{escape(ALT)}</title>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>{_legend(courses)}{"".join(panels)}</svg>\n'
    )


ALT = "Percent of answers that are right over the steps of training, a panel per method, a curve per kind"


def _legend(courses: dict[str, Course]) -> str:
    parts, x = [], LEFT
    for kind, hue in HUES.items():
        parts.append(f'<line x1="{x}" x2="{x + 18}" y1="24" y2="24" stroke="{hue}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 24}" y="28" font-size="12">{kind}</text>')
        x += 44 + 7 * len(kind)
    if any(len(ends(course)) > 1 for course in courses.values()):
        parts.append(f'<text x="{x}" y="28" fill="#64748b">dashed: the next stage begins</text>')
    return "".join(parts)


def _panel(name: str, course: Course, last: int, x: float, y: float) -> str:
    """One method: x, y is the upper left corner of its field, which spans 0 to `last` steps and 0 to 100 percent."""
    at = lambda step, share: f"{x + WIDE * step / last:.1f},{y + HIGH * (1 - share):.1f}"  # noqa: E731
    parts = [f'<text x="{x}" y="{y - 8}" font-size="13" font-weight="600" fill="#0f172a">{escape(name)}</text>']
    for step in ends(course)[:-1]:
        across = x + WIDE * step / last
        parts.append(
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{y}" y2="{y + HIGH}" stroke="#94a3b8" '
            'stroke-dasharray="3 3"/>'
        )
    for share in (0, 0.5, 1):
        level = y + HIGH * (1 - share)
        parts.append(f'<line x1="{x}" x2="{x + WIDE}" y1="{level}" y2="{level}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{x - 6}" y="{level + 4}" text-anchor="end" fill="#64748b">{100 * share:.0f}</text>')
    parts.append(f'<text x="{x}" y="{y + HIGH + 15}" fill="#64748b">0</text>')
    parts.append(f'<text x="{x + WIDE}" y="{y + HIGH + 15}" text-anchor="end" fill="#64748b">{last} steps</text>')
    for kind, hue in HUES.items():
        points = " ".join(at(entry["step"], entry[kind]) for entry in course if kind in entry)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{hue}" stroke-width="1.8"/>')
    return "".join(parts)
