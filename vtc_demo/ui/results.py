"""The results of one request as they come in, and their view: the strip, then one card per column."""

from __future__ import annotations

from typing import Any

from vtc_demo.figures.bars import busy_ms
from vtc_demo.figures.pictures import data_url, square

from .components import cards, strip
from .share import View, query


class Results:
    """hues: method name -> colour; columns: places on the page of the methods that run, known when they are checked."""

    def __init__(self, view: View, hues: dict[str, str]):
        assert view.source is not None  # only a link can name no picture
        self.view, self.hues = view, hues
        self.source, self.question = view.source, view.question
        self.picture = data_url(square(view.source.image))
        self.columns: list[int] = []
        self.runs: dict[int, dict] = {}  # column -> run
        self.told: dict[int, tuple[str, str]] = {}  # column -> (stage, answer so far)
        self.begun = False

    def add(self, kind: str, index: int | None, data: Any) -> None:
        self.begun = True
        if index is None:
            return
        column = self.columns[index]
        if kind == "run":
            self.runs[column] = data
        elif kind == "error":
            self.runs[column] = {"error": data}
        elif kind in ("stage", "token"):
            stage, text = self.told.get(column, ("", ""))
            self.told[column] = (data["stage"], text) if kind == "stage" else (stage, data["text"])

    def card(self, column: int) -> str:
        if column not in self.columns:
            return ""
        run = self.runs.get(column)
        if run is None:
            return cards.running(self.picture, *self.told.get(column, ("", "")))
        known = self.source.truth(self.question)
        full = next((r for r in self._done() if r["method"]["method"] == "full"), None)
        return cards.card(
            run,
            self.picture,
            full=full,
            truth=known.answer if known else None,
            evidence=known.evidence if known else None,
            longest=max((busy_ms(r) for r in self._done()), default=0.0),
        )

    def strip(self) -> str:
        known = self.source.truth(self.question)
        if not self._done():
            return strip.problem("No method could answer; the cards say why.")
        truth = known.answer if known else None
        return strip.answered(self._done(), self.hues, self.question, truth, query(self.view))

    def unanswered(self) -> list[int]:
        """Columns of a request that has begun which have no result yet."""
        return [column for column in self.columns if column not in self.runs] if self.begun else []

    def _done(self) -> list[dict]:
        return [r for _, r in sorted(self.runs.items()) if not r.get("error")]
