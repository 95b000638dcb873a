"""Hostile text through every template that shows a visitor's, a model's, a method's or a file's text."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from runs import COLUMNS, ROWS, reduced, run

import vtc_demo
from vtc_demo import registry
from vtc_demo.figures import bars, lab, sweep
from vtc_demo.figures.masks import mask
from vtc_demo.figures.render import render
from vtc_demo.ui.components import cards, controls, status, strip
from vtc_demo.ui.tabs import lab as lab_tab

EVIL = """"'><img src=x onerror="alert('1')">&amp;{{ 7 * 7 }}"""
PACKAGE = Path(vtc_demo.__path__[0])
TEMPLATES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.html"))


class Elements(HTMLParser):
    """Elements and the texts of a page: what a browser makes of it."""

    def __init__(self, html):
        super().__init__()
        self.attributes, self.told = [], []
        self.feed(str(html))

    def handle_starttag(self, tag, attributes):
        self.attributes += [name for name, _ in attributes]
        self.told += [value or "" for _, value in attributes]

    def handle_data(self, data):
        self.told.append(data)


def evil_run(**more):
    return reduced() | {"answer": EVIL, "title": EVIL} | more


def evil_card():
    return replace(registry.get("fastv").card, name=EVIL, title=EVIL, family=EVIL, summary=EVIL)


def compare():
    full, other = run("Full", "full", answer=EVIL), evil_run()
    matched = {"match": "flops", "target": 2e9, "reached": 1e9, "note": EVIL}
    yield cards.card(other, EVIL, full=full, truth=EVIL, evidence=np.eye(ROWS, COLUMNS, dtype=bool))
    yield cards.card(evil_run(matched=matched), "data:,", full=full)
    yield cards.card(evil_run(error=EVIL), "data:,")
    yield cards.running(EVIL, EVIL, EVIL)
    yield cards.failed(EVIL, EVIL)
    yield strip.answered([full, other], {}, EVIL, None, EVIL)
    yield strip.answered([full, other], {"fastv": EVIL}, EVIL, "other")
    yield strip.answered([full], {}, EVIL, EVIL)
    yield strip.answered([evil_run(), evil_run()], {}, EVIL, None)
    yield from (strip.waiting(EVIL), strip.problem(EVIL), strip.problem(f"{EVIL}. {EVIL}"))


def parts():
    yield from (status.said(EVIL, EVIL), status.problem(EVIL), controls.note(EVIL), controls.shell(EVIL))
    yield status.running(EVIL, bar=EVIL, now=1, most=2, percent=50)
    yield controls.reference(evil_card())
    yield controls.head(2, EVIL, [evil_card()], {EVIL: EVIL}, {}).props["markup"]
    yield from (h.value for h in (controls.heading(EVIL, EVIL),))
    yield render("ui/components/notice.html", text=EVIL)
    yield render("ui/components/preview.html", url=EVIL, note=EVIL)
    language = {"lang": EVIL, "name": EVIL}
    yield render("ui/components/header.html", title=EVIL, model=EVIL, device=EVIL, language=language)
    method = {"name": EVIL, "title": EVIL, "state": EVIL, "faults": [EVIL], "file": EVIL}
    problem = {"name": EVIL, "why": EVIL, "file": EVIL}
    yield render("ui/tabs/own_loaded.html", methods=[method], problems=[problem])
    yield render("ui/tabs/atlas.html", choices=[(EVIL, EVIL, {EVIL: EVIL})], intro=EVIL)


def figures(monkeypatch):
    yield mask(evil_run(), EVIL, title=EVIL)
    yield bars.stage_bar(run(), 100.0)
    row = {"title": EVIL, "tokens": None, "method": {"method": "x"}, "all": {"accuracy": 0.5, "low": 0.4, "high": 0.6}}
    yield sweep.table({"rows": [row]}, {"x"}, {"x": EVIL})
    yield render("figures/hover.html", title=EVIL, rest=EVIL, lines=[EVIL])
    record = lab_tab.recorded()[next(iter(lab_tab.recorded()))]
    monkeypatch.setattr("vtc_demo.benchmark.lab.report.label", lambda row: EVIL)
    yield lab.table(record, 8, 64, {})
    yield lab_tab.words(record, 8, 8, [EVIL])
    yield lab_tab._shelf({EVIL: record})
    monkeypatch.setattr("vtc_demo.benchmark.lab.report.summary", lambda *_: EVIL)
    yield lab_tab.told(record, EVIL)
    for figure in (lab.first_token(record), lab.by_batch(record, "decode", 8)):
        yield from (text for bar in figure.data for text in bar.customdata)
        yield from figure.layout.yaxis.ticktext


@pytest.mark.parametrize("pieces", [compare, parts, figures])
def test_hostile_text_stays_text(pieces, monkeypatch):
    for html in pieces(monkeypatch) if pieces is figures else pieces():
        page = Elements(html)
        assert "onerror" not in page.attributes and "49" not in "".join(page.told)
        if pieces is not figures:
            assert "onerror" in "".join(page.told)  # it is shown


@pytest.mark.parametrize("template", TEMPLATES, ids=str)
def test_a_template_is_escaped_and_strict(template):
    """No template switches escaping off, and none is content with a value that is missing."""
    source = (PACKAGE / template).read_text(encoding="utf-8")
    assert "safe" not in source and "autoescape" not in source
    if "{{" in source and template.name != "tick.html":
        with pytest.raises(UndefinedError):
            render(template.as_posix())
