"""The commands and code of the README and of docs/ do what they say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import compiler
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROSE = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lessons/*.md")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCES = [
    fence
    for page in PAGES
    for fence in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
]
COMMANDS = [
    part.strip()
    for language, body in FENCES
    if language == "sh"
    for line in body.splitlines()
    for part in line.split("&&")
]
SNIPPETS = [body for language, body in FENCES if language == "python"]
PIN = re.compile(r"[a-z0-9][a-z0-9._-]*==\d+(\.\d+)+ {2}# \S.*")


def run(args, cwd):
    """Run Python with `args` as a user would from a folder of their own, with the checkout importable."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """An empty folder with `my_methods`, made as the README's section on adding a method says."""
    methods = tmp_path / "my_methods"
    methods.mkdir()
    shutil.copy(ROOT / "vtc_demo" / "methods" / "template.py", methods / "mine.py")
    return tmp_path


def test_the_two_commands_of_the_set_up():
    text = [body.strip() for language, body in FENCES if language == "sh"]
    assert "pip install -r requirements.txt && python app.py" in text
    assert "pip install -r requirements-dev.txt && pytest" in text


def test_every_fence_is_of_a_kind_that_is_checked():
    assert {language for language, _ in FENCES} == {"sh", "python"}
    for command in COMMANDS:
        assert re.match(r"pip install -r \S+$|pytest$|python app\.py( |$)|python -m vtc_demo ", command), command


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page):
    named = re.findall(r"`((?:vtc_demo|tests|docs|assets|lessons)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_architecture_names_every_room():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "vtc_demo").iterdir() if not path.name.startswith(("_", "."))}
    assert set(re.findall(r"^\| `([\w.]+)` \|", text, re.M)) == rooms
    for path in re.findall(r"`((?:cli|comparison|engine|methods|ui)/[\w./]+)`", text):
        assert (ROOT / "vtc_demo" / path).exists(), path


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pip install")])
def test_requirements_are_pinned_and_justified(command):
    lines = (ROOT / command.split()[-1]).read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        assert line == "-r requirements.txt" or PIN.fullmatch(line), line


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python app.py")])
def test_app_commands_are_understood(command, folder):
    options = shlex.split(command)[2:]
    out = run([str(ROOT / "app.py"), *options, "--help"], folder)
    assert "usage" in out.lower()
    for option in (o for o in options if o.startswith("-")):
        assert option in out


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m vtc_demo")])
def test_shell_commands_run(command, folder):
    args = shlex.split(command)[1:]
    if "--compile" in args:
        compiler.demand()
    out = run(args, folder)
    assert out.strip()
    if "--json" in args:
        assert json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python_snippets_run(code, folder):
    assert run(["-c", code], folder).strip()
