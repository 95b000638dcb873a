"""`train` and `train zoo`: what they write and tell. The recipes have tests of their own."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtc_demo.cli import main


@pytest.mark.slow
def test_the_embedded_model(tmp_path, capsys, refused):
    line = ["train", "embedded", "--scale", "0.0001", "--workers", "0", "--batch", "1"]
    out = tmp_path / "model"
    assert main([*line, "--folder", str(tmp_path / "run"), "--out", str(out)]) == 0
    AutoProcessor.from_pretrained(out, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(out, local_files_only=True)
    assert model.config.vision_feature_layer == -2 and model.config.image_seq_length == 576
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 9
    assert capsys.readouterr().out == f"wrote {out}\n"
    again = [*line, "--folder", str(tmp_path / "more"), "--out", str(tmp_path / "next"), "--start", str(out)]
    assert main([*again, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["wrote"] == [str(tmp_path / "next")]
    assert [row["stage"] for row in told["stages"]] == ["more-336"] and told["stages"][0]["loss"] > 0
    assert (tmp_path / "more" / "log.jsonl").read_text().count("\n") == 1
    assert main([*again, "--only", "side-168", "more-336"]) == 0  # the last one is done already
    assert "side-168" in (tmp_path / "more" / "log.jsonl").read_text().splitlines()[-1]


@pytest.mark.slow
def test_the_zoo(tmp_path, capsys):
    few = ["--steps", "1", "--tune", "1", "--batch", "2", "--images", "2"]
    line = ["train", "zoo", "llava-mlp", "--folder", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *few]
    assert main([*line, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["wrote"] == [str(tmp_path / "out" / "llava-mlp")] and "2 pictures, " in err
    assert [row["stage"] for row in told["stages"]] == ["llava-mlp align", "llava-mlp tune"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["embedded", "--only", "hard"], "unknown stages: hard; choose from: tower-168"),
        (["embedded", "--start", "absent"], "no model in"),
        (["embedded", "--scale", "0"], "must be a number above 0"),
        (["statue"], "invalid choice"),
        (["zoo", "nosuch"], "no trained method nosuch"),
        (["zoo", "vlora", "--steps", "0"], "1 or more"),
    ],
)
def test_bad_input(refused, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("train", *given)
