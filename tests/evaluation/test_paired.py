"""Paired statistics against hand-computed cases, enumeration, and laws."""

import itertools
import math
import random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtc_demo.evaluation.paired import McNemar, difference, holm, questions_needed


# -- McNemar --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (12, 3, 2 * (1 + 15 + 105 + 455) / 2**15),  # C(15, 0..3) = 1, 15, 105, 455: 0.03516
        (10, 2, 2 * (1 + 12 + 66) / 2**12),  # C(12, 0..2) = 1, 12, 66: 0.03857
        (5, 0, 2 / 2**5),  # only "none of five": 1/16
        (1, 0, 1.0),  # one toss says nothing
        (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 64 = 1.3, capped
        (0, 0, 1.0),  # no discordant pair
    ],
)
def test_mcnemar_by_hand(better, worse, p):
    assert McNemar(better, worse, 300).p == pytest.approx(p, rel=1e-12)
    assert McNemar(worse, better, 300).p == McNemar(better, worse, 300).p  # two-sided


def test_mcnemar_counts_discordant_questions_only():
    a = [True, True, False, False, True, False]
    b = [True, False, True, True, True, False]
    assert McNemar.of(a, b) == McNemar(better=2, worse=1, n=6)
    assert McNemar.of(np.array(a), np.array(b)) == McNemar.of([int(x) for x in a], [int(x) for x in b])
    assert McNemar.of(a, a).p == 1.0
    assert McNemar.of([], []) == McNemar(0, 0, 0) and McNemar(0, 0, 0).p == 1.0


@pytest.mark.parametrize("tosses", range(1, 11))
def test_mcnemar_equals_counting_all_outcomes(tosses):
    heads = [sum(outcome) for outcome in itertools.product((0, 1), repeat=tosses)]
    for better in range(tosses + 1):
        as_uneven = sum(abs(2 * h - tosses) >= abs(2 * better - tosses) for h in heads)
        assert McNemar(better, tosses - better, tosses).p == pytest.approx(as_uneven / 2**tosses, rel=1e-12)


def test_mcnemar_of_many_questions_is_near_the_normal_law():
    p = McNemar(5100, 4900, 40_000).p
    z = (200 - 1) / math.sqrt(10_000)  # with the correction for continuity
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_mcnemar_in_words():
    assert McNemar(12, 3, 300).sentence("fastv") == "fastv better on 12, worse on 3 of 300: p = 0.035"
    assert McNemar(40, 3, 300).sentence().endswith("p < 0.001")


def test_mcnemar_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="as many: 2, 1"):
        McNemar.of([True, False], [True])
    for counts in ((3, 2, 4), (-1, 2, 4)):
        with pytest.raises(ValueError, match="cannot be"):
            McNemar(*counts)


# -- bootstrap ------------------------------------------------------------------------------------------------------
def test_difference_of_two_scenes_by_hand():
    """Two scenes, differences +1 and 0: a draw of two takes (0, 0), one of each twice, (1, 1): means 0, 1/2, 1."""
    found = difference([False, False], [True, False], scenes=[7, 9])
    assert (found.mean, found.low, found.high, found.n, found.scenes) == (0.5, 0.0, 1.0, 2, 2)
    assert found.sentence("fastv") == "fastv +50.0 points (95 %: +0.0 to +100.0) over 2 questions of 2 scenes"


