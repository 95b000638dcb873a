"""What a card says was found here is what the records say."""

import json
from pathlib import Path

import pytest

import vtc_demo as vtc

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "measurements"
CARDS = [card for card in vtc.list_methods() if card.finding]
BUDGETS = (192, 128, 64)


@pytest.fixture(scope="module")
def accuracy():
    """(method, tokens) -> share of right answers, at default settings."""
    rows = {}
    for row in json.loads((FOLDER / "embedded_methods.json").read_text())["rows"]:
        name, retention = row["method"]["method"], row["method"]["retention"]
        if row["method"] == vtc.methods.resolve({"method": name, "retention": retention}).spec():
            rows[name, round(retention * 576)] = row
    return rows


def test_there_are_findings():
    assert {card.name for card in CARDS} >= {"mustdrop", "ficoco-v", "ficoco-l", "ficoco-vl"}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_accuracy_in_the_finding_is_recorded(card, accuracy):
    shares = [accuracy[card.name, n]["all"] for n in BUDGETS]
    told = " / ".join(f"{100 * s['accuracy']:.1f} ({100 * s['low']:.1f}-{100 * s['high']:.1f})" for s in shares)
    assert told in card.finding and f"{shares[0]['n']} held-out questions" in card.finding
    for baseline in ("random", "uniform", "pool"):
        line = " / ".join(f"{100 * accuracy[baseline, n]['all']['accuracy']:.1f}" for n in BUDGETS)
        assert f"{baseline} {line}" in card.finding


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_speed_in_the_finding_is_recorded(card):
    rows = json.loads((FOLDER / "bench-cpu.json").read_text())["rows"]
    row = next(r for r in rows if r["method"]["method"] == card.name and r["budget"] == 64)
    assert f"{row['ratios']['ttft']['median']:.1f} times as fast" in card.finding
    assert f"own work is {100 * row['own_work']['median']:.0f} % of the full prefill" in card.finding
