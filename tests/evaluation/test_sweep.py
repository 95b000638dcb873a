"""The sweep: its questions, intervals, records, figures, command and tab."""

import csv
import io
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import vtc_demo as vtc
from vtc_demo import engine, registry, ui, world
from vtc_demo.core.run import Run
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.engine import answer
from vtc_demo.evaluation import records
from vtc_demo.evaluation.accuracy import graded
from vtc_demo.evaluation.intervals import Scenes
from vtc_demo.evaluation.questions import balanced
from vtc_demo.evaluation.sweep import BASELINES, fingerprint, plan, sweep, sweep_events
from vtc_demo.figures import colours
from vtc_demo.figures import sweep as figures_sweep
from vtc_demo.models import VLM
from vtc_demo.models.families.llava import LlavaAdapter
from vtc_demo.training import build
from vtc_demo.ui.running import FAILED, StopButton
from vtc_demo.ui.tabs import sweep as tab

RECORD = Path(__file__).resolve().parents[2] / "assets" / "measurements" / "embedded_sweep.json"
TIMES = ("ttft_ms", "environment")


@pytest.fixture(scope="module")
def vlm():
    """Random weights, the real geometry: 576 tokens, 4 decoder layers."""
    torch.manual_seed(0)
    processor = build.build_processor()
    config = build.build_config(len(processor.tokenizer), width=32, tower_layers=3, llm_layers=4)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = 2
    return VLM(model, processor, LlavaAdapter(), "embedded")


@pytest.fixture
def passes(monkeypatch):
    """The passes of the engine, counted: passes[0]."""
    count, original = [0], engine.run

    def counted(*args, **options):
        count[0] += 1
        return original(*args, **options)

    monkeypatch.setattr(engine, "run", counted)
    return count


@pytest.fixture(scope="module")
def record(vlm):
    return sweep(vlm, ["fastervlm", "fastv"], [64, 192], questions=8)


def point(record, name, tokens=None):
    return next(r for r in record["rows"] if r["method"]["method"] == name and r["tokens"] == tokens)


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


# -- questions and intervals ----------------------------------------------------------------------------------------
def test_every_kind_is_asked_equally_often():
    asked = [(seed, q) for seed, _, questions in balanced(203) for q in questions]
    counts = Counter(q.kind for _, q in asked)
    assert len(asked) == 203 and set(counts) == set(world.KINDS)
    assert max(counts.values()) - min(counts.values()) <= 2
    per_scene = Counter(seed for seed, _ in asked)
    assert max(per_scene.values()) == 4 and len({(seed, q.kind) for seed, q in asked}) == 203
    fewer = [(seed, q.text) for seed, _, questions in balanced(50) for q in questions]
    assert fewer == [(seed, q.text) for seed, q in asked][:50]


def test_questions_of_one_kind_come_from_scenes_that_have_it():
    scenes = list(balanced(6, ["reading"]))
    assert [len(questions) for *_, questions in scenes] == [1] * 6
    assert all(scene.tag is not None and q.kind == "reading" for _, scene, (q,) in scenes)


