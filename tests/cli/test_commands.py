"""All commands: their help, what the pages say of their options, and how they end."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtc_demo import cli
from vtc_demo.cli import COMMANDS, compare, joined, main, parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "lessons" / "source").glob("*.py"))]
DOCUMENTED = sorted(
    {
        line.strip().rstrip(".")
        for page in PAGES
        for line in re.findall(r"python -m vtc_demo ([a-z][^`\n&;|]*)", page.read_text(encoding="utf-8"))
    }
)


def options_of(command: str) -> set[str]:
    words = joined(command.split())
    (commands,) = (action for action in parser(words)._actions if action.choices)
    return set(commands.choices[words[0]]._option_string_actions)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and out.startswith(f"usage: python -m vtc_demo {command} [-h]")
    assert {"--help"} < options_of(command) or command == "check"
    assert all(option in out for option in options_of(command))


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0 and all(f"{name} {line}" in out for name, line in COMMANDS.items())


def test_every_file_is_a_command():
    files = {file.stem for file in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "common"}
    assert files == {name.replace(" ", "_").replace("-", "_") for name in COMMANDS}


def test_what_the_pages_tell_exists():
    assert len(DOCUMENTED) > 20
    for line in DOCUMENTED:
        words = joined(shlex.split(line))
        assert words[0] in COMMANDS, line
        known = options_of(words[0])
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("line", ["--help", "paint", "compare --help", "compare --scene one", "train --help"])
def test_help_and_mistakes_come_without_waiting_for_torch(line):
    code = f"""
import sys
from vtc_demo.cli import main
try:
    main({line.split()})
except SystemExit:
    assert not {{"torch", "transformers", "numpy"}} & set(sys.modules)
    print("quick")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("quick\n"), done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["paint"], "invalid choice"),
        ([], "required"),
        (["--", "compare"], "invalid choice"),
        (["compare", "--paint"], "unrecognized arguments: --paint"),
        (["train", "--batch", "1", "zoo"], "python -m vtc_demo train zoo --help"),
        (["evaluate", "--questions", "0"], "--questions: must be a whole number, 1 or more, got '0'"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(refused, given, message):
    assert message in refused(*given)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n lines"), "error: two lines\n"),
        (PermissionError(13, "Permission denied", "out.json"), "error: [Errno 13] Permission denied: 'out.json'\n"),
    ],
)
def test_an_error_of_the_work_is_one_line(error, line, monkeypatch, capsys):
    def run(args):
        raise error

    monkeypatch.setattr(compare, "run", run)
    with pytest.raises(SystemExit) as left:
        main(["compare"])
    assert left.value.code == 2 and capsys.readouterr().err == line


def test_exit_codes(monkeypatch):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run", stopped)
    assert main(["compare"]) == 130
    monkeypatch.setattr(compare, "run", lambda args: 1)
    assert main(["compare"]) == 1


def test_a_command_knows_how_it_was_called(monkeypatch):
    seen = SimpleNamespace()
    monkeypatch.setattr(compare, "run", lambda args: setattr(seen, "command", args.command) or 0)
    main(["compare", "--question", "what is it"])
    assert seen.command == "compare --question 'what is it'"
