"""Which model the page runs, what it says when it is another one, and the lease of a GPU."""

import importlib.util
import multiprocessing
from pathlib import Path

import gradio as gr
import pytest
import tiny
import torch
import transformers
from gradio.context import LocalContext
from transformers import LlavaForConditionalGeneration

from vtc_demo import models, ui
from vtc_demo.models import CATALOG, VLM, catalog, memory
from vtc_demo.models.families.llava import LlavaAdapter
from vtc_demo.training import build
from vtc_demo.ui import serve

EVIL = "<img src=x onerror=alert(1)> is no model"
STANDIN = Path(__file__).parents[1] / "standins" / "spaces.py"


def tiny_page(notice: str = "") -> gr.Blocks:
    torch.manual_seed(0)
    processor = build.build_processor()
    config = build.build_config(len(processor.tokenizer), width=32, tower_layers=3, llm_layers=4)
    return ui.build(VLM(LlavaForConditionalGeneration(config), processor, LlavaAdapter(), "embedded"), notice)


# -- the model --------------------------------------------------------------------------------------------------------
@pytest.fixture
def loaded(monkeypatch):
    """Names that were loaded; those with a slash are refused as the hub would."""
    names = []

    def load(name):
        names.append(name)
        if "/" in name:
            raise ValueError(f"{name} is gated: accept its terms at the hub and try again")
        return name

    monkeypatch.setattr(models, "load_vlm", load)
    monkeypatch.delenv("SPACE_ID", raising=False)
    return names


def test_the_model_asked_for(loaded):
    assert serve.load("folder") == ("folder", "")
    assert loaded == ["folder"]


def test_a_model_that_cannot_be_had_is_replaced_and_the_reason_told(loaded):
    vlm, notice = serve.load("some/model")
    assert vlm == "embedded" and loaded == ["some/model", "embedded"]
    assert notice.startswith("The embedded model is running in place of some/model. Some/model is gated: accept")
    assert "\n" not in notice


def test_a_public_space_loads_what_the_catalogue_offers(loaded, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "owner/space")
    for name in ("some/model", "folder"):
        vlm, notice = serve.load(name)
        assert vlm == "embedded" and f"does not offer '{name}'; choose {CATALOG[0].id}" in notice
    assert loaded == ["embedded", "embedded"]
    serve.load(CATALOG[0].id)
    assert loaded[2:] == [CATALOG[0].id, "embedded"]
    assert serve.load("embedded") == ("embedded", "")


def test_no_model_at_all_is_an_error(monkeypatch):
    def load(name):
        raise ValueError("the embedded model is missing")

    monkeypatch.setattr(models, "load_vlm", load)
    for name in ("embedded", "some/model"):
        with pytest.raises(ValueError, match="the embedded model is missing"):
            serve.load(name)


def test_loading_shows_its_progress(tmp_path, capfd):
    vlm = tiny.vlm()
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    transformers.logging.enable_progress_bar()
    capfd.readouterr()
    models.load_vlm(tmp_path)
    assert "Loading weights: 100%" in capfd.readouterr().err


# -- the catalogue ----------------------------------------------------------------------------------------------------
def test_every_entry_is_pinned_to_a_commit():
    assert all(len(entry.revision) == 40 and set(entry.revision) <= set("0123456789abcdef") for entry in CATALOG)
    assert len({entry.revision for entry in CATALOG}) == len({entry.id for entry in CATALOG}) == len(CATALOG)


def test_a_machine_that_does_not_tell_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: None)
    rows = catalog.rows(torch.device("cpu"), torch.float32)
    assert {row["fits"] for row in rows} == {None}
    assert "not known" in catalog.table(rows, torch.device("cpu"), torch.float32)


# -- the notice -------------------------------------------------------------------------------------------------------
def test_a_page_without_a_notice_has_none():
    assert "vtc-notice" not in str(tiny_page().get_config_file()["components"])


def test_the_notice_is_text_and_can_be_dismissed(chromium):
    page = tiny_page(EVIL)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **ui.LAUNCH)
    tab = chromium.new_page(viewport={"width": 390, "height": 844})
    try:
        tab.on("dialog", lambda d: pytest.fail("script ran"))
        tab.goto(url, timeout=120_000)
        notice = tab.get_by_role("dialog", name="Notice")
        notice.wait_for(timeout=120_000)
        assert EVIL in notice.inner_text()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        notice.get_by_role("button", name="Dismiss").press("Enter")
        notice.wait_for(state="hidden")
        assert tab.url.rstrip("/?") == url.rstrip("/")
    finally:
        tab.close()
        page.close()


# -- the lease --------------------------------------------------------------------------------------------------------
@pytest.fixture
def zero_gpu(monkeypatch, tmp_path):
    """On ZeroGPU, inside a visitor's request. Yields the file in which leases are noted."""
    spec = importlib.util.spec_from_file_location("standin_spaces", STANDIN)
    standin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standin)
    monkeypatch.setenv("LEASES", str(tmp_path / "leases"))
    monkeypatch.setattr(serve, "ZERO_GPU", True)
    monkeypatch.setattr(serve, "spaces", standin, raising=False)
    token = LocalContext.event_id.set("click")
    yield tmp_path / "leases"
    LocalContext.event_id.reset(token)


def count_to(end):
    yield from range(end)


def test_one_call_is_one_lease_of_the_seconds_asked_for(zero_gpu):
    assert list(serve.gpu(count_to, seconds=7)(3)) == [0, 1, 2]
    assert zero_gpu.read_text() == '{"duration": 7}\n'


def test_what_goes_wrong_in_a_lease_is_told(zero_gpu):
    def fail(error):
        yield 1
        raise error

    with pytest.raises(ValueError, match=r"^keep must be at least 1$"):
        list(serve.gpu(fail)(ValueError("keep must be at least 1")))
    with pytest.raises(ValueError, match=r"^no quota left$"):  # ZeroGPU's own errors are gr.Error
        list(serve.gpu(fail)(gr.Error("no quota left")))


def test_tensors_do_not_cross(zero_gpu):
    def give():
        yield torch.zeros(1)

    with pytest.raises(ValueError, match="TypeError"):
        list(serve.gpu(give)())


def test_a_visit_that_ends_ends_the_lease(zero_gpu):
    def count():
        while True:
            yield 1

    events = serve.gpu(count)()
    assert next(events) == 1
    events.close()
    assert not multiprocessing.active_children()


def test_without_a_visitor_there_is_no_lease(zero_gpu):
    LocalContext.event_id.set(None)
    with pytest.raises(ValueError, match="Press Compare"):
        list(serve.gpu(count_to)(3))
    assert not zero_gpu.exists()


def test_elsewhere_a_function_is_left_alone():
    assert not serve.ZERO_GPU and serve.gpu(count_to) is count_to
