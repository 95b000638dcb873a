"""A pass that is stopped from outside: how soon, and what it leaves behind."""

import pytest
import tiny

import vtc_demo as vtc
from vtc_demo import engine, registry
from vtc_demo.engine import Cancel, Stopped

IMAGE, NEW = tiny.image(), 6


@pytest.fixture(scope="module")
def vlm():
    return tiny.vlm(eos=False)


def layers(vlm, part):
    inner = vlm.model.model
    return inner.vision_tower.encoder.layers if part == "tower" else inner.language_model.layers


def answer(vlm, method="full", **options):
    return engine.run(vlm, IMAGE, tiny.QUESTION, registry.resolve(method), max_new_tokens=NEW, **options)


@pytest.fixture
def calls(vlm):
    """The layers as they run, ("tower" or "decoder", number); `calls.at` (a call's number) presses `calls.cancel`."""

    class Calls(list):
        at, cancel = None, None

    seen, handles = Calls(), []
    for part in ("tower", "decoder"):
        for i, layer in enumerate(layers(vlm, part)):

            def ran(*_, here=(part, i)):
                seen.append(here)
                if len(seen) == seen.at:
                    seen.cancel.press()

            handles.append(layer.register_forward_hook(ran))
    yield seen
    for handle in handles:
        handle.remove()


WHOLE = [*(("tower", i) for i in range(3)), *(("decoder", i) for i in range(4))]


@pytest.mark.parametrize("method", ["full", "fastv@0.5", "fastervlm@0.5"])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_press_stops_before_the_next_layer(vlm, calls, at, method):
    vlm.workspace.forget()
    expected = answer(vlm, method)
    vlm.workspace.forget()
    calls.clear()
    calls.at, calls.cancel = at, Cancel()
    with pytest.raises(Stopped, match=r"^stopped$"):
        answer(vlm, method, cancel=calls.cancel)
    assert calls == WHOLE[:at]
    calls.at = None
    for _ in range(2):  # with whatever the stopped pass has left, and with what this one leaves
        again = answer(vlm, method)
        assert (again.token_ids, again.flops, again.trace.schedule) == (
            expected.token_ids,
            expected.flops,
            expected.trace.schedule,
        )


def test_a_stopped_pass_leaves_no_half_of_a_vision_pass(vlm, calls):
    vlm.workspace.forget()
    calls.at, calls.cancel = 2, Cancel()
    with pytest.raises(Stopped):
        answer(vlm, cancel=calls.cancel)
    calls.at = None
    calls.clear()
    assert not answer(vlm).vision_shared and calls[:3] == WHOLE[:3]


def test_a_press_between_words(vlm, calls):
    """A step is finished; none is begun."""
    stop, words = Cancel(), []
    stream = engine.stream(vlm, IMAGE, tiny.QUESTION, registry.resolve("full"), max_new_tokens=500, cancel=stop)
    with pytest.raises(Stopped):
        for kind, data in stream:
            if kind == "token":
                words.append(data)
                if len(words) == 3:
                    calls.clear()
                    stop.press()
    assert len(words) == 3 and calls == []


def test_a_deadline(vlm, calls, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("vtc_demo.engine.cancel.time.monotonic", lambda: now[0])
    vlm.workspace.forget()
    cancel = Cancel(2.5)
    answer(vlm, cancel=cancel)  # in time
    vlm.workspace.forget()
    calls.clear()
    layers(vlm, "decoder")[1].register_forward_hook(lambda *_: now.__setitem__(0, 103.0))
    with pytest.raises(Stopped, match=r"stopped after 2\.5 seconds, the time that one request may take"):
        answer(vlm, cancel=cancel)
    assert calls == WHOLE[:5]
    layers(vlm, "decoder")[1]._forward_hooks.popitem()
    now[0] = 100.0
    assert answer(vlm, cancel=Cancel(0.0)).token_ids  # up only once it is over


def test_a_comparison_that_is_stopped(vlm, calls):
    """The runs so far, and why there are no more; no exception."""
    columns = ["full", "fastv@0.5", "random@0.5"]
    whole = vtc.compare(vlm, IMAGE, tiny.QUESTION, columns, max_new_tokens=2)
    vlm.workspace.forget()
    calls.clear()
    first = len(WHOLE) + 4  # of the first column: two words
    calls.at, calls.cancel = first + 2, Cancel()
    stream = vtc.compare_events(vlm, IMAGE, tiny.QUESTION, columns, max_new_tokens=2, cancel=calls.cancel)
    *events, last = stream
    assert len(calls) == first + 2
    assert [(e.kind, e.index) for e in events if e.kind in ("run", "error")] == [("run", 0), ("error", 1)]
    assert last.kind == "done"
    done, stopped = last.data.runs
    assert done.token_ids == whole.runs[0].token_ids and done.error is None
    assert (stopped.error, stopped.method) == ("stopped", registry.resolve("fastv@0.5"))
    assert last.data.to_dict()["runs"][1]["error"] == "stopped"
    pressed = Cancel()
    pressed.press()
    none = vtc.compare(vlm, IMAGE, tiny.QUESTION, columns, cancel=pressed)
    assert [run.error for run in none.runs] == ["stopped"]
    calls.at = None
    again = vtc.compare(vlm, IMAGE, tiny.QUESTION, columns, max_new_tokens=2)
    assert [run.token_ids for run in again.runs] == [run.token_ids for run in whole.runs]


@pytest.mark.parametrize("match", ["flops", "final tokens"])
def test_a_comparison_at_equal_cost_that_is_stopped(vlm, match):
    pressed = Cancel()
    pressed.press()
    options = {"match": match, "tokens": 12, "max_new_tokens": 1}
    stopped = vtc.compare(vlm, IMAGE, tiny.QUESTION, ["fastv", "divprune"], cancel=pressed, **options)
    assert [run.error for run in stopped.runs] == ["stopped"]
    assert stopped.to_dict()["runs"][0]["error"] == "stopped"
    assert not any(run.error for run in vtc.compare(vlm, IMAGE, tiny.QUESTION, ["fastv"], **options).runs)
