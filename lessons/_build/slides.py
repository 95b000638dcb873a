"""Slides of a lesson: one HTML file that asks for nothing else."""

from __future__ import annotations

import html
from pathlib import Path

import mistune
import nbformat

from .source import Lesson
from .words import WORDS

FOLDER = Path(__file__).parent


def build(lesson: Lesson, executed: nbformat.NotebookNode) -> str:
    """The [slide] cells in order. The figure of a code cell with `slide` stands below the text of the [slide] cell right
    before it, or else on a slide of its own.
    """
    css, js = ((FOLDER / name).read_text(encoding="utf-8") for name in ("slides.css", "slides.js"))
    sections = [cover(lesson), *pages(lesson, executed)]
    body = "\n".join(f"<section>\n{section}\n</section>" for section in sections)
    title = html.escape(lesson.meta["title"])
    return (
        f'<!doctype html>\n<html lang="{lesson.lang}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>\n{css}</style>\n</head>\n<body>\n{body}\n<output></output>\n<script>\n{js}</script>\n</body>\n</html>\n"
    )


def cover(lesson: Lesson) -> str:
    words, title = WORDS[lesson.lang], html.escape(lesson.meta["title"])
    goals = "".join(f"<li>{html.escape(goal)}</li>" for goal in lesson.meta["objectives"])
    return (
        f"<h1>{lesson.number} · {title}</h1>\n<p>{words['objectives']}</p>\n<ul>{goals}</ul>\n"
        f"<p class=note>{words['slides_note']}</p>"
    )


def pages(lesson: Lesson, executed: nbformat.NotebookNode) -> list[str]:
    pictures = {cell.id: picture(cell) for cell in executed.cells if "slide" in cell.metadata.get("tags", [])}
    out, before = [], ""
    for index, cell in enumerate(lesson.cells):
        shown = pictures.get(f"code-{index}")
        if cell.kind == "slide":
            out.append(mistune.html(cell.text).strip())
        elif shown and before == "slide":
            out[-1] += shown
        elif shown:
            out.append(shown)
        before = cell.kind
    return out


def picture(cell) -> str:
    """The first picture that a cell shows, as an <img>; its alternative text is the plain form of the output."""
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            encoded = "".join(data["image/png"].split())
            return f'\n<img alt="{alternative(data)}" src="data:image/png;base64,{encoded}">'
    raise ValueError(f"cell {cell.id} is marked for the slides but shows no picture")


def alternative(data: dict) -> str:
    title = data.get("application/vnd.plotly.v1+json", {}).get("layout", {}).get("title", {}).get("text", "")
    return html.escape(title or "figure", quote=True)
