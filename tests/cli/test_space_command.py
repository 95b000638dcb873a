"""`space`: writes a Space, or says why not."""

from pathlib import Path

import pytest

from vtc_demo.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_command(tmp_path, capsys):
    assert main(["space", "docker", str(tmp_path / "new"), "--name", "me/vtc"]) == 0
    assert f"hf upload me/vtc {tmp_path / 'new'} . --repo-type space" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["kubernetes", "new"], "invalid choice"),
        (["docker", "new", "--name", "no slash"], "named owner/space"),
        (["docker", "full"], "holds other files"),
        (["zerogpu", "full/file"], "is a file"),
        (["docker", str(ROOT)], "holds other files"),
        (["docker", str(ROOT / "assets" / "new")], "part of what is copied"),
    ],
)
def test_folders_that_are_refused(tmp_path, monkeypatch, refused, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert message in refused("space", *given)
    assert (tmp_path / "full" / "file").read_text() == "mine" and not (tmp_path / "new").exists()
