"""The strip on top of the tabs that measure: what is shown, how far a run is, what went wrong."""

from __future__ import annotations

from markupsafe import Markup

from vtc_demo.figures.render import render


def said(what: str, more: str = "") -> Markup:
    return _strip(what=what, more=more)


def running(more: str, *, bar: str, now: float, most: float, percent: float) -> Markup:
    """bar: name of the progress bar, which stands at `now` of `most`."""
    progress = {"label": bar, "now": now, "most": most, "percent": percent}
    return _strip(what="Measuring", more=more, state="is-running", bar=progress)


def problem(text: str) -> Markup:
    return _strip(what=text, problem=True)


def _strip(*, what: str, more: str = "", state: str = "", bar: dict | None = None, problem: bool = False) -> Markup:
    values = {"what": what, "more": more, "state": state, "bar": bar, "problem": problem}
    return render("ui/components/status.html", **values)
