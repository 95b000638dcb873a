"""The tab Latency lab: what compression gains at the shapes of real models, recorded or measured on this machine."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape
from typing import Any

import gradio as gr
import torch

from vtc_demo import registry
from vtc_demo.benchmark import lab
from vtc_demo.benchmark.lab import report
from vtc_demo.benchmark.lab.settings import prompt_batches
from vtc_demo.core.assets import MEASUREMENTS
from vtc_demo.figures import colours
from vtc_demo.figures import lab as figures_lab

from .. import serve
from ..components import controls
from ..running import QUIET, Cancel
from .sweep import problem, strip, tick

RECORDS = MEASUREMENTS
BATCHES, PROMPTS = (1, 8, 32, 128), (1, 8, 32)
SHARES = (3, 9, 18)  # of the visual tokens, one in so many is left: 192, 64 and 32 of 576
CHOSEN = {
    "shape": "llava-1.5-7b", "methods": ["fastervlm", "fastv"], "shares": [9], "batches": [1, 8],
    "prompts": list(prompt_batches("cuda" if torch.cuda.is_available() else "cpu")), "seconds": 40,
}  # fmt: skip
MAX_METHODS, MIN_SECONDS, MAX_SECONDS = 5, 5, 60
GPU_SECONDS = MAX_SECONDS + 20
TICK = 0.3  # seconds between two reports of progress
NOW = "measured now"
FAILED = "Something went wrong on our side. Try again, or choose a smaller shape."


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
        self.hues = colours.colours(registry.list_methods())
        self.recorded = recorded()

    # -- reading what the page sends ------------------------------------------------------------------------------
    def read(self, plan: dict) -> dict:
        """The settings of a run. Raises ValueError for what the page would not send."""
        name, chosen, shares, batches, prompts, seconds = (plan.get(k) for k in CHOSEN)
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
    def measure(self, plan: dict, cancel: Cancel, request: float, shown: dict | None = None):
        """Measures: yields (status, record, a number that starts the drawing)."""
        pressed, stage = cancel.presses, ""
        try:
            if request == cancel.request:  # stopped while it was waiting for its turn
                yield gr.skip(), gr.skip(), gr.skip()
                return
            with closing(self.run(self.read(plan))) as events:
                for kind, data in events:
                    if cancel.presses != pressed:
                        yield stopped(shown), gr.skip(), gr.skip()  # again: progress may have come after it
                        return
                    if kind == "record":
                        yield status(data, "Measured just now"), data, random.random()
                    else:
                        stage, share = (data, 0) if kind == "stage" else (stage, data)
                        yield running(stage, share), gr.skip(), gr.skip()
        except ValueError as error:
            yield problem(str(error)[:1].upper() + str(error)[1:] + "."), gr.skip(), gr.skip()
        except Exception:
            logging.exception("a latency experiment failed")
            yield problem(FAILED), gr.skip(), gr.skip()

    def draw(self, record: dict | None, view: dict):
        """(first token, prefill, decode step, roofline, words, table) of a record; nothing is measured."""
        if record is None:
            return *[None] * 4, "", '<p class="vtc-note">Nothing is recorded yet. Press Run to measure.</p>'
        answer, asked = view.get("answer"), {"decode": view.get("batch"), "batched_prefill": view.get("prompts")}
        asked = {part: n if isinstance(n, int) else 8 for part, n in asked.items()}
        shown = {part: nearest(record, part, n) for part, n in asked.items()}
        answer = min(4096, max(1, answer)) if isinstance(answer, int) else 64
        batch, prompts = shown.values()
        figures = [figures_lab.first_token(record)]
        figures += [figures_lab.by_batch(record, part, shown[part]) for part in ("batched_prefill", "decode")]
        remarks = "".join(other(part, n, shown[part]) for part, n in asked.items() if n != shown[part])
        table = figures_lab.table(record, batch, answer, self.hues, prompts)
        return *figures, figures_lab.roofline(record, batch, prompts), remarks + words(record, batch, prompts), table

    def choose(self, name: str):
        """A recorded experiment in place of what is shown: (status, record, a number that starts the drawing)."""
        record = self.recorded.get(name)
        if record is None:
            return gr.skip(), gr.skip(), gr.skip()
        return status(record, "Recorded"), record, random.random()

    def remark(self, plan: dict) -> str:
        """The run as a command, or what is wrong with it."""
        try:
            settings = self.read(plan)
        except ValueError as error:
            return f'<p class="vtc-note">{escape(str(error))}.</p>'
        lists = {k: " ".join(map(str, settings[k])) for k in ("methods", "tokens", "batches", "prefill_batches")}
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in lists.items())
        command = f"python -m vtc_demo lab --shape {settings['shape']} {options} --seconds {settings['seconds']:g}"
        return (
            '<details class="vtc-shell"><summary>The same from the shell</summary>'
            f"<code>{escape(command)} --out lab.json</code></details>"
        )

    # -- the tab --------------------------------------------------------------------------------------------------
    def build(self) -> None:
        first = next(iter(self.recorded), None)
        shown = self.recorded.get(first)
        record, cancel, text = gr.State(shown), gr.State(Cancel()), gr.Textbox("", visible="hidden")
        tick_, go = gr.Number(0, visible="hidden"), gr.Number(0, visible="hidden")
        # The choices look like those of the Sweep tab, whose stylesheet serves both.
        with gr.Row(elem_classes=["vtc-page", "vtc-sweep", "vtc-lab"]):
            with gr.Column(elem_classes="vtc-rail"):
                plan = controls.control("lab_plan", CHOSEN, self._plan(), visual=visual_tokens())
                with gr.Row(elem_classes="vtc-actions"):
                    start = gr.Button("Run", variant="primary", elem_id="vtc-lab-run")
                    stop = gr.Button("Stop", variant="secondary", elem_id="vtc-lab-stop", min_width=60)
                note = gr.HTML(self.remark(CHOSEN), apply_default_css=False, elem_id="vtc-lab-note")
            with gr.Column(elem_classes="vtc-results"):
                said = gr.HTML(status(shown, "Recorded"), apply_default_css=False, elem_id="vtc-lab-status")
                with gr.Column(elem_classes="vtc-panel"):
                    view = controls.control("lab_view", {"batch": 8, "prompts": 8, "answer": 64}, _view())
                    *drawn, told, listed = self.draw(shown, view.value)
                    gr.HTML(_head("Time to the first token, of one request", LEGEND), apply_default_css=False)
                    plots = [_plot(drawn[0], "first")]
                    with gr.Row(elem_classes="vtc-lab-bars"):
                        for title, figure, name in (
                            ("Prefill, of all prompts at once", drawn[1], "prefill"),
                            ("One decode step, of all answers at once", drawn[2], "decode"),
                        ):
                            with gr.Column(min_width=280):
                                gr.HTML(_head(title, LEGEND), apply_default_css=False)
                                plots.append(_plot(figure, name))
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML(_head("Why: the roofline of this machine", ROOFLINE), apply_default_css=False)
                    plots.append(_plot(drawn[3], "roofline"))
                    why = gr.HTML(told, apply_default_css=False, elem_id="vtc-lab-why")
                with gr.Column(elem_classes="vtc-panel"):
                    table = gr.HTML(listed, apply_default_css=False, elem_id="vtc-lab-table")
                    with gr.Row(elem_classes="vtc-downloads"):
                        save = gr.Button("Download JSON", size="sm", min_width=120)
                with gr.Column(elem_classes="vtc-panel"):
                    gr.HTML(provenance(self.recorded), apply_default_css=False)
                    shelf = controls.control("lab_records", first or "", _shelf(self.recorded))
                    gr.HTML(READ, apply_default_css=False)
        for changed in (view.pick, tick_.change):
            changed(self.draw, [record, view], [*plots, why, table], trigger_mode="always_last", **QUIET)
        plan.pick(self.remark, plan, note, **QUIET)
        shelf.pick(self.choose, shelf, [said, record, tick_], **QUIET)
        start.click(lambda: running("waiting for its turn", 0), None, said, **QUIET)
        start.click(None, None, go, js="() => Math.random()", **QUIET)
        go.change(
            self.measure, [plan, cancel, go, record], [said, record, tick_], trigger_mode="always_last",
            concurrency_id="model", concurrency_limit=1, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        stop.click(stop_run, [cancel, go, record], said, **QUIET)
        sent = save.click(lambda r: json.dumps(r, indent=1) if r else "", record, text, **QUIET)
        sent.then(None, text, None, js="(text) => window.vtc.save('lab.json', text)", **QUIET)

    def _plan(self) -> str:
        shapes = "".join(
            f'<option value="{name}"{" selected" if name == CHOSEN["shape"] else ""}>{escape(shape.title)}</option>'
            for name, shape in lab.catalogue().items()
        )
        chosen = "".join(
            tick("methods", c.name, c.title, c.name in CHOSEN["methods"], self.hues[c.name]) for c in self.cards
        )
        visual = lab.pick(CHOSEN["shape"]).visual
        shares = "".join(tick("shares", n, visual // n, n in CHOSEN["shares"]) for n in SHARES)
        batches = "".join(tick("batches", n, n, n in CHOSEN["batches"]) for n in BATCHES)
        prompts = "".join(tick("prompts", n, n, n in CHOSEN["prompts"]) for n in PROMPTS)
        seconds = (
            f'<input type="range" aria-label="Seconds to spend" min="{MIN_SECONDS}" max="{MAX_SECONDS}" step="5" '
            f'value="{CHOSEN["seconds"]}">'
        )
        return (
            '<section class="vtc-panel"><h2 class="vtc-h">Model shape</h2>'
            f'<select class="shape" aria-label="Model shape">{shapes}</select><p class="vtc-note facts"></p></section>'
            '<section class="vtc-panel"><h2 class="vtc-h">Compression, beside the full model</h2>'
            f"<fieldset><legend>Methods, up to {MAX_METHODS}</legend>{chosen}</fieldset>"
            f"<fieldset><legend>Visual tokens kept</legend>{shares}</fieldset></section>"
            '<section class="vtc-panel"><h2 class="vtc-h">A run on this machine</h2>'
            f"<fieldset><legend>Prompts prefilled at once</legend>{prompts}</fieldset>"
            f"<fieldset><legend>Answers decoded at once</legend>{batches}</fieldset>"
            f'<div class="scenes"><span>Seconds to spend</span><output></output>{seconds}</div></section>'
        )


# -- words ----------------------------------------------------------------------------------------------------------
LEGEND = "Full bar: measured. Pale bar below it: what the roofline of this machine expects."
ROOFLINE = (
    "A pass takes as long as its arithmetic or its memory traffic, whichever is slower. Left of the corner it waits "
    "for memory, and dropping tokens saves nothing but cache; right of it every token dropped saves time. Point at a "
    "mark to read it."
)
READ = """<details class="vtc-prose"><summary>How this is measured</summary>
<p>All layers of a stack have the same size. So one decoder layer, one layer of the vision tower, the projector and the
LM head are made in their true size, with random values in place of weights, and timed in turn; a pass is the sum over
its layers. A test holds such sums to the whole of the embedded model: they may differ by a factor of 1.5 at most. How
many tokens a method leaves at each layer comes from a real pass of the engine through a model of the same depth, a few
values wide.</p>
<p><b>Left out</b>: preprocessing, and what happens between layers. A method's own work is not timed either; its FLOPs
are counted where that can be done without the model, and <code>python -m vtc_demo bench</code> times it on the embedded
model. Methods with trained weights of their own are not offered.</p>
<p><b>Batches.</b> The first token is that of one request. A prefill of several prompts is the decoder's layers alone,
on prompts of one length; what takes too long for the seconds, or more memory than is free, is left out. Decode steps
are timed for as many answers at once as chosen, at the mean cache length of an answer of 64 tokens, with a cache that
is allocated beforehand. Answers are told at that one step time.</p>
<p><b>Expected</b> is the slower of two times: FLOPs over the fastest matrix product seen on this machine, and bytes of
weights and cache over the fastest reading of memory. Kernel launches and other traffic are not in it.</p></details>"""


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
    batches = "".join(f'<option value="{n}"{" selected" if n == 8 else ""}>{n}</option>' for n in BATCHES)
    answers = "".join(
        f'<option value="{n}"{" selected" if n == 64 else ""}>{n} tokens</option>' for n in (1, 16, 64, 256, 1024)
    )
    prompts = "".join(f'<option value="{n}"{" selected" if n == 8 else ""}>{n}</option>' for n in PROMPTS)
    return (
        f'<div class="axes"><label>Prompts at once <select data-axis="prompts">{prompts}</select></label>'
        f'<label>Answers at once <select data-axis="batch">{batches}</select></label>'
        f'<label>Length of an answer <select data-axis="answer">{answers}</select></label></div>'
    )


def _head(title: str, text: str) -> str:
    return f'<h2 class="vtc-h">{title}</h2><p class="vtc-note">{text}</p>'


def _plot(figure, name: str) -> gr.Plot:
    return gr.Plot(figure, show_label=False, container=False, elem_id=f"vtc-lab-{name}")


def nearest(record: dict, part: str, batch: int) -> int:
    """The batch of a record's part that is nearest to one asked for."""
    return min(report.batches(record, part), key=lambda b: abs(b - batch))


