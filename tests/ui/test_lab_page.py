"""The tab Latency lab: its figures, what it refuses, and a run, a stop and a change of view in a browser."""

import json

import pytest
import torch
from playwright.sync_api import expect
from transformers import LlavaForConditionalGeneration

from vtc_demo import cost, registry, ui
from vtc_demo.benchmark import lab
from vtc_demo.benchmark.lab import plan, report, shapes
from vtc_demo.figures import lab as figures_lab
from vtc_demo.models import VLM
from vtc_demo.models.families.llava import LlavaAdapter
from vtc_demo.training import build
from vtc_demo.ui.running import FAILED, StopButton
from vtc_demo.ui.tabs import lab as tab

expect.set_options(timeout=90_000)
RECORDS = sorted(tab.RECORDS.glob("lab-*.json"))
BAD = {
    "no methods": {"methods": []},
    "too many methods": {"methods": ["random"] * 6},
    "unknown shape": {"shape": "gpt"},
    "no such share": {"shares": [2]},
    "no such batch": {"batches": [9]},
    "too long": {"seconds": 4000},
    "no such prompts": {"prompts": [3]},
    "no prompts": {"prompts": []},
    "trained": {"methods": ["vlora"]},
    "not a number": {"seconds": True},
    "not a list": {"methods": "fastv"},
    "nothing": {"shares": None},
}


@pytest.fixture(scope="module")
def record():
    settings = {
        "dtype": "float32",
        "warmups": 1,
        "repeats": 2,
        "seconds": 60.0,
        "batches": (1, 4),
        "prefill_batches": (2,),
    }
    return json.loads(json.dumps(lab.run(lab.Settings("embedded", ("fastervlm", "pyramiddrop"), (64,), **settings))))


@pytest.fixture
def board():
    return tab.Lab(lambda settings: iter(()))