def test_interval_over_scenes():
    assert Scenes([1, 1, 2]).mean([0.5, 0.5, 0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert Scenes([1, 2]).mean([None, math.nan]) is None
    told = Scenes([1, 1, 2]).mean([1.0, None, 0.0])  # two scenes: half of the draws take one of them twice
    assert told == {"mean": 0.5, "low": 0.0, "high": 1.0}
    values = [i % 2 for i in range(400)]
    told = Scenes(range(400)).mean(values)  # one question per scene: 1.96 standard errors of 0.5 / sqrt(400)
    assert told["mean"] - told["low"] == pytest.approx(0.049, abs=0.006)
    clustered = Scenes([i // 4 for i in range(400)]).mean([i // 4 % 2 for i in range(400)])
    assert clustered["high"] - clustered["low"] == pytest.approx(2 * (told["high"] - told["low"]), rel=0.15)


# -- evidence -------------------------------------------------------------------------------------------------------
def test_evidence_is_what_is_kept_or_merged_at_the_cache():
    trace = Trace((2, 3), 0, 2)
    merged = Reduction.merge(  # patch 1 goes into 0, patch 5 is dropped
        torch.tensor([0, 2, 3, 4]), torch.tensor([1]), torch.tensor([0]), 6,
        source_weight=torch.tensor([0.5]), anchor_weight=torch.tensor([0.5, 1.0, 1.0, 1.0]),
    )  # fmt: skip
    trace.add(Site("llm_input"), merged)
    trace.add(Site("kv_cache"), Reduction.select(torch.tensor([0, 2]), 4))  # keeps patches 0 (with 1) and 3
    evidence = torch.tensor([[0, 1, 1], [1, 0, 1]]).bool().numpy()  # patches 1, 2, 3 and 5: 1 and 3 survive
    question = world.Question("?", "yes", "existence", evidence)
    run = Run(registry.resolve("full"), answer="yes", trace=trace)
    assert graded(run, question) == (True, 0.5)
    nothing = world.Question("?", "no", "existence", evidence & False)
    right, kept = graded(run, nothing)
    assert not right and math.isnan(kept)


# -- the record -----------------------------------------------------------------------------------------------------
def test_record_of_a_sweep(record, vlm):
    assert (record["questions"], record["scenes"], record["left_out"]) == (8, 2, [])
    assert {r["method"]["method"] for r in record["rows"]} == {*BASELINES, "fastervlm", "fastv"}
    assert len(record["rows"]) == 1 + 2 * (len(BASELINES) - 1 + 2)
    assert all(r["all"]["n"] == 8 == sum(k["n"] for k in r["kinds"].values()) for r in record["rows"])
    assert point(record, "random", 64)["final_tokens"] == 64
    assert point(record, "fastv", 64)["equivalent_tokens"] == (2 * 576 + 2 * 64) / 4  # cut before layer 2 of 4
    flops = [point(record, "random", n)["flops"] for n in (64, 192)] + [point(record, "full")["flops"]]
    assert flops == sorted(flops) and flops[0] < flops[-1]
    assert point(record, "full")["all"]["evidence"]["mean"] == 1.0
    assert point(record, "random", 64)["all"]["evidence"]["mean"] < 0.5
    assert point(record, "fastv", 64)["ttft_ms"]["n"] == 8


def test_right_answers_and_paired_differences(vlm, monkeypatch):
    original = engine.run

    def oracle(vlm, image, question, method, **options):
        run = original(vlm, image, question, method, **options)
        run.answer = truth[question] if method.card.name == "full" else "wrong"
        return run

    truth = {q.text: q.answer for *_, questions in balanced(8) for q in questions}
    monkeypatch.setattr(engine, "run", oracle)
    found = sweep(vlm, [], [64], questions=8)
    assert point(found, "full")["all"]["accuracy"] == 1.0 and point(found, "pool", 64)["all"]["accuracy"] == 0.0
    assert point(found, "pool", 64)["minus"]["full"] == {"mean": -1.0, "low": -1.0, "high": -1.0}
    assert point(found, "pool", 64)["minus"]["random"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert point(found, "full")["minus"] == {"full": None, "random": None}
    assert point(found, "random", 64)["minus"]["random"] is None


def test_a_scene_is_encoded_once_for_the_methods_that_share(vlm, monkeypatch):
    encoded, original = [], answer.encode
    monkeypatch.setattr(
        answer, "encode", lambda work, inputs: encoded.append(work.method.card.name) or original(work, inputs)
    )
    sweep(vlm, ["fastervlm", "fastv"], [64], questions=4)
    counts = Counter(encoded)
    assert counts.pop("downsample") == 4  # sees another image
    assert counts.pop("full", 0) in (1, 2) and not counts  # one for the scene, one for the warm-up


@pytest.mark.slow
def test_resume_goes_on_where_it_stopped(vlm, passes):
    options = {"tokens": [64], "questions": 8}
    whole = sweep(vlm, ["fastv"], **options)
    stream = sweep_events(vlm, ["fastv"], **options)
    half = next(data() for kind, data in stream if kind == "partial")
    stream.close()
    assert half["questions"] == 4
    half, before = json.loads(records.to_json(half)), passes[0]
    resumed = sweep(vlm, ["fastv"], resume=half, **options)
    assert passes[0] - before == 4 * len(whole["rows"])
    assert without_times(resumed) == without_times(whole)
    assert point(resumed, "fastv", 64)["samples"]["ttft_ms"][:4] == point(half, "fastv", 64)["samples"]["ttft_ms"]
    again, before = sweep(vlm, ["fastv"], resume=resumed, **options), passes[0]
    assert again["questions"] == 8 and passes[0] == before


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r["model"].update(weights="0"), "another model"),
        (lambda r: r.update(kinds=["size"]), "another kinds"),
        (lambda r: r["environment"].update(device="abacus"), "abacus"),
        (lambda r: r["rows"].pop(), "other methods or tokens"),
    ],
)
def test_resume_refuses_another_record(vlm, record, change, words):
    other = json.loads(records.to_json(record))
    change(other)
    with pytest.raises(ValueError, match=words):
        sweep_events(vlm, ["fastervlm", "fastv"], [64, 192], questions=8, resume=other)


def test_closing_the_stream_stops_the_work(vlm, passes):
    stream = sweep_events(vlm, ["fastv"], [64], questions=40)
    for _ in range(3):
        assert next(stream).kind == "progress"
    stream.close()
    assert passes[0] == 3 and next(stream, None) is None


def test_a_point_that_does_not_suit_is_left_out(vlm):
    found = sweep(vlm, [{"method": "fastv", "layer": 9}], [64], questions=4)
    (left,) = found["left_out"]
    assert left["method"]["method"] == "fastv" and "layer=9" in left["reason"]
    assert len(found["rows"]) == len(BASELINES) and all(r["all"]["n"] == 4 for r in found["rows"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((["fastvv"], [64]), "did you mean fastv"),
        ((["fastv@0.1"], [64]), "sets the retention itself"),
        ((["fastv"], [0]), "from 6 to 575"),
        ((["fastv"], [576]), "from 6 to 575"),
        ((["fastv"], [64.5]), "whole numbers"),
        ((["fastv"], []), "got none"),
        ((["fastv"], [64], 0), "questions must be"),
        ((["fastv"], [64], 8, ["smell"]), "unknown question kinds: smell"),
        ((["fastv"], [64], 8, []), "at least one kind"),
    ],
)
def test_bad_input_is_refused_in_words(arguments, words):
    chosen, tokens, *rest = arguments
    with pytest.raises(ValueError, match=words):
        plan(chosen, tokens, 576, *rest)


# -- files ----------------------------------------------------------------------------------------------------------
def test_json_and_csv_hold_the_same_figures(record, tmp_path):
    records.write(tmp_path / "deep" / "sweep.json", records.to_json(record))
    assert records.read(tmp_path / "deep" / "sweep.json") == json.loads(json.dumps(record))
    lines = list(csv.DictReader(io.StringIO(records.to_csv(record))))
    kinds = len(record["rows"][0]["kinds"])
    assert len(lines) == len(record["rows"]) * (1 + kinds)
    for row, line in zip(record["rows"], lines[:: 1 + kinds], strict=True):
        assert line["kind"] == "all" and line["method"] == row["method"]["method"]
        assert {"method": line["method"], **json.loads(line["hyper_parameters"])} == row["method"]
        assert float(line["flops"]) == row["flops"] and int(line["right"]) == row["all"]["right"]
        assert float(line["ttft_ms_median"]) == row["ttft_ms"]["median"]
        assert float(line["evidence"]) == row["all"]["evidence"]["mean"]
        less = row["minus"]["random"]
        assert line["minus_random_low"] == ("" if less is None else str(less["low"]))


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', "{broken"])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json .*record of a sweep"):
        records.read(tmp_path / "x.json")


# -- figures --------------------------------------------------------------------------------------------------------
def test_curves_show_the_record(record):
    hues = colours.colours(registry.list_methods())
    shown = {*BASELINES, "fastv"}
    figure = figures_sweep.curves(record, shown, hues, cost_name="flops", bands=False)
    assert {t.name for t in figure.data} == {r["title"] for r in record["rows"]} - {"FasterVLM"}
    (fastv,) = (t for t in figure.data if t.name == "FastV")
    assert list(fastv.x) == [point(record, "fastv", n)["flops"] for n in (64, 192)]
    assert list(fastv.y) == [100 * point(record, "fastv", n)["all"]["accuracy"] for n in (64, 192)]
    assert fastv.line.color == hues["fastv"]
    banded = figures_sweep.curves(record, shown, hues, measure="evidence")
    (band,) = (t for t in banded.data if t.legendgroup == "fastv" and t.fill == "toself")
    bounds = [point(record, "fastv", n)["all"]["evidence"] for n in (64, 192)]
    assert list(band.y) == [100 * b["high"] for b in bounds] + [100 * b["low"] for b in reversed(bounds)]


def test_table_marks_differences_and_escapes_titles(record):
    other = json.loads(records.to_json(record))
    row = point(other, "fastv", 64)
    row["title"] = point(other, "fastv", 192)["title"] = "<img src=x onerror=alert(1)>"
    row["minus"]["random"] = {"mean": 0.2, "low": 0.1, "high": 0.3}
    point(other, "fastv", 192)["minus"]["random"] = {"mean": 0.2, "low": -0.1, "high": 0.3}
    html = figures_sweep.table(other, {"fastv", "random"}, {})
    assert "<img" not in html and html.count("▲") == 1 and "better than random" in html and "▼" not in html
    assert "▲" not in figures_sweep.table(other, {"fastv", "random"}, {}, kind="size")
    assert all(
        "<img" not in str(text) for t in figures_sweep.curves(other, {"fastv"}, {}).data for text in t.customdata or ()
    )


def test_the_sentence_counts_what_differs_from_random(record):
    other = json.loads(records.to_json(record))
    bounds = {"uniform": (0.1, 0.2), "pool": (-0.2, -0.1), "downsample": (-0.3, -0.2)}
    for row in (r for r in other["rows"] if r["tokens"] == 64 and r["minus"]["random"]):
        low, high = bounds.get(row["method"]["method"], (-0.1, 0.1))
        row["minus"]["random"] = {"mean": 0.0, "low": low, "high": high}
    said = figures_sweep.summary(other)
    assert "At 64 of 576 tokens, 1 of 5 methods is better" in said and "2 are worse; for 2 it cannot be told" in said


# -- the shipped record ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shipped():
    return records.read(RECORD)


def test_the_shipped_record_is_of_the_shipped_weights(shipped):
    assert shipped["model"]["weights"] == fingerprint(vtc.load_vlm("embedded").model), "record the sweep anew"
    recorded = {r["method"]["method"] for r in shipped["rows"]}
    assert {"full", "random", "divprune", "mustdrop"} <= recorded <= {c.name for c in registry.list_methods()}
    assert {r["tokens"] for r in shipped["rows"]} >= {32, 64, 128, 192} and not shipped["left_out"]


@pytest.mark.slow
def test_a_slice_measured_anew_is_the_shipped_record(shipped):
    fresh = sweep(vtc.load_vlm("embedded"), ["fastervlm", "fastv"], [64], questions=12)
    same = []
    for row in fresh["rows"]:
        samples = point(shipped, row["method"]["method"], row["tokens"])["samples"]
        same += [a == b for a, b in zip(row["samples"]["right"], samples["right"][:12], strict=True)]
        evidence = [v or 0.0 for v in samples["evidence"][:12]]
        assert [v or 0.0 for v in row["samples"]["evidence"]] == pytest.approx(evidence, abs=0.1)
    assert sum(same) >= 0.95 * len(same)  # another processor may round one answer differently


# -- the tab --------------------------------------------------------------------------------------------------------
def test_hostile_requests_get_a_sentence(vlm):
    board = tab.Sweep(tab.runner(vlm), vlm.shape.patches)
    good = {"methods": ["fastv"], "tokens": [64], "kinds": ["size"], "scenes": 5}
    for change in (
        {"methods": ["<b>"]}, {"methods": None}, {"methods": [["fastv"]]}, {"tokens": ["64"]}, {"tokens": []},
        {"kinds": ["smell"]}, {"kinds": []}, {"scenes": 10**9}, {"scenes": True},
    ):  # fmt: skip
        *_, (status, record, _) = board.measure(good | change, StopButton(), 0.5)
        assert 'role="alert"' in status and "<b>" not in status and FAILED not in status, change
        assert not isinstance(record, str)
    axes = {"measure": "accuracy", "kind": "all", "cost": "flops", "bands": True}
    for change in ({"measure": "x"}, {"cost": None}, {"kind": "<b>"}):
        *_, remark = board.draw(board.recorded, good, axes | change)
        assert "vtc-note" in remark and "<b>" not in remark


def test_a_run_on_the_page_ends_in_time(vlm, passes, monkeypatch):
    monkeypatch.setattr(tab, "MAX_SECONDS", -1)
    board = tab.Sweep(tab.runner(vlm), vlm.shape.patches)
    *_, (status, _, _) = board.measure(
        {"methods": [], "tokens": [64], "kinds": ["size"], "scenes": 200}, StopButton(), 0.5
    )
    assert "Not one scene was done" in status and passes[0] == 1


@pytest.fixture(scope="module")
def url(vlm):
    page = ui.build(vlm)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **ui.LAUNCH)
    yield address.rstrip("/")
    page.close()


@pytest.fixture
def page(url, chromium):
    """The tab, open; at the end there must have been no console error and no request to another host."""
    context = chromium.new_context(viewport={"width": 1480, "height": 900}, color_scheme="dark", accept_downloads=True)
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else problems.append(r.url))
    page.set_default_timeout(90_000)
    page.goto(url)
    page.get_by_role("tab", name="Sweep").click()
    page.wait_for_selector("#vtc-sweep-plot .legendtext")
    yield page
    context.close()
    assert not problems


