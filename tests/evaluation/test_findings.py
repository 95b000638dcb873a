"""What a card says was found here is what the records say."""

import json
import re
from pathlib import Path

import pytest

import vtc_demo as vtc
from vtc_demo.evaluation.findings import BUDGETS, NOT_MEASURED, finding

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "measurements"
CARDS = {card.name: card for card in vtc.list_methods()}
ABLATIONS = FOLDER / "embedded_ablations.json"


def share(right, n=100):
    return {"accuracy": right / n, "low": right / n - 0.05, "high": right / n + 0.05, "n": n}


def write_records(folder):
    rows = []
    for name, base in (("random", 50), ("uniform", 40), ("pool", 30), ("fastv", 70)):
        for n in BUDGETS:
            kinds = {"reading": share(base + 1), "counting": share(base - 1)}
            spec = vtc.registry.resolve(name, retention=n / 576).spec()
            rows.append({"method": spec, "tokens": n, "all": share(base + (n == 192)), "kinds": kinds})
    other = vtc.registry.resolve("fastv", retention=64 / 576, layer=1).spec()
    rows.append({"method": other, "tokens": 64, "all": share(1), "kinds": {}})  # not at default settings: not told
    (folder / "embedded_sweep.json").write_text(json.dumps({"rows": rows}))
    bench = {"budget": 64, "ratios": {"ttft": {"median": 1.46}}, "own_work": {"median": 0.034}}
    spec = vtc.registry.resolve("fastv", retention=64 / 576).spec()
    (folder / "bench-cpu.json").write_text(json.dumps({"rows": [bench | {"method": spec}]}))


def test_finding_puts_the_records_into_words(tmp_path):
    write_records(tmp_path)
    assert finding(CARDS["fastv"], tmp_path) == (
        "Embedded VLM, 100 held-out questions, percent right (95 % interval) when asked for 192 / 128 / 64 tokens: "
        "71 (66-76) / 70 (65-75) / 70 (65-75). "
        "Baselines: random 51 / 50 / 50; uniform 41 / 40 / 40; pool 31 / 30 / 30. "
        "By kind: reading 71 / 71 / 71 against 51 / 51 / 51 for random, "
        "counting 69 / 69 / 69 against 49 / 49 / 49 for random. "
        "At 64 tokens on one CPU thread the first token comes 1.5 times as fast as in the full model; "
        "overhead is 3 % of the full prefill."
    )
    assert finding(CARDS["divprune"], tmp_path) == NOT_MEASURED  # nothing is recorded of it


def test_what_is_not_recorded_is_said_to_be_so(tmp_path):
    told = {name: finding(card, tmp_path) for name, card in CARDS.items() if name != "full"}
    assert all(text == f"{NOT_MEASURED} {CARDS[name].finding}".strip() for name, text in told.items())
    assert finding(CARDS["full"], tmp_path) == ""  # what all others are compared with


def test_every_method_of_the_record_has_a_finding():
    recorded = {row["method"]["method"] for row in json.loads((FOLDER / "embedded_sweep.json").read_text())["rows"]}
    told = {name: finding(CARDS[name]) for name in recorded - {"full"}}
    assert all("held-out questions" in text and "overhead" in text for text in told.values())
    assert not any(NOT_MEASURED in text for text in told.values())


def test_accuracies_typed_into_a_card_are_recorded():
    """A card names an ablation as "<setting> <percent>"; each number stands in the record of ablations."""
    rows = json.loads(ABLATIONS.read_text())["rows"]
    recorded = {}
    for row in rows:
        recorded.setdefault(row["method"]["method"], set()).add(f"{100 * row['all']['accuracy']:.1f}")
    typed = {name: set(re.findall(r"\b\d\d\.\d\b", card.finding)) for name, card in CARDS.items()}
    assert typed["mustdrop"], "MustDrop's card tells its ablations"
    for name, numbers in typed.items():
        assert numbers <= recorded.get(name, set()), name


@pytest.mark.parametrize("name", ["mustdrop", "ficoco-v", "ficoco-l"])
def test_ablations_are_on_enough_questions(name):
    record = json.loads(ABLATIONS.read_text())
    assert record["questions"] >= 250 and any(row["method"]["method"] == name for row in record["rows"])
