"""The benchmark: its record and its table. Nothing here depends on how fast anything is."""

import json

import pytest
import tiny
import torch

from vtc_demo import registry
from vtc_demo.benchmark import bench, measurements, tables, timing
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.ui import serve
from vtc_demo.ui.tabs.compare import Compare
from vtc_demo.ui.tabs.sweep import Sweep


@pytest.fixture(scope="module")
def record():
    names, options = ["random", "fastv", "pyramiddrop"], {"new_tokens": 3, "warmups": 1, "repeats": 3}
    return bench.bench(tiny.vlm(), tiny.image(), tiny.QUESTION, names, (9, 4), **options)


def test_engine_and_generate_do_the_same_work(record):
    part = record["generate"]
    assert part["same_answer"] is True
    names = {"preprocess", "ttft", "decode_per_token", "wall"}
    assert set(part["engine_ms"]) == set(part["generate_ms"]) == set(part["ratios"]) == names
    assert all(figure["n"] == 3 and figure["median"] > 0 for figure in part["ratios"].values())


def test_rows_hold_counted_costs_and_their_ratios(record):
    assert [(row["method"]["method"], row["budget"]) for row in record["rows"]] == [
        (name, budget) for name in ("random", "fastv", "pyramiddrop") for budget in (9, 4)
    ]
    full = record["full"]
    assert full["visual_tokens"] == 36
    for row in record["rows"]:
        assert row["visual_tokens"] == row["budget"], row["title"]
        ratios = row["ratios"]
        assert ratios["kv_bytes"] == full["kv_bytes"] / row["kv_bytes"] > 1
        assert ratios["prefill_flops"] == full["flops"]["prefill"] / row["flops"]["prefill"] > 1
        assert ratios["total_flops"] == full["flops"]["total"] / row["flops"]["total"]
        assert 1 <= ratios["prefill_expected"] <= ratios["prefill_flops"] + 1e-9
        assert all(ratios[name]["n"] == 3 for name in ("prefill", "ttft", "decode_per_token", "wall"))
        ms = row["ms"]
        assert row["own_work"]["median"] > 0 and ms["compression"]["median"] > 0
        assert row["full_ms"]["compression"]["median"] == 0
    random, fastv = record["rows"][0], record["rows"][2]
    assert random["kv_bytes"] < fastv["kv_bytes"] < full["kv_bytes"]  # before the decoder, after two of its layers


def test_peak_memory_is_reported_for_every_row(record):
    for part in (record["full"], *record["rows"]):
        assert part["peak_bytes"] > part["kv_bytes"]


def test_environment_tells_what_a_figure_depends_on(record):
    e = record["environment"]
    assert e["device"].startswith("cpu") and e["threads"] == torch.get_num_threads() and e["cores"] >= 1
    assert e["peak_flops"] > 1e8 and e["bandwidth"] > 1e7
    assert {"torch", "transformers", "dtype", "date", "load_average", "OMP_WAIT_POLICY"} <= set(e)


def test_table_shows_every_row_and_warns_of_few_repeats(record):
    text = tables.table(json.loads(json.dumps(record)))
    for row in record["rows"]:
        assert text.count(tables.label(row)) >= 2
    assert "the same answer: yes" in text and "not to be quoted" in text
    enough = tables.table(record | {"warmups": 2, "repeats": 5})
    assert "not to be quoted" not in enough


def test_a_method_that_does_not_suit_the_model_leaves_the_others_alone(monkeypatch):
    def no(self, shape):
        raise ValueError("random: not on this model")

    monkeypatch.setattr(registry.get("random"), "sites", no)
    options = {"new_tokens": 2, "warmups": 0, "repeats": 1}
    record = bench.bench(tiny.vlm(), tiny.image(), tiny.QUESTION, ["random", "uniform"], (9,), **options)
    failed, fine = record["rows"]
    assert failed["error"] == "random: not on this model" and "error" not in fine
    assert "Random @ 9: not run. random: not on this model" in tables.table(record)


# -- connectors, which are trained for one model --------------------------------------------------------------------
@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder in which q-former seems to be trained."""
    (tmp_path / "q-former").mkdir()
    for name in (weights_on_disk.WEIGHTS, weights_on_disk.FACTS):
        (tmp_path / "q-former" / name).touch()
    monkeypatch.setattr(weights_on_disk, "FOLDER", tmp_path)


def test_connectors_are_benchmarked_on_the_embedded_model_alone(zoo, monkeypatch):
    for part in ("against_full", "against_generate", "without_reduction"):
        monkeypatch.setattr(measurements.Measurements, part, lambda *_: {})
    monkeypatch.setattr(timing, "surroundings", lambda *_: {})
    taken = {}
    for name in ("embedded", "owner/other"):
        vlm = tiny.vlm()
        vlm.name = name
        rows = bench.bench(vlm, tiny.image(), tiny.QUESTION, None, (9,))["rows"]
        taken[name] = {row["method"]["method"] for row in rows}
    assert taken["embedded"] - taken["owner/other"] == {"q-former"} and "fastv" in taken["owner/other"]


@pytest.mark.parametrize("name", ["q-former", "q-former@0.1", "vlora"], ids=["here", "with retention", "not here"])
def test_a_connector_on_another_model_is_refused(zoo, name):
    vlm = tiny.vlm()
    vlm.name = "owner/other"
    with pytest.raises(ValueError, match="trained for the embedded model alone; owner/other is another"):
        bench.bench(vlm, tiny.image(), tiny.QUESTION, ["random", name], (9,))


def test_the_page_offers_connectors_with_the_embedded_model_alone(zoo):
    for name, there in (("embedded", True), ("owner/other", False)):
        assert ("q-former" in {method["name"] for method in serve.catalogue(name)}) is there
        tabs = Compare(None, 576, True, name), Sweep(None, 576, name)
        assert all(("q-former" in {card.name for card in tab.cards}) is there for tab in tabs)
    plan = {"methods": ["q-former"], "tokens": [64], "kinds": ["reading"], "scenes": 5}
    with pytest.raises(ValueError, match="trained for the embedded model alone"):
        tabs[1].read(plan)
    tabs[0].heads, tabs[0].asked = [], "What is it?"
    refusal = tabs[0].restore("?column=q-former", None)[4]
    assert "cannot be restored" in refusal and "Q-Former has weights of its own" in refusal


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ((0,), {}, "cannot leave 0 tokens; this model has 36"),
        ((37,), {}, "give 1 to 36"),
        ((9,), {"repeats": 0}, "repeats >= 1"),
        ((9,), {"warmups": -1}, "warmups >= 0"),
        ((9,), {"new_tokens": 1}, "new_tokens >= 2"),
    ],
)
def test_bad_arguments_say_what_is_allowed(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        bench.bench(tiny.vlm(), tiny.image(), tiny.QUESTION, ["random"], tokens, **options)
