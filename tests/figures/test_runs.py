"""Masks, bars, verdicts and colours of runs, from their dicts."""

import json
import re
from html import unescape

import numpy as np
import pytest
import torch
from runs import COLUMNS, ROWS, reduced, run

from vtc_demo import registry
from vtc_demo.core.run import Run
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.figures import bars, colours, masks, verdicts
from vtc_demo.ui.components import cards


@pytest.fixture(name="reduced")
def merged_then_dropped():
    return reduced()


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
