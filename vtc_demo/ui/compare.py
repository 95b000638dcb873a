"""The tab Compare: a picture, a question, and the answers of two to four methods side by side."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from .. import methods, viz, world
from ..images import load_rgb
from . import cards, composer, controls, serve

SCENES = (12, 5, 27, 32, 22)  # the first is shown first
QUESTION_KIND = "reading"  # asked of a scene first: what compression costs shows most in reading
COLUMNS = ("fastervlm", "fastv", "random")
TOKENS = 64
FAILED = "Something went wrong on our side. Try again, or choose another method."
UPLOADED = (
    "This small model knows only its generated world of shapes, colours, numbers and words: "
    "on a picture of your own it shows what is cut and what it costs, not what the picture says."
)


@dataclass(frozen=True)
class Source:
    """Where the picture comes from: a built-in scene, or an upload (scene None)."""

    image: Image.Image
    scene: world.Scene | None = None

    @classmethod
    def of(cls, seed: int) -> Source:
        scene = serve.scene(seed)
        return cls(scene.image, scene)

    def truth(self, question: str) -> world.Question | None:
        return world.truth(self.scene, question) if self.scene else None

    def suggestions(self) -> list[str]:
        """Questions to click on; the first is asked when the picture is chosen."""
        if self.scene is None:
            return ["How many objects are there?", "What number is written?", "Is there a red circle?"]
        first = {q.kind: q.text for q in reversed(self.scene.questions)}  # one of each kind
        return [first.pop(QUESTION_KIND), *first.values()] if QUESTION_KIND in first else list(first.values())


class Board:
    """The results of one request as they come in, and their view: the strip, then one card per column."""

    def __init__(self, source: Source, question: str, columns: list[int], hues: dict[str, str]):
        self.source, self.question, self.columns, self.hues = source, question, columns, hues
        self.picture = viz.data_url(viz.square(source.image))
        self.runs: dict[int, dict] = {}  # column -> run
        self.told: dict[int, tuple[str, str]] = {}  # column -> (stage, answer so far)
        self.begun = False

    def take(self, kind: str, index: int | None, data: Any) -> None:
        self.begun = True
        if kind == "run":
            self.runs[self.columns[index]] = data
        elif kind == "error":
            self.runs[self.columns[index]] = {"error": data}
        elif kind in ("stage", "token"):
            column = self.columns[index]
            stage, text = self.told.get(column, ("", ""))
            self.told[column] = (data["stage"], text) if kind == "stage" else (stage, data["text"])

    def card(self, column: int) -> str:
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
            longest=max((viz.busy_ms(r) for r in self._done()), default=0.0),
        )

    def strip(self) -> str:
        known = self.source.truth(self.question)
        if not self._done():
            return cards.problem("No method could answer; the cards say why.")
        return cards.strip(self._done(), self.hues, self.question, known.answer if known else None)

    def _done(self) -> list[dict]:
        return [r for _, r in sorted(self.runs.items()) if not r.get("error")]


class Compare:
    """Builds the tab and answers its events. stream: see `serve.streamer`."""

    def __init__(self, stream, total: int, small_world: bool):
        self.stream, self.total, self.small_world = stream, total, small_world
        self.cards = methods.list_methods()
        self.hues = viz.colours(self.cards)

    # -- answering ------------------------------------------------------------------------------------------------
    def specs(self, tokens: int, heads: list[dict]) -> tuple[list[int], list[dict]]:
        """(columns shown, their methods as `methods.resolve` reads them). Column 0 is the full model."""
        columns, specs = [0], [{"method": "full"}]
        for column, head in enumerate(heads, 1):
            if not head.get("on", True):
                continue
            spec = {"method": head["method"], **head.get("params", {})}
            if any(p["name"] == "retention" for p in methods.parameters(head["method"])):
                kept = head["tokens"] if head.get("own") else tokens
                spec["retention"] = min(1.0, max(0.01, kept / self.total))
            columns.append(column)
            specs.append(spec)
        return columns, specs

    def answer(self, source: Source, question: str, budget: dict, *heads: dict):
        """The one handler that runs the model: yields the strip and the four cards as results arrive."""
        board = None
        try:
            columns, specs = self.specs(budget["tokens"], list(heads))
            board = Board(source, question, columns, self.hues)
            yield from self._follow(board, specs)
        except ValueError as error:
            yield cards.problem(_sentence(error)), *self._given_up(board)
        except Exception:
            logging.exception("a comparison failed")
            yield cards.problem(FAILED), *self._given_up(board)

    @staticmethod
    def _given_up(board: Board | None) -> list:
        """The cards after a failure: those that have no result stop waiting for one."""
        waiting = [c for c in board.columns if c not in board.runs] if board and board.begun else []
        return [cards.failed("no answer", board.picture) if c in waiting else gr.skip() for c in range(4)]

    def _follow(self, board: Board, specs: list[dict]):
        for kind, index, data in self.stream(board.source.image, board.question, specs):
            board.take(kind, index, data)
            if kind == "start":
                view = {c: board.card(c) for c in board.columns}
                yield cards.waiting(board.question), *(view.get(c, "") for c in range(4))
            elif kind == "done":  # drawn again, now on one scale and against the full model wherever that stands
                yield board.strip(), *(board.card(c) if c in board.columns else "" for c in range(4))
            else:
                changed = board.columns[index]
                yield gr.skip(), *(board.card(c) if c == changed else gr.skip() for c in range(4))

    def first(self, source: Source, question: str, heads: list[dict]) -> list[str]:
        """Strip and cards of the first view, really computed."""
        view = [""] * 5
        for update in self.answer(source, question, {"tokens": TOKENS, "total": self.total}, *heads):
            view = [old if isinstance(new, dict) else new for old, new in zip(view, update)]
        return view

    # -- choosing a picture ---------------------------------------------------------------------------------------
    def choose(self, value: dict):
        seed = value.get("seed")
        source = Source.of(random.randrange(1000, 10**6) if seed == "new" else seed)
        return self._chosen(source, "")

    def upload(self, path: str):
        try:
            source = Source(viz.square(load_rgb(path), 2 * viz.SIDE))
        except ValueError as error:
            return *[gr.skip()] * 4, cards.problem(_sentence(error)), gr.skip()
        return self._chosen(source, UPLOADED if self.small_world else "")

    def compose(self, value: dict):
        try:
            scene = composer.composed(value)
        except ValueError as error:
            return *[gr.skip()] * 4, cards.problem(_sentence(error)), gr.skip()
        return self._chosen(Source(scene.image, scene), "")

    def _chosen(self, source: Source, note: str):
        """source, preview, question, chips, strip (left alone), and a number that starts the comparison."""
        asked = source.suggestions()
        return source, preview(source, note), asked[0], {"questions": asked, "chosen": ""}, gr.skip(), random.random()

    # -- the tab --------------------------------------------------------------------------------------------------
    def build(self) -> None:
        source = Source.of(SCENES[0])
        asked = source.suggestions()
        state = gr.State(source)
        go = gr.Number(0, visible="hidden", elem_id="vtc-go")
        with gr.Row(elem_classes="vtc-page"):
            with gr.Column(elem_classes="vtc-rail"):
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML('<h2 class="vtc-h">Picture</h2>', apply_default_css=False)
                    shown = gr.HTML(preview(source), apply_default_css=False, elem_id="vtc-preview")
                    urls = [(s, viz.data_url(Source.of(s).image.resize((96, 96)), 85)) for s in SCENES]
                    picker = controls.pictures(urls, SCENES[0])
                    composing = composer.Composer()
                    composing.build()
                    upload = gr.UploadButton(
                        "Use a picture of your own", file_types=["image"], elem_id="vtc-upload", size="sm"
                    )
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML('<h2 class="vtc-h">Question</h2>', apply_default_css=False)
                    question = gr.Textbox(
                        asked[0], show_label=False, container=False, max_length=1000, lines=1, max_lines=3,
                        placeholder="Ask about the picture", elem_id="vtc-question", label="Question",
                    )  # fmt: skip
                    chips = controls.chips(asked)
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML('<h2 class="vtc-h">Compression</h2>', apply_default_css=False)
                    budget = controls.budget(TOKENS, self.total)
                with gr.Row(elem_classes="vtc-actions"):
                    start = gr.Button("Compare", variant="primary", elem_id="vtc-compare")
                    stop = gr.Button("Stop", variant="secondary", elem_id="vtc-stop", min_width=60)
            heads, bodies = [], []
            with gr.Column(elem_classes="vtc-results"):
                strip = gr.HTML(apply_default_css=False, elem_id="vtc-strip")
                with gr.Row(elem_classes="vtc-columns"):
                    for column in range(4):
                        with gr.Column(elem_classes=["vtc-col", f"vtc-col-{column}"]):
                            heads.append(self._head(column))
                            bodies.append(gr.HTML(apply_default_css=False, elem_classes="vtc-result"))
                gr.HTML(
                    '<button type="button" class="vtc-add pill" hidden>+ Add a column</button>', apply_default_css=False
                )
        filled = self.first(source, asked[0], [h.value for h in heads[1:]])
        for component, html in zip([strip, *bodies], filled):
            component.value = html
        composing.wire(state, self.compose, [state, shown, question, chips, strip, go])
        self._wire(state, go, shown, picker, upload, question, chips, budget, start, stop, strip, heads[1:], bodies)

    def _head(self, column: int) -> gr.HTML:
        if column == 0:
            full = next(c for c in self.cards if c.name == "full")
            return gr.HTML(controls.reference(full), apply_default_css=False, elem_classes=["vtc-control", "vtc-head"])
        entries = {c.name: controls.entry(c, methods.parameters(c.name)) for c in self.cards}
        known = [c for c in COLUMNS if c in entries] or ["random"]
        return controls.head(column + 1, known[(column - 1) % len(known)], self.cards, self.hues, entries)

    def _wire(self, state, go, shown, picker, upload, question, chips, budget, start, stop, strip, heads, bodies):
        changed = [state, shown, question, chips, strip, go]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        picker.pick(self.choose, picker, changed, **quick)
        upload.upload(self.upload, upload, changed, **quick)
        chips.pick(None, chips, [question, go], js="(v) => [v.chosen, Math.random()]", **quick)
        for chosen in (start.click, question.submit, budget.pick, *(h.pick for h in heads)):
            chosen(None, None, go, js="() => Math.random()", **quick)
        # Every choice ends here. While one comparison runs, only the last of the later ones is remembered.
        running = go.change(
            self.answer, [state, question, budget, *heads], [strip, *bodies], trigger_mode="always_last",
            concurrency_id="model", concurrency_limit=1, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        stop.click(cards.stopped, None, strip, cancels=[running], **quick)


def preview(source: Source, note: str = "") -> str:
    """The chosen picture as the model is shown it."""
    text = f'<p class="vtc-note">{note}</p>' if note else ""
    return f'<img src="{viz.data_url(viz.square(source.image))}" alt="the picture that the question is about">{text}'


def _sentence(error: Exception) -> str:
    text = str(error)
    if "." not in text.split(" ")[0]:  # the name of a file stays as it is
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")
