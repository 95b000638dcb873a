"""What commands share: what may be typed, loading, progress, the result at the end."""

import json
import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
import torch
import transformers

from vtc_demo import models
from vtc_demo.cli import common


@pytest.mark.parametrize("text", ["-1", "", "1.5", "many", "²"])
def test_whole_numbers(text):
    assert [common.at_least(0)(text) for text in ("0", "7")] == [0, 7]
    with pytest.raises(ArgumentTypeError, match="must be a whole number, 0 or more, got"):
        common.at_least(0)(text)


def test_files_that_can_be_written(tmp_path):
    (tmp_path / "there.json").write_text("old")
    for path in (tmp_path / "there.json", tmp_path / "new.json", tmp_path / "new" / "deep" / "new.json"):
        assert common.output_file(str(path)) == path
    assert not (tmp_path / "new").exists(), "nothing is made before the work is done"
    with pytest.raises(ArgumentTypeError, match="is a folder; name a file"):
        common.output_file(str(tmp_path))
    with pytest.raises(ArgumentTypeError, match=r"there.json is a file, so"):
        common.output_file(str(tmp_path / "there.json" / "new.json"))


def test_folders_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert common.output_folder(str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(ArgumentTypeError, match="is a file; name a folder"):
        common.output_folder(str(tmp_path / "file"))


def test_places_that_are_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for kind in (common.output_file, common.output_folder):
        with pytest.raises(ArgumentTypeError, match="cannot be written; name another place"):
            kind(str(tmp_path / "new" / "thing"))


@pytest.mark.parametrize(
    "given",
    [
        ["evaluate", "--out"],
        ["evaluate", "zoo", "--out"],
        ["evaluate", "zoo-training", "--picture"],
        ["sweep", "--out"],
        ["sweep", "--csv"],
        ["bench", "--out"],
        ["lab", "--out"],
        ["train", "embedded", "--folder"],
        ["train", "zoo", "--out"],
    ],
    ids=" ".join,
)
def test_every_command_looks_at_its_output_first(given, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_vlm", lambda *_, **__: pytest.fail("the model was loaded first"))
    (tmp_path / "file").touch()
    assert "name another place" in refused(*given, tmp_path / "file" / "out")


@pytest.mark.parametrize("command", ["compare", "sweep", "bench", "evaluate"])
def test_an_unknown_method_is_told_before_the_model_is_loaded(command, refused, monkeypatch):
    monkeypatch.setattr(models, "load_vlm", lambda *_, **__: pytest.fail("the model was loaded first"))
    more = {"compare": ["fastw", "--scene", "0"], "evaluate": ["fastw"]}.get(command, ["--methods", "fastw"])
    assert "unknown method 'fastw'; did you mean fastv" in refused(command, *more)


@pytest.mark.parametrize(("name", "bars"), [("embedded", False), ("FOLDER", False), ("owner/name", True)])
def test_bars_are_hidden_where_loading_is_short(tmp_path, monkeypatch, name, bars):
    hidden, loaded = [], {}
    monkeypatch.setattr(transformers.logging, "disable_progress_bar", lambda: hidden.append(True))
    monkeypatch.setattr(models, "load_vlm", lambda model, **options: loaded.update(options, model=model))
    name = name.replace("FOLDER", str(tmp_path))
    common.load_model(Namespace(model=name, device="cpu", dtype=None))
    assert bool(hidden) is not bars and loaded == {"model": name, "device": "cpu", "dtype": None}


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), common.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    with common.threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_an_unfinished_record_is_saved(tmp_path, monkeypatch):
    out, seen = tmp_path / "record.json", []

    def events():
        yield "progress", {"done": 1, "total": 2, "label": "fastv"}
        yield "partial", lambda: {"rows": [], "so far": 1}
        seen.append(out.exists() and json.loads(out.read_text()))
        yield "done", {"rows": [], "all": 2}

    assert common.follow(events(), out) == {"rows": [], "all": 2} and seen == [False], "saved too early"
    monkeypatch.setattr(common, "SAVE_SECONDS", -1)
    common.follow(events(), out)
    assert seen[1] == {"rows": [], "so far": 1}
    out.unlink()
    common.follow(events(), None)
    assert not out.exists()


def test_the_result(tmp_path, capsys):
    out = tmp_path / "deep" / "record.json"
    common.deliver(Namespace(out=out, json=True), '{"a": 1}', "a table")
    assert capsys.readouterr().out == out.read_text() == '{"a": 1}\n'
    common.deliver(Namespace(out=None, json=False), '{"a": 1}', "a table")
    assert capsys.readouterr().out == "a table\n"
    assert [file.name for file in out.parent.iterdir()] == ["record.json"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        common.deliver(Namespace(out=common.output_file(str(pipe)), json=False), "{}", "")
        assert os.read(end, 10) == b"{}\n" and pipe.is_fifo()
    finally:
        os.close(end)
