"""`evaluate` and `evaluate zoo-training`: the record, and the tables in a page."""

import json

import pytest

from vtc_demo import world
from vtc_demo.cli import main
from vtc_demo.evaluation import page, zoo_training
from vtc_demo.evaluation.accuracy import markdown
from vtc_demo.figures.zoo import picture


@pytest.mark.slow
def test_it_writes_the_record_and_the_table(model, tmp_path, capsys, refused):
    readme, out = tmp_path / "page.md", tmp_path / "record.json"
    readme.write_text("before\n<!-- accuracy:begin -->\nold\n<!-- accuracy:end -->\nafter\n")
    line = ["evaluate", "full", "--model", str(model), "--questions", "8", "--out", str(out), "--markdown", str(readme)]
    assert main(line) == 0
    record, text = json.loads(out.read_text()), readme.read_text()
    assert page.read(readme, "accuracy") == markdown(record) and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "held-out questions" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    readme.write_text("no markers")
    assert "lacks the lines" in refused(*line)
    readme.unlink()
    assert "there is no page" in refused(*line)


def test_the_zoo_looks_at_its_page_first(tmp_path, refused):
    assert "there is no page" in refused("evaluate", "zoo", "--markdown", tmp_path / "none.md")


def test_the_course_of_training(tmp_path, capsys, refused):
    steps = [{"stage": "vlora align", "step": n, "loss": 1.0} | dict.fromkeys(world.KINDS, n / 100) for n in (10, 20)]
    log, readme, svg = tmp_path / "log.jsonl", tmp_path / "page.md", tmp_path / "curve.svg"
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    readme.write_text("<!-- zoo-training:begin -->\n<!-- zoo-training:end -->\n")
    assert main(["evaluate", "zoo-training", str(log), "--markdown", str(readme), "--picture", str(svg)]) == 0
    courses = zoo_training.read(log)
    assert page.read(readme, "zoo-training") == zoo_training.markdown(courses)
    assert svg.read_text() == picture(courses)
    assert "VLoRA" in capsys.readouterr().out
    assert "cannot be read as a log" in refused("evaluate", "zoo-training", tmp_path / "none.jsonl")
