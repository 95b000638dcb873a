"""The tab Latency lab: what compression gains at the shapes of real models, recorded or measured on this machine."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import gradio as gr
import torch

from vtc_demo import registry
from vtc_demo.benchmark import lab
from vtc_demo.benchmark.lab import report
from vtc_demo.benchmark.lab.settings import prompt_batches
from vtc_demo.core.assets import MEASUREMENTS
from vtc_demo.figures import lab as figures_lab
from vtc_demo.figures.colours import colours
from vtc_demo.figures.render import render

from .. import serve
from ..components import controls, status
from ..running import MODEL, NEXT, QUIET, StopButton, measure, only, sentence

RECORDS = MEASUREMENTS
BATCHES, PROMPTS = (1, 8, 32, 128), (1, 8, 32)
ANSWERS = (1, 16, 64, 256, 1024)  # tokens
VIEW = {"batch": 8, "prompts": 8, "answer": 64}
SHARES = (3, 9, 18)  # of the visual tokens, one in so many is left: 192, 64 and 32 of 576
CHOSEN: dict[str, Any] = {
    "shape": "llava-1.5-7b", "methods": ["fastervlm", "fastv"], "shares": [9], "batches": [1, 8],
    "prompts": list(prompt_batches("cuda" if torch.cuda.is_available() else "cpu")), "seconds": 40,
}  # fmt: skip
MAX_METHODS, MIN_SECONDS, MAX_SECONDS = 5, 5, 60
GPU_SECONDS = MAX_SECONDS + 20
TICK = 0.3  # seconds between two reports of progress
NOW = "measured now"
RETRY = "Try again, or choose a smaller shape."


def runner() -> Callable[[dict], Iterator[tuple[str, Any]]]:
    """The one function that measures: settings as a dict -> events of `lab.stream` as plain data, not too many."""

    def events(settings: dict) -> Iterator[tuple[str, Any]]:
        told = 0.0
        with closing(lab.stream(lab.Settings(**settings))) as stream:
            for kind, data in stream:
                if kind != "progress" or time.monotonic() - told > TICK:
                    told = time.monotonic()
                    yield kind, data

    return serve.gpu(events, GPU_SECONDS)


def recorded() -> dict[str, dict]:
    """Records that come with the repository, by what they were recorded on."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDS.glob("lab-*.json"))]
    return {f"{record['title']} on {record['environment']['device']}": record for record in found}


