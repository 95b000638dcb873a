"""The zoo measured: one small run of the command, its tables, the log of training, and the shipped records."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import vtc_demo as vtc
from vtc_demo import registry, world
from vtc_demo.cli import main
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.connectors import store
from vtc_demo.evaluation import findings, records, zoo, zoo_tables, zoo_training
from vtc_demo.evaluation.questions import balanced
from vtc_demo.training.zoo import train_zoo

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "assets" / "measurements"
NAMES = ["llava-mlp", "q-former", "hyper-gated", "vlora"]
ASKED = 8


# -- a run of the command -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folder with the weights of a few methods after two steps."""
    out = tmp_path_factory.mktemp("zoo")
    train_zoo(NAMES, tmp_path_factory.mktemp("runs"), out, steps=1, tune=1, batch=2, images=2)
    return out


@pytest.fixture(scope="module")
def made(weights, tmp_path_factory):
    """(record file, page) of one run of the command."""
    folder = tmp_path_factory.mktemp("measured")
    out, page = folder / "zoo.json", folder / "page.md"
    page.write_text("before\n<!-- zoo:begin -->\nstale\n<!-- zoo:end -->\nafter\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_on_disk, "FOLDER", weights)
        options = ["--tokens", "64", "--questions", str(ASKED), "--out", str(out), "--markdown", str(page)]
        assert main(["evaluate", "zoo", *NAMES, *options]) == 0
    return out, page


@pytest.fixture
def here(weights, monkeypatch):
    monkeypatch.setattr(weights_on_disk, "FOLDER", weights)


@pytest.fixture(scope="module")
def record(made):
    return records.read(made[0])


def rows_of(record, name, tokens=None):
    return [r for r in record["rows"] if r["method"]["method"] == name and tokens in (None, r["tokens"])]


def test_every_method_answers_the_same_questions(record):
    free = {c.name for c in vtc.list_methods() if c.training_free}
    assert {row["method"]["method"] for row in record["rows"]} == free | set(NAMES)
    assert all(len(row["samples"]["right"]) == ASKED == row["all"]["n"] for row in record["rows"])
    assert record["environment"]["threads"] == 1 and not record["left_out"]
    assert [row["final_tokens"] for row in rows_of(record, "q-former")] == [64]
    assert [row["final_tokens"] for row in rows_of(record, "vlora")] == [0]
    assert [row["tokens"] for row in rows_of(record, "llava-mlp")] == [None]


def test_answers_are_those_of_a_plain_run(record, here):
    vlm, hits = vtc.load_vlm("embedded", device="cpu"), ""
    for _, scene, questions in balanced(ASKED):
        for q in questions:
            hits += str(int(vtc.run(vlm, scene.image, q.text, "q-former", retention=64 / 576).answer == q.answer))
    assert rows_of(record, "q-former")[0]["samples"]["right"] == hits


def test_stages_add_up_and_connectors_are_counted(record, here):
    vlm = vtc.load_vlm("embedded", device="cpu")
    for row in record["rows"]:
        stages = row["samples"]["stages"]
        assert stages["total"] == sum(v for k, v in stages.items() if k != "total")
        first = stages["total"] - stages["decode"] - stages["lm_head"]
        assert first < row["flops"] * ASKED <= first + stages["lm_head"] + ASKED
    connector = store.fit(vlm, registry.resolve("q-former")).connector
    assert rows_of(record, "q-former")[0]["samples"]["stages"]["projector"] == ASKED * connector.flops(576, 64)
    for name in NAMES:
        weights = store.fit(vlm, registry.resolve(name)).connector.parameters()
        assert record["zoo"][name]["parameters"] == sum(p.numel() for p in weights)


def test_equal_flops_are_equal(record):
    """On all questions, though solved on the first; and who stays away could not come near."""
    groups = {tuple(m["method"] for m in group["methods"]): group for group in record["equal_flops"]}
    assert set(groups) == {("hyper-gated",), ("vlora",)}
    for (name,), group in groups.items():
        target = rows_of(record, name)[0]["flops"]
        others = [zoo_tables.find(record, spec) for spec in group["others"]]
        assert {row["method"]["method"] for row in others} >= {"random", "uniform", "pool"}
        assert all(row["flops"] == pytest.approx(target, rel=0.01) for row in others)
        assert "fastv" in group["cannot"] and "cannot go below" in group["cannot"]["fastv"]
        free = {c.name for c in vtc.list_methods() if c.training_free and c.name != "full"}
        assert {row["method"]["method"] for row in others} | set(group["cannot"]) == free


def test_tables_hold_the_record(made, record):
    text = made[1].read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    assert zoo_tables.markdown(record) in text
    q_former = rows_of(record, "q-former")[0]
    line = next(line for line in text.splitlines() if line.startswith("| **Q-Former** | 64 |"))
    cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
    share = q_former["all"]
    assert cells[2] == f"{100 * share['accuracy']:.0f} ({100 * share['low']:.0f}-{100 * share['high']:.0f})"
    mine, theirs = (rows_of(record, n)[0]["samples"]["right"] for n in ("q-former", "llava-mlp"))
    less = np.mean([int(a) - int(b) for a, b in zip(mine, theirs, strict=True)])
    assert cells[3].startswith(f"{100 * less:+.0f} (")
    assert "### Equal FLOPs: VLoRA" in text and "1 + 1 steps of 2 pictures" in text and "-0-" not in text
    assert "| **VLoRA** | 0 | 0 | 1,089,600 |" in text


def test_it_goes_on_from_its_record_and_not_from_another(record, here):
    vlm = vtc.load_vlm("embedded", device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        *_, last = zoo.events(vlm, NAMES, [64], ASKED + 1, record)
        more = last.data
        with pytest.raises(ValueError, match="of other weights, methods or tokens"):
            zoo.events(vlm, ["vlora"], [64], ASKED, record)
        changed = record | {"zoo": record["zoo"] | {"vlora": record["zoo"]["vlora"] | {"weights": "0"}}}
        with pytest.raises(ValueError, match="of other weights"):
            zoo.events(vlm, NAMES, [64], ASKED, changed)
    finally:
        torch.set_num_threads(threads)
    assert more["questions"] == ASKED + 1
    for old, new in zip(record["rows"], more["rows"], strict=True):
        assert new["samples"]["right"][:ASKED] == old["samples"]["right"] and new["all"]["n"] == ASKED + 1


def test_bad_input_is_told(here, tmp_path, monkeypatch):
    vlm = vtc.load_vlm("embedded", device="cpu")
    for names, tokens, questions, words in (
        (["fastv"], [64], 8, "fastv: not of the zoo"),
        (["vlora"], [64], 0, "questions must be 1 or more"),
        (["q-former"], [600], 8, "cannot leave 600 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.events(vlm, names, tokens, questions)
    monkeypatch.setattr(weights_on_disk, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no trained connector lies in"):
        zoo.events(vlm)


def test_cards_say_what_the_record_says(made, record):
    told = {name: findings.finding(registry.trained()[name].card, made[0].parent) for name in registry.trained()}
    assert told["perceiver-resampler"] == registry.trained()["perceiver-resampler"].card.finding  # not recorded here
    percent = lambda name, tokens=None: f"{100 * rows_of(record, name, tokens)[0]['all']['accuracy']:.0f}"  # noqa: E731
    assert f"at 64 tokens {percent('q-former')} (" in told["q-former"]
    assert f"at the same tokens: random {percent('random', 64)}; pool {percent('pool', 64)}" in told["q-former"]
    assert (
        f"the MLP without compression: {percent('llava-mlp')} (" in told["vlora"]
        and "Trained alike" not in told["llava-mlp"]
    )
    group = next(g for g in record["equal_flops"] if g["methods"][0]["method"] == "vlora")
    other = next(s for s in group["others"] if s["method"] == "random")
    share = zoo_tables.find(record, other)["all"]["accuracy"]
    assert f"at equal FLOPs: random {100 * share:.0f}, " in told["vlora"] and "same tokens" not in told["vlora"]


def test_the_readme_names_every_method():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The methods")[2].partition("```")[0]
    named = set(re.findall(r"`([a-z-]+)`", text))
    assert named == {c.name for c in vtc.list_methods() if c.training_free} | set(registry.trained())


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
    svg = zoo_training.picture(courses)
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
    assert set(shipped["zoo"]) == set(registry.trained()) and not shipped["left_out"]
    assert shipped["zoo"] == {name: zoo.weights(name) for name in registry.trained()}, "measure the zoo anew"
    assert shipped["questions"] >= 250 and shipped["environment"]["threads"] == 1
    assert {row["tokens"] for row in shipped["rows"]} >= {144, 64}
    assert all("held-out questions" in findings.finding(cls.card) for cls in registry.trained().values())


def test_the_page_shows_the_shipped_records():
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    courses = zoo_training.read()
    assert zoo_tables.markdown(records.read(RECORDS / "zoo.json")) in text
    assert zoo_training.markdown(courses) in text
    assert (ROOT / "assets" / "zoo_training.svg").read_text(encoding="utf-8") == zoo_training.picture(courses)
    steps = {name: zoo.weights(name)["steps"] for name in registry.trained()}
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
