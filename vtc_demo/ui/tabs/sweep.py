"""The tab Sweep: accuracy and surviving evidence of many methods against what they cost, recorded or measured now."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape
from itertools import groupby
from typing import Any

import gradio as gr

from vtc_demo import registry, world
from vtc_demo.core.assets import MEASUREMENTS
from vtc_demo.evaluation import records, sweep
from vtc_demo.figures import colours
from vtc_demo.figures import sweep as figures_sweep

from .. import serve
from ..components import controls
from ..running import QUIET, Cancel

RECORD = MEASUREMENTS / "embedded_sweep.json"
TOKENS = (16, 32, 64, 128, 192, 288)
CHOSEN = {"tokens": (64, 192), "scenes": 5}
SHOWN = ("fastervlm", "visionzip", "divprune", "fastv", "pyramiddrop")
PER_SCENE = 4  # questions per scene at most, as the sweep asks them
MAX_SCENES = 200
MAX_SECONDS = 180  # of one run on the page: others wait for the model meanwhile
GPU_SECONDS = 60
TICK, REDRAW = 0.4, 2.0  # seconds between two reports of progress, and between two drawings of what there is so far
FAILED = "Something went wrong on our side. Try again with fewer methods."


def runner(vlm) -> Callable[[list, list, int, list], Iterator[tuple[str, Any]]]:
    """The one function that runs the model: (methods, tokens, questions, kinds) -> (kind, data) as plain data.

    Kinds: "progress" (see `SweepEvent`), "partial" and "done" (record), "late" (the record when time was up, or None
    if not one scene was done). Bad input raises ValueError.
    """

    def events(chosen: list, tokens: list, questions: int, kinds: list) -> Iterator[tuple[str, Any]]:
        begun = told = drawn = time.monotonic()
        record = None
        with closing(sweep.sweep_events(vlm, chosen, tokens, questions=questions, kinds=kinds)) as stream:
            for kind, data in stream:
                now = time.monotonic()
                if kind == "done":
                    yield kind, data
                elif kind == "partial":
                    record = data()
                    if now - drawn > REDRAW:
                        drawn = now
                        yield kind, record
                elif now - begun > MAX_SECONDS:
                    yield "late", record
                    return
                elif now - told > TICK:
                    told = now
                    yield kind, data | {"seconds": now - begun}

    return serve.gpu(events, GPU_SECONDS)


class Sweep:
    """Builds the tab and answers its events. run: see `runner`; model: its name."""

    def __init__(self, run, patches: int, model: str = "embedded"):
        self.run, self.patches, self.model = run, patches, model
        self.cards = registry.suiting(model)
        self.hues = colours.colours(self.cards)
        self.recorded = records.read(RECORD) if RECORD.exists() else None

    # -- reading what the page sends ------------------------------------------------------------------------------
    def read(self, plan: dict) -> tuple[list[str], list[int], int, list[str]]:
        """(methods, tokens, questions, kinds) of a run. Raises ValueError for what the page would not send."""
        chosen, tokens, kinds, scenes = (plan.get(name) for name in ("methods", "tokens", "kinds", "scenes"))
        if not all(isinstance(x, list) for x in (chosen, tokens, kinds)):
            raise ValueError("methods, tokens and kinds must be lists")
        if isinstance(scenes, bool) or not isinstance(scenes, int) or not 1 <= scenes <= MAX_SCENES:
            raise ValueError(f"choose 1 to {MAX_SCENES} scenes, got {scenes!r}")
        if not tokens or not kinds:
            raise ValueError(f"choose at least one {'number of visual tokens' if not tokens else 'kind of question'}")
        questions = scenes * min(PER_SCENE, len(kinds))
        for name in chosen:
            registry.check_suits(str(name), self.model)
        sweep.plan(chosen, tokens, self.patches, questions, kinds)
        return chosen, tokens, questions, kinds

    def shown(self, plan: dict) -> set[str]:
        chosen = plan.get("methods")
        return {*sweep.BASELINES, *(m for m in chosen if isinstance(m, str))} if isinstance(chosen, list) else set()

    # -- answering ------------------------------------------------------------------------------------------------
    def measure(self, plan: dict, cancel: Cancel, request: float, shown: dict | None = None):
        """Runs the model: yields (status, record, a number that starts the drawing) as results arrive."""
        pressed = cancel.presses
        try:
            if request == cancel.request:  # stopped while it was waiting for its turn
                yield gr.skip(), gr.skip(), gr.skip()
                return
            chosen, tokens, questions, kinds = self.read(plan)
            yield running(READY), gr.skip(), gr.skip()
            with closing(self.run(chosen, tokens, questions, kinds)) as events:
                for kind, data in events:
                    if cancel.presses != pressed:
                        yield stopped(shown), gr.skip(), gr.skip()  # again: progress may have come after it
                        return
                    shown = shown if kind == "progress" else data or shown
                    yield self.told(kind, data)
        except ValueError as error:
            yield problem(str(error)), gr.skip(), gr.skip()
        except Exception:
            logging.exception("a sweep failed")
            yield problem(FAILED), gr.skip(), gr.skip()

    @staticmethod
    def told(kind: str, data) -> tuple:
        """(status, record, a number that starts the drawing) for one event of a run."""
        if kind == "progress":
            return running(data), gr.skip(), gr.skip()
        if data is None:
            return problem(f"Not one scene was done within {MAX_SECONDS} seconds. {SHORTER}"), gr.skip(), gr.skip()
        return gr.skip() if kind == "partial" else measured(data, kind), data, random.random()

    def draw(self, record: dict | None, plan: dict, axes: dict):
        """(figure, table, remark under the controls) for a record; no model is needed."""
        try:
            figure, table = self.view(record, plan, axes)
            return figure, table, self.remark(record, plan)
        except ValueError as error:
            return gr.skip(), gr.skip(), f'<p class="vtc-note">{escape(str(error))}</p>'

    def view(self, record: dict | None, plan: dict, axes: dict):
        if record is None:
            return None, '<p class="vtc-note">No sweep is recorded yet. Press Run to measure one.</p>'
        measure, kind, cost = (axes.get(name) for name in ("measure", "kind", "cost"))
        if measure not in figures_sweep.MEASURES or cost not in figures_sweep.COSTS:
            raise ValueError("choose what the axes show")
        if kind not in (figures_sweep.ALL, *world.KINDS):
            raise ValueError(f"there is no kind of question {kind!r}")
        shown = self.shown(plan)
        options = {"measure": measure, "kind": kind}
        figure = figures_sweep.curves(
            record, shown, self.hues, cost_name=cost, bands=bool(axes.get("bands")), **options
        )
        return figure, figures_sweep.table(record, shown, self.hues, **options)

    def remark(self, record: dict | None, plan: dict) -> str:
        """How much a run would be, which of the chosen methods the figure lacks, and the same as a command."""
        chosen, tokens, questions, kinds = self.read(plan)
        passes = sweep.plan(chosen, tokens, self.patches, questions, kinds).passes
        text = f"{questions} questions, {passes} passes; it ends after {MAX_SECONDS // 60} minutes with what is done."
        have = {row["method"]["method"] for row in record["rows"]} if record else set()
        missing = [card.title for card in self.cards if card.name in chosen and card.name not in have]
        if record and missing:
            text += f" Not in the figure before a run: {', '.join(missing)}."
        return f'<p class="vtc-note">{escape(text)}</p>{shell(chosen, tokens, questions, kinds)}'

    # -- the tab --------------------------------------------------------------------------------------------------
    def build(self) -> None:
        record, cancel = gr.State(self.recorded), gr.State(Cancel())
        drawn, go = gr.Number(0, visible="hidden"), gr.Number(0, visible="hidden")
        text = gr.Textbox("", visible="hidden")
        with gr.Row(elem_classes=["vtc-page", "vtc-sweep"]):
            with gr.Column(elem_classes="vtc-rail"):
                plan = self._plan()
                with gr.Row(elem_classes="vtc-actions"):
                    start = gr.Button("Run", variant="primary", elem_id="vtc-sweep-run")
                    stop = gr.Button("Stop", variant="secondary", elem_id="vtc-sweep-stop", min_width=60)
                note = gr.HTML(apply_default_css=False, elem_id="vtc-sweep-note")
            with gr.Column(elem_classes="vtc-results"):
                status = gr.HTML(recorded(self.recorded), apply_default_css=False, elem_id="vtc-sweep-status")
                with gr.Column(elem_classes="vtc-panel"):
                    axes = _axes()
                    figure, rows, note.value = self.draw(self.recorded, plan.value, axes.value)
                    plot = gr.Plot(figure, show_label=False, container=False, elem_id="vtc-sweep-plot")
                with gr.Column(elem_classes="vtc-panel"):
                    table = gr.HTML(rows, apply_default_css=False, elem_id="vtc-sweep-table")
                    with gr.Row(elem_classes="vtc-downloads"):
                        files = [gr.Button(f"Download {kind}", size="sm", min_width=120) for kind in ("CSV", "JSON")]
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML(READ, apply_default_css=False)
        self._wire_view(record, drawn, plan, note, axes, plot, table)
        self._wire_run(record, drawn, plan, start, stop, status, cancel, go)
        self._wire_files(record, text, files)

    def _wire_view(self, record, drawn, plan, note, axes, plot, table) -> None:
        for changed in (plan.pick, axes.pick, drawn.change):
            changed(self.draw, [record, plan, axes], [plot, table, note], trigger_mode="always_last", **QUIET)

    def _wire_run(self, record, drawn, plan, start, stop, status, cancel, go) -> None:
        start.click(lambda: running(WAITING), None, status, **QUIET)
        start.click(None, None, go, js="() => Math.random()", **QUIET)
        go.change(
            self.measure, [plan, cancel, go, record], [status, record, drawn], trigger_mode="always_last",
            concurrency_id="model", concurrency_limit=1, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        stop.click(stop_run, [cancel, go, record], status, **QUIET)

    def _wire_files(self, record, text, files) -> None:
        for button, kind, write in zip(files, ("csv", "json"), (records.to_csv, records.to_json), strict=True):
            sent = button.click(lambda r, write=write: write(r) if r else "", record, text, **QUIET)
            sent.then(None, text, None, js=f"(text) => window.vtc.save('sweep.{kind}', text)", **QUIET)

    def _plan(self) -> gr.HTML:
        """What to run and show. value: {"methods", "tokens", "kinds", "scenes"}."""
        known = [card.name for card in self.cards]
        value = {
            "methods": [name for name in SHOWN if name in known],
            "tokens": [n for n in CHOSEN["tokens"] if n < self.patches],
            "kinds": list(world.KINDS),
            "scenes": CHOSEN["scenes"],
        }
        return controls.control("sweep_plan", value, self._plan_markup(value))

    def _plan_markup(self, value: dict) -> str:
        others = [card for card in self.cards if card.name not in sweep.BASELINES]
        families = list(dict.fromkeys(card.family for card in others))
        others.sort(key=lambda card: families.index(card.family))
        groups = "".join(
            f"<fieldset><legend>{escape(family[:1].upper() + family[1:])}</legend>"
            + "".join(tick("methods", c.name, c.title, c.name in value["methods"], self.hues[c.name]) for c in group)
            + "</fieldset>"
            for family, group in groupby(others, key=lambda card: card.family)
        )
        budgets = "".join(tick("tokens", n, n, n in value["tokens"]) for n in TOKENS if n < self.patches)
        kinds = "".join(tick("kinds", kind, kind, True) for kind in world.KINDS)
        picks = "".join(
            f'<button type="button" data-pick="{pick}">{text}</button>'
            for pick, text in (("all", "All"), ("none", "Baselines only"))
        )
        scenes = f'<input type="range" min="5" max="{MAX_SCENES}" step="5" value="{value["scenes"]}">'
        return (
            '<section class="vtc-panel"><h2 class="vtc-h">Methods, shown and run</h2>'
            f'<div class="marks">{picks}</div>{groups}<p class="vtc-note">The baselines are always in.</p></section>'
            '<section class="vtc-panel"><h2 class="vtc-h">A run of your own</h2>'
            f"<fieldset><legend>Visual tokens kept, of {self.patches}</legend>{budgets}</fieldset>"
            f"<fieldset><legend>Kinds of question</legend>{kinds}</fieldset>"
            f'<label class="scenes"><span>Held-out scenes</span><output></output>{scenes}</label></section>'
        )


READY, WAITING = ({"done": 0, "total": 0, "label": t, "seconds": 0} for t in ("getting ready", "waiting for its turn"))
SHORTER = "Choose fewer methods, or run it from the shell, where there is no limit."
READ = """<details class="vtc-prose"><summary>How to read this</summary>
<p>Every point asks one method, at one budget, the same questions about generated scenes that no training saw; each
kind is asked equally often. <b>Accuracy</b> is the share of exact answers, its band the 95 % Wilson interval.
<b>Evidence</b> is the share of the patches that carry the answer which are kept or merged at the end of the pass, its
band a 95 % bootstrap interval over scenes. Merged counts as surviving, so pooling and the smaller image keep all of
it, however blurred.</p>
<p>▲ and ▼ mark a budget at which a method does better or worse than <b>random</b> on the same questions: the 95 %
bootstrap interval of the difference, over scenes, leaves out nought. Each mark stands for itself; among dozens a few
arise by chance.</p>
<p>The budget is what a method was asked to keep; the axis shows what it really kept. Methods that cut inside the
language model let all tokens into its first layers: compare them by the mean per layer or by FLOPs. Time is one pass
per question, the median over questions; the vision pass is made once per picture, and its measured time counts for
every method that shares it.</p></details>"""


def tick(group: str, value, text, on: bool, hue: str = "") -> str:
    style = f' style="--m:{hue}"' if hue else ""
    return (
        f'<label class="tick"{style}><input type="checkbox" data-group="{group}" value="{escape(str(value))}"'
        f"{' checked' if on else ''}><span>{escape(str(text))}</span></label>"
    )


def _axes() -> gr.HTML:
    """What the figure shows. value: {"measure", "kind", "cost", "bands"}."""
    value = {"measure": "accuracy", "kind": figures_sweep.ALL, "cost": "final_tokens", "bands": True}
    kinds = {figures_sweep.ALL: "all kinds"} | {kind: kind for kind in world.KINDS}
    parts = (
        ("measure", "Show", figures_sweep.MEASURES),
        ("kind", "on", kinds),
        ("cost", "against", figures_sweep.COSTS),
    )
    selects = "".join(_select(name, label, choices) for name, label, choices in parts)
    bands = '<label class="tick"><input type="checkbox" data-axis="bands" checked><span>95 % bands</span></label>'
    return controls.control("sweep_axes", value, f'<div class="axes">{selects}{bands}</div>')


def _select(name: str, label: str, choices: dict[str, str]) -> str:
    options = "".join(f'<option value="{escape(k)}">{escape(text)}</option>' for k, text in choices.items())
    return f'<label>{label} <select data-axis="{name}">{options}</select></label>'


# -- the strip on top -----------------------------------------------------------------------------------------------
def strip(what: str, more: str = "", bar: str = "", state: str = "") -> str:
    return (
        f'<div class="vtc-strip {state}" role="status"><div class="vtc-said"><p class="what">{what}</p>'
        f'<p class="time">{more}</p>{bar}</div></div>'
    )


def recorded(record: dict | None) -> str:
    if record is None:
        return strip("No sweep is recorded here yet. Press Run to measure one.")
    return strip(escape(figures_sweep.summary(record)), f"Recorded: {escape(figures_sweep.provenance(record))}")


def measured(record: dict, kind: str) -> str:
    how = "Measured just now" if kind == "done" else f"Time was up after {MAX_SECONDS} seconds; what was done"
    left = {p["method"]["method"]: p["reason"] for p in record["left_out"]}
    more = [figures_sweep.provenance(record), *(f"{name} is left out: {why}" for name, why in left.items())]
    return strip(escape(figures_sweep.summary(record)), escape(f"{how}: {'. '.join(more)}"))


def running(data: dict) -> str:
    done, total, seconds = data["done"], data["total"], data["seconds"]
    more = escape(data["label"])
    if done:
        left = min(MAX_SECONDS, seconds * total / done) - seconds
        more = f"{done} of {total} passes · {more} · about {_duration(left)} left"
    bar = (
        f'<div class="vtc-progress" role="progressbar" aria-label="passes done" aria-valuenow="{done}" '
        f'aria-valuemin="0" aria-valuemax="{total}"><span style="width:{100 * done / max(1, total):.1f}%"></span></div>'
    )
    return strip("Measuring", more, bar, "is-running")


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def stop_run(cancel: Cancel, request: float, record: dict | None) -> str:
    cancel.press(request)
    return stopped(record)


def stopped(record: dict | None) -> str:
    """The record that the page holds when a run is stopped: the run's, as far as it was drawn, or the one before."""
    more = escape(figures_sweep.provenance(record)) if record else ""
    return strip("Stopped. The figure shows what was drawn last.", more)


def problem(text: str) -> str:
    said = f'<div class="vtc-said vtc-problem" role="alert"><p class="what">{escape(text)}</p></div>'
    return f'<div class="vtc-strip">{said}</div>'


def shell(chosen: list[str], tokens: list[int], questions: int, kinds: list[str]) -> str:
    """The run as a command, to be copied."""
    words = ["python -m vtc_demo sweep", *(["--methods", *chosen] if chosen else []), "--tokens", *map(str, tokens)]
    words += ["--questions", str(questions), *(["--kinds", *kinds] if len(kinds) < len(world.KINDS) else [])]
    command = escape(" ".join([*words, "--out", "sweep.json"]))
    return f'<details class="vtc-shell"><summary>The same from the shell</summary><code>{command}</code></details>'
