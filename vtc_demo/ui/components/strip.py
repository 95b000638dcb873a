"""The strip on top of Compare's cards: the computed sentence or a message, and the legends."""

from __future__ import annotations

from markupsafe import Markup

from vtc_demo.core.vocabulary import STAGES
from vtc_demo.figures.render import render

from . import summary


def answered(runs: list[dict], hues: dict[str, str], question: str, truth: str | None, link: str = "") -> Markup:
    """The computed sentence. runs: those that gave an answer; link: query that restores the view."""
    what, time = summary.sentence(runs, hues, truth)
    return _strip(what, time, question=question, link=link)


def waiting(question: str) -> Markup:
    return _strip(question, "The methods answer one after another …", question=question, quoted=True)


def problem(message: str) -> Markup:
    """What went wrong with the request and what to do, in place of the sentence."""
    first, _, rest = message.partition(". ")
    return _strip(first + ("." if rest else ""), rest, problem=True)


def stopped() -> Markup:
    return _strip("Stopped. Press Compare to start again.", stopped=True)


def _strip(what: str, time: str = "", **more) -> Markup:
    """question: that of the answers; quoted: `what` is a visitor's own text."""
    values = {"question": "", "link": "", "problem": False, "stopped": False, "quoted": False} | more
    return render("ui/components/strip.html", what=what, time=time, stages=STAGES, **values)
