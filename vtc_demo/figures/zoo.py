"""The course of the zoo's training as SVG: a panel per method, a curve per kind of question."""

from __future__ import annotations

from vtc_demo import world
from vtc_demo.evaluation.zoo_training import Course, ends, title

from .render import render

HUES = dict(zip(world.KINDS, ("#64748b", "#ea580c", "#7c3aed", "#0891b2", "#dc2626", "#65a30d", "#db2777", "#2563eb")))
COLUMNS, WIDE, HIGH, GAP, TOP, LEFT = 4, 200, 120, 44, 74, 44  # px: of a panel, between panels, and around them
ALT = "Percent of answers that are right over the steps of training, a panel per method, a curve per kind"


def picture(courses: dict[str, Course]) -> str:
    """SVG: percent right over steps."""
    rows = -(-len(courses) // COLUMNS)
    last = max(course[-1]["step"] for course in courses.values())
    panels = [
        _panel(title(name), course, last, LEFT + i % COLUMNS * (WIDE + GAP), TOP + i // COLUMNS * (HIGH + GAP + 14))
        for i, (name, course) in enumerate(courses.items())
    ]
    legend, end = _legend()
    size = {"width": LEFT + COLUMNS * (WIDE + GAP), "height": TOP + rows * (HIGH + GAP + 14)}
    staged = any(len(ends(course)) > 1 for course in courses.values())
    values = {"legend": legend, "end": end, "staged": staged, "panels": panels, "last": last, "alt": ALT}
    values |= {"wide": WIDE, "high": HIGH}
    return str(render("figures/zoo.html", **size, **values)) + "\n"


def _legend() -> tuple[list[tuple[str, str, int]], int]:
    """(kind, colour, x) of every curve, and the x behind the last."""
    parts, x = [], LEFT
    for kind, hue in HUES.items():
        parts.append((kind, hue, x))
        x += 44 + 7 * len(kind)
    return parts, x


def _panel(name: str, course: Course, last: int, x: float, y: float) -> dict:
    """One method: x, y is the upper left corner of its field, which spans 0 to `last` steps and 0 to 100 percent."""
    at = lambda step, share: f"{x + WIDE * step / last:.1f},{y + HIGH * (1 - share):.1f}"  # noqa: E731
    return {
        "name": name,
        "x": x,
        "y": y,
        "breaks": [f"{x + WIDE * step / last:.1f}" for step in ends(course)[:-1]],
        "levels": [(f"{100 * share:.0f}", y + HIGH * (1 - share)) for share in (0, 0.5, 1)],
        "curves": [
            (hue, " ".join(at(entry["step"], entry[kind]) for entry in course if kind in entry))
            for kind, hue in HUES.items()
        ],
    }
