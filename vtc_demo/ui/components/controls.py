"""The page's own controls: pictures, suggested questions, budget, column heads.

Each is a gr.HTML whose `value` is plain data and whose behaviour is a function of the same name in `page.js`. They
trigger "pick" when the visitor has chosen something. The markup travels as the property `markup`, because Gradio reads
`html_template` itself as a template.
"""

from __future__ import annotations

from collections.abc import Iterable

import gradio as gr

from vtc_demo.comparison.request import MATCHES
from vtc_demo.core.vocabulary import SITES
from vtc_demo.evaluation.findings import finding
from vtc_demo.figures.render import render

from ..share import fewest

BUDGETS = (32, 64, 128, 192, 288)  # visual tokens; 64, 128 and 192 are those of the papers' tables

# What can be made equal, in the order of `request.MATCHES`: label, and what it means.
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
        markup=str(markup),
        **props,
    )


def heading(title: str, note: str = "") -> gr.HTML:
    return gr.HTML(render("ui/components/heading.html", title=title, note=note), apply_default_css=False)


def note(text: str) -> str:
    return render("ui/components/note.html", text=text)


def shell(command: str) -> str:
    """A command to be copied."""
    return render("ui/components/shell.html", command=command)


def pictures(thumbnails: Iterable[tuple[int, str]], chosen: int) -> gr.HTML:
    """Buttons for the built-in scenes (seed, data URL) and one that draws a new scene. value: {"seed": n}."""
    markup = render("ui/components/pictures.html", thumbnails=thumbnails, chosen=chosen)
    return control("pictures", {"seed": chosen}, markup)


def chips(questions: list[str]) -> gr.HTML:
    """Suggested questions; the script fills in the buttons as text. value: {"questions": [...], "chosen": text}."""
    return control("chips", {"questions": questions, "chosen": ""}, render("ui/components/chips.html"))


def budget(tokens: int, total: int, live: bool) -> gr.HTML:
    """The cost shared by all columns, in tokens, and what is made equal. value: {"tokens", "total", "match"}.

    live: the model is quick enough to follow the slider while it moves.
    """
    marks = [n for n in BUDGETS if n < total]
    values = {"ways": WAYS, "apart": APART, "marks": marks, "least": fewest(total), "total": total, "tokens": tokens}
    markup = render("ui/components/budget.html", **values)
    return control("budget", {"tokens": tokens, "total": total, "match": MATCHES[0]}, markup, live=live)


def export() -> gr.HTML:
    """Below the cards: a further column, and the comparison to take along. value: {"want", "text", "problem"}."""
    return control("take", {"want": ""}, render("ui/components/export.html"))


def head(number: int, method: str, cards: list, hues: dict[str, str], catalogue: dict, on: bool = True) -> gr.HTML:
    """Head of a column: which method, with its settings. value: {"method", "own", "tokens", "params", "on"}."""
    value = {"method": method, "own": False, "tokens": BUDGETS[1], "params": {}, "on": on}
    families = by_family([card for card in cards if card.name != "full"], cards)
    values = {"number": number, "families": families, "chosen": method, "one_line": ONE_LINE}
    markup = render("ui/components/head.html", **values)
    return control("head", value, markup, catalogue=catalogue, hues=hues, number=number)


def reference(card) -> str:
    """Head of the first column, which is always the full model."""
    return render("ui/components/reference.html", summary=card.summary)


def by_family(cards: list, order: list | None = None) -> list[tuple[str, list]]:
    """(family, its cards), families in the order of their first method in `order` (default: in `cards`)."""
    families: dict[str, list] = {card.family: [] for card in order or cards}
    for card in cards:
        families[card.family].append(card)
    return [(family[:1].upper() + family[1:], found) for family, found in families.items() if found]


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
