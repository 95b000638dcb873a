"""`check`: a report of all files of a folder, and an exit code."""

import json
import shutil
from pathlib import Path

import pytest

from vtc_demo import registry
from vtc_demo.cli import main
from vtc_demo.methods import contract

TEMPLATE = Path(contract.__file__).with_name("template.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the template; its methods are forgotten after the test."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(registry, "problems", {})
    shutil.copy(TEMPLATE, tmp_path / "well.py")
    return tmp_path


def test_a_folder_that_keeps_the_contract(folder, capsys):
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out == f"mine: keeps the contract ({len(contract.CHECKS)} checks)\n"


def test_all_files_are_reported_and_findings_are_exit_code_1(folder, capsys):
    text = TEMPLATE.read_text(encoding="utf-8").replace("Mine", "Half").replace('name="mine"', 'name="half"')
    assert "return 2 * n * dim" in text
    (folder / "half.py").write_text(text.replace("return 2 * n * dim", "return n * dim / 2"), encoding="utf-8")
    (folder / "syntax.py").write_text("def f(:\n")
    assert main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "mine: keeps the contract" in out and "half: " in out and "  overhead: " in out
    assert "syntax.py: 1 finding\n  load: the file is not valid Python" in out
    assert main(["check", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["mine"] == [] and found["syntax.py"][0]["check"] == "load"


def test_folders_without_methods(tmp_path, refused):
    assert "no method in" in refused("check", tmp_path)
    (tmp_path / "file.py").touch()
    for name in ("none", "file.py"):
        assert "no folder" in refused("check", tmp_path / name)
