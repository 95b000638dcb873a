"""The two measures that every room quotes, by hand, and the words and units that figures share."""

import pytest

from vtc_demo.core import clock, vocabulary
from vtc_demo.core.measures import right, ttft_flops
from vtc_demo.core.run import Run
from vtc_demo.core.tokens import SITE_ORDER
from vtc_demo.core.units import duration, quantity
from vtc_demo.evaluation.records import MEANS
from vtc_demo.registry import resolve


@pytest.mark.parametrize(
    "answer, truth, same",
    [
        ("407", "407", True),
        (" Red  Circle. ", "red circle", True),
        ("4 07", "407", False),
        ("40", "407", False),
        ("the red circle", "red circle", False),
        ("", "red", False),
    ],
)
def test_right_is_all_of_the_truth_and_nothing_else(answer, truth, same):
    assert right(answer, truth) is same


def test_the_first_token_ends_with_its_own_lm_head():
    """Three answer tokens: 1000 + 500 before the head, 3 heads of 20, two decode steps of 70."""
    flops = {"vision": 1000, "prefill": 500, "lm_head": 60, "decode": 140, "total": 1700}
    assert ttft_flops(flops, 3) == 1520
    assert Run(resolve("full"), token_ids=[5, 6, 2], flops=flops).ttft_flops == 1520
    alone = {"prefill": 500, "lm_head": 20, "decode": 0, "total": 520}
    assert ttft_flops(alone, 1) == 520


def test_an_answer_of_no_token_has_no_first_one():
    with pytest.raises(ValueError, match="at least one token"):
        ttft_flops({"total": 1}, 0)


def test_words_stand_in_the_order_of_the_pass():
    assert list(vocabulary.SITES) == list(SITE_ORDER)
    assert [*vocabulary.TTFT_STAGES, "decode"] == list(vocabulary.STAGES)
    times = clock.timings_ms(dict.fromkeys(vocabulary.STAGES, 0.001), 1)
    assert list(times)[:5] == list(vocabulary.TTFT_STAGES) and times["ttft"] == pytest.approx(5)
    assert set(MEANS) - {"kv_bytes"} <= set(vocabulary.QUANTITIES)
    assert vocabulary.station("llm_layer(2)") == "LLM layer 2" and vocabulary.station("kv_cache") == "KV cache"


TIMES = [(0, "0 ms"), (0.8432, "843 µs"), (12.34, "12.3 ms"), (4560, "4.56 s"), (241e3, "241 s")]


@pytest.mark.parametrize("ms, text", TIMES)
def test_durations_have_three_digits(ms, text):
    assert duration(ms) == text


AMOUNTS = [(999, "B", "999 B"), (1.31e9, "", "1.31 G"), (2.4e7, "FLOPs", "24.0 MFLOPs")]


@pytest.mark.parametrize("value, unit, text", AMOUNTS)
def test_quantities_have_three_digits(value, unit, text):
    assert quantity(value, unit) == text