class Lab:
    """Builds the tab and answers its events. run: see `runner`."""

    def __init__(self, run):
        self.run = run
        self.cards = [card for card in lab.offered() if card.name != "full"]
        self.hues = colours(registry.list_methods())
        self.recorded = recorded()

    # -- reading what the page sends ------------------------------------------------------------------------------
    def read(self, plan: dict) -> dict:
        """The settings of a run. Raises ValueError for what the page would not send."""
        given: list[Any] = [plan.get(k) for k in CHOSEN]
        name, chosen, shares, batches, prompts, seconds = given
        if not all(isinstance(x, list) and x for x in (chosen, shares, batches, prompts)):
            raise ValueError("Choose at least one method, one number of tokens and one batch each")
        if len(chosen) > MAX_METHODS:
            raise ValueError(f"Choose up to {MAX_METHODS} methods; the shell takes more")
        if not set(shares) <= set(SHARES) or not set(batches) <= set(BATCHES) or not set(prompts) <= set(PROMPTS):
            raise ValueError("That number of tokens, prompts or answers is not on offer")
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise ValueError(f"A run may take {MIN_SECONDS} to {MAX_SECONDS} seconds here")
        for method in chosen:
            lab.check(str(method))
        visual = lab.pick(str(name)).visual
        tokens = sorted({visual // share for share in shares}, reverse=True)
        return {
            "shape": name, "methods": tuple(map(str, chosen)), "tokens": tuple(tokens),
            "batches": tuple(sorted(batches)), "prefill_batches": tuple(sorted(prompts)), "seconds": float(seconds),
        }  # fmt: skip

    # -- answering ------------------------------------------------------------------------------------------------
    def measure(self, plan: dict, cancel: StopButton, request: float, shown: dict | None = None):
        """Measures: yields (status, record, a number that starts the drawing)."""
        yield from measure(self._updates(plan), cancel, request, shown, stopped=stopped, retry=RETRY)

    def _updates(self, plan: dict):
        """(status, record or None) as events arrive."""
        stage = ""
        with closing(self.run(self.read(plan))) as events:
            for kind, data in events:
                if kind == "record":
                    yield told(data, "Measured just now"), data
                else:
                    stage, share = (data, 0) if kind == "stage" else (stage, data)
                    yield running(stage, share), None

    def draw(self, record: dict | None, view: dict):
        """(first token, prefill, decode step, roofline, words, table) of a record; nothing is measured."""
        if record is None:
            return *[None] * 4, "", controls.note("Nothing is recorded yet. Press Run to measure.")
        given = {"decode": view.get("batch"), "batched_prefill": view.get("prompts")}
        answer, asked = view.get("answer"), {part: n if isinstance(n, int) else 8 for part, n in given.items()}
        shown = {part: nearest(record, part, n) for part, n in asked.items()}
        answer = min(4096, max(1, answer)) if isinstance(answer, int) else 64
        batch, prompts = shown.values()
        figures = [figures_lab.first_token(record)]
        figures += [figures_lab.by_batch(record, part, shown[part]) for part in ("batched_prefill", "decode")]
        remarks = [other(part, n, shown[part]) for part, n in asked.items() if n != shown[part]]
        table = figures_lab.table(record, batch, answer, self.hues, prompts)
        return *figures, figures_lab.roofline(record, batch, prompts), words(record, batch, prompts, remarks), table

    def choose(self, name: str):
        """A recorded experiment in place of what is shown: (status, record, a number that starts the drawing)."""
        record = self.recorded.get(name)
        if record is None:
            return only(gr.skip())
        return told(record, "Recorded"), record, random.random()

    def remark(self, plan: dict) -> str:
        """The run as a command, or what is wrong with it."""
        try:
            settings = self.read(plan)
        except ValueError as error:
            return controls.note(f"{error}.")
        lists = {k: " ".join(map(str, settings[k])) for k in ("methods", "tokens", "batches", "prefill_batches")}
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in lists.items())
        command = f"python -m vtc_demo lab --shape {settings['shape']} {options} --seconds {settings['seconds']:g}"
        return controls.shell(f"{command} --out lab.json")

    # -- the tab --------------------------------------------------------------------------------------------------
    def build(self) -> None:
        first = next(iter(self.recorded), None)
        shown = self.recorded.get(first)
        record, cancel, text = gr.State(shown), gr.State(StopButton()), gr.Textbox("", visible="hidden")
        drawing, go = gr.Number(0, visible="hidden"), gr.Number(0, visible="hidden")
        # The choices look like those of the Sweep tab, whose stylesheet serves both.
        with gr.Row(elem_classes=["vtc-page", "vtc-sweep", "vtc-lab"]):
            with gr.Column(elem_classes="vtc-rail"):
                plan = controls.control("lab_plan", CHOSEN, self._plan(), visual=visual_tokens())
                with gr.Row(elem_classes="vtc-actions"):
                    start = gr.Button("Run", variant="primary", elem_id="vtc-lab-run")
                    stop = gr.Button("Stop", variant="secondary", elem_id="vtc-lab-stop", min_width=60)
                note = gr.HTML(self.remark(CHOSEN), apply_default_css=False, elem_id="vtc-lab-note")
            with gr.Column(elem_classes="vtc-results"):
                said = gr.HTML(told(shown, "Recorded"), apply_default_css=False, elem_id="vtc-lab-status")
                with gr.Column(elem_classes="vtc-panel"):
                    view = controls.control("lab_view", VIEW, _view())
                    *drawn, why_text, listed = self.draw(shown, view.value)
                    controls.heading("Time to the first token, of one request", LEGEND)
                    plots = [_plot(drawn[0], "first")]
                    with gr.Row(elem_classes="vtc-lab-bars"):
                        for title, figure, name in (
                            ("Prefill, of all prompts at once", drawn[1], "prefill"),
                            ("One decode step, of all answers at once", drawn[2], "decode"),
                        ):
                            with gr.Column(min_width=280):
                                controls.heading(title, LEGEND)
                                plots.append(_plot(figure, name))
                with gr.Column(elem_classes="vtc-panel"):
                    controls.heading("Why: the roofline of this machine", ROOFLINE)
                    plots.append(_plot(drawn[3], "roofline"))
                    why = gr.HTML(why_text, apply_default_css=False, elem_id="vtc-lab-why")
                with gr.Column(elem_classes="vtc-panel"):
                    table = gr.HTML(listed, apply_default_css=False, elem_id="vtc-lab-table")
                    with gr.Row(elem_classes="vtc-downloads"):
                        save = gr.Button("Download JSON", size="sm", min_width=120)
                with gr.Column(elem_classes="vtc-panel"):
                    controls.heading("Records", provenance(self.recorded))
                    shelf = controls.control("lab_records", first or "", _shelf(self.recorded))
                    gr.HTML(render("ui/tabs/lab_read.html"), apply_default_css=False)
        for changed in (view.pick, drawing.change):
            changed(self.draw, [record, view], [*plots, why, table], trigger_mode="always_last", **QUIET)
        plan.pick(self.remark, plan, note, **QUIET)
        shelf.pick(self.choose, shelf, [said, record, drawing], **QUIET)
        start.click(lambda: running("waiting for its turn", 0), None, said, **QUIET)
        start.click(None, None, go, js=NEXT, **QUIET)
        go.change(self.measure, [plan, cancel, go, record], [said, record, drawing], **MODEL)
        stop.click(stop_run, [cancel, go, record], said, **QUIET)
        sent = save.click(lambda r: json.dumps(r, indent=1) if r else "", record, text, **QUIET)
        sent.then(None, text, None, js="(text) => window.vtc.save('lab.json', text)", **QUIET)

    def _plan(self) -> str:
        shapes = {name: shape.title for name, shape in lab.catalogue().items()}
        values = {"shapes": shapes, "cards": self.cards, "hues": self.hues, "most": MAX_METHODS, "chosen": CHOSEN}
        values |= {"shares": SHARES, "batches": BATCHES, "prompts": PROMPTS, "seconds": (MIN_SECONDS, MAX_SECONDS)}
        return render("ui/tabs/lab_plan.html", visual=lab.pick(CHOSEN["shape"]).visual, **values)


# -- words ----------------------------------------------------------------------------------------------------------
LEGEND = "Full bar: measured. Pale bar below it: what the roofline of this machine expects."
ROOFLINE = (
    "A pass takes as long as its arithmetic or its memory traffic, whichever is slower. Left of the corner it waits "
    "for memory, and dropping tokens saves nothing but cache; right of it every token dropped saves time. Point at a "
    "mark to read it."
)


def visual_tokens() -> dict[str, dict]:
    """What the script tells of every shape."""
    return {
        name: {
            "visual": shape.visual,
            "facts": f"{shape.visual:,} visual tokens, {shape.spec.layers} decoder layers {shape.spec.hidden:,} wide",
        }
        for name, shape in lab.catalogue().items()
    }


def _view() -> str:
    batches, prompts = ({n: str(n) for n in numbers} for numbers in (BATCHES, PROMPTS))
    answers = {n: f"{n} tokens" for n in ANSWERS}
    return render("ui/tabs/lab_view.html", batches=batches, prompts=prompts, answers=answers, view=VIEW)


def _plot(figure, name: str) -> gr.Plot:
    return gr.Plot(figure, show_label=False, container=False, elem_id=f"vtc-lab-{name}")


def nearest(record: dict, part: str, batch: int) -> int:
    """The batch of a record's part that is nearest to one asked for."""
    return min(report.batches(record, part), key=lambda b: abs(b - batch))


def other(part: str, asked: int, shown: int) -> str:
    """That another batch is shown than was asked for."""
    what = {"decode": "answers", "batched_prefill": "prompts"}[part]
    return f"{asked} {what} at once are not in this experiment; batch {shown} is shown."


def words(record: dict, batch: int, prompts: int, remarks: Sequence[str] = ()) -> str:
    """Why the figures are what they are, sentence by sentence, each once; remarks stand before."""
    heard, lines = set(), []
    for row in record["rows"]:
        said = [text for text in (*report.reasons(record, row, [batch], [prompts]), *row["notes"]) if text not in heard]
        heard.update(said)
        if said:
            lines.append((report.label(row), " ".join(map(_sentence, said))))
    return render("ui/tabs/lab_words.html", remarks=remarks, lines=lines)


def _sentence(text: str) -> str:
    return sentence(re.sub(r"(\d)x\b", r"\1×", text))


def told(record: dict | None, how: str) -> str:
    if record is None:
        return status.said("Nothing is recorded here yet. Press Run to measure on this machine.")
    more = " ".join([f"{how}: {report.provenance(record)}.", *report.cautions(record)])
    return status.said(_sentence(report.summary(record, nearest(record, "decode", 8))), more)


def running(stage: str, share: float) -> str:
    percent = 100 * share
    return status.running(stage[:1].upper() + stage[1:], bar="progress", now=round(percent), most=100, percent=percent)


def stop_run(cancel: StopButton, request: float, record: dict | None) -> str:
    cancel.press(request)
    return stopped(record)


def stopped(record: dict | None) -> str:
    more = f"{report.provenance(record)}." if record else ""
    return status.said("Stopped. What is shown is the experiment before.", more)


def provenance(records: dict[str, dict]) -> str:
    """Which records there are, and that none is from a GPU if so."""
    gpu = any(record["environment"]["device"].startswith("cuda") for record in records.values())
    text = "Experiments that come with this page; choose one to see it again."
    text = text if records else "No experiment comes with this page."
    return text + ("" if gpu else " None was recorded on a GPU: nobody has run it on one yet.")


def _shelf(records: dict[str, dict]) -> str:
    origins = {name: report.provenance(record) for name, record in records.items()}
    return render("ui/tabs/lab_shelf.html", records=origins)
