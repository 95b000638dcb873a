"""The zoo measured: one small run of the command, its record and its tables."""

import numpy as np
import pytest
import torch

import vtc_demo as vtc
from vtc_demo import registry
from vtc_demo.cli import main
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.connectors import store
from vtc_demo.evaluation import findings, records, zoo, zoo_tables
from vtc_demo.evaluation.questions import balanced
from vtc_demo.training.zoo import train_zoo

pytestmark = pytest.mark.slow
NAMES = ["llava-mlp", "q-former", "hyper-gated", "vlora"]
ASKED = 8


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
    assert told["perceiver-resampler"] == findings.NOT_MEASURED
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
