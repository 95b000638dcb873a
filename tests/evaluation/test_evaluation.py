"""Held-out accuracy: the questions, the interval and the bookkeeping."""

import pytest
import torch

from vtc_demo import models, registry, world
from vtc_demo.evaluation.accuracy import evaluate, label
from vtc_demo.evaluation.intervals import wilson
from vtc_demo.evaluation.questions import held_out
from vtc_demo.training import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    processor = build.build_processor()
    out = tmp_path_factory.mktemp("model")
    build.save(build.build_model(processor), processor, out)
    return out


def test_held_out_gives_exactly_n_questions_of_every_kind():
    asked = [q for _, questions in held_out(300) for q in questions]
    assert len(asked) == 300 and {q.kind for q in asked} == set(world.KINDS)
    assert [q.text for q in asked] == [q.text for _, questions in held_out(300) for q in questions]


def test_wilson_against_published_values():
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert low == pytest.approx(0.2553, abs=1e-4) and high == pytest.approx(0.3662, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == pytest.approx(0) and wilson(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)


@pytest.mark.slow
def test_record_counts_right_answers(folder, monkeypatch):
    vlm = models.load_vlm(str(folder))
    chosen = [registry.resolve("full"), registry.resolve("random@0.1")]
    record = evaluate(vlm, chosen, 8, progress=False)
    full, random = record["rows"]
    assert sum(k["n"] for k in full["kinds"].values()) == full["all"]["n"] == 8
    assert full["equivalent_tokens"] == 576 and random["equivalent_tokens"] == 58
    assert full["evidence_kept"] == 1.0 and random["evidence_kept"] < 0.5

    def oracle(vlm, image, question, method, **options):
        run = original(vlm, image, question, method, **options)
        run.answer = truth[question] if method.card.name == "full" else "wrong"
        return run

    truth = {q.text: q.answer for _, questions in held_out(8) for q in questions}
    from vtc_demo import engine

    original = engine.run
    monkeypatch.setattr(engine, "run", oracle)
    full, random = evaluate(vlm, chosen, 8, progress=False)["rows"]
    assert full["all"]["accuracy"] == 1.0 and random["all"]["accuracy"] == 0.0


def test_labels_tell_settings_apart():
    rows = [
        {"title": "FastV", "method": registry.resolve(m).spec()} for m in ("fastv", {"method": "fastv", "layer": 3})
    ]
    assert [label(row) for row in rows] == ["FastV (25 %)", "FastV (25 %, layer=3)"]
    assert label({"title": "Full model", "method": registry.resolve("full").spec()}) == "Full model"
