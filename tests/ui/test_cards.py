"""Cards, strips and controls of Compare, and how a request ends."""

import re

import pytest
from runs import reduced, run

from vtc_demo import registry
from vtc_demo.ui.components import cards, controls, strip, summary
from vtc_demo.ui.running import StopButton, sentence
from vtc_demo.ui.tabs import compare


@pytest.fixture(name="reduced")
def merged_then_dropped():
    return reduced()


def test_the_settings_show_where_a_method_comes_from():
    card = registry.get("mustdrop").card
    facts = controls.entry(card, registry.parameters("mustdrop"))["facts"]
    assert ("arXiv 2411.10803", "https://arxiv.org/abs/2411.10803") in facts["links"]
    assert ("liuting20/MustDrop", "https://github.com/liuting20/MustDrop") in facts["links"]
    assert facts["reported"] == card.reported and facts["deviations"] == card.deviations


def test_a_refusal_keeps_the_name_of_a_file_and_tells_the_reason_first():
    assert sentence(ValueError("huge.png is too large")) == "huge.png is too large."
    html = strip.problem(sentence(ValueError("no such word. It knows: a, b")))
    assert '<p class="what">No such word.</p><p class="time">It knows: a, b.</p>' in html


def test_the_sentence_follows_the_results(reduced):
    full = run("Full", "full")
    worse = run("Random", "random", schedule=(11, 11, 11), answer="7", ttft=60.0, flops=2400)
    what, time = summary.sentence([full, reduced, worse], {}, "407")
    plain = re.sub("<.*?>", "", what)
    assert plain == "At 11 of 24 tokens, FastV still answers right; Random does not."
    assert "1.7× as fast" in time
    assert "FastV and Random still answer right." in re.sub(
        "<.*?>", "", summary.sentence([full, reduced, worse | {"answer": "407"}], {}, "407")[0]
    )
    both = [full, reduced | {"answer": "1"}, worse]
    assert "FastV and Random answer wrong; the full model is right." in re.sub(
        "<.*?>", "", summary.sentence(both, {}, "407")[0]
    )
    plain = re.sub("<.*?>", "", summary.sentence([full, reduced, worse], {}, "9")[0])
    assert "FastV and Random answer wrong" in plain and "full model itself is wrong" in plain
    assert "as the full model does" in summary.sentence([full, reduced], {}, None)[0]


def matched(record, match, target, reached, note=""):
    return record | {"matched": {"match": match, "target": target, "reached": reached, "retention": 0.1, "note": note}}


def test_the_sentence_tells_the_cost_that_was_made_equal(reduced):
    full, other = run("Full", "full"), run("Random", "random", schedule=(13, 13, 13), flops=2400)
    start = lambda *runs: re.sub("<.*?>", "", summary.sentence([full, *runs], {}, "407")[0]).split(",")[0]  # noqa: E731
    assert start(matched(reduced, "equivalent tokens", 13, 15), matched(other, "equivalent tokens", 13, 13)) == (
        "At 13 to 15 of 24 tokens on average"
    )
    assert start(matched(reduced, "flops", 2e9, 2.4e9), matched(other, "flops", 2e9, 2e9)) == (
        "At 2.00 GFLOPs to 2.40 GFLOPs"
    )
    assert start(matched(reduced, "final tokens", 11, 11), matched(other, "final tokens", 11, 13)) == (
        "At 11 to 13 of 24 tokens"
    )


def test_a_card_tells_the_cost_it_missed(reduced):
    full = run("Full", "full")
    note = "cannot go below 15 tokens on average"
    card = cards.card(matched(reduced, "equivalent tokens", 13, 15.0, note), "data:,", full=full)
    assert "Reached 15 tokens on average, not 13 tokens on average: cannot go below 15 tokens on average." in card
    assert "Matched at 15 tokens on average." in cards.card(
        matched(reduced, "equivalent tokens", 15, 15.0), "data:,", full=full
    )
    reference = cards.card(matched(full, "flops", 1e9, 4e9, "its retention cannot be set"), "data:,", full=full)
    assert "Reached" not in reference


def test_hostile_text_is_escaped_everywhere(reduced):
    evil = "<img src=x onerror=alert(1)>"
    reduced |= {"answer": evil, "title": evil}
    full = run("Full", "full", answer=evil)
    html = [
        cards.card(reduced, "data:,", full=full, truth=evil),
        cards.card(reduced, "data:,", full=full),
        cards.running("data:,", "decode", evil),
        cards.failed(evil),
        strip.answered([full, reduced], {}, evil, None),
        strip.answered([full, reduced], {}, evil, evil),
        strip.waiting(evil),
        strip.problem(evil),
    ]
    for piece in html:
        assert "<img src=x" not in piece


def test_a_failing_engine_gives_a_message_and_no_card_waits_on():
    def stream(image, question, chosen, options, cancel):
        yield "start", None, [m["method"] for m in chosen]
        yield "stage", 0, {"stage": "vision"}
        raise RuntimeError("secret detail")

    tab = compare.Compare(stream, 576, small_world=True)
    heads = [{"method": "random", "own": False, "tokens": 64, "params": {}, "on": on} for on in (True, False, False)]
    asked = (compare.Source.of(0), "How many objects are there?", {"tokens": 64, "match": "flops"})
    *_, last = tab.answer(*asked, StopButton(), 1.0, *heads)
    assert "Try again" in last[0] and "secret" not in "".join(map(str, last))
    assert all("no answer" in card for card in last[2:4])
    assert isinstance(last[4], dict) and isinstance(last[5], dict)  # the columns that are off are left alone


def test_a_pressed_cancel_ends_the_running_request_and_the_waiting_one():
    seen = []

    def stream(image, question, chosen, options, cancel):
        for stage in ("vision", "prefill", "decode"):
            seen.append(stage)
            yield "stage", 0, {"stage": stage}

    tab, cancel = compare.Compare(stream, 576, small_world=True), StopButton()
    asked = (compare.Source.of(0), "How many objects are there?", {"tokens": 64, "match": "flops"}, cancel)
    running = tab.answer(*asked, 0.25)
    next(running)
    cancel.press(0.5)  # at the number of the request that waits for its turn
    assert list(running) == [] and seen == ["vision", "prefill"]
    assert list(tab.answer(*asked, 0.5)) == [compare.NOTHING]
    assert len(list(tab.answer(*asked, 0.75))) == 3
