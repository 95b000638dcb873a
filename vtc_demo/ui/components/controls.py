"""The page's own controls: pictures, suggested questions, budget, column heads.

Each is a gr.HTML whose `value` is plain data and whose behaviour is a function of the same name in `page.js`. They
trigger "pick" when the visitor has chosen something. The markup travels as the property `markup`, because Gradio reads
`html_template` itself as a template.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby

import gradio as gr

from vtc_demo.comparison.matching import MATCHES
from vtc_demo.core.vocabulary import SITES
from vtc_demo.evaluation.findings import finding

from ..share import fewest

BUDGETS = (32, 64, 128, 192, 288)  # visual tokens; 64, 128 and 192 are those of the papers' tables

# What can be made equal, in the order of `matching.MATCHES`: label, and what it means.
WAYS = {
    "final tokens": ("equal tokens", "Every method ends with this many visual tokens."),
    "equivalent tokens": ("equal average", "Every method has this many visual tokens on average over the layers."),
    "flops": ("equal FLOPs", "Every method costs what this many tokens cost that are left before the language model."),
}

ONE_LINE = 15  # characters of a title that fit into the head of one of four cards
APART = "A column has its own number: each method is run at its plain share of the tokens, and may end with fewer."


def control(name: str, value, markup: str, **props) -> gr.HTML:
    return gr.HTML(
        value,
        html_template="${markup}",
        js_on_load=f"window.vtc.{name}(element, props, (data) => trigger('pick', data), watch)",
        apply_default_css=False,
        elem_classes=["vtc-control", f"vtc-{name}"],
        markup=markup,
        **props,
    )


def pictures(thumbnails: Iterable[tuple[int, str]], chosen: int) -> gr.HTML:
    """Buttons for the built-in scenes (seed, data URL) and one that draws a new scene. value: {"seed": n}."""
    buttons = "".join(
        f'<button type="button" data-seed="{seed}" aria-label="scene {i}" aria-pressed="{str(seed == chosen).lower()}">'
        f'<img src="{url}" alt=""></button>'
        for i, (seed, url) in enumerate(thumbnails, 1)
    )
    dice = '<button type="button" data-seed="new" class="dice" title="New random scene">⚄<span>new</span></button>'
    return control("pictures", {"seed": chosen}, f'<div class="thumbs">{buttons}{dice}</div>')


def chips(questions: list[str]) -> gr.HTML:
    """Suggested questions; the script fills in the buttons as text. value: {"questions": [...], "chosen": text}."""
    return control(
        "chips", {"questions": questions, "chosen": ""}, '<div class="chips" role="group" translate="no"></div>'
    )


def budget(tokens: int, total: int, live: bool) -> gr.HTML:
    """The cost shared by all columns, in tokens, and what is made equal. value: {"tokens", "total", "match"}.

    live: the model is quick enough to follow the slider while it moves.
    """
    ways = "".join(
        f'<button type="button" data-match="{match}" data-about="{escape(about)}">{label}</button>'
        for match, (label, about) in WAYS.items()
    )
    marks = "".join(f'<button type="button" data-tokens="{n}">{n}</button>' for n in BUDGETS if n < total)
    markup = (
        f'<div class="ways" role="group" aria-label="What is made equal">{ways}</div><p class="way"></p>'
        f'<p class="way apart">{APART}</p>'
        f'<input type="range" min="{fewest(total)}" max="{total}" step="1" value="{tokens}" '
        'aria-label="Visual tokens kept"><div class="read"><output></output><span class="share"></span></div>'
        f'<div class="marks" role="group" aria-label="Usual numbers of tokens">{marks}</div>'
    )
    return control("budget", {"tokens": tokens, "total": total, "match": MATCHES[0]}, markup, live=live)


def take() -> gr.HTML:
    """Below the cards: a further column, and the comparison to take along. value: {"want", "text", "problem"}."""
    markup = (
        '<div class="vtc-below"><button type="button" class="vtc-add pill" hidden>+ Add a column</button>'
        '<span class="vtc-take">Take this comparison along:'
        '<button type="button" class="pill" data-want="json" title="Everything that was measured, as the API gives it">'
        "JSON</button>"
        '<button type="button" class="pill" data-want="python" title="A few lines that repeat it">Python</button>'
        "</span></div>"
    )
    return control("take", {"want": ""}, markup)


def head(number: int, method: str, cards: list, hues: dict[str, str], catalogue: dict, on: bool = True) -> gr.HTML:
    """Head of a column: which method, with its settings. value: {"method", "own", "tokens", "params", "on"}."""
    value = {"method": method, "own": False, "tokens": BUDGETS[1], "params": {}, "on": on}
    return control("head", value, _head(number, method, cards), catalogue=catalogue, hues=hues, number=number)


def _head(number: int, method: str, cards: list) -> str:
    gear = (
        f'<button type="button" class="gear" aria-expanded="false" aria-label="Settings of column {number}" '
        f'title="Settings">⚙</button>'
        f'<button type="button" class="close" aria-label="Remove column {number}" title="Remove this column">×</button>'
    )
    return (
        '<div class="title"><span class="dot"></span>'
        f'<select aria-label="Method of column {number}">{_options(cards, method)}</select>{gear}</div>'
        '<p class="kind"></p><p class="about"></p><div class="settings" hidden></div>'
    )


def reference(card) -> str:
    """Head of the first column, which is always the full model."""
    return (
        '<div class="title"><span class="dot"></span><span class="name">Full model</span></div>'
        f'<p class="kind">reference</p><p class="about">{escape(card.summary)}</p>'
    )


def _options(cards: list, chosen: str) -> str:
    """<option>s grouped by family; families in the order of their first method."""
    families = list(dict.fromkeys(c.family for c in cards))
    ordered = sorted((c for c in cards if c.name != "full"), key=lambda c: families.index(c.family))
    out = []
    for family, group in groupby(ordered, key=lambda c: c.family):
        options = "".join(
            f'<option value="{escape(c.name)}" data-about="{escape(c.summary)}" title="{escape(c.summary)}"'
            f"{' class=long' if len(c.title) > ONE_LINE else ''}{' selected' if c.name == chosen else ''}>"
            f"{escape(c.title)}</option>"
            for c in group
        )
        out.append(f'<optgroup label="{escape(family[:1].upper() + family[1:])}">{options}</optgroup>')
    return "".join(out)


def entry(card, parameters: list[dict]) -> dict:
    """What the script needs of one method."""
    return {
        "title": card.title,
        "kind": " · ".join([card.family.removeprefix("pruning by "), *(SITES[site].short for site in card.sites)]),
        "summary": card.summary,
        "facts": _facts(card),
        "retention": any(p["name"] == "retention" for p in parameters),
        "parameters": [p for p in parameters if p["name"] != "retention"],
    }


def _facts(card) -> dict:
    """What the card says about its source, for the end of the settings. links: (text, address)."""
    links = []
    if card.paper and card.paper.startswith("arXiv "):
        links.append((card.paper, f"https://arxiv.org/abs/{card.paper.removeprefix('arXiv ')}"))
    if card.code:
        links.append((card.code, f"https://github.com/{card.code}"))
    return {
        "faithfulness": card.faithfulness,
        "source": "" if links else card.paper or "",
        "links": links,
        "finding": finding(card),
        "reported": card.reported,
        "deviations": card.deviations,
    }
