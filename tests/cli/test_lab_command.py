"""`lab`: its record and what it refuses."""

import json

import pytest
import torch

from vtc_demo.cli import main


def test_it_writes_the_record_and_restores_the_threads(tmp_path, capsys):
    out, threads = tmp_path / "records" / "lab.json", torch.get_num_threads()
    line = "lab --shape embedded --methods fastervlm --batches 1 --seconds 3 --repeats 2 --dtype float32 --threads 1"
    line += " --prefill-batches 2 4"
    assert main([*line.split(), "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(printed.out) == found and found["rows"][1]["budget"] == 64
    assert set(found["rows"][1]["ms"]["batched_prefill"]) == {"1", "2", "4"}
    assert "timing the layers" in printed.err and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--threads", "0"], "--threads: must be a whole number, 1 or more"),
        (["--shape", "nowhere"], "unknown model shape 'nowhere'"),
        (["--tokens", "many"], "invalid int"),
        (["--seconds", "0"], "seconds must be from 1 to 3600"),
    ],
)
def test_bad_input(refused, given, message):
    assert message in refused("lab", *given)


def test_an_error_on_the_way_clears_the_bar(capsys):
    with pytest.raises(SystemExit):
        main(["lab", "--shape", "embedded", "--methods", "fastw"])
    shown = capsys.readouterr().err.rpartition("\r")[2]  # what a terminal is left with
    assert shown == "error: unknown method 'fastw'; did you mean fastv or fastervlm?\n"
