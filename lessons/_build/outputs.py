"""All outputs of the lessons, and where they lie."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat

from . import execute, instructor, notebook, pictures, slides, source
from .source import LESSONS, Lesson
from .words import LANGUAGES

BEGIN, END = "<!-- lessons:begin -->", "<!-- lessons:end -->"
FOLDERS = {"solution": "solutions", "instructor": "instructor", "slides": "slides"}


def main(chosen: list[str], run: bool) -> int:
    """Build the chosen lessons (numbers or names; none: all) and say what was written."""
    for name in [named(c) for c in chosen] or source.names():
        for lesson in source.editions(name):
            began = time.perf_counter()
            paths = write(lesson, run)
            print(f"{time.perf_counter() - began:5.1f} s  " + "  ".join(f"{size(p)} {short(p)}" for p in paths))
    page = LESSONS / "README.md"
    page.write_text(listed(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    return 0


def listed(page: str) -> str:
    """The README with its table of lessons."""
    rows = ["| | lesson | languages |", "| --- | --- | --- |"]
    for name in source.names():
        first, *others = source.editions(name)
        links = [f"[{LANGUAGES[e.lang]}]({e.file('.ipynb')})" for e in (first, *others)]
        rows.append(f"| {first.number} | {first.meta['title']} ({first.minutes} minutes) | {', '.join(links)} |")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{rest.partition(END)[2]}"


def named(choice: str) -> str:
    """The name of the lesson that a number or a name means. Raises ValueError."""
    found = [name for name in source.names() if choice in (name, name.partition("_")[0])]
    if not found:
        raise ValueError(f"no lesson {choice!r}; there are {', '.join(source.names())}")
    return found[0]


def place(lesson: Lesson, kind: str) -> Path:
    """The file of an output: student, solution, instructor or slides."""
    suffix = {"instructor": ".md", "slides": ".html"}.get(kind, ".ipynb")
    return LESSONS / FOLDERS.get(kind, "") / lesson.file(suffix)


def write(lesson: Lesson, run: bool) -> list[Path]:
    """Write the outputs of one edition; `run`: also those that need the notebook's results."""
    made = {"student": as_json(notebook.build(lesson, "student")), "instructor": instructor.build(lesson)}
    if run:
        executed = execute.run(notebook.build(lesson, "solution"))
        pictures.add([executed])
        executed.metadata["vtc"]["weights"] = execute.weights()
        made |= {"solution": as_json(executed), "slides": slides.build(lesson, executed)}
    paths = [place(lesson, kind) for kind in made]
    for path, text in zip(paths, made.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return paths


def as_json(made: nbformat.NotebookNode) -> str:
    return nbformat.writes(made) + "\n"


def short(path: Path) -> str:
    return str(path.relative_to(LESSONS))


def size(path: Path) -> str:
    return f"{path.stat().st_size / 1000:.0f} kB"
