"""The benchmark: its arithmetic, its record and its command. Nothing here depends on how fast anything is."""

import json

import families
import pytest
import tiny
import torch

from vtc_demo import registry
from vtc_demo.benchmark import bench, timing
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.ui import serve
from vtc_demo.ui.tabs.compare import Compare
from vtc_demo.ui.tabs.sweep import Sweep

FULL = {"preprocess": 5.0, "vision": 45.0, "projector": 0.5, "compression": 0.0, "prefill": 49.5, "ttft": 100.0}
FULL |= {"decode_per_token": 4.0}


@pytest.fixture(scope="module")
def record():
    names, options = ["random", "fastv", "pyramiddrop"], {"new_tokens": 3, "warmups": 1, "repeats": 3}
    return bench.bench(tiny.vlm(), tiny.image(), tiny.QUESTION, names, (9, 4), **options)


def test_pairs_run_in_turn_and_change_places():
    calls = []

    def say(name):
        calls.append(name)
        return f"{name}{len(calls)}"

    firsts, seconds = bench.pairs(lambda: say("a"), lambda: say("b"), 1, 3)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"
    assert firsts == ["a4", "a5", "a8"] and seconds == ["b3", "b6", "b7"]


def test_a_ratio_is_the_median_over_pairs_not_the_ratio_of_medians():
    top, bottom = [{"t": 10.0}, {"t": 200.0}, {"t": 30.0}], [{"t": 5.0}, {"t": 50.0}, {"t": 10.0}]
    assert bench.paired(top, bottom, "t") == {"median": 3.0, "iqr": 1.0, "n": 3}  # of 2, 4 and 3
    assert bench.paired([{"a": 1.0}], [{"b": 4.0}], "a", "b")["median"] == 0.25


def test_reasons_name_what_does_not_shrink():
    fast = FULL | {"prefill": 9.0, "compression": 3.0, "ttft": 62.5}
    prefill, ttft = bench.reasons(FULL, fast, 9.0, {"prefill": 5.5, "ttft": 1.6})
    assert "gains 5.5x where 9.0x is expected" in prefill and "4.0 ms" in prefill and "44 % of this prefill" in prefill
    assert "TTFT gains 1.6x" in ttft and "own work adds 3 %" in ttft
    assert "the vision tower (45 %) and preprocessing (5 %) of the full time are not compressed" in ttft
    assert "projector" not in ttft  # half a percent explains nothing


def test_a_stage_that_shrinks_is_not_blamed():
    small = FULL | {"preprocess": 5.0, "vision": 10.0, "prefill": 10.0, "ttft": 25.5}
    (ttft,) = bench.reasons(FULL, small, 4.95, {"prefill": 4.95, "ttft": 3.9})
    assert "preprocessing (5 %) of the full time is not compressed" in ttft and "vision" not in ttft


def test_nothing_to_explain():
    assert bench.reasons(FULL, {stage: ms / 2 for stage, ms in FULL.items()}, 2.0, {"prefill": 2.0, "ttft": 2.0}) == []


def test_engine_and_generate_do_the_same_work(record):
    part = record["generate"]
    assert part["same_answer"] is True
    names = {"preprocess", "ttft", "decode_per_token", "wall"}
    assert set(part["engine_ms"]) == set(part["generate_ms"]) == set(part["ratios"]) == names
    assert all(figure["n"] == 3 and figure["median"] > 0 for figure in part["ratios"].values())


@pytest.mark.parametrize("family", families.BUILDERS)
def test_generate_is_the_baseline_of_every_family(family):
    job = bench.Bench(families.vlm(family), tiny.image(2, side=56), tiny.QUESTION, new_tokens=3, warmups=0, repeats=1)
    assert job.against_generate()["same_answer"]


def test_generate_runs_on_past_the_end_and_the_settings_are_put_back():
    vlm = tiny.vlm()
    job = bench.Bench(vlm, tiny.image(), tiny.QUESTION, new_tokens=6)
    with bench.without_eos(vlm):
        times, free = job.generate()
    assert len(free) == 6 and 0 < times["preprocess"] < times["ttft"] < times["wall"]
    settings = vlm.model.generation_config
    settings.eos_token_id = free[1]  # now the answer would end early
    with bench.without_eos(vlm):
        assert job.generate()[1] == free
        assert job.run(job.full)[1].token_ids == free
    assert vlm.model.generation_config is settings and settings.eos_token_id == free[1]


def test_every_pass_makes_its_own_vision_pass():
    job = bench.Bench(tiny.vlm(), tiny.image(), tiny.QUESTION)
    for _ in range(2):
        times, run = job.run(job.full)
        assert not run.vision_shared and times["vision"] > 0 and len(run.token_ids) == job.new_tokens


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


def test_peak_memory_is_that_of_tensors_at_their_most():
    def work():
        a = torch.empty(1_000_000, dtype=torch.uint8)
        b = torch.empty(2_000_000, dtype=torch.uint8)
        del a, b
        return torch.empty(1_500_000, dtype=torch.uint8)

    assert 3_000_000 <= bench.peak_bytes(work, torch.device("cpu")) < 3_010_000


def test_peak_memory_is_reported_for_every_row(record):
    for part in (record["full"], *record["rows"]):
        assert part["peak_bytes"] > part["kv_bytes"]


def test_environment_tells_what_a_figure_depends_on(record):
    e = record["environment"]
    assert e["device"].startswith("cpu") and e["threads"] == torch.get_num_threads() and e["cores"] >= 1
    assert e["peak_flops"] > 1e8 and e["bandwidth"] > 1e7
    assert {"torch", "transformers", "dtype", "date", "load_average", "OMP_WAIT_POLICY"} <= set(e)


def test_table_shows_every_row_and_warns_of_few_repeats(record):
    text = bench.table(json.loads(json.dumps(record)))
    for row in record["rows"]:
        assert text.count(bench.label(row)) >= 2
    assert "the same answer: yes" in text and "not to be quoted" in text
    enough = bench.table(record | {"warmups": 2, "repeats": 5})
    assert "not to be quoted" not in enough


def test_a_method_that_does_not_suit_the_model_leaves_the_others_alone(monkeypatch):
    def no(self, shape):
        raise ValueError("random: not on this model")

    monkeypatch.setattr(registry.get("random"), "sites", no)
    options = {"new_tokens": 2, "warmups": 0, "repeats": 1}
    record = bench.bench(tiny.vlm(), tiny.image(), tiny.QUESTION, ["random", "uniform"], (9,), **options)
    failed, fine = record["rows"]
    assert failed["error"] == "random: not on this model" and "error" not in fine
    assert "Random @ 9: not run. random: not on this model" in bench.table(record)


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
        monkeypatch.setattr(bench.Bench, part, lambda *_: {})
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


def test_budgets_survive_rounding():
    for patches, budgets in ((576, (192, 128, 64, 6, 576)), (2880, (640, 320, 160))):
        for budget, method in bench.at_budgets("uniform", budgets, patches):
            assert method.keep(patches) == int(patches * method.retention) == budget
