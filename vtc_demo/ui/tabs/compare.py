"""The tab Compare: a picture, a question, and the answers of two to four methods side by side."""

from __future__ import annotations

import random
import time

import gradio as gr

from vtc_demo import registry
from vtc_demo.core.images import load_rgb
from vtc_demo.figures import pictures
from vtc_demo.figures.colours import colours

from .. import export, share
from ..components import cards, composer, controls, strip
from ..components.preview import preview
from ..results import Results
from ..running import MODEL, NEXT, QUIET, StopButton, follow, sentence
from ..share import View
from ..source import Source

SCENES = (8, 12, 5, 27, 22)  # the first is shown first
COLUMNS = ("fastervlm", "fastv", "random")
TOKENS = 64
QUICK = 1.0  # seconds; a comparison that takes less shows its cards when they are done: waiting ones would only flicker
RETRY = "Try again, or choose another method."
UPLOADED = (
    "This small model knows only its generated world of shapes, colours, numbers and words: "
    "on a picture of your own it shows what is cut and what it costs, not what the picture says."
)
NOT_SHARED = "The link was made with a picture of its sender, which does not travel in links: here is another one."
NOTHING = [gr.skip()] * 6  # leaves strip, export and cards as they are


class Compare:
    """Builds the tab and answers its events. stream: see `serve.streamer`; model: its name, for the snippet."""

    def __init__(self, stream, total: int, small_world: bool, model: str = "embedded"):
        self.stream, self.total, self.small_world, self.model = stream, total, small_world, model
        self.cards = registry.suiting(model)
        self.hues = colours(self.cards)
        self.seconds = 0.0  # of the last whole comparison

    # -- answering ------------------------------------------------------------------------------------------------
    def specs(self, view: View, heads: list[dict]) -> tuple[list[int], list[dict], dict]:
        """(columns shown, their methods as `methods.resolve` reads them, how the cost is made equal). Column 0 is the
        full model. A column with its own number of tokens gives up the equal number for all, not an equal cost."""
        columns, specs = [0], [{"method": "full"}]
        apart = view.match == share.MATCHES[0] and any(h.get("own") for h in view.columns)
        options = {} if apart else {"match": view.match, "tokens": view.tokens}
        for column, head in enumerate(heads, 1):
            if not head.get("on", True):
                continue
            spec = {"method": head["method"], **head.get("params", {})}
            if apart and any(p["name"] == "retention" for p in registry.parameters(head["method"])):
                kept = head["tokens"] if head.get("own") else view.tokens
                spec["retention"] = min(1.0, max(0.01, kept / self.total))
            columns.append(column)
            specs.append(spec)
        return columns, specs, options

    def answer(self, source: Source, question: str, budget: dict, cancel: StopButton, request: float, *heads: dict):
        """The one handler that runs the model: yields the strip, what can be exported, and the four cards."""
        view = View(source, question, budget["tokens"], budget["match"], [h for h in heads if h.get("on", True)])
        results = Results(view, self.hues)

        def problem(text: str) -> tuple:
            left = results.unanswered()  # stop waiting for a result
            given_up = (cards.failed("no answer", results.picture) if c in left else gr.skip() for c in range(4))
            return strip.problem(text), gr.skip(), *given_up

        updates = self._updates(results, list(heads), cancel)
        yield from follow(updates, cancel, request, nothing=NOTHING, problem=problem, retry=RETRY)

    def _updates(self, results: Results, heads: list[dict], cancel: StopButton):
        """One update per event, empty while a quick model is at work, so that Stop is looked at."""
        results.columns, specs, options = self.specs(results.view, heads)
        began, waiting = time.monotonic(), self.seconds >= QUICK
        if waiting:
            yield strip.waiting(results.question), None, *map(results.card, range(4))
        asked = results.source.image, results.question, specs, options
        for kind, index, data in self.stream(*asked, cancel.begin()):
            results.add(kind, index, data)
            if kind == "done":  # drawn again, now on one scale and against the full model wherever that stands
                self.seconds = time.monotonic() - began
                yield results.strip(), self._export(results, specs, options, data), *map(results.card, range(4))
            elif waiting and index is not None:
                changed = results.columns[index]
                yield gr.skip(), gr.skip(), *(results.card(c) if c == changed else gr.skip() for c in range(4))
            elif not waiting and time.monotonic() - began > QUICK:
                waiting = True
                yield strip.waiting(results.question), None, *map(results.card, range(4))
            else:
                yield NOTHING

    def _export(self, results: Results, specs: list[dict], options: dict, comparison: dict) -> dict:
        """What can be exported of a finished comparison."""
        text = export.snippet(self.model, results.source, results.question, specs, options)
        return {"json": comparison, "python": text}

    def first(self, source: Source, question: str, heads: list[dict]) -> list:
        """Strip, export and cards of the first view, really computed."""
        shown, budget = ["", None, "", "", "", ""], {"tokens": TOKENS, "match": share.MATCHES[0]}
        for update in self.answer(source, question, budget, StopButton(), 0.0, *heads):
            shown = [old if isinstance(new, dict) and "__type__" in new else new for old, new in zip(shown, update)]
        return shown

    # -- choosing a picture ---------------------------------------------------------------------------------------
    def choose(self, value: dict):
        seed = value.get("seed")
        return self._chosen(Source.of(random.randrange(1000, 10**6) if seed == "new" else seed))

    def upload(self, path: str):
        try:
            source = Source(pictures.square(load_rgb(path), 2 * pictures.SIDE))
        except ValueError as error:
            return self._refused(error)
        return self._chosen(source, UPLOADED if self.small_world else "")

    def compose(self, value: dict):
        try:
            scene = composer.composed(value)
        except ValueError as error:
            return self._refused(error)
        return self._chosen(Source(scene.image, scene))

    def _chosen(self, source: Source, note: str = "", question: str = ""):
        """source, preview, question, chips, strip (left alone), and a number that starts the comparison."""
        asked = source.suggestions()
        chips = {"questions": asked, "chosen": ""}
        return source, preview(source.image, note), question or asked[0], chips, gr.skip(), random.random()

    @staticmethod
    def _refused(error: ValueError):
        return *[gr.skip()] * 4, strip.problem(sentence(error)), gr.skip()

    # -- links ----------------------------------------------------------------------------------------------------
    def restore(self, text: str, source: Source):
        """The view that the page's address names: as `_chosen`, then the picker, the budget and the heads."""
        heads = [h.value for h in self.heads]
        first = View(source, self.asked, TOKENS, share.MATCHES[0], heads)
        try:
            view = share.read(text, first, self.total)
            for head in view.columns if view else ():
                registry.check_suits(head["method"], self.model)
        except ValueError as error:
            known = f"This link cannot be restored: {str(error)[:300].rstrip('.')}. Here is the first view instead"
            return *self._refused(ValueError(known)), *[gr.skip()] * 5
        if view is None:
            return [gr.skip()] * 11
        note = NOT_SHARED if view.uploaded else ""
        shown = [*view.columns, *({**head, "on": False} for head in heads[len(view.columns) :])]
        budget = {"tokens": view.tokens, "total": self.total, "match": view.match}
        found = view.source or source
        return *self._chosen(found, note, view.question), {"seed": found.seed}, budget, *shown

    # -- the tab --------------------------------------------------------------------------------------------------
    def build(self, page: gr.Blocks) -> None:
        source = Source.of(SCENES[0])
        asked = source.suggestions()
        self.asked = asked[0]
        state, cancel, finished = gr.State(source), gr.State(StopButton()), gr.State(None)
        go = gr.Number(0, visible="hidden", elem_id="vtc-go")
        with gr.Row(elem_classes="vtc-page"):
            with gr.Column(elem_classes="vtc-rail"):
                with gr.Column(elem_classes="vtc-panel"):
                    controls.heading("Picture")
                    shown = gr.HTML(preview(source.image), apply_default_css=False, elem_id="vtc-preview")
                    urls = [(s, pictures.data_url(Source.of(s).image.resize((96, 96)), 85)) for s in SCENES]
                    picker = controls.pictures(urls, SCENES[0])
                    composing = composer.Composer()
                    with gr.Row(elem_classes="vtc-sources"):
                        composing.build()
                        upload = gr.UploadButton(
                            "Your own picture", file_types=["image"], elem_id="vtc-upload", size="sm"
                        )
                with gr.Column(elem_classes="vtc-panel"):
                    controls.heading("Question")
                    question = gr.Textbox(
                        asked[0], show_label=False, container=False, max_length=share.QUESTION, lines=1, max_lines=3,
                        placeholder="Ask about the picture", elem_id="vtc-question", label="Question",
                    )  # fmt: skip
                    chips = controls.chips(asked)
                with gr.Column(elem_classes="vtc-panel"):
                    controls.heading("Compression")
                    budget = controls.budget(TOKENS, self.total, self.small_world)
                with gr.Row(elem_classes="vtc-actions"):
                    start = gr.Button("Compare", variant="primary", elem_id="vtc-compare")
                    stop = gr.Button("Stop", variant="secondary", elem_id="vtc-stop", min_width=60)
            heads, bodies = [], []
            with gr.Column(elem_classes="vtc-results"):
                above = gr.HTML(apply_default_css=False, elem_id="vtc-strip")
                with gr.Row(elem_classes="vtc-columns"):
                    for column in range(4):
                        with gr.Column(elem_classes=["vtc-col", f"vtc-col-{column}"]):
                            heads.append(self._head(column))
                            bodies.append(gr.HTML(apply_default_css=False, elem_classes="vtc-result"))
                taking = controls.export()
        self.heads = heads[1:]
        first = self.first(source, asked[0], [h.value for h in self.heads])
        for component, value in zip([above, finished, *bodies], first):
            component.value = value
        changed, drawn = [state, shown, question, chips, above, go], [above, finished, *bodies]
        composing.wire(state, self.compose, changed)
        self._choose_wires(changed, picker, upload, chips)
        page.load(
            self.restore, [gr.Textbox(visible=False), state], [*changed, picker, budget, *self.heads],
            js="(text, state) => [location.search, state]", **QUIET,
        )  # fmt: skip
        for chosen in (start.click, question.submit, budget.pick, *(h.pick for h in self.heads)):
            chosen(None, None, go, js=NEXT, **QUIET)
        # Every choice ends here. While one comparison runs, only the last of the later ones is remembered.
        go.change(self.answer, [state, question, budget, cancel, go, *self.heads], drawn, **MODEL)
        stop.click(_stop, [cancel, go], above, **QUIET)
        taking.pick(_export, [taking, finished], taking, **QUIET)

    def _choose_wires(self, changed, picker, upload, chips) -> None:
        picker.pick(self.choose, picker, changed, **QUIET)
        upload.upload(self.upload, upload, changed, **QUIET)
        chips.pick(None, chips, [changed[2], changed[5]], js="(v) => [v.chosen, Math.random()]", **QUIET)

    def _head(self, column: int) -> gr.HTML:
        if column == 0:
            full = next(c for c in self.cards if c.name == "full")
            return gr.HTML(controls.reference(full), apply_default_css=False, elem_classes=["vtc-control", "vtc-head"])
        entries = {c.name: controls.entry(c, registry.parameters(c.name)) for c in self.cards}
        known = [c for c in COLUMNS if c in entries] or ["random"]
        return controls.head(column + 1, known[(column - 1) % len(known)], self.cards, self.hues, entries)


def _stop(cancel: StopButton, request: float) -> str:
    cancel.press(request)
    return strip.stopped()


def _export(value: dict, finished: dict | None) -> dict:
    """What a visitor takes along: {"want", "text", "problem"}; want: "json" or "python"."""
    want = value.get("want")
    if finished is None:
        return {"want": want, "text": "", "problem": "There is no finished comparison yet; press Compare first."}
    text = export.as_json(finished["json"]) if want == "json" else finished["python"]
    return {"want": want, "text": text, "problem": ""}
