"""`sweep`: its record as JSON, CSV and table, and how it goes on."""

import json

import pytest

from vtc_demo.cli import main
from vtc_demo.evaluation import records


@pytest.mark.slow
def test_it_writes_its_record_and_goes_on(model, tmp_path, capsys, refused):
    out, table = tmp_path / "sweep.json", tmp_path / "sweep.csv"
    line = ["sweep", "--methods", "fastv", "--tokens", "64", "--model", str(model), "--out", str(out)]
    line += ["--csv", str(table)]
    assert main([*line, "--questions", "4"]) == 0
    assert "4 questions on 1 held-out scenes" in capsys.readouterr().out
    assert main([*line, "--questions", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == records.read(out) and record["questions"] == 8
    assert table.read_text() == records.to_csv(record)
    assert "the record to go on from" in refused(*line, "--kinds", "size")
    out.write_text("{}")
    assert "is no record of a sweep; remove it or name another file" in refused(*line)
