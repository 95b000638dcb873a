"""Figures from a Run's dict alone: no model is loaded here."""

import json
import re
from html import unescape

import numpy as np
import pytest
import torch

from vtc_demo import registry
from vtc_demo.core import units
from vtc_demo.core.run import Run
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.figures import bars, colours, masks, verdicts
from vtc_demo.ui.components import cards, controls, summary
from vtc_demo.ui.tabs import compare

ROWS, COLUMNS = 4, 6


def site(name, status, home=None, weight=None):
    return {
        "site": name,
        "tokens": status.count(2),
        "soft": False,
        "counts": {"kept": status.count(2), "merged": status.count(1), "dropped": status.count(0)},
        "status": status,
        "weight": weight or [1.0 if s else 0.0 for s in status],
        "home": home or [i if s == 2 else -1 for i, s in enumerate(status)],
    }


def run(title="FastV", name="fastv", sites=(), schedule=(24, 24, 24), answer="407", ttft=100.0, flops=4000):
    return {
        "method": {"method": name, "retention": 0.25},
        "title": title,
        "answer": answer,
        "tokens0": ROWS * COLUMNS,
        "visual_tokens": schedule[-1],
        "schedule": list(schedule),
        "equivalent_tokens": sum(schedule) / len(schedule),
        "timings_ms": {"preprocess": 10.0, "vision": 40.0, "projector": 1.0, "compression": 2.0, "prefill": ttft - 53,
                       "ttft": ttft, "decode": 20.0, "decode_per_token": 5.0, "total": ttft + 20},
        "flops": {"vision": 1000, "prefill": flops - 1500, "decode": 500, "total": flops},
        "new_tokens": 5,
        "kv_bytes": 2048,
        "kv_lengths": [n + 6 for n in schedule],
        "grid": [ROWS, COLUMNS],
        "cells": None,
        "sites": list(sites),
        "vision_shared": False,
        "error": None,
    }  # fmt: skip


@pytest.fixture
def reduced():
    """Merges patch 1 into patch 0 at the projector, then drops the lower half at LLM layer 1."""
    merged = [2, 1] + [2] * 22
    home = [0, 0, *range(2, 24)]
    weight = [0.63, 0.37] + [1.0] * 22
    dropped = merged[:12] + [0] * 12
    return run(
        sites=[site("projector", merged, home, weight), site("llm_layer(1)", dropped, home[:12] + [-1] * 12, weight)],
        schedule=(23, 11, 11),
        ttft=60.0,
        flops=2500,
    )


def area(path):
    """Cells inside a path of `cells`: the widths of its one-cell-high rectangles."""
    return sum(int(w) for w in re.findall(r"h(\d+)v1", path))


def test_cells_cover_exactly_the_true_ones():
    where = np.random.default_rng(0).random((7, 9)) > 0.5
    drawn = np.zeros_like(where)
    for c, r, w in re.findall(r"M(\d+) (\d+)h(\d+)v1", masks.cells(where)):
        drawn[int(r), int(c) : int(c) + int(w)] = True
    assert (drawn == where).all()


def test_outline_length_is_the_number_of_borders():
    where = np.zeros((4, 5), bool)
    where[1:3, 1:4] = True  # 2 x 3: 10 edges
    where[0, 0] = True  # touches at a corner only: 4 more
    assert sum(int(n) for n in re.findall(r"[hv](\d+)", masks.outline(where))) == 14


def test_frames_follow_the_pass(reduced):
    frames = masks.frames(reduced)
    assert [f["label"] for f in frames] == [
        "patch grid",
        "projector",
        "LLM input",
        "LLM layer 0",
        "LLM layer 1",
        "LLM layer 2",
    ]
    assert [f["mask"] for f in frames] == [None, 0, 0, 0, 1, 1]
    assert [f["tokens"] for f in frames] == [24, 23, 23, 23, 11, 11]


