"""The course: outputs are up to date, checks accept solutions and nothing else, claims hold in a fresh run."""

import ast
import re
import resource

import nbformat
import pytest
import torch

import vtc_demo.registry as registry
from lessons._build import execute, instructor, notebook, outputs, pictures, slides, source, words
from lessons._build.source import LESSONS, SourceError, parse
from lessons.kit.checks import CheckFailed, check, check_equal, refused

EDITIONS = [edition for name in source.names() for edition in source.editions(name)]
LIMIT = 400_000  # bytes of a notebook
each = pytest.mark.parametrize("lesson", EDITIONS, ids=lambda lesson: lesson.file(""))


def read(lesson, kind):
    path = outputs.place(lesson, kind)
    assert path.is_file(), f"{path} is missing; run: python -m lessons build {lesson.number}"
    return path.read_text(encoding="utf-8")


def stale(lesson):
    return f"out of date; run: python -m lessons build {lesson.number}"


# -- outputs --------------------------------------------------------------------------------------------------------
@each
def test_student_notebook_and_instructor_notes_are_up_to_date(lesson):
    assert read(lesson, "student") == outputs.as_json(notebook.build(lesson, "student")), stale(lesson)
    assert read(lesson, "instructor") == instructor.build(lesson), stale(lesson)


@each
def test_solution_notebook_is_of_this_source_and_these_weights(lesson):
    text = read(lesson, "solution")
    assert len(text.encode()) < LIMIT
    shipped, fresh = nbformat.reads(text, 4), notebook.build(lesson, "solution")
    assert [(c.id, c.source) for c in shipped.cells] == [(c.id, c.source) for c in fresh.cells], stale(lesson)
    assert shipped.metadata["vtc"]["weights"] == execute.weights(), stale(lesson)
    code = [cell for cell in shipped.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [
        out for cell in code for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"
    ]
    assert all("image/png" in data for data in pictures.plotly_outputs(shipped))


@each
def test_slides_are_up_to_date_and_ask_for_nothing_outside(lesson):
    page = read(lesson, "slides")
    assert page == slides.build(lesson, nbformat.reads(read(lesson, "solution"), 4)), stale(lesson)
    assert not re.search(r"""\b(src|srcset|action)=(?!["']?data:)|<link|@import|url\(|\bfetch\(""", page)


@each
def test_slides_in_a_browser(lesson, chromium):
    page = chromium.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(outputs.place(lesson, "slides").as_uri())
    count = page.locator("section").count()
    assert count > 3 and page.locator("section.on").count() == 1
    for _ in range(count + 1):
        page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == f"{count} / {count}"
    assert all(url.startswith(("file:", "data:")) for url in asked) and not wrong
    page.close()


def test_no_output_is_left_without_its_source():
    kinds = ("student", "solution", "instructor", "slides")
    wanted = {outputs.place(lesson, kind) for lesson in EDITIONS for kind in kinds}
    found = {p for p in LESSONS.glob("*.ipynb")}
    for folder in outputs.FOLDERS.values():
        found |= {p for p in (LESSONS / folder).iterdir() if p.is_file()}
    assert found == wanted


def test_readme_lists_the_lessons():
    page = (LESSONS / "README.md").read_text(encoding="utf-8")
    assert page == outputs.listed(page), "out of date; run: python -m lessons build"
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (LESSONS / link).exists(), link


# -- what a lesson promises -----------------------------------------------------------------------------------------
@each
def test_parts_of_a_lesson(lesson):
    kinds = [cell.kind for cell in lesson.cells]
    assert 20 <= lesson.minutes <= 120 and kinds.count("quiz") >= 2 and kinds.count("slide") >= 2
    assert "instructor" in kinds and lesson.meta["objectives"] and lesson.meta["papers"]
    known = {card.name for card in registry.list_methods()}
    assert set(lesson.meta["methods"]) <= known
    assert all(re.fullmatch(r"\d{4}\.\d{4,5} \S.*", paper) for paper in lesson.meta["papers"])
    parts = " ".join(kinds).split("exercise")[1:]
    assert len(parts) >= 2
    for part in parts:
        assert {"solution", "check", "hint", "mistake"} <= set(part.split())
    inside = sum(cell.minutes for cell in lesson.cells if cell.kind == "exercise")
    assert inside < lesson.minutes


@each
def test_files_that_a_lesson_names_exist(lesson):
    text = "\n".join(cell.text for cell in lesson.cells)
    named = re.findall(r"`((?:vtc_demo|tests|docs|assets)/[^`]+)`", text)
    assert named and [path for path in named if not (LESSONS.parent / path).exists()] == []


@each
def test_later_cells_need_no_exercise(lesson):
    ready, blocked = set(), set()  # names from plain cells; names that a reader who is stuck does not have
    for cell in lesson.cells:
        if cell.kind in ("solution", "check"):
            blocked |= bound(cell.text) - ready
        elif cell.kind == "code":
            blocked -= bound(cell.text)
            ready |= bound(cell.text)
            used = {node.id for node in ast.walk(ast.parse(cell.text)) if isinstance(node, ast.Name)}
            assert not used & blocked, f"line {cell.line} uses {used & blocked}, which an exercise or its check defines"


def bound(code):
    """Names that a cell defines, parameters of its functions among them."""
    nodes = list(ast.walk(ast.parse(code)))
    out = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    out |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    out |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return out | {a.asname or a.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}


@each
def test_a_translation_changes_words_alone(lesson):
    english = next(e for e in EDITIONS if e.name == lesson.name and e.lang == "en")
    assert [cell.kind for cell in lesson.cells] == [cell.kind for cell in english.cells]
    for ours, theirs in zip(lesson.cells, english.cells):
        if not ours.is_text:
            assert skeleton(ours.text) == skeleton(theirs.text), f"line {ours.line}: more than strings differ"
        elif ours.kind == "quiz":
            assert [c.right for c in source.quiz(ours)[1]] == [c.right for c in source.quiz(theirs)[1]]


def skeleton(code):
    """The code without the words of its strings: tree, and the expressions inside f-strings in any order."""
    tree = ast.parse(code)
    inside = sorted(ast.dump(n) for n in ast.walk(tree) if isinstance(n, ast.FormattedValue))

    class Blank(ast.NodeTransformer):
        def visit_JoinedStr(self, node):
            return ast.Constant("")

        def visit_Constant(self, node):
            return ast.Constant("") if isinstance(node.value, str) else node

    return ast.dump(Blank().visit(tree)), inside


@pytest.mark.slow
@pytest.mark.parametrize("lesson", [e for e in EDITIONS if e.lang == "en"], ids=lambda lesson: lesson.name)
def test_a_fresh_run_passes_refuses_mistakes_and_shows_what_is_shipped(lesson):
    before = busy()
    run = execute.run(notebook.build(lesson, "probe"))  # a failing assertion, check or probe raises here
    assert busy() - before < execute.LIMIT
    fresh = {cell.id: cell for cell in run.cells if "probe" not in cell.metadata.get("tags", [])}
    for old in nbformat.reads(read(lesson, "solution"), 4).cells:
        if old.cell_type == "code" and "volatile" not in old.metadata.get("tags", []):
            was, now = execute.text_of(old), execute.text_of(fresh[old.id])
            assert execute.agree(was, now), f"{old.id}: shipped {was!r}, now {now!r}; {stale(lesson)}"


def busy():
    """Processor seconds of the kernels that have ended: unlike the clock, the same on a machine with other work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- checks ---------------------------------------------------------------------------------------------------------
def test_checks_say_what_is_wrong_and_show_no_traceback():
    check(True, "never")
    check_equal([1.0, 2.0], torch.tensor([1, 2]), "never")
    with pytest.raises(CheckFailed, match="Look here") as failed:
        check(torch.tensor(0.0), "Look here.")
    assert failed.value._render_traceback_() == ["✗ Look here."]
    with pytest.raises(CheckFailed, match=r"Got the shape \(1, 2\), wanted \(2,\)"):
        check_equal(torch.ones(1, 2), torch.ones(2), "Shape.")
    with pytest.raises(CheckFailed, match=r"Got \[1, 3\], wanted \[1, 2\]"):
        check_equal([1, 3], [1, 2], "Values.")
    with pytest.raises(CheckFailed, match="wanted 2e-06"):
        check_equal(1e-6, 2e-6, "Small values are compared on their own scale.")
    with pytest.raises(CheckFailed, match="Got NoneType"):
        check_equal(None, 1, "Nothing returned.")


def test_a_probe_fails_unless_the_check_refuses_in_the_intended_way():
    names = {"check": check}
    refused(names, "x = 1", "check(x == 2, 'two')", "CheckFailed")
    assert "x" not in names
    with pytest.raises(RuntimeError, match="accepts this attempt"):
        refused(names, "x = 2", "check(x == 2, 'two')", "CheckFailed")
    with pytest.raises(RuntimeError, match="got NameError"):
        refused(names, "", "y", "CheckFailed")
    with pytest.raises(RuntimeError, match="got NotImplementedError: other"):
        refused(names, "", "raise NotImplementedError('other')", "NotImplementedError", "Exercise 1")


def test_outputs_agree_up_to_rounding_and_no_further():
    assert execute.agree("576 tokens, 1.23 GB", "576 tokens, 1.24 GB")
    assert not execute.agree("576 tokens, 1.23 GB", "576 tokens, 1.43 GB")
    assert not execute.agree("answer: red", "answer: blue")
    assert not execute.agree("1, 2", "1, 2, 3")


# -- the format -----------------------------------------------------------------------------------------------------
HEAD = """# /// lesson
# title = "T"
# objectives = ["o"]
# prerequisites = ["p"]
# methods = []
# papers = []
# ///
"""
EXERCISE = """
# %% [exercise] difficulty=easy minutes=3
# Double it.

# %% [solution]
def double(x):
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION

# %% [check]
check(double(2) == 4, "no")

# %% [hint]
# Add it to itself.

# %% [mistake] why="squared"
def double(x):
    return x * x * x
"""


def test_an_exercise_becomes_stub_check_hint_and_folded_solution():
    (lesson,) = parse(HEAD + EXERCISE, "99_test")
    cells = {kind: notebook.body(lesson, kind) for kind in ("student", "solution", "probe")}
    stub, check_cell, hint, solution = [cell.source for cell in cells["student"][1:]]
    assert stub == 'def double(x):\n    raise NotImplementedError("Exercise 1: yours to write")'
    assert check_cell == 'check(double(2) == 4, "no")'
    assert "Add it to itself" in hint and "return 2 * x" in solution
    assert "<summary>Solution</summary>\n\n```python" in solution
    assert [c.source for c in cells["solution"]][1] == "def double(x):\n    return 2 * x"
    names = {"check": check}
    for cell in cells["probe"]:
        if cell.cell_type == "code":
            exec(cell.source, names)  # the stub and the mistake are refused aside
    assert names["double"](4) == 8
    assert "return x * x * x" in instructor.build(lesson)
    assert "x * x * x" not in "".join(cell.source for cell in cells["student"])


def test_a_translated_source_gives_two_editions():
    text = HEAD.replace("# ///\n# title", "# title").replace(
        "# papers = []\n", '# papers = []\n# [zh]\n# title = "题"\n'
    )
    text += '\n# %% [markdown]\n# Hello\n\n# %% [markdown] lang=zh\n# 你好\n\n# %%\nprint("a")\n'
    english, chinese = parse(text, "99_test")
    assert (english.meta["title"], chinese.meta["title"]) == ("T", "题")
    assert [cell.text for cell in chinese.cells] == ["你好", 'print("a")']
    assert chinese.file(".ipynb") == "99_test.zh.ipynb" and chinese.meta["objectives"] == ["o"]
    assert set(words.WORDS["en"]) == set(words.WORDS["zh"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("# %%\n1\n", "no header"),
        (HEAD.replace('"T"', "T"), "header:"),
        (HEAD.replace("# papers = []\n", ""), "needs papers"),
        (HEAD.replace("# papers", "# colour = 1\n# papers"), "unknown key 'colour'"),
        (HEAD + "# %% [poem]\n# x\n", "unknown cell"),
        (HEAD + "# %% [markdown] size=3\n# x\n", "takes no size"),
        (HEAD + "# %% [markdown]\nx\n", "begins with #"),
        (HEAD + "# %%\n\n", "empty cell"),
        (HEAD + "# %% [markdown]\n# ## Section\n", "minutes"),
        (HEAD + "# %% [slide]\n# $x$\n", "no TeX"),
        (HEAD + EXERCISE.replace("difficulty=easy", "difficulty=nice"), "difficulty"),
        (HEAD + EXERCISE.replace("    # BEGIN SOLUTION\n", ""), "BEGIN SOLUTION"),
        (HEAD + EXERCISE.replace("# %% [check]", "# %%"), "follows the check"),
        (HEAD + EXERCISE.replace(' why="squared"', ""), "why="),
        (HEAD + "# %% [quiz]\n# Why?\n# - [x] a\n#   so\n", "at least two choices"),
        (HEAD + "# %% [quiz]\n# Why?\n# - [x] a\n#   so\n# - [x] b\n#   so\n", "exactly one"),
        (HEAD + "# %% [quiz]\n# Why?\n# - [x] a\n#   so\n# - [ ] b\n", "each with its reason"),
        (HEAD + "# %%\n1\n# %% [markdown] lang=zh\n# x\n", "right after"),
        (
            HEAD.replace("# papers = []\n", "# papers = []\n# [zh]\n") + "# %% [markdown]\n# x\n",
            "no translation into 'zh'",
        ),
    ],
)
def test_mistakes_in_a_source_are_told(text, message):
    with pytest.raises(SourceError, match=re.escape(message)):
        parse(text, "99_test")


def test_unknown_lessons_are_told():
    with pytest.raises(ValueError, match="no lesson '98'; there are 00_"):
        outputs.named("98")


# -- Colab and Binder -----------------------------------------------------------------------------------------------
def test_links_to_colab_and_binder_appear_with_the_address_alone():
    lesson = EDITIONS[0]
    plain = notebook.build(lesson, "student", address="").cells
    assert "olab" not in plain[0].source + plain[1].source and "http" not in plain[1].source
    title, setup = notebook.build(lesson, "student", address="https://github.com/someone/vtc").cells[:2]
    path = f"lessons/{lesson.file('.ipynb')}"
    assert f"https://colab.research.google.com/github/someone/vtc/blob/main/{path}" in title.source
    assert f"https://mybinder.org/v2/gh/someone/vtc/main?labpath={path.replace('/', '%2F')}" in title.source
    compile(setup.source, "setup", "exec")
    assert '"https://github.com/someone/vtc"' in setup.source and 'Path.cwd() / "vtc"' in setup.source


def test_binder_installs_the_pinned_packages():
    folder = LESSONS.parent / ".binder"
    line = (folder / "requirements.txt").read_text().strip()
    name = line.removeprefix("-r ")
    assert (folder / name).resolve() == LESSONS.parent / "requirements.txt"
    version = re.fullmatch(r"python-3\.(\d+)\n", (folder / "runtime.txt").read_text())
    assert int(version[1]) >= 11
    script = (folder / "postBuild").read_text()
    assert script.startswith("#!") and "python -m lessons check" in script
