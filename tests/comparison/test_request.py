"""The parsed request: bad input in one sentence, and nothing done twice for one click."""

import pickle

import pytest
import tiny

import vtc_demo as vtc
from vtc_demo import engine
from vtc_demo.comparison import Request, Settings
from vtc_demo.comparison.request import shown
from vtc_demo.core import images
from vtc_demo.ui import serve

COLUMNS = ["full", "fastv@0.5", "random@0.5", "fastervlm@0.5"]


@pytest.fixture(scope="module")
def vlm():
    return tiny.vlm()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1 to 1024, got 0"),
        ({"max_new_tokens": True}, "whole number from 1 to 1024, got True"),
        ({"max_new_tokens": 2.0}, "whole number from 1 to 1024, got 2.0"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 2\^63 - 1, got -1"),
        ({"tiles": "each"}, "tiles='each'; choose 'global' or 'crop'"),
        ({"budget": "crop"}, "there is no option 'budget'; options are max_new_tokens, seed, tiles, match"),
        ({"match": "x" * 10_000_000, "tokens": 3}, r"match='x{50,60}\.\.\. is no measure"),
        ({"match": "flops", "target": "1e9"}, "target must be a number above 0, in FLOPs; got '1e9'"),
    ],
)
def test_bad_settings_are_told_in_one_sentence(given, message):
    with pytest.raises(ValueError, match=message) as told:
        Settings.parse(given)
    assert "\n" not in str(told.value) and len(str(told.value)) < 250
    assert "validation error" not in str(told.value)


def test_long_values_are_cut():
    assert shown("abc") == "'abc'" and len(shown("x" * 1000)) < 70


def test_a_request_is_plain_data(vlm):
    request = Request.parse(vlm, tiny.image(), f"  {tiny.QUESTION} ", COLUMNS, match="flops", tokens=9)
    again = pickle.loads(pickle.dumps(request))
    assert again.question == tiny.QUESTION and again.methods == request.methods
    assert again.pictures.key == request.pictures.key and again.settings == request.settings
    assert [method.card.name for method in request.methods] == ["full", "fastv", "random", "fastervlm"]


@pytest.mark.parametrize("options", [{}, {"match": "flops", "tokens": 9}], ids=["plain", "equal cost"])
def test_a_click_opens_hashes_and_prepares_a_picture_once(vlm, tmp_path, monkeypatch, options):
    """Four columns on a new picture, by the function that page and API go through."""
    tiny.image(11).save(tmp_path / "new.png")
    counts = dict.fromkeys(("opened", "hashed", "prepared", "encoded"), 0)

    def counted(name, target, attribute):
        original = getattr(target, attribute)

        def call(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(target, attribute, call)

    vlm.workspace.forget()
    vtc.engine.warm_up(vlm)
    counted("opened", images, "load_rgb")
    counted("hashed", images.hashlib, "sha256")
    counted("prepared", type(vlm.adapter), "processed")
    counted("encoded", type(vlm.adapter), "embed")
    events = list(serve.streamer(vlm)(tmp_path / "new.png", tiny.QUESTION, COLUMNS, options))
    assert [kind for kind, *_ in events].count("run") == len(COLUMNS)
    assert counts == {"opened": 1, "hashed": 1, "prepared": 1, "encoded": 1}


def test_a_press_ends_the_work_between_two_layers(vlm):
    cancel, layers = engine.Cancel(), []

    def ran(*_):
        layers.append(1)
        if len(layers) == 2:
            cancel.press()

    handles = [layer.register_forward_hook(ran) for layer in vlm.model.model.language_model.layers]
    try:
        *_, stopped, done = serve.streamer(vlm)(tiny.image(), tiny.QUESTION, COLUMNS, {}, cancel)
    finally:
        for handle in handles:
            handle.remove()
    assert len(layers) == 2 and stopped == ("error", 0, "stopped") and done[0] == "done"
    assert vtc.run(vlm, tiny.image(), tiny.QUESTION).answer == vtc.run(tiny.vlm(), tiny.image(), tiny.QUESTION).answer


def test_a_deadline_ends_the_work(vlm):
    with pytest.raises(engine.Stopped, match="stopped after 0 seconds"):
        engine.run(vlm, tiny.image(), tiny.QUESTION, vtc.methods.Full(), cancel=engine.Cancel(seconds=0))
