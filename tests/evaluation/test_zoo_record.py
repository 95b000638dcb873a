"""The zoo measured: its tables, the log of training, and the shipped records."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import vtc_demo as vtc
from vtc_demo import registry, world
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.evaluation import findings, records, zoo, zoo_tables, zoo_training
from vtc_demo.figures.zoo import picture

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "assets" / "measurements"


def test_the_readme_names_methods_that_there_are():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The methods")[2].partition("```")[0]
    named = set(re.findall(r"`([a-z-]+)`", text))
    assert {"full", "divprune", "q-former"} <= named
    assert named <= {c.name for c in vtc.list_methods()} | set(registry.trained())


# -- the course of training -----------------------------------------------------------------------------------------
def entry(stage, step, share):
    return {"stage": stage, "step": step, "loss": 1.0, **{kind: share for kind in world.KINDS}}


@pytest.fixture
def log(tmp_path):
    """Two stages; the first was begun anew after two entries and then took fewer steps, the second was shorter."""
    lines = [entry("q-former align", s, 0.1) for s in (50, 100)]
    lines += [entry("vlora align", 50, 0.3)]
    lines += [entry("q-former align", s, s / 100) for s in (10, 20, 30, 40)] + [entry("q-former tune", 10, 0.9)]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_log_is_read_as_one_course_per_method(log):
    courses = zoo_training.read(log)
    assert list(courses) == [n for n in registry.trained() if n in ("q-former", "vlora")]
    assert [(e["step"], e["colour"]) for e in courses["q-former"]] == [
        (10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4), (50, 0.9)
    ]  # fmt: skip
    assert zoo_training.ends(courses["q-former"]) == [40, 50]
    table = zoo_training.markdown(courses)
    assert "| Q-Former | 10 / 20 / 40 / 50 |" in table and "| 10 / 20 / 40 / 90 |" in table
    assert "| VLoRA | 50 | 1.00 | 30 |" in table


def test_the_picture_draws_every_entry(log):
    courses = zoo_training.read(log)
    svg = picture(courses)
    lines = [[tuple(map(float, p.split(","))) for p in line.split()] for line in re.findall(r'points="(.*?)"', svg)]
    assert len(lines) == 2 * len(world.KINDS)
    across, up = zip(*lines[0])  # the first panel: Q-Former
    steps, shares = zip(*((e["step"], e["existence"]) for e in courses["q-former"]))
    assert np.corrcoef(across, steps)[0, 1] > 0.9999 and np.corrcoef(up, shares)[0, 1] < -0.9999
    assert svg.count("stroke-dasharray") == 1, "where the second stage begins"


@pytest.mark.parametrize("text", ["no JSON", '{"step": 1}', "[]", '{"stage": "full-336", "step": 1}'])
def test_another_file_is_no_log_of_the_zoo(text, tmp_path):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match=r"cannot be read as a log|no entry of a method of the zoo"):
        zoo_training.read(tmp_path / "log")


# -- what is shipped ------------------------------------------------------------------------------------------------
def test_the_shipped_record_is_of_the_shipped_weights():
    shipped = records.read(RECORDS / "zoo.json")
    here = {name for name in registry.trained() if weights_on_disk.has(name)}
    assert shipped["zoo"] == {name: zoo.weights(name) for name in here} and not shipped["left_out"], "measure it anew"
    assert shipped["questions"] >= 250 and shipped["environment"]["threads"] == 1
    assert {row["tokens"] for row in shipped["rows"]} >= {144, 64}
    assert all("held-out questions" in findings.finding(registry.trained()[name].card) for name in here)


def test_the_page_shows_the_shipped_records():
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    courses = zoo_training.read()
    assert zoo_tables.markdown(records.read(RECORDS / "zoo.json")) in text
    assert zoo_training.markdown(courses) in text
    assert (ROOT / "assets" / "zoo_training.svg").read_text(encoding="utf-8") == picture(courses)
    steps = {name: zoo.weights(name)["steps"] for name in courses}
    assert {
        name: [b - a for a, b in zip([0, *e], e)] for name, e in ((n, zoo_training.ends(c)) for n, c in courses.items())
    } == steps


def test_what_stands_out_stands_in_the_record():
    """The claims of docs/zoo.md under "What stands out"."""
    record = records.read(RECORDS / "zoo.json")
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    claims = text[text.index("What stands out") : text.index("How to read it")]
    found = [row for row in record["rows"] if row["method"]["method"] in record["zoo"]]
    by_name = {row["method"]["method"]: row for row in found if row["tokens"] in (None, 144)}

    assert "**Relations did not come** for six of the twelve" in claims
    chance = {name for name, row in by_name.items() if row["kinds"]["relation"]["low"] < 0.53 and name != "llava-mlp"}
    beside = {"gated-cross-attention", "hyper-gated", "hyper-fused", "vlora"}
    assert chance == {"q-former", "perceiver-resampler"} | beside
    assert all(row["kinds"]["relation"]["low"] > 0.6 for name, row in by_name.items() if name not in chance)

    assert "**VLoRA is far from the others** in colour and what-is-it" in claims
    for kind in ("colour", "object"):
        high = by_name["vlora"]["kinds"][kind]["high"]
        assert all(high < row["kinds"][kind]["accuracy"] for name, row in by_name.items() if name != "vlora")

    assert (
        "at 144 tokens lie within\n  four points of the reference, and the intervals of these differences reach zero"
        in claims
    )
    for name in ("trained-pool", "patch-merger", "pixel-shuffle"):
        assert by_name["llava-mlp"]["all"]["accuracy"] - by_name[name]["all"]["accuracy"] < 0.04
        assert zoo_tables.difference(record, by_name[name], by_name["llava-mlp"]).endswith(
            ("to +0)", "to +1)", "to +2)")
        )

    assert "both hyper attentions beat every training-free method that could be brought to their FLOPs" in claims
    (group,) = (g for g in record["equal_flops"] if any(m["method"] == "hyper-fused" for m in g["methods"]))
    others = [row for row in record["rows"] if row["method"] in group["others"]]
    assert len(others) == len(group["others"]) > 5
    for name in ("hyper-gated", "hyper-fused"):
        assert all("(+" in zoo_tables.difference(record, by_name[name], other) for other in others)
