"""Figures that are typed into docs/ are those of the records under assets/measurements."""

import json
import re
from pathlib import Path

import pytest

from vtc_demo.benchmark import measurements, tables
from vtc_demo.evaluation import page

ROOT = Path(__file__).parents[2]


def record(name):
    return json.loads((ROOT / "assets" / "measurements" / name).read_text())


def table(text, heading):
    """Rows of the Markdown table whose head begins with `heading`: first cell -> the others."""
    lines = text[text.index(f"| {heading}") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    return {first: rest for first, *rest in rows}


@pytest.fixture(scope="module")
def performance():
    return (ROOT / "docs" / "performance.md").read_text()


def bare(label):
    """ "FastV (layer 2)" -> "FastV"."""
    return label.partition(" (")[0]


def test_engine_against_generate(performance):
    ratios = record("bench-cpu.json")["generate"]["ratios"]
    shown = table(performance, "`model.generate` over engine")
    wanted = zip(shown, ("ttft", "decode_per_token", "wall"), strict=True)
    assert shown == {label: [f"{ratios[key]['median']:.2f}"] for label, key in wanted}


def test_speed_up_of_every_method(performance):
    rows = {row["title"]: row for row in record("bench-cpu.json")["rows"] if row["budget"] == 64}
    shown = table(performance, "full over method, 64 of 576 tokens")
    assert len(shown) > 10
    for label, cells in shown.items():
        row = rows[bare(label)]
        ratios, own = row["ratios"], row["own_work"]["median"]
        prefill, ttft = ratios["prefill"]["median"], ratios["ttft"]["median"]
        assert cells == [
            f"{prefill:.1f}", f"{ratios['prefill_expected']:.1f}", f"{ttft:.1f}", f"{100 * own:.1f} %",
        ], label  # fmt: skip


def test_the_way_of_released_codes(performance):
    rows = {row["title"]: row for row in record("references-cpu.json")["references"]}
    shown = table(performance, "all maps over rows on demand")
    assert set(shown) == set(rows)
    for label, cells in shown.items():
        row = rows[label]
        ratios = [f"{row['ratios'][key]['median']:.2f}" for key in ("vision", "prefill", "ttft")]
        assert cells == [*ratios, f"{row['reference_peak_bytes'] / 1e6:.1f} / {row['peak_bytes'] / 1e6:.1f}"], label


def test_compiled_layers(performance):
    rows = {tables.label(row): row for row in record("compiled-cpu.json")["compiled"]}
    shown = table(performance, "as is over compiled")
    assert set(shown) == set(rows) and all(row["same_answer"] for row in rows.values())
    for label, cells in shown.items():
        assert cells == [f"{rows[label]['ratios'][name]['median']:.2f}" for name in measurements.COMPILED], label


def test_percentages_beside_the_table_of_accuracies_stand_in_it():
    path = ROOT / "docs" / "accuracy.md"
    shown, rest = page.read(path, "accuracy"), path.read_text().partition("<!-- accuracy:end -->")[2]
    beside = rest.partition("\n## ")[0]
    said = re.findall(r"(\d+(?:\.\d+)?) %", beside)
    in_table = {float(figure) for figure in re.findall(r"\d+\.\d", shown)}
    assert said
    assert {float(figure) for figure in said} <= in_table
