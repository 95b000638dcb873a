"""The source of a lesson: a Python file in percent format, read into cells.

The format is described in lessons/source/README.md. Every error names the file and the line.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

LESSONS = Path(__file__).resolve().parents[1]
SOURCES = LESSONS / "source"
KINDS = {  # kind -> is it text (in comments) or code; what it may say besides lang
    "markdown": ("text", {"minutes"}),
    "code": ("code", {"volatile", "slide"}),
    "exercise": ("text", {"difficulty", "minutes"}),
    "solution": ("code", set()),
    "check": ("code", set()),
    "hint": ("text", set()),
    "mistake": ("code", {"why"}),
    "quiz": ("text", set()),
    "slide": ("text", set()),
    "instructor": ("text", set()),
}
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
DIFFICULTIES = ("easy", "medium", "hard")
META = {"title": str, "objectives": list, "prerequisites": list, "methods": list, "papers": list}


class SourceError(ValueError):
    """What is wrong in a source file, and where."""


@dataclass(frozen=True)
class Cell:
    """kind: a key of KINDS; text: without comment signs if it is text; line: of its header in the file."""

    kind: str
    text: str
    line: int
    options: dict[str, str] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        return KINDS[self.kind][0] == "text"

    @property
    def lang(self) -> str | None:
        return self.options.get("lang")

    @property
    def minutes(self) -> int:
        return int(self.options.get("minutes", 0))


@dataclass(frozen=True)
class Choice:
    text: str
    right: bool
    reason: str


@dataclass(frozen=True)
class Lesson:
    """One lesson in one language. meta: title, objectives, prerequisites, methods (names of cards), papers (arXiv)."""

    name: str
    lang: str
    meta: dict
    cells: list[Cell]

    @property
    def number(self) -> str:
        return self.name.partition("_")[0]

    @property
    def minutes(self) -> int:
        return sum(cell.minutes for cell in self.cells if cell.kind == "markdown")

    def file(self, suffix: str) -> str:
        """ "00_tokens.ipynb"; other languages than English stand before the suffix: "00_tokens.zh.ipynb"."""
        return self.name + ("" if self.lang == "en" else f".{self.lang}") + suffix


def names() -> list[str]:
    """The lessons that have a source, in order."""
    return sorted(p.stem for p in SOURCES.glob("[0-9][0-9]_*.py"))


def editions(name: str) -> list[Lesson]:
    """The lesson in every language that its header names, English first."""
    path = SOURCES / f"{name}.py"
    if not path.is_file():
        raise SourceError(f"no lesson {name!r}; there are: {', '.join(names())}")
    return parse(path.read_text(encoding="utf-8"), name)


def parse(text: str, name: str) -> list[Lesson]:
    """The editions of a source text. Raises SourceError."""
    head, *_ = re.split(r"^# %%", text, maxsplit=1, flags=re.M)
    meta = header(head, name)
    cells = split(text, name)
    languages = ["en", *(key for key in meta if isinstance(meta[key], dict))]
    out = []
    for lang in languages:
        own = {key: value for key, value in meta.items() if not isinstance(value, dict)} | meta.get(lang, {})
        out.append(Lesson(name, lang, own, translated(cells, lang, name)))
    for lesson in out:
        examine(lesson)
    return out


def header(head: str, name: str) -> dict:
    """The TOML block between `# /// lesson` and `# ///`; a table per further language."""
    found = re.search(r"^# /// lesson\n(.*?)^# ///$", head, re.M | re.S)
    if found is None:
        raise SourceError(f"{name}: no header; begin with '# /// lesson', TOML in comments, '# ///'")
    try:
        meta = tomllib.loads(uncomment(found[1]))
    except tomllib.TOMLDecodeError as error:
        raise SourceError(f"{name}: header: {error}") from None
    for key, kind in META.items():
        if not isinstance(meta.get(key), kind):
            raise SourceError(f"{name}: header needs {key} ({kind.__name__})")
    tables = [value for value in meta.values() if isinstance(value, dict)]
    for unknown in {key for table in (meta, *tables) for key in table if not isinstance(table[key], dict)} - {*META}:
        raise SourceError(f"{name}: header has an unknown key {unknown!r}; keys are {', '.join(META)}")
    return meta


def uncomment(text: str) -> str:
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())


def split(text: str, name: str) -> list[Cell]:
    """The cells of a source text, all languages."""
    marks = list(re.finditer(r"^# %%(.*)$", text, re.M))
    cells = []
    for mark, following in zip(marks, [*marks[1:], None]):
        body = text[mark.end() + 1 : following.start() if following else len(text)].strip("\n")
        cells.append(one(mark[1], body, f"{name}.py:{text.count(chr(10), 0, mark.start()) + 1}"))
    return cells


def one(heading: str, body: str, where: str) -> Cell:
    """A cell from what follows `# %%` and the lines below it."""
    found = re.fullmatch(r"\s*(?:\[(\w+)\])?\s*(.*?)\s*", heading)
    kind = (found[1] or "code") if found else ""
    if kind not in KINDS:
        raise SourceError(f"{where}: unknown cell {heading.strip()!r}; kinds are {', '.join(KINDS)}")
    form, allowed = KINDS[kind]
    options = {key: value or "yes" for key, _, value in (part.partition("=") for part in shlex.split(found[2]))}
    if unknown := set(options) - allowed - {"lang"}:
        raise SourceError(f"{where}: [{kind}] takes no {', '.join(sorted(unknown))}")
    if not body.strip():
        raise SourceError(f"{where}: empty cell")
    if form == "text":
        stray = [line for line in body.splitlines() if line and not line.startswith("#")]
        if stray:
            raise SourceError(f"{where}: every line of a [{kind}] cell begins with #; not so {stray[0]!r}")
        body = uncomment(body).strip()
    return Cell(kind, body, int(where.rpartition(":")[2]), options)


def translated(cells: list[Cell], lang: str, name: str) -> list[Cell]:
    """The cells of one language: each cell, or the one with `lang=` that follows it and takes its place."""
    out: list[Cell] = []
    for cell in cells:
        if cell.lang is None:
            out.append(cell)
        elif not out or out[-1].kind != cell.kind:
            raise SourceError(
                f"{name}.py:{cell.line}: a translation stands right after the [{cell.kind}] it translates"
            )
        elif cell.lang == lang:
            out[-1] = replace(cell, options=out[-1].options | cell.options)
    missing = [c for c in out if lang != "en" and c.is_text and c.lang is None]
    if missing:
        raise SourceError(f"{name}.py:{missing[0].line}: no translation into {lang!r} follows this cell")
    return out


def examine(lesson: Lesson) -> None:
    """Raise SourceError where a lesson breaks the rules that a reader relies on."""

    def fail(cell, message):
        raise SourceError(f"{lesson.name}.py:{cell.line}: {message}")

    before = None
    for cell in lesson.cells:
        if cell.kind == "exercise" and (cell.options.get("difficulty") not in DIFFICULTIES or not cell.minutes):
            fail(cell, f"an exercise needs minutes and difficulty ({', '.join(DIFFICULTIES)})")
        if cell.kind == "solution" and before != "exercise":
            fail(cell, "a solution follows its exercise")
        if cell.kind == "solution":
            stub(cell, "")
        if cell.kind == "check" and before != "solution":
            fail(cell, "a check follows its solution")
        if cell.kind in ("hint", "mistake") and before not in ("check", "hint", "mistake"):
            fail(cell, f"a {cell.kind} follows the check of its exercise")
        if cell.kind == "mistake" and "why" not in cell.options:
            fail(cell, 'a mistake says what is wrong: [mistake] why="..."')
        if cell.kind == "markdown" and cell.text.startswith("## ") != bool(cell.minutes):
            fail(cell, "a section (## heading) says its minutes, other cells do not")
        if cell.kind == "slide" and "$" in cell.text:
            fail(
                cell, "slides have no TeX (it would need a script from outside); write formulas with Unicode and <sup>"
            )
        if cell.kind == "quiz":
            quiz(cell)
        before = cell.kind


def stub(solution: Cell, message: str) -> str:
    """The code of a solution with every part between BEGIN and END replaced by NotImplementedError(message)."""
    pattern = re.compile(rf"^( +){BEGIN}\n.*?^\1{END}\n?", re.M | re.S)
    code, n = pattern.subn(lambda m: f"{m[1]}raise NotImplementedError({json.dumps(message)})\n", solution.text)
    if not n or BEGIN in code or END in code:
        raise SourceError(
            f"line {solution.line}: a solution marks the reader's part inside a function with '{BEGIN}' and '{END}'"
        )
    return code.strip("\n")


def solved(solution: Cell) -> str:
    """The code of a solution without its marks."""
    return re.sub(rf"^ +({BEGIN}|{END})\n?", "", solution.text, flags=re.M).strip("\n")


def quiz(cell: Cell) -> tuple[str, list[Choice]]:
    """(question, choices). A choice is a line `- [ ] text` (`- [x]` if right) and indented lines with the reason."""
    question, *parts = re.split(r"^- \[([ x])\] ", cell.text, flags=re.M)
    choices = []
    for mark, body in zip(parts[::2], parts[1::2]):
        text, _, reason = body.partition("\n")
        choices.append(Choice(text.strip(), mark == "x", textwrap.dedent(reason).strip()))
    if len(choices) < 2 or sum(c.right for c in choices) != 1 or not all(c.reason for c in choices):
        raise SourceError(
            f"line {cell.line}: a quiz has at least two choices, exactly one of them right, each with its reason below it"
        )
    return question.strip(), choices