def test_questions_of_one_scene_belong_together():
    """100 scenes of 4 questions that agree: the interval is that of 100 differences, twice as wide as that of 400."""
    gaps = [i // 4 % 2 for i in range(400)]  # mean 1/2, standard deviation 1/2
    together = difference([0] * 400, gaps, [i // 4 for i in range(400)])
    apart = difference([0] * 400, gaps, range(400))
    assert together.high - together.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(100), rel=0.1)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.1)


def test_difference_is_paired():
    """b is right exactly where a is, and on one question in ten more: every scene says so, whatever a's accuracy is."""
    right = [random.Random(0).random() < 0.5 for _ in range(100)]
    a, b, scenes = [*right, False], [*right, True], [*range(100), 100]
    found = difference(np.array(a), np.array(b), scenes)
    assert found.mean == pytest.approx(1 / 101, abs=1e-4) and found.low >= 0 and found.high < 0.04


def test_difference_depends_on_the_seed_alone():
    rng = np.random.default_rng(3)
    a, b, scenes = rng.random(60), rng.random(60), rng.integers(0, 20, 60)
    assert difference(a, b, scenes) == difference(a, b, scenes)
    other = difference(a, b, scenes, seed=1)
    assert other.mean == difference(a, b, scenes).mean and other.low != difference(a, b, scenes).low


def test_difference_of_equals_and_of_nothing():
    assert difference([1, 0, 1], [1, 0, 1], [0, 0, 1]).sentence().startswith("b +0.0 points (95 %: +0.0 to +0.0)")
    assert difference([], [], []) is None
    assert difference([None, 1.0], [1.0, math.nan], [0, 1]) is None
    found = difference([0.5, None, 0.5], [1.0, 0.0, 1.0], [0, 0, 1])  # the second question is left out
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 2)
    with pytest.raises(ValueError, match="as many: 2, 2, 1"):
        difference([1, 0], [1, 0], [0])


# -- Holm -----------------------------------------------------------------------------------------------------------
def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []
    for wrong in ([0.1, math.nan], [-0.1], [1.1]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm(wrong)


family = st.lists(st.floats(0, 1), max_size=12)


@given(family, st.randoms())
def test_holm_does_not_depend_on_the_order(p_values, chance):
    order = list(range(len(p_values)))
    chance.shuffle(order)
    adjusted = holm(p_values)
    assert holm([p_values[i] for i in order]) == [adjusted[i] for i in order]


@given(family)
def test_holm_is_monotone_and_between_nothing_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p)
    in_order = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert in_order == sorted(in_order)


# -- how many questions ---------------------------------------------------------------------------------------------
def test_questions_needed_by_hand():
    """(1.95996 sqrt(0.2) + 0.84162 sqrt(0.2 - 0.01))^2 / 0.01 = (0.87652 + 0.36685)^2 / 0.01 = 154.6."""
    needed = questions_needed(discordance=0.2, difference=-0.1)
    assert needed.questions == 155
    assert needed.sentence() == (
        "-10.0 points, where 20 % of the questions are answered right by only one, take 155 questions "
        "(alpha 0.05, power 0.8)"
    )


def test_the_exact_test_has_about_that_power():
    """Power by enumeration of all splits: n discordant of N, then b's share of them. Exactness costs a few percent."""
    discordance, gap = 0.2, 0.1
    n = questions_needed(discordance, gap, power=0.8).questions
    share = (discordance + gap) / 2 / discordance  # of the discordant questions that b gets right
    power = 0.0
    for tosses in range(n + 1):
        found = sum(_binomial(tosses, k, share) for k in range(tosses + 1) if McNemar(k, tosses - k, n).p <= 0.05)
        power += _binomial(n, tosses, discordance) * found
    assert 0.74 < power < 0.8


def _binomial(n, k, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def test_smaller_differences_and_more_certainty_take_more_questions():
    counts = [questions_needed(0.3, gap).questions for gap in (0.3, 0.2, 0.1, 0.05, 0.01)]
    assert counts == sorted(counts) and fmean(counts) > 20
    assert questions_needed(0.3, 0.1, power=0.9).questions > questions_needed(0.3, 0.1).questions
    assert questions_needed(0.3, 0.1, alpha=0.01).questions > questions_needed(0.3, 0.1).questions


@pytest.mark.parametrize("arguments", [(0.2, 0), (0.1, 0.2), (1.5, 0.2), (0.2, 0.1, 0), (0.2, 0.1, 0.05, 1)])
def test_questions_needed_refuses_what_cannot_be(arguments):
    with pytest.raises(ValueError, match="need 0 <"):
        questions_needed(*arguments)
