"""The tab About: its table is computed, its snippet runs, its endpoints are those there are."""

import base64
import re

import pytest
from gradio_client import Client
from pages import served, watched
from playwright.sync_api import expect

from vtc_demo import cost
from vtc_demo.ui.tabs import about

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def url():
    with served() as address:
        yield address


def test_the_table_of_conventions_by_hand():
    """FastV's count for LLaVA-1.5-7B, from its formula: width 4096, inner width 11008, mean over layers."""
    rows = {row.split("|")[1].strip(): row for row in about.conventions().splitlines() if row.startswith("| ")}
    assert set(cost.CONVENTIONS) <= set(rows)
    count = lambda n: 4 * n * 4096**2 + 2 * n**2 * 4096 + 2 * n * 4096 * 11008  # noqa: E731
    full, less = count(576 + 64), count(64 + 64)
    assert f"{full / 1e12:.2f} T MACs" in rows["fastv"] and f"{full / less:.1f}×" in rows["fastv"]
    visual = lambda n: 32 * (4 * n * 4096**2 + 2 * n**2 * 4096 + 3 * n * 4096 * 11008)  # noqa: E731
    assert f"{visual(576) / 1e12:.2f} T MACs" in rows["pyramiddrop"]


def test_records_are_told_with_their_date():
    table = about.records()
    assert "| `embedded_accuracy.json` | 2000 questions | 2026-" in table
    assert all(f"`{file.name}`" in table for file in about.RECORDS.glob("*.json*"))


def test_the_course_of_the_zoo_is_the_picture(tmp_path):
    (tmp_path / "x.svg").write_text("<svg>\u00d7</svg>", encoding="utf-8")
    html = about.course(tmp_path / "x.svg")
    assert base64.b64decode(re.search(r'base64,([^"]+)"', html)[1]).decode() == "<svg>\u00d7</svg>"
    assert re.search(r'alt="[^"]*steps of training', html)


def test_the_endpoints_are_those_that_are_told(url):
    told = re.findall(r"^\| `(/\w+)`", about.API, re.M)
    there = Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]
    assert sorted(told) == sorted(there)
    for name in told:
        parameters = [p["parameter_name"] for p in there[name]["parameters"]]
        assert all(f"`{p}`" in about.API for p in parameters)


def test_the_snippet_runs(url, capsys):
    assert about.SNIPPET.strip() in about.API
    exec(about.SNIPPET.replace("http://127.0.0.1:7860", url), {})
    assert re.search(r"^\['[^']*', '[^']*'\]$", capsys.readouterr().out, re.M)


def test_the_tab_in_a_browser(url, chromium, tmp_path):
    with watched(chromium, url) as page:
        page.goto(url)
        page.get_by_role("tab", name="About").click()
        for words in ("FLOPs, and whose", "From a program", "Apache License 2.0"):
            expect(page.get_by_text(words).first).to_be_visible()
        with page.expect_download() as got:
            page.locator(".vtc-records a").first.click()
        got.value.save_as(tmp_path / "record")
        names = sorted(file.name for file in about.RECORDS.glob("*.json*"))
        assert got.value.suggested_filename == names[0]
        assert (tmp_path / "record").read_bytes() == (about.RECORDS / names[0]).read_bytes()
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
