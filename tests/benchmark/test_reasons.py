"""Why a method gains less time than its FLOPs promise."""

from vtc_demo.benchmark.reasons import reasons

FULL = {"preprocess": 5.0, "vision": 45.0, "projector": 0.5, "compression": 0.0, "prefill": 49.5, "ttft": 100.0}
FULL |= {"decode_per_token": 4.0}


def test_reasons_name_what_does_not_shrink():
    fast = FULL | {"prefill": 9.0, "compression": 3.0, "ttft": 62.5}
    prefill, ttft = reasons(FULL, fast, 9.0, {"prefill": 5.5, "ttft": 1.6})
    assert "gains 5.5x where 9.0x is expected" in prefill and "4.0 ms" in prefill and "44 % of this prefill" in prefill
    assert "TTFT gains 1.6x" in ttft and "overhead adds 3 %" in ttft
    assert "the vision tower (45 %) and preprocessing (5 %) of the full time are not compressed" in ttft
    assert "projector" not in ttft  # half a percent explains nothing


def test_a_stage_that_shrinks_is_not_blamed():
    small = FULL | {"preprocess": 5.0, "vision": 10.0, "prefill": 10.0, "ttft": 25.5}
    (ttft,) = reasons(FULL, small, 4.95, {"prefill": 4.95, "ttft": 3.9})
    assert "preprocessing (5 %) of the full time is not compressed" in ttft and "vision" not in ttft


def test_nothing_to_explain():
    assert reasons(FULL, {stage: ms / 2 for stage, ms in FULL.items()}, 2.0, {"prefill": 2.0, "ttft": 2.0}) == []