def test_mask_draws_every_patch_once_per_site(reduced):
    svg = masks.mask(reduced, "data:image/jpeg;base64,AA", title="FastV")
    for index, reality in enumerate(reduced["sites"]):
        layer = re.search(rf'data-site="{index}">(.*?)</g>', svg)[1]
        dropped, merged = (re.search(rf'vtc-{k}" d="(.*?)"', layer)[1] for k in ("dropped", "merged"))
        assert (area(dropped), area(merged)) == (reality["counts"]["dropped"], reality["counts"]["merged"])
    data = json.loads(unescape(re.search(r'data-mask="(.*?)"', svg)[1]))
    assert data["sites"][0]["merged"] == {"1": [0, 0.37]}
    assert data["sites"][1]["status"] == "21" + "2" * 10 + "0" * 12


def test_evidence_is_told_for_every_site(reduced):
    evidence = np.zeros((ROWS, COLUMNS), bool)
    evidence[0:4, 1] = True  # merged, kept, and two below the cut
    svg = masks.mask(reduced, "data:,", evidence)
    data = json.loads(unescape(re.search(r'data-mask="(.*?)"', svg)[1]))
    assert [s["evidence"] for s in data["sites"]] == [1.0, 0.5]
    assert masks.evidence_share(reduced, evidence) == 0.5


def test_soft_provenance_is_drawn_as_heat(reduced):
    """Two soft tokens over 4 x 6 patches: every patch has a share, the largest of them in the brightest step."""
    shares = np.linspace(1, 24, 48).reshape(2, 24) / 600
    trace = Trace((ROWS, COLUMNS), 0, 3)
    trace.add(Site("projector"), Reduction.from_dense(torch.tensor(shares), soft=True))
    record = Run(registry.resolve("full"), trace=trace).to_dict() | {"timings_ms": {}, "title": "Soft"}
    assert record["sites"][0]["soft"] and record["sites"][0]["tokens"] == 2
    svg = masks.mask(record, "data:,")
    drawn = {float(x): area(d) for x, d in re.findall(r'vtc-heat" style="--level:([\d.]+)" d="(.*?)"', svg)}
    assert sum(drawn.values()) == ROWS * COLUMNS and max(drawn) == 1.0
    brightest = np.ceil(8 * shares.max(0) / shares.max() - 1e-3) == 8  # the record has three decimals of each weight
    assert abs(drawn[1.0] - brightest.sum()) <= 1
    assert "vtc-dropped" not in svg and "2 tokens, each a mix of patches" in svg


def test_a_picture_beside_the_sequence_is_told(reduced):
    """As VLoRA's: two rows at the projector, no token in any layer."""
    trace = Trace((ROWS, COLUMNS), 0, 3, outside=True)
    trace.add(Site("projector"), Reduction.from_dense(torch.full((2, 24), 1 / 24), soft=True))
    lengths = {"timings_ms": {}, "title": "Beside", "kv_lengths": [6, 6, 6], "kv_bytes": 4096}
    record = Run(registry.resolve("full"), trace=trace).to_dict() | lengths
    assert record["schedule"] == [0, 0, 0] and masks.outside(record) and not masks.outside(reduced)
    assert [(f["label"], f["tokens"]) for f in masks.frames(record)][-4:] == [
        ("LLM input", 0), *((f"LLM layer {k}", 0) for k in range(3))
    ]  # fmt: skip
    assert "2 mixes of patches · none in the sequence" in masks.mask(record, "data:,")
    assert cards._cache(record).startswith("6 entries in every layer, and what layers hold")


def test_a_trimmed_cache_shows_in_the_bars(reduced):
    assert not bars.trims_cache(reduced) and "left in their caches" not in bars.layer_bars(reduced)
    reduced["kv_lengths"] = [17, 17, 17]  # 11 visual tokens and 6 of text: layer 0 gave up 12 of its 23
    assert bars.cached(reduced) == [11, 11, 11]
    assert "23 tokens enter, 11 in its cache" in bars.layer_bars(reduced)
    card = cards.card(reduced, "data:,", full=run("Full", "full"))
    assert "left the cache" in card and "layer 0: 17 entries, 683 B" in card


def test_the_settings_show_where_a_method_comes_from():
    card = registry.get("mustdrop").card
    facts = controls.entry(card, registry.parameters("mustdrop"))["facts"]
    assert ("arXiv 2411.10803", "https://arxiv.org/abs/2411.10803") in facts["links"]
    assert ("liuting20/MustDrop", "https://github.com/liuting20/MustDrop") in facts["links"]
    assert facts["reported"] == card.reported and facts["deviations"] == card.deviations


