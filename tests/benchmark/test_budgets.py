"""Methods at budgets of visual tokens."""

import pytest

from vtc_demo.benchmark.budgets import at_budgets


def test_budgets_survive_rounding():
    for patches, budgets in ((576, (192, 128, 64, 6, 576)), (2880, (640, 320, 160))):
        for budget, method in at_budgets("uniform", budgets, patches):
            assert method.keep(patches) == int(patches * method.retention) == budget


def test_a_method_with_a_count_of_its_own_has_one_column():
    assert [(budget, method.card.name) for budget, method in at_budgets("full", (192, 64), 576)] == [(576, "full")]
    with pytest.raises(ValueError, match="cannot leave 577 tokens; this model has 576, give 1 to 576"):
        at_budgets("random", (64, 577), 576)
