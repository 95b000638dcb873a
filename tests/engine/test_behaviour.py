"""The code does what it did when `behaviour.py` wrote the record: answers, traces, FLOPs, cache lengths."""

from itertools import groupby

import behaviour
import pytest

QUICK = ("llava", "llava_next")  # the families of the fast lane: one view, several views
BY_MODEL = {name: list(cases) for name, cases in groupby(behaviour.read(), key=lambda line: line[0]["model"])}


def changed(cases) -> list[str]:
    found = []
    for case, before in cases:
        found += [f"{case}: {text}" for text in behaviour.differences(case, before, behaviour.play(case))]
    return found


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in BY_MODEL
        if name != behaviour.TRAINED
    ],
)
def test_families_do_what_they_did(family):
    assert changed(BY_MODEL[family]) == []


@pytest.mark.slow
def test_embedded_model_does_what_it_did():
    assert changed(BY_MODEL[behaviour.TRAINED]) == []


def test_the_record_covers_every_family_and_finds_a_difference():
    assert sum(len(cases) for cases in BY_MODEL.values()) >= 300 and len(BY_MODEL) == 10
    case, before = next((case, runs) for case, runs in behaviour.read() if "ids" in runs[0])
    assert behaviour.differences(case, before, [before[0] | {"ids": [-1]}]) != []
    assert behaviour.differences(case, before, [dict(before[0])]) == []