# -- records and figures --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.name)
def test_a_record_counts_as_the_code_does_today(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    shape = shapes.pick(found["shape"])
    assert report.spec_of(found).layers == shape.spec.layers
    for row in found["rows"]:
        method = registry.resolve(row["method"])
        now = plan.plan(shape, method, found["settings"]["text_tokens"])
        assert (row["schedule"], row["cached"]) == (list(now.schedule), list(now.cached)), row["title"]
        prefill = cost.run_flops(shape.spec, row["schedule"], row["text_tokens"])["prefill"]
        assert row["flops"]["prefill"] == prefill


def test_there_is_a_record_and_none_claims_a_gpu_that_was_not_there():
    assert RECORDS
    text = tab.provenance(tab.recorded())
    on_gpu = [f for f in RECORDS if json.loads(f.read_text())["environment"]["device"].startswith("cuda")]
    assert ("None was recorded on a GPU" in text) == (not on_gpu)


def test_bars_hold_the_medians_and_the_roofline(record):
    figure = figures_lab.first_token(record)
    full = len(record["rows"]) - 1  # drawn from the bottom
    for stage in figures_lab.STAGES:
        measured, expected = (t for t in figure.data if t.legendgroup == stage)
        row = record["rows"][0]
        scale = 1e-3 if figure.layout.xaxis.title.text == "seconds" else 1
        assert measured.x[full] == pytest.approx(scale * row["ms"][stage]["median"])
        assert expected.x[full] == pytest.approx(scale * row["expected_ms"][stage])
    assert list(figure.layout.yaxis.ticktext) == [report.label(row) for row in record["rows"][::-1]]


def test_every_point_lies_under_the_roof(record):
    figure = figures_lab.roofline(record, 4)
    machine = record["environment"]
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert {trace.name for trace in marks} >= {"decoder layer, prefill", "decoder layer, decode step", "LM head"}
    for trace in marks:
        for x, y in zip(trace.x, trace.y):
            assert 0 < y <= 1.0001 * min(machine["peak_flops"], machine["bandwidth"] * x)
    decode = next(trace for trace in marks if "decode step" in trace.name)
    assert len(decode.x) == len([p for p in record["points"] if p["kind"] == "decode" and p["batch"] == 4])


def test_a_whole_answer_is_the_first_token_and_the_steps_after_it(record):
    row = record["rows"][1]
    one, many = (figures_lab.whole_answer(row, 4, n) for n in (1, 11))
    assert one[0] == row["ms"]["ttft"]["median"]
    assert many[0] - one[0] == pytest.approx(10 * row["ms"]["decode"]["4"]["median"])


def test_what_does_not_fit_is_told_in_place_of_a_bar(record):
    found = json.loads(json.dumps(record))
    full, row = found["rows"][:2]
    full["ms"]["decode"]["4"] = row["ratios"]["decode"]["4"] = full["ratios"]["decode"]["4"] = None
    figure = figures_lab.by_batch(found, "decode", 4)
    assert len(figure.data[0].x) == len(found["rows"]) - 1
    assert any("does not fit" in note.text for note in figure.layout.annotations)
    assert "does not fit" in figures_lab.table(found, 4, 64, {})
    assert "does not fit" in tab.told(found, "Recorded") + tab.words(found, 4, 2)


def test_a_prefill_of_several_prompts_is_drawn_and_listed(record):
    figure = figures_lab.by_batch(record, "batched_prefill", 2)
    scale, full = 1e-3 if figure.layout.xaxis.title.text == "seconds" else 1, record["rows"][0]
    measured, expected = figure.data
    assert measured.x[-1] == pytest.approx(scale * full["ms"]["batched_prefill"]["2"]["median"])
    assert expected.x[-1] == pytest.approx(scale * full["expected_ms"]["batched_prefill"]["2"])
    marks = next(t for t in figures_lab.roofline(record, 4, 2).data if t.name == "decoder layer, prefill")
    assert all("batch 2" in text for text in marks.customdata)
    table = figures_lab.table(record, 4, 64, {}, 2)
    assert "prefill × 2" in table and "own work, FLOPs, not timed" in table
    assert "With 2 prompts of 128 tokens each" in tab.words(record, 4, 2)


def test_what_takes_too_long_is_told_in_place_of_a_bar(record):
    found = json.loads(json.dumps(record))
    found["rows"][0]["ms"]["batched_prefill"]["2"] = None
    for row in found["rows"]:
        row["ratios"]["batched_prefill"]["2"] = None
    found["skipped"] = [{"kind": "prefill", "tokens": 640, "batch": 2, "side": None, "cause": "time", "reason": ""}]
    figure = figures_lab.by_batch(found, "batched_prefill", 2)
    assert any("takes too long" in note.text for note in figure.layout.annotations)
    assert "takes too long" in figures_lab.table(found, 4, 64, {}, 2) and "takes too long" in tab.words(found, 4, 2)


def test_a_record_from_before_prompts_were_batched_is_shown(board, record):
    found = json.loads(json.dumps(record))
    del found["settings"]["prefill_batches"]
    for row in found["rows"]:
        del row["own_flops"]
        for figures in ("ms", "expected_ms", "ratios", "expected_ratios"):
            del row[figures]["batched_prefill"]
    *figures, said, table = board.draw(found, {"prompts": 8, "batch": 4, "answer": 64})
    assert figures[1].data[0].x[-1] == pytest.approx(
        found["rows"][0]["ms"]["prefill"]["median"] * (1e-3 if figures[1].layout.xaxis.title.text == "seconds" else 1)
    )
    assert "8 prompts at once are not in this experiment; batch 1 is shown" in said
    assert "prefill × 1" in table and "not counted" in table


def test_times_read_well():
    assert [figures_lab.duration(ms) for ms in (0.0123, 12.34, 4567, 241_000)] == [
        "12.3 µs",
        "12.3 ms",
        "4.57 s",
        "241 s",
    ]


# -- what the page sends --------------------------------------------------------------------------------------------
def test_shares_become_tokens_of_the_shape(board):
    settings = board.read(tab.CHOSEN | {"shape": "llava-next-7b", "shares": [9, 3], "batches": [8, 1]})
    assert settings["tokens"] == (960, 320) and settings["batches"] == (1, 8)
    lab.Settings(**settings)
    assert lab.Settings(**board.read(tab.CHOSEN | {"prompts": [8, 1]})).prefill_batches == (1, 8)


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_what_the_page_would_not_send_is_refused_in_words(board, change):
    (update,) = list(board.measure(tab.CHOSEN | change, StopButton(), 0.5))
    assert "vtc-problem" in update[0] and "Something went wrong" not in update[0]
    assert "vtc-note" in board.remark(tab.CHOSEN | change)


def test_a_failure_is_no_traceback(monkeypatch):
    def broken(settings):
        raise RuntimeError("secret path")
        yield

    *_, last = tab.Lab(broken).measure(tab.CHOSEN, StopButton(), 0.5)
    assert FAILED in last[0] and "secret" not in last[0]


def test_stop_ends_a_run_between_two_steps_and_one_that_waits(record):
    closed, cancel = [], StopButton()

    def endless(settings):
        try:
            while True:
                yield "progress", 0.5
        finally:
            closed.append(True)

    board = tab.Lab(endless)
    updates = board.measure(tab.CHOSEN, cancel, 0.5)
    assert "is-running" in next(updates)[0]
    assert "Stopped" in tab.stop_run(cancel, 0.5, record)
    ((said, *_),) = updates  # said again, because progress may have reached the page after it
    assert "Stopped" in said and closed == [True]
    assert "is-running" not in str(list(board.measure(tab.CHOSEN, cancel, 0.5)))  # the same request, had it waited
    assert "is-running" in next(board.measure(tab.CHOSEN, cancel, 0.7))[0]  # the next one runs


def test_strange_views_and_records_change_nothing(board, record):
    for view in ({}, {"batch": "many", "answer": None}, {"batch": 10**9, "answer": -5}):
        *figures, said, table = board.draw(record, view)
        assert len(figures) == 4 and all(figure.data for figure in figures) and "Full model" in table
    assert "answers at once are not in this experiment; batch 4 is shown" in said
    assert all(not isinstance(part, str) for part in board.choose("../../etc/passwd"))


# -- in a browser ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def url():
    torch.manual_seed(0)
    processor = build.build_processor()
    config = build.build_config(len(processor.tokenizer), width=32, tower_layers=3, llm_layers=4)
    page = ui.build(VLM(LlavaForConditionalGeneration(config), processor, LlavaAdapter(), "embedded"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **ui.LAUNCH)
    yield address.rstrip("/")
    page.close()


@pytest.fixture
def page(url, chromium):
    """The open tab; at the end there must have been no console error and no request to another host."""
    context = chromium.new_context(viewport={"width": 1480, "height": 900}, color_scheme="dark")
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else problems.append(r.url))
    page.set_default_timeout(90_000)
    page.goto(url)
    page.get_by_role("tab", name="Latency lab").click()
    page.locator("#vtc-lab-roofline .scatterlayer").wait_for()
    yield page
    context.close()
    assert not problems


def test_first_view_is_filled_from_the_record(page):
    shown = json.loads(RECORDS[0].read_text(encoding="utf-8"))
    assert shown["title"] in page.locator("#vtc-lab-status .what").inner_text()
    assert "Recorded:" in page.locator("#vtc-lab-status .time").inner_text()
    expect(page.locator("#vtc-lab-table tbody tr")).to_have_count(len(shown["rows"]))
    expect(page.locator("#vtc-lab-first .barlayer .point")).not_to_have_count(0)
    assert "recorded on" in page.locator(".vtc-shelf").inner_text()


def test_the_view_changes_without_a_run(page):
    page.get_by_label("Prompts at once").select_option("1")
    expect(page.locator("#vtc-lab-table thead")).to_contain_text("prefill × 1")
    page.get_by_label("Answers at once").select_option("1")
    expect(page.locator("#vtc-lab-table thead")).to_contain_text("decode step × 1")
    page.get_by_label("Length of an answer").select_option("1024")
    expect(page.locator("#vtc-lab-table thead")).to_contain_text("answer of 1024")


def test_shape_sets_the_numbers_of_tokens_and_the_command(page):
    page.get_by_label("Model shape").select_option("llava-next-7b")
    assert page.locator(".vtc-lab [data-group=shares] + span").all_inner_texts() == ["960", "320", "160"]
    assert "2,880 visual tokens" in page.locator(".vtc-lab .facts").inner_text()
    page.locator("#vtc-lab-note summary").click()
    expect(page.locator("#vtc-lab-note code")).to_contain_text(
        "--shape llava-next-7b --methods fastervlm fastv --tokens 320"
    )


def test_run_then_stop_then_run(page):
    status = page.locator("#vtc-lab-status")
    page.get_by_label("Model shape").select_option("embedded")
    page.locator("#vtc-lab-run").click()
    page.locator("#vtc-lab-status [role=progressbar]").wait_for()
    page.locator("#vtc-lab-stop").click()
    expect(status).to_contain_text("Stopped.")
    expect(page.locator("#vtc-lab-stop")).to_be_hidden()
    page.get_by_label("Seconds to spend").fill("5")
    page.locator("#vtc-lab-run").click()
    expect(status).to_contain_text("Measured just now")
    expect(page.locator("#vtc-lab-table")).to_contain_text("FastV @ 64")
    assert "Embedded VLM" in status.inner_text()
    page.locator(".vtc-shelf button").first.click()
    expect(status).to_contain_text("Recorded:")


def test_a_refusal_is_shown_and_phones_do_not_scroll_sideways(page):
    for name in ("fastervlm", "fastv"):
        page.locator(f".vtc-lab [value={name}] + span").click()
    page.locator("#vtc-lab-run").click()
    expect(page.locator("#vtc-lab-status .vtc-problem")).to_contain_text("Choose at least one method")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
