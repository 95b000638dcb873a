"""The tab Sweep: accuracy and surviving evidence of many methods against what they cost, recorded or measured now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from vtc_demo import registry, world
from vtc_demo.core.assets import MEASUREMENTS
from vtc_demo.evaluation import records, sweep
from vtc_demo.figures import sweep as figures_sweep
from vtc_demo.figures.colours import colours
from vtc_demo.figures.render import render

from .. import serve
from ..components import controls, status
from ..running import MODEL, NEXT, QUIET, StopButton, measure, sentence

RECORD = MEASUREMENTS / "embedded_sweep.json"
TOKENS = (16, 32, 64, 128, 192, 288)
CHOSEN: dict[str, Any] = {"tokens": (64, 192), "scenes": 5}
SHOWN = ("fastervlm", "visionzip", "divprune", "fastv", "pyramiddrop")
PER_SCENE = 4  # questions per scene at most, as the sweep asks them
MAX_SCENES = 200
MAX_SECONDS = 180  # of one run on the page: others wait for the model meanwhile
GPU_SECONDS = 60
TICK, REDRAW = 0.4, 2.0  # seconds between two reports of progress, and between two drawings of what there is so far
RETRY = "Try again with fewer methods."


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
        self.hues = colours(self.cards)
        self.recorded = records.read(RECORD) if RECORD.exists() else None

    # -- reading what the page sends ------------------------------------------------------------------------------
    def read(self, plan: dict) -> tuple[list[str], list[int], int, list[str]]:
        """(methods, tokens, questions, kinds) of a run. Raises ValueError for what the page would not send."""
        given: list[Any] = [plan.get(name) for name in ("methods", "tokens", "kinds", "scenes")]
        chosen, tokens, kinds, scenes = given
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
    def measure(self, plan: dict, cancel: StopButton, request: float, shown: dict | None = None):
        """Runs the model: yields (status, record, a number that starts the drawing) as results arrive."""
        yield from measure(self._updates(plan), cancel, request, shown, stopped=stopped, retry=RETRY)

    def _updates(self, plan: dict):
        """(status, record or None) as results arrive."""
        asked = self.read(plan)
        yield running(READY), None
        with closing(self.run(*asked)) as events:
            for kind, data in events:
                yield told(kind, data)

    def draw(self, record: dict | None, plan: dict, axes: dict):
        """(figure, table, remark under the controls) for a record; no model is needed."""
        try:
            figure, table = self.view(record, plan, axes)
            return figure, table, self.remark(record, plan)
        except ValueError as error:
            return gr.skip(), gr.skip(), controls.note(sentence(error))

    def view(self, record: dict | None, plan: dict, axes: dict):
        if record is None:
            return None, controls.note("No sweep is recorded yet. Press Run to measure one.")
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
        return controls.note(text) + shell(chosen, tokens, questions, kinds)

    # -- the tab --------------------------------------------------------------------------------------------------
    def build(self) -> None:
        record, cancel = gr.State(self.recorded), gr.State(StopButton())
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
                said = gr.HTML(recorded(self.recorded), apply_default_css=False, elem_id="vtc-sweep-status")
                with gr.Column(elem_classes="vtc-panel"):
                    axes = _axes()
                    figure, rows, note.value = self.draw(self.recorded, plan.value, axes.value)
                    plot = gr.Plot(figure, show_label=False, container=False, elem_id="vtc-sweep-plot")
                with gr.Column(elem_classes="vtc-panel"):
                    table = gr.HTML(rows, apply_default_css=False, elem_id="vtc-sweep-table")
                    with gr.Row(elem_classes="vtc-downloads"):
                        files = [gr.Button(f"Download {kind}", size="sm", min_width=120) for kind in ("CSV", "JSON")]
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML(render("ui/tabs/sweep_read.html"), apply_default_css=False)
        self._wire_view(record, drawn, plan, note, axes, plot, table)
        self._wire_run(record, drawn, plan, start, stop, said, cancel, go)
        self._wire_files(record, text, files)

    def _wire_view(self, record, drawn, plan, note, axes, plot, table) -> None:
        for changed in (plan.pick, axes.pick, drawn.change):
            changed(self.draw, [record, plan, axes], [plot, table, note], trigger_mode="always_last", **QUIET)

    def _wire_run(self, record, drawn, plan, start, stop, said, cancel, go) -> None:
        start.click(lambda: running(WAITING), None, said, **QUIET)
        start.click(None, None, go, js=NEXT, **QUIET)
        go.change(self.measure, [plan, cancel, go, record], [said, record, drawn], **MODEL)
        stop.click(stop_run, [cancel, go, record], said, **QUIET)

    def _wire_files(self, record, text, files) -> None:
        for button, kind, write in zip(files, ("csv", "json"), (records.to_csv, records.to_json), strict=True):
            sent = button.click(lambda r, write=write: write(r) if r else "", record, text, **QUIET)
            sent.then(None, text, None, js=f"(text) => window.vtc.save('sweep.{kind}', text)", **QUIET)

    def _plan(self) -> gr.HTML:
        """What to run and show. value: {"methods", "tokens", "kinds", "scenes"}."""
        known = [card.name for card in self.cards]
        value: dict[str, Any] = {
            "methods": [name for name in SHOWN if name in known],
            "tokens": [n for n in CHOSEN["tokens"] if n < self.patches],
            "kinds": list(world.KINDS),
            "scenes": CHOSEN["scenes"],
        }
        return controls.control("sweep_plan", value, self._plan_markup(value))

    def _plan_markup(self, value: dict) -> str:
        others = [card for card in self.cards if card.name not in sweep.BASELINES]
        budgets = [n for n in TOKENS if n < self.patches]
        values = {"families": controls.by_family(others), "hues": self.hues, "patches": self.patches}
        return render("ui/tabs/sweep_plan.html", chosen=value, budgets=budgets, most=MAX_SCENES, **values)


READY, WAITING = ({"done": 0, "total": 0, "label": t, "seconds": 0} for t in ("getting ready", "waiting for its turn"))
SHORTER = "Choose fewer methods, or run it from the shell, where there is no limit."


def _axes() -> gr.HTML:
    """What the figure shows. value: {"measure", "kind", "cost", "bands"}."""
    value = {"measure": "accuracy", "kind": figures_sweep.ALL, "cost": "final_tokens", "bands": True}
    kinds = {figures_sweep.ALL: "all kinds"} | {kind: kind for kind in world.KINDS}
    parts = (
        ("measure", "Show", figures_sweep.MEASURES),
        ("kind", "on", kinds),
        ("cost", "against", figures_sweep.COSTS),
    )
    return controls.control("sweep_axes", value, render("ui/tabs/sweep_axes.html", parts=parts))


# -- the strip on top -----------------------------------------------------------------------------------------------
def recorded(record: dict | None) -> str:
    if record is None:
        return status.said("No sweep is recorded here yet. Press Run to measure one.")
    return status.said(figures_sweep.summary(record), f"Recorded: {figures_sweep.provenance(record)}")


def told(kind: str, data) -> tuple[Any, dict | None]:
    """(status, record or None) for one event of a run."""
    if kind == "progress":
        return running(data), None
    if data is None:
        return status.problem(f"Not one scene was done within {MAX_SECONDS} seconds. {SHORTER}"), None
    return gr.skip() if kind == "partial" else measured(data, kind), data


def measured(record: dict, kind: str) -> str:
    how = "Measured just now" if kind == "done" else f"Time was up after {MAX_SECONDS} seconds; what was done"
    left = {p["method"]["method"]: p["reason"] for p in record["left_out"]}
    more = [figures_sweep.provenance(record), *(f"{name} is left out: {why}" for name, why in left.items())]
    return status.said(figures_sweep.summary(record), f"{how}: {'. '.join(more)}")


def running(data: dict) -> str:
    done, total, seconds, more = data["done"], data["total"], data["seconds"], data["label"]
    if done:
        left = min(MAX_SECONDS, seconds * total / done) - seconds
        more = f"{done} of {total} passes · {more} · about {_duration(left)} left"
    return status.running(more, bar="passes done", now=done, most=total, percent=100 * done / max(1, total))


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def stop_run(cancel: StopButton, request: float, record: dict | None) -> str:
    cancel.press(request)
    return stopped(record)


def stopped(record: dict | None) -> str:
    """The record that the page holds when a run is stopped: the run's, as far as it was drawn, or the one before."""
    more = figures_sweep.provenance(record) if record else ""
    return status.said("Stopped. The figure shows what was drawn last.", more)


def shell(chosen: list[str], tokens: list[int], questions: int, kinds: list[str]) -> str:
    """The run as a command, to be copied."""
    words = ["python -m vtc_demo sweep", *(["--methods", *chosen] if chosen else []), "--tokens", *map(str, tokens)]
    words += ["--questions", str(questions), *(["--kinds", *kinds] if len(kinds) < len(world.KINDS) else [])]
    return controls.shell(" ".join([*words, "--out", "sweep.json"]))