def test_a_refusal_keeps_the_name_of_a_file_and_tells_the_reason_first():
    assert compare.sentence(ValueError("huge.png is too large")) == "huge.png is too large."
    html = cards.problem(compare.sentence(ValueError("no such word. It knows: a, b")))
    assert '<p class="what">No such word.</p><p class="time">It knows: a, b.</p>' in html


@pytest.mark.parametrize("value, text", [(4.708e9, "4.71 G"), (2.4e9, "2.40 G"), (729_000, "729 k"), (12, "12")])
def test_quantity_has_three_digits(value, text):
    assert units.quantity(value) == text


def test_evidence_share_reads_the_last_site_on_any_grid(reduced):
    evidence = np.zeros((ROWS, COLUMNS), bool)
    evidence[1:3, 0] = True  # one patch above the cut, one below
    assert masks.evidence_share(reduced, evidence) == 0.5
    assert masks.evidence_share(reduced, np.repeat(np.repeat(evidence, 2, 0), 2, 1)) == 0.5
    assert masks.evidence_share(reduced, np.zeros((ROWS, COLUMNS), bool)) is None
    assert masks.evidence_share(run(), evidence) == 1.0


def test_speedup_measured_and_expected(reduced):
    measured, expected = verdicts.speedup(reduced, run())
    assert measured == pytest.approx(100 / 60)
    assert expected == pytest.approx(3500 / 2000)  # decoding is left out on both sides


@pytest.mark.parametrize(
    "truth, answer, state", [("407", " 407. ", "right"), ("407", "401", "wrong"), (None, "7", "neutral")]
)
def test_verdict(truth, answer, state):
    full = run("Full", "full")
    assert verdicts.verdict(run(answer=answer), truth, full)[0] == state


def test_without_truth_the_full_model_is_the_measure():
    full = run("Full", "full")
    assert verdicts.verdict(run(), None, full)[1] == "as the full model"
    assert "407" in verdicts.verdict(run(answer="7"), None, full)[1]


def test_colours_differ_and_stay():
    known = registry.list_methods()
    hues = colours.colours(known)
    assert hues == colours.colours(known)
    first = [hues[n] for n in ("full", "random", "fastervlm", "visionzip", "fastv", "pool", "divprune")]
    assert len(set(first)) == len(first)


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
        cards.strip([full, reduced], {}, evil, None),
        cards.strip([full, reduced], {}, evil, evil),
        cards.waiting(evil),
        cards.problem(evil),
    ]
    for piece in html:
        assert "<img src=x" not in piece


def test_a_failing_engine_gives_a_message_and_no_card_waits_on():
    def stream(image, question, chosen, options):
        yield "start", None, [m["method"] for m in chosen]
        yield "stage", 0, {"stage": "vision"}
        raise RuntimeError("secret detail")

    tab = compare.Compare(stream, 576, small_world=True)
    heads = [{"method": "random", "own": False, "tokens": 64, "params": {}, "on": on} for on in (True, False, False)]
    asked = (compare.Source.of(0), "How many objects are there?", {"tokens": 64, "match": "flops"})
    *_, last = tab.answer(*asked, compare.Cancel(), 1.0, *heads)
    assert "Try again" in last[0] and "secret" not in "".join(map(str, last))
    assert all("no answer" in card for card in last[2:4])
    assert isinstance(last[4], dict) and isinstance(last[5], dict)  # the columns that are off are left alone


def test_a_pressed_cancel_ends_the_running_request_and_the_waiting_one():
    seen = []

    def stream(image, question, chosen, options):
        for stage in ("vision", "prefill", "decode"):
            seen.append(stage)
            yield "stage", 0, {"stage": stage}

    tab, cancel = compare.Compare(stream, 576, small_world=True), compare.Cancel()
    asked = (compare.Source.of(0), "How many objects are there?", {"tokens": 64, "match": "flops"}, cancel)
    running = tab.answer(*asked, 0.25)
    next(running)
    cancel.press(0.5)  # at the number of the request that waits for its turn
    assert list(running) == [] and seen == ["vision", "prefill"]
    assert list(tab.answer(*asked, 0.5)) == [compare.NOTHING]
    assert len(list(tab.answer(*asked, 0.75))) == 3