def other(part: str, asked: int, shown: int) -> str:
    """That another batch is shown than was asked for."""
    what = {"decode": "answers", "batched_prefill": "prompts"}[part]
    return f'<p class="vtc-note">{asked} {what} at once are not in this experiment; batch {shown} is shown.</p>'


def words(record: dict, batch: int, prompts: int) -> str:
    """Why the figures are what they are, sentence by sentence, each once."""
    heard, lines = set(), []
    for row in record["rows"]:
        said = [text for text in (*report.reasons(record, row, [batch], [prompts]), *row["notes"]) if text not in heard]
        heard.update(said)
        if said:
            lines.append(f"<li><b>{escape(report.label(row))}</b> {escape(' '.join(map(_sentence, said)))}</li>")
    return f'<ul class="vtc-lab-words">{"".join(lines)}</ul>'


def _sentence(text: str) -> str:
    text = re.sub(r"(\d)x\b", r"\1×", text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def status(record: dict | None, how: str) -> str:
    if record is None:
        return strip("Nothing is recorded here yet. Press Run to measure on this machine.")
    more = " ".join([f"{how}: {report.provenance(record)}.", *report.cautions(record)])
    return strip(escape(_sentence(report.summary(record, nearest(record, "decode", 8)))), escape(more))


def running(stage: str, share: float) -> str:
    bar = (
        f'<div class="vtc-progress" role="progressbar" aria-label="progress" aria-valuenow="{100 * share:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100"><span style="width:{100 * share:.1f}%"></span></div>'
    )
    return strip("Measuring", escape(stage[:1].upper() + stage[1:]), bar, "is-running")


def stop_run(cancel: Cancel, request: float, record: dict | None) -> str:
    cancel.press(request)
    return stopped(record)


def stopped(record: dict | None) -> str:
    more = escape(f"{report.provenance(record)}.") if record else ""
    return strip("Stopped. What is shown is the experiment before.", more)


def provenance(records: dict[str, dict]) -> str:
    """Which records there are, and that none is from a GPU if so."""
    gpu = any(record["environment"]["device"].startswith("cuda") for record in records.values())
    text = "Experiments that come with this page; choose one to see it again."
    return (
        '<h2 class="vtc-h">Records</h2>'
        f'<p class="vtc-note">{text if records else "No experiment comes with this page."}'
        f"{'' if gpu else ' None was recorded on a GPU: nobody has run it on one yet.'}</p>"
    )


def _shelf(records: dict[str, dict]) -> str:
    buttons = "".join(
        f'<button type="button" data-record="{escape(name)}"><b>{escape(name)}</b>'
        f"<span>recorded on {escape(report.provenance(record))}</span></button>"
        for name, record in records.items()
    )
    return f'<div class="vtc-shelf">{buttons}</div>'
