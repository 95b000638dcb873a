"""The tab Atlas: every paper, searchable and filterable, and a map of them by family, place and month.

All of it is in the page from the start; `atlas.js` searches, filters and draws without asking the server.
"""

from __future__ import annotations

from itertools import cycle

import gradio as gr

from vtc_demo import registry
from vtc_demo.atlas import papers as atlas
from vtc_demo.core.vocabulary import SITES
from vtc_demo.evaluation.findings import finding
from vtc_demo.figures.colours import OTHER, PALETTE
from vtc_demo.figures.render import render

from ..components import controls

NOWHERE = "none"  # the place of papers that reduce nothing inside a vision-language model
PLACES = {site: words.place for site, words in SITES.items()} | {NOWHERE: "none"}
NEUTRAL = ("adjacent", "benchmark/position", "backbone design")  # families that are no compression method: grey
GREY = "#94a3b8"
TRAINING = {"yes": "training-free", "no": "trained", "open": "either or neither"}

INTRO = (
    "Papers on visual token compression and its neighbourhood. Each is placed by what it does and where in the pass "
    "it does it. What a paper reports of itself is marked as such and was not checked here; what runs on this page "
    "says how faithful it is."
)


def build(model: str = "embedded") -> None:
    """The tab. model: name of the page's model; what it cannot run is shown as not running here."""
    book = atlas.load()
    record = papers(book, registry.suiting(model))
    families = [
        {"name": name, "about": about, "hue": hue}
        for (name, about), hue in zip(book.families.items(), hues(book.families).values())
    ]
    places = [{"name": site, "title": title} for site, title in PLACES.items()]
    with gr.Column(elem_classes="vtc-atlas-page"):
        controls.control("atlas", {}, _markup(book, record), papers=record, families=families, places=places)


def hues(families: dict[str, str]) -> dict[str, str]:
    """Family -> colour, that of its methods where it has any."""
    spare, own = cycle(OTHER), {family: shades[0] for family, shades in PALETTE.items()}
    own |= dict.fromkeys(NEUTRAL, GREY)
    return {name: own[name] if name in own else next(spare) for name in families}


def papers(book: atlas.Atlas, cards: list) -> list[dict]:
    """What the script needs of each paper."""
    here = atlas.runnable(book.papers, cards)
    return [_entry(paper, here[paper.key]) for paper in book.papers]


def _entry(paper: atlas.Paper, cards: tuple) -> dict:
    notebook = atlas.lesson_file(paper)
    return {
        "key": paper.key,
        "name": paper.name,
        "title": paper.title,
        "month": paper.first_posted,
        "arxiv": paper.arxiv,
        "code": paper.code,
        "domain": paper.domain,
        "field": atlas.DOMAINS[paper.domain],
        "family": paper.family,
        "sites": paper.sites or (NOWHERE,),
        "training": {True: "yes", False: "no", None: "open"}[paper.training_free],
        "idea": paper.idea,
        "claim": paper.claim,
        "here": atlas.RUNS if cards else atlas.PLANS[paper.plan],
        "why": "" if cards else atlas.why_not(paper),
        "methods": [_method(card) for card in cards],
        "lesson": notebook and {"number": paper.lesson, "path": f"lessons/{notebook.name}"},
    }


def _method(card) -> dict:
    return {
        "name": card.name,
        "title": card.title,
        "faithfulness": card.faithfulness,
        "places": [PLACES[site] for site in card.sites],
        "deviations": card.deviations,
        "finding": finding(card),
    }


# -- the frame that the script fills ----------------------------------------------------------------------------------
def _markup(book: atlas.Atlas, record: list[dict]) -> str:
    years = sorted({p["month"][:4] for p in record}, reverse=True)
    used = [s for s in PLACES if any(s in p["sites"] for p in record)]
    states = [s for s in (atlas.RUNS, *dict.fromkeys(atlas.PLANS.values())) if any(p["here"] == s for p in record)]
    choices = (
        ("family", "Family", {f: f for f in book.families}),
        ("site", "Place", {s: PLACES[s] for s in used}),
        ("here", "On this page", {s: s for s in states}),
        ("training", "Training", TRAINING),
        ("domain", "Field", {d: atlas.DOMAINS[d] for d in atlas.DOMAINS if any(p["domain"] == d for p in record)}),
        ("year", "Year", {y: y for y in years}),
    )
    return render("ui/tabs/atlas.html", choices=choices, intro=INTRO)