def curves(page):
    return page.locator("#vtc-sweep-plot .legendtext").all_text_contents()


def test_first_view_is_the_recorded_sweep(page, shipped):
    status = page.locator("#vtc-sweep-status").inner_text()
    assert f"{shipped['questions']} held-out questions" in status and shipped["environment"]["date"][:10] in status
    assert {"Full", "Random", "FastV"} <= set(curves(page))
    assert page.locator(".vtc-table tbody tr").count() == len(curves(page))
    page.locator(".tick", has_text="FastV").click()
    page.locator(".vtc-table:not(:has-text('FastV'))").wait_for()
    assert "FastV" not in curves(page)
    page.locator("[data-pick=all]").click()
    page.locator(".vtc-table:has-text('FiCoCo-VL')").wait_for()


def test_axes_follow_the_last_of_several_quick_choices(page):
    for name, choice in (("measure", "evidence"), ("kind", "reading"), ("cost", "ttft_ms")):
        page.locator(f"[data-axis={name}]").select_option(choice)
    page.locator("#vtc-sweep-plot .xtitle", has_text="time").wait_for()
    assert "Evidence that survives · reading" in page.locator("#vtc-sweep-plot .ytitle").text_content()
    page.locator(".vtc-table caption", has_text="on reading questions").wait_for()


