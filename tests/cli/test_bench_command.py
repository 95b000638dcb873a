"""`bench`: its record and what it refuses. Nothing here depends on how fast anything is."""

import json

import pytest
import torch

from vtc_demo.benchmark import timing
from vtc_demo.cli import main


@pytest.mark.slow
def test_it_writes_the_record_and_restores_the_threads(model, tmp_path, capsys):
    out, threads = tmp_path / "records" / "bench.json", torch.get_num_threads()
    line = f"bench --model {model} --methods uniform --tokens 64 --new-tokens 2 --warmups 0 --repeats 1"
    assert main([*line.split(), "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    record = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(printed.out) == record and record["generate"]["same_answer"]
    assert printed.err.splitlines()[-1] == "uniform at 64 tokens"
    (row,) = record["rows"]
    assert row["visual_tokens"] == 64 and row["equivalent_tokens"] == 64 and record["full"]["visual_tokens"] == 576
    assert row["ms"]["prefill"] == timing.spread([row["ms"]["prefill"]["median"]])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--threads", "0"], "--threads: must be a whole number, 1 or more"),
        (["--model", "nowhere"], "unknown model"),
        (["--repeats", "many"], "--repeats: must be a whole number"),
        (["--new-tokens", "1"], "2 or more"),
        (["--methods", "fastv@much"], "a number between 0.01 and 1.0"),
    ],
)
def test_bad_input(refused, given, message):
    assert message in refused("bench", *given)
