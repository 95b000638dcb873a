"""Notebooks of a lesson: the student's, with stubs and without outputs, and the one with solutions, to be executed."""

from __future__ import annotations

import html
import os
import re
import tomllib
from typing import Literal

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from . import source
from .source import Cell, Lesson
from .words import LANGUAGES, WORDS

Kind = Literal["student", "solution", "probe"]
SETUP = """\
# The lessons run on the package of the repository in which they lie.
import sys
from pathlib import Path

ROOT = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "vtc_demo").is_dir()), None)
if ROOT is None:
    raise RuntimeError("no folder vtc_demo above this notebook: open it inside a copy of the repository")
sys.path.insert(0, str(ROOT))"""
COLAB = """\
# In Colab the repository is fetched first, with the packages that Colab lacks (its own PyTorch stays).
import subprocess
import sys
from pathlib import Path

ROOT = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "vtc_demo").is_dir()), None)
if ROOT is None and "google.colab" in sys.modules:
    subprocess.run(["git", "clone", "--depth", "1", "{repository}"], check=True)
    ROOT = Path.cwd() / "{folder}"
    wanted = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted = [line for line in wanted if line.split("==")[0] in ("transformers", "plotly", "safetensors")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
if ROOT is None:
    raise RuntimeError("no folder vtc_demo above this notebook: open it inside a copy of the repository")
sys.path.insert(0, str(ROOT))"""


def repository() -> str:
    """The public address of the repository, without a slash at its end; "" while there is none."""
    settings = tomllib.loads((source.LESSONS / "course.toml").read_text(encoding="utf-8"))
    return os.environ.get("VTC_REPOSITORY", settings["repository"]).rstrip("/")


def build(lesson: Lesson, kind: Kind, address: str | None = None) -> nbformat.NotebookNode:
    """student: stubs and folded solutions. solution: solved. probe: solved, and each check is shown to refuse the stub
    and the common mistakes. No outputs. address: see `repository`.
    """
    address = repository() if address is None else address
    cells = [markdown("title", title(lesson, kind, address)), code("setup", setup(address), ["setup"])]
    cells += body(lesson, kind)
    notebook = new_notebook(cells=cells)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "vtc": {"lesson": lesson.name, "language": lesson.lang, "kind": kind},
    }
    nbformat.validate(notebook)
    return notebook


def body(lesson: Lesson, kind: Kind) -> list:
    """All cells after the set-up. Ids are counted through, so that the same source gives the same notebook."""
    words, out = WORDS[lesson.lang], []
    exercise, questions = 0, 0
    waiting: Cell | None = None  # a solution whose fold stands below check and hints

    def fold():
        nonlocal waiting
        if waiting is not None and kind == "student":
            text = f"```python\n{source.solved(waiting)}\n```"
            out.append(markdown(f"solved-{exercise}", details(words["solution"], text)))
        waiting = None

    for index, cell in enumerate(lesson.cells):
        name = f"{cell.kind}-{index}"
        if cell.kind not in ("check", "hint", "mistake"):
            fold()
        if cell.kind == "exercise":
            exercise += 1
            out.append(markdown(name, exercise_text(cell, exercise, words)))
        elif cell.kind == "solution":
            waiting = cell
            message = f"{words['exercise']} {exercise}: {words['stub']}"
            text = source.stub(cell, message) if kind == "student" else source.solved(cell)
            out.append(code(name, text, ["exercise"]))
        elif cell.kind == "check":
            out.append(code(name, cell.text, ["check"]))
            if kind == "probe":
                message = f"{words['exercise']} {exercise}: {words['stub']}"
                out.append(probe(f"stub-{index}", source.stub(waiting, message), cell, "NotImplementedError", message))
                checked = cell
        elif cell.kind == "mistake":
            if kind == "probe":
                out.append(probe(name, cell.text, checked, "CheckFailed"))
        elif cell.kind == "hint":
            out.append(markdown(name, details(words["hint"], cell.text)))
        elif cell.kind == "quiz":
            questions += 1
            out.append(markdown(name, quiz_text(cell, questions, words)))
        elif cell.kind == "markdown":
            out.append(markdown(name, cell.text))
        elif cell.kind == "code":
            out.append(code(name, cell.text, sorted({"volatile", "slide"} & set(cell.options))))
    fold()
    return out


