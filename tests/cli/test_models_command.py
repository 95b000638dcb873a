"""`models`: what the app offers, and what fits."""

import json

import pytest

from vtc_demo.cli import main
from vtc_demo.models import CATALOG, memory


@pytest.mark.parametrize(("dtype", "needs"), [("bfloat16", 15.6), ("float32", 31.2)])
def test_the_list_of_models_says_what_fits(capsys, monkeypatch, dtype, needs):
    """LLaVA-1.5-7B: 7.06 billion parameters of 2 or 4 bytes, and a tenth of room."""
    monkeypatch.setattr(memory, "free", lambda device: 16_000_000_000)
    assert main(["models", "--device", "cpu", "--dtype", dtype, "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    llava = rows["llava-hf/llava-1.5-7b-hf"]
    assert llava["needs_gb"] == needs == pytest.approx(7.06 * {"bfloat16": 2, "float32": 4}[dtype] * 1.1, rel=0.01)
    assert llava["fits"] == (dtype == "bfloat16") and llava["free_gb"] == 16.0
    assert main(["models", "--device", "cpu", "--dtype", dtype]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [entry.id for entry in CATALOG]
    assert all(entry.revision in line for entry, line in zip(CATALOG, lines[1:]))
    assert ("no" in lines[8].split()) == (dtype == "float32")