def test_run_and_downloads(page, tmp_path):
    page.locator("[data-pick=none]").click()
    page.locator(".tick", has_text=re.compile("^192$")).click()
    page.locator("#vtc-sweep-note", has_text="20 questions, 100 passes").wait_for()
    page.locator("#vtc-sweep-run").click()
    page.locator("#vtc-sweep-status", has_text="Measured just now: 20 held-out questions").wait_for()
    page.locator(".vtc-table thead:not(:has-text('192'))").wait_for()
    for kind in ("CSV", "JSON"):
        with page.expect_download() as given:
            page.get_by_role("button", name=f"Download {kind}").click()
        given.value.save_as(tmp_path / f"sweep.{kind.lower()}")
    record = records.read(tmp_path / "sweep.json")
    assert record["questions"] == 20 and {r["tokens"] for r in record["rows"]} == {None, 64}
    assert (tmp_path / "sweep.csv").read_text() == records.to_csv(record)


def test_stop_stops_the_work_and_frees_the_model(page, passes):
    page.locator("[data-pick=all]").click()
    page.locator(".scenes input").fill("200")
    page.locator("#vtc-sweep-note", has_text="800 questions").wait_for()
    page.locator("#vtc-sweep-run").click()
    page.locator("#vtc-sweep-status", has_text="passes ·").wait_for()
    page.locator("#vtc-sweep-stop").click()
    page.locator("#vtc-sweep-status", has_text="Stopped").wait_for()
    page.wait_for_timeout(1500)
    before = passes[0]
    assert before > 0
    page.wait_for_timeout(1500)
    assert passes[0] == before
    page.locator("#vtc-sweep-run").click()  # the next click is not lost
    page.locator("#vtc-sweep-status", has_text="passes ·").wait_for()
    page.locator("#vtc-sweep-stop").click()
    page.locator("#vtc-sweep-status", has_text="Stopped").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#vtc-compare").click()
    page.locator(".vtc-said .time", has_text="FLOPs").first.wait_for()


def test_colours_follow_the_theme_and_the_phone_has_no_sideways_scroll(page):
    ink = "() => getComputedStyle(document.querySelector('#vtc-sweep-plot .xtick text')).fill"
    dark = page.evaluate(ink)
    page.get_by_label("Light or dark").click()
    assert page.evaluate(ink) != dark
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