def markdown(name: str, text: str):
    return new_markdown_cell(text, id=name)


def code(name: str, text: str, tags: list[str] | None = None):
    return new_code_cell(text, id=name, metadata={"tags": tags} if tags else {})


def probe(name: str, attempt: str, check: Cell, error: str, message: str = ""):
    """A cell that runs an attempt and the check of its exercise aside, and fails unless the check refuses it."""
    text = f"from lessons.kit.checks import refused\n\nrefused(globals(), {attempt!r}, {check.text!r}, {error!r}, {message!r})"
    return code(name, text, ["probe"])


def setup(address: str) -> str:
    """The first code cell. Plain replacement, as the code has braces of its own."""
    if not address:
        return SETUP
    folder = address.rpartition("/")[2].removesuffix(".git")
    return COLAB.replace("{repository}", address).replace("{folder}", folder)


def title(lesson: Lesson, kind: Kind, address: str) -> str:
    """Title, objectives, prerequisites, minutes, papers, view in the app; badges where the address is known."""
    words, meta = WORDS[lesson.lang], lesson.meta
    lines = [f"# {lesson.number} · {meta['title']}", ""]
    if kind == "student" and address:
        lines += [badges(lesson, address), ""]
    lines += [f"**{words['objectives']}**", "", *(f"- {line}" for line in meta["objectives"]), ""]
    lines.append(f"**{words['prerequisites']}**: {'; '.join(meta['prerequisites'])}  ")
    lines.append(f"**{lesson.minutes} {words['minutes']}**  ")
    if meta["papers"]:
        lines.append(f"**{words['papers']}**: {'; '.join(map(paper, meta['papers']))}  ")
    if meta["methods"]:
        links = ", ".join(f"[{m}](http://127.0.0.1:7860/?method={m})" for m in meta["methods"])
        lines.append(f"**{words['app']}** ({words['app_note']}): {links}  ")
    others = [e for e in source.editions(lesson.name) if e.lang != lesson.lang]
    if others:
        links = ", ".join(f"[{LANGUAGES[e.lang]}]({e.file('.ipynb')})" for e in others)
        lines.append(f"**{words['languages']}**: {links}  ")
    return "\n".join(lines).rstrip()


def paper(entry: str) -> str:
    """ "2403.06764 FastV" as a link to arXiv."""
    number, _, name = entry.partition(" ")
    return f"[{name}](https://arxiv.org/abs/{number})"


def badges(lesson: Lesson, address: str) -> str:
    """Links that open the notebook in Colab and on Binder; both take a repository on GitHub."""
    slug = re.sub(r"^https://github\.com/|\.git$", "", address)
    path = f"lessons/{lesson.file('.ipynb')}"
    return (
        f"[Open in Colab](https://colab.research.google.com/github/{slug}/blob/main/{path}) · "
        f"[Open on Binder](https://mybinder.org/v2/gh/{slug}/main?labpath={path.replace('/', '%2F')})"
    )


def details(summary: str, text: str) -> str:
    """A folded part; the empty lines make Jupyter and GitHub read its inside as Markdown."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def exercise_text(cell: Cell, number: int, words: dict[str, str]) -> str:
    label = f"{words[cell.options['difficulty']]}, {cell.minutes} {words['minutes']}"
    return f"### {words['exercise']} {number} ({label})\n\n{cell.text}"


def quiz_text(cell: Cell, number: int, words: dict[str, str]) -> str:
    question, choices = source.quiz(cell)
    parts = [f"**{words['quiz']} {number}** ({words['quiz_note']})", question]
    for letter, choice in zip("ABCDEFGH", choices):
        verdict = f"{'✓' if choice.right else '✗'} **{words['right' if choice.right else 'wrong']}** {choice.reason}"
        parts.append(details(f"{letter}. {inline(choice.text)}", verdict))
    return "\n\n".join(parts)


def inline(text: str) -> str:
    """Text for a <summary>, inside which Markdown is not read: code marks become <code>."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
