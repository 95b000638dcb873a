"""Instructor notes of a lesson: what happens when, and what is said to the teacher alone."""

from __future__ import annotations

from . import source
from .source import Lesson
from .words import WORDS


def build(lesson: Lesson) -> str:
    """Markdown: timing of the sections, then notes, exercises with their solutions, and common mistakes, in order."""
    words = WORDS[lesson.lang]
    lines = [f"# {lesson.number} · {lesson.meta['title']}: {words['instructor']}", ""]
    lines += [f"## {words['timing']}", "", f"| {words['from']} | {words['minutes']} | {words['section']} |"]
    lines += ["| ---: | ---: | --- |", *timing(lesson), ""]
    exercise = 0
    for cell in lesson.cells:
        if cell.kind == "markdown" and cell.text.startswith("## "):
            lines += [cell.text.splitlines()[0], ""]
        elif cell.kind == "instructor":
            lines += [cell.text, ""]
        elif cell.kind == "exercise":
            exercise += 1
            label = f"{words[cell.options['difficulty']]}, {cell.minutes} {words['minutes']}"
            lines += [f"### {words['exercise']} {exercise} ({label})", ""]
        elif cell.kind == "solution":
            lines += [f"{words['solution']}:", "", "```python", source.solved(cell), "```", ""]
        elif cell.kind == "mistake":
            why = f"{words['mistake']} ({words['refused']}): {cell.options['why']}"
            lines += [why, "", "```python", cell.text, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def timing(lesson: Lesson) -> list[str]:
    """Rows of the table of times; the clock starts at 0:00."""
    rows, clock = [], 0
    for cell in lesson.cells:
        if cell.kind == "markdown" and cell.minutes:
            heading = cell.text.splitlines()[0].removeprefix("## ")
            rows.append(f"| {clock // 60}:{clock % 60:02d} | {cell.minutes} | {heading} |")
            clock += cell.minutes
    return [*rows, f"| {clock // 60}:{clock % 60:02d} | {clock} | {WORDS[lesson.lang]['total']} |"]
