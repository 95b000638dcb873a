"""Two jobs in turn, and the ratios of pairs."""

from vtc_demo.benchmark import pairs


def test_pairs_run_in_turn_and_change_places():
    calls = []

    def say(name):
        calls.append(name)
        return f"{name}{len(calls)}"

    firsts, seconds = pairs.pairs(lambda: say("a"), lambda: say("b"), 1, 3)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"
    assert firsts == ["a4", "a5", "a8"] and seconds == ["b3", "b6", "b7"]


def test_a_ratio_is_the_median_over_pairs_not_the_ratio_of_medians():
    top, bottom = [{"t": 10.0}, {"t": 200.0}, {"t": 30.0}], [{"t": 5.0}, {"t": 50.0}, {"t": 10.0}]
    assert pairs.paired(top, bottom, "t") == {"median": 3.0, "iqr": 1.0, "n": 3}  # of 2, 4 and 3
    assert pairs.paired([{"a": 1.0}], [{"b": 4.0}], "a", "b")["median"] == 0.25
