"""Speed of methods against the full model, and of the engine against `model.generate`.

Every method runs in a loop with the full model, pass by pass in turn, and a ratio is the median over such pairs: what
else the machine does then slows both. The vision pass is made anew each time, answers have a fixed length, EOS ignored.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from vtc_demo import cost, engine, registry
from vtc_demo.comparison.matching import fixed
from vtc_demo.core.images import load_rgb
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.core.vocabulary import TTFT_STAGES
from vtc_demo.engine import compiled
from vtc_demo.models import VLM

from . import references, timing

TOKENS = (192, 128, 64)
BEFORE_PREFILL = {"preprocess": "preprocessing", "vision": "the vision tower", "projector": "the projector"}
STAGES = (*TTFT_STAGES, "ttft", "decode_per_token")
REFERENCES = ("vision", "prefill", "ttft", "wall")
COMPILED = ("prefill", "decode_per_token", "ttft", "wall")
SLACK = 0.95  # ratios within 5 % of one another need no explanation

Times = dict[str, float]  # milliseconds by name


@dataclass
class Bench:
    """One model, image and question, and how often to measure."""

    vlm: VLM
    image: Any
    question: str
    new_tokens: int = 8
    warmups: int = 2
    repeats: int = 5

    def __post_init__(self):
        if self.new_tokens < 2 or self.warmups < 0 or self.repeats < 1:
            raise ValueError(
                "a benchmark needs new_tokens >= 2, warmups >= 0 and repeats >= 1, got "
                f"{self.new_tokens}, {self.warmups} and {self.repeats}"
            )
        self.full = registry.resolve("full")

    # -- one pass -----------------------------------------------------------------------------------------------------
    def run(self, method: Method, how: Callable = engine.run) -> tuple[Times, Run]:
        """One pass of the engine (or of its likes): its stages, and `wall` for the whole call."""
        self.vlm.recent = None  # the vision pass is not to be shared
        start = time.perf_counter()
        run = how(self.vlm, self.image, self.question, method, max_new_tokens=self.new_tokens, ignore_eos=True)
        return run.timings | {"wall": 1000 * (time.perf_counter() - start)}, run

    def generate(self) -> tuple[Times, list[int]]:
        """The same work by `model.generate`, greedy: its times and the answer's ids. Run it inside `without_eos`."""
        vlm, clock = self.vlm, TokenClock()
        layout = vlm.inputs([load_rgb(self.image)]).layout
        start = time.perf_counter()
        inputs = vlm.generate_inputs([load_rgb(self.image)], self.question, layout)
        prepared = time.perf_counter()
        out = vlm.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False, streamer=clock)
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        vlm.tokenizer.decode(ids, skip_special_tokens=True)
        end = time.perf_counter()
        first, last = clock.times[1], clock.times[-1]
        seconds = {
            "preprocess": prepared - start,
            "ttft": first - start,
            "decode_per_token": (last - first) / (self.new_tokens - 1),
            "wall": end - start,
        }
        return {name: 1000 * value for name, value in seconds.items()}, ids

    # -- the two comparisons ------------------------------------------------------------------------------------------
    def against_generate(self) -> dict:
        """The engine without reduction and `model.generate`: times of both, ratios generate / engine."""
        with without_eos(self.vlm):
            ours, theirs = pairs(lambda: self.run(self.full), self.generate, self.warmups, self.repeats)
        mine, other = [times for times, _ in ours], [times for times, _ in theirs]
        return {
            "same_answer": all(run.token_ids == ids for (_, run), (_, ids) in zip(ours, theirs)),
            "engine_ms": spreads([{name: row[name] for name in other[0]} for row in mine]),
            "generate_ms": spreads(other),
            "ratios": {name: paired(other, mine, name) for name in other[0]},
        }

    def against_full(self, method: Method, machine: dict[str, float]) -> dict:
        """One method beside the full model: times, costs, ratios full / method and why they are what they are."""
        reference, reduced = pairs(lambda: self.run(self.full), lambda: self.run(method), self.warmups, self.repeats)
        before, after = [times for times, _ in reference], [times for times, _ in reduced]
        whole, run = reference[0][1], reduced[0][1]
        expected = self.expected(whole, run, machine)
        measured = {name: paired(before, after, name) for name in ("prefill", "ttft", "decode_per_token", "wall")}
        times, full_times = spreads(after), spreads(before)
        counted = {
            "prefill_expected": expected,
            "prefill_flops": whole.flops["prefill"] / run.flops["prefill"],
            "total_flops": whole.flops["total"] / run.flops["total"],
            "kv_bytes": whole.kv_bytes / run.kv_bytes,
        }
        return {
            "visual_tokens": run.visual_tokens,
            "equivalent_tokens": run.trace.equivalent_tokens,
            "ms": times,
            "full_ms": full_times,
            "flops": run.flops,
            "kv_bytes": run.kv_bytes,
            "peak_bytes": self.peak(method),
            "ratios": measured | counted,
            "own_work": paired(after, before, "compression", "prefill"),
            "reasons": reasons(medians(full_times), medians(times), expected, medians(measured)),
        }

    def against_reference(self, method: Method) -> dict:
        """One method beside its reference with whole attention maps: times, ratios reference / ours, peak memory."""
        ours, theirs = pairs(
            lambda: self.run(method), lambda: self.run(method, references.run), self.warmups, self.repeats
        )
        mine, other = [times for times, _ in ours], [times for times, _ in theirs]
        run, reference = ours[0][1], theirs[0][1]
        peaks = self.peak(method), self.peak(method, references.run)
        return {
            "same_answer": all(a.token_ids == b.token_ids for (_, a), (_, b) in zip(ours, theirs)),
            "same_tokens": survivors(run) == survivors(reference),
            "ms": spreads(mine),
            "reference_ms": spreads(other),
            "ratios": {name: paired(other, mine, name) for name in REFERENCES},
            "peak_bytes": peaks[0],
            "reference_peak_bytes": peaks[1],
        }

    def against_compiled(self, method: Method, twin: Bench) -> dict:
        """One method beside itself with compiled decoder layers: times, ratios as is / compiled, seconds of the first
        compiled pass, which is the one that compiles what is not compiled yet."""
        first = twin.run(method)[0]["wall"] / 1000
        plain, fused = pairs(lambda: self.run(method), lambda: twin.run(method), self.warmups, self.repeats)
        before, after = [times for times, _ in plain], [times for times, _ in fused]
        return {
            "same_answer": all(a.token_ids == b.token_ids for (_, a), (_, b) in zip(plain, fused)),
            "first_seconds": first,
            "ms": spreads(before),
            "compiled_ms": spreads(after),
            "ratios": {name: paired(before, after, name) for name in COMPILED},
        }

    def expected(self, whole: Run, run: Run, machine: dict[str, float]) -> float:
        """Ratio of the prefills at the machine's roofline."""
        text = whole.kv_lengths[0] - whole.schedule[0] - (self.new_tokens - 1)  # the last token is not fed back
        schedules, size = (run.schedule, whole.schedule), self.vlm.dtype.itemsize
        roofs = machine["peak_flops"], machine["bandwidth"]
        return cost.expected_speedup(self.vlm.spec, *schedules, text, *roofs, bytes_per_value=size)

    def without_reduction(self) -> dict:
        """What the full model costs, counted."""
        _, run = self.run(self.full)
        return {
            "visual_tokens": run.visual_tokens,
            "flops": run.flops,
            "kv_bytes": run.kv_bytes,
            "peak_bytes": self.peak(self.full),
        }

    def peak(self, method: Method, how: Callable = engine.run) -> int:
        self.vlm.recent = None  # or its release would be part of the balance
        return peak_bytes(lambda: self.run(method, how), self.vlm.device)


def survivors(run: Run) -> list[tuple[str, list[int]]]:
    """Where the tokens stand that each reduction of a run left."""
    assert run.trace is not None  # of a run without an answer
    return [(str(step.site), step.reduction.anchor.tolist()) for step in run.trace.steps]


class TokenClock:
    """A streamer for `generate`: when each token came. The first call brings the prompt."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


@contextmanager
def without_eos(vlm: VLM):
    """Inside, `generate` runs to its full length; the model's settings are put back afterwards."""
    settings = vlm.model.generation_config
    vlm.model.generation_config = copy.deepcopy(settings)
    vlm.model.generation_config.eos_token_id = None
    try:
        yield
    finally:
        vlm.model.generation_config = settings


# -- pairs ----------------------------------------------------------------------------------------------------------
def pairs(first: Callable, second: Callable, warmups: int, repeats: int) -> tuple[list, list]:
    """Results of both, called in turn. Which one goes first alternates, so that neither always follows the other."""
    firsts, seconds = [], []
    for i in range(warmups + repeats):
        if i % 2:
            y, x = second(), first()
        else:
            x, y = first(), second()
        if i >= warmups:
            firsts.append(x)
            seconds.append(y)
    return firsts, seconds


def paired(top: list[Times], bottom: list[Times], of: str, over: str | None = None) -> dict[str, float]:
    """Spread of top[i][of] / bottom[i][over]; `over` defaults to `of`."""
    return timing.spread([x[of] / y[over or of] for x, y in zip(top, bottom)])


def spreads(rows: list[Times]) -> dict[str, dict[str, float]]:
    return {name: timing.spread([row[name] for row in rows]) for name in rows[0]}


def medians(figures: dict[str, dict[str, float]]) -> Times:
    return {name: spread["median"] for name, spread in figures.items()}


# -- why ------------------------------------------------------------------------------------------------------------
def reasons(full: Times, reduced: Times, expected: float, gains: dict[str, float]) -> list[str]:
    """In words: why the prefill's ratio is below the expected one, and TTFT's below the prefill's.

    full, reduced: medians by stage; gains: measured ratios of prefill and ttft. A decode step runs every layer on one
    token: its time is about what a pass costs whatever its length, in calls and in reading weights.
    """
    out = []
    if gains["prefill"] < SLACK * expected:
        fixed, prefill = reduced["decode_per_token"], reduced["prefill"]
        share = 100 * min(1.0, fixed / prefill)
        out.append(
            f"prefill gains {gains['prefill']:.1f}x where {expected:.1f}x is expected: a pass over one token takes "
            f"{fixed:.1f} ms (calls, weights), {share:.0f} % of this prefill, and does not shrink"
        )
    if gains["ttft"] < SLACK * gains["prefill"]:
        why = unreduced(full, reduced)
        out.append(f"TTFT gains {gains['ttft']:.1f}x, prefill {gains['prefill']:.1f}x: {why}")
    return out


def unreduced(full: Times, reduced: Times) -> str:
    """Which stages before the first token a method leaves as they are, largest first, and what it adds."""
    share = {stage: 100 * full[stage] / full["ttft"] for stage in BEFORE_PREFILL}
    same = [stage for stage in share if share[stage] >= 2 and reduced[stage] > 0.8 * full[stage]]
    same.sort(key=share.__getitem__, reverse=True)
    own = 100 * reduced["compression"] / full["ttft"]
    said = []
    if same:
        named = " and ".join(f"{BEFORE_PREFILL[stage]} ({share[stage]:.0f} %)" for stage in same)
        said.append(f"{named} of the full time {'is' if len(same) == 1 else 'are'} not compressed")
    if own >= 1:
        said.append(f"own work adds {own:.0f} %")
    return "; ".join(said) or "the stages before the prefill shrink less"


# -- memory -----------------------------------------------------------------------------------------------------------
def peak_bytes(work: Callable, device: torch.device) -> int:
    """Most bytes of tensors held at once during `work`, beyond those held at its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - held
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


# -- the whole ------------------------------------------------------------------------------------------------------
def bench(
    vlm: VLM,
    image,
    question: str,
    names=None,
    tokens=TOKENS,
    *,
    with_references=False,
    with_compiled=False,
    progress=None,
    **options,
) -> dict:
    """A JSON-ready record. names: methods (default: all that suit the model); tokens: budgets, visual tokens that each
    method is to leave.

    with_references: also beside the references of `vtc_demo.references`, where a method has one. with_compiled: also
    beside the same model with compiled decoder layers. options: new_tokens, warmups, repeats. A method that the model
    does not suit has a row with `error`. progress: is called with a line before each part. Raises ValueError for a bad
    argument, and for a trained connector on any model but the embedded.
    """
    job = Bench(vlm, load_rgb(image), vlm.check_question(question), **options)
    for name in names or ():
        registry.check_suits(name, vlm.name)
    names = names or [card.name for card in registry.suiting(vlm.name) if card.name != "full"]
    columns = [column for name in names for column in at_budgets(name, tokens, vlm.shape.patches)]
    progress = progress or (lambda line: None)
    twin = replace(job, vlm=compiled.compile_vlm(vlm)) if with_compiled else None  # first, lest it fail at the end
    environment = timing.surroundings(vlm.device, vlm.dtype)
    progress("generate")
    record: dict[str, Any] = {
        "model": vlm.name,
        "question": job.question,
        "new_tokens": job.new_tokens,
        "warmups": job.warmups,
        "repeats": job.repeats,
        "environment": environment,
        "generate": job.against_generate(),
        "full": job.without_reduction(),
        "rows": [],
    }
    for budget, method in columns:
        progress(f"{method.card.name} at {budget} tokens")
        record["rows"].append(attempt(budget, method, lambda m: job.against_full(m, environment)))
    if with_references:
        record["references"] = []
        for budget, method in (column for column in columns if column[1].card.name in references.NAMES):
            progress(f"{method.card.name} at {budget} tokens beside its reference")
            record["references"].append(attempt(budget, method, job.against_reference))
    if twin is not None:
        record["compiled"] = []
        for budget, method in [(vlm.shape.patches, job.full), *columns]:
            progress(f"{method.card.name} at {budget} tokens beside its compiled layers")
            record["compiled"].append(attempt(budget, method, lambda m: job.against_compiled(m, twin)))
    return record


def attempt(budget: int, method: Method, work: Callable[[Method], dict]) -> dict:
    """A row of the record: what `work` found, or the reason why it could not."""
    row = {"method": method.spec(), "title": method.card.title, "budget": budget}
    try:
        return row | work(method)
    except ValueError as error:
        return row | {"error": str(error)}


def at_budgets(name: str, tokens, patches: int) -> list[tuple[int, Method]]:
    """(budget, method) for each budget; of a method that sets its own count, that one. The share is rounded up in the
    sixth place, lest rounding lose a token."""
    method, out = registry.resolve(name), []
    if fixed(method):
        return [(method.keep(patches), method)]
    for budget in tokens:
        if not 0 < budget <= patches:
            raise ValueError(f"cannot leave {budget} tokens; this model has {patches}, give 1 to {patches}")
        out.append((budget, registry.resolve(name, retention=min(1.0, math.ceil(1e6 * budget / patches) / 1e6))))
    return out


# -- output ---------------------------------------------------------------------------------------------------------
def table(record: dict) -> str:
    """The record as lines of text."""
    done = [row for row in record["rows"] if "error" not in row]
    failed = [f"{label(row)}: not run. {row['error']}" for row in record["rows"] if "error" in row]
    why = [f"{label(row)}: {reason}" for row in done for reason in row["reasons"]]
    parts = [generate_lines(record["generate"]), failed, notes(record)]
    if done:
        parts[1:1] = [time_lines(record, done), ratio_lines(record, done), why]
    if record.get("references"):
        parts[-2:-2] = [reference_lines(record["references"])]
    if record.get("compiled"):
        parts[-2:-2] = [compiled_lines(record["compiled"])]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def label(row: dict) -> str:
    return f"{row['title']} @ {row['budget']}"


def cell(spread: dict[str, float], digits: int = 1) -> str:
    return f"{spread['median']:.{digits}f} ({spread['iqr']:.{digits}f})"


def generate_lines(part: dict) -> list[str]:
    names = list(part["ratios"])
    lines = [f"{'full model, ms':<26}" + "".join(f"{name:>18}" for name in names)]
    for title, figures, digits in (
        ("engine", part["engine_ms"], 1),
        ("model.generate", part["generate_ms"], 1),
        ("generate / engine", part["ratios"], 2),
    ):
        lines.append(f"{title:<26}" + "".join(f"{cell(figures[name], digits):>18}" for name in names))
    return [*lines, f"the same answer: {'yes' if part['same_answer'] else 'NO'}"]


def time_lines(record: dict, rows: list[dict]) -> list[str]:
    """Stage times; the line of the full model is that of the loop with the first method."""
    lines = [f"{'ms':<26}{'tokens':>7}" + "".join(f"{stage.replace('_per_token', ''):>15}" for stage in STAGES)]
    full = ("full", record["full"]["visual_tokens"], rows[0]["full_ms"])
    for name, tokens, figures in [full, *((label(row), row["visual_tokens"], row["ms"]) for row in rows)]:
        lines.append(f"{name:<26}{tokens:>7}" + "".join(f"{cell(figures[stage]):>15}" for stage in STAGES))
    return lines


def ratio_lines(record: dict, rows: list[dict]) -> list[str]:
    """Ratios full / method, and the method's own work in percent of the full prefill."""
    heads = ["expected", "FLOPs", "KV", "KV kB", "GFLOPs", "peak MB"]
    lines = [
        f"{'full / method':<26}{'prefill':>13}{'ttft':>13}" + "".join(f"{h:>9}" for h in heads) + f"{'own work':>10}"
    ]
    full = record["full"]
    sizes = f"{full['kv_bytes'] / 1e3:>9.0f}{full['flops']['total'] / 1e9:>9.2f}{full['peak_bytes'] / 1e6:>9.1f}"
    lines.append(f"{'full':<26}{'':>53}{sizes}")
    for row in rows:
        r = row["ratios"]
        lines.append(
            f"{label(row):<26}{cell(r['prefill'], 2):>13}{cell(r['ttft'], 2):>13}{r['prefill_expected']:>9.2f}"
            f"{r['prefill_flops']:>9.2f}{r['kv_bytes']:>9.2f}{row['kv_bytes'] / 1e3:>9.0f}"
            f"{row['flops']['total'] / 1e9:>9.2f}{row['peak_bytes'] / 1e6:>9.1f}"
            f"{100 * row['own_work']['median']:>8.1f} %"
        )
    return lines


def reference_lines(rows: list[dict]) -> list[str]:
    """Ratios of the way of released codes (no fused attention, all maps kept) over ours."""
    peaks = lambda row: f"{row['reference_peak_bytes'] / 1e6:.1f} / {row['peak_bytes'] / 1e6:.1f}"  # noqa: E731
    return beside_lines("all maps / on demand", REFERENCES, "peak MB", peaks, rows)


def compiled_lines(rows: list[dict]) -> list[str]:
    """Ratios of the decoder's layers as they are over the same layers compiled."""
    return beside_lines("as is / compiled", COMPILED, "first pass, s", lambda row: f"{row['first_seconds']:.1f}", rows)


def beside_lines(title: str, names: tuple[str, ...], last: str, said: Callable, rows: list[dict]) -> list[str]:
    """A method beside another way to run it: the ratios `names`, then what `said` makes of a row, then if all is the
    same."""
    heads = "".join(f"{name.replace('_per_token', ''):>14}" for name in names)
    lines = [f"{title:<26}{heads}{last:>16}{'same':>6}"]
    for row in rows:
        if "error" in row:
            lines.append(f"{label(row)}: not run. {row['error']}")
            continue
        shown = "".join(f"{cell(row['ratios'][name], 2):>14}" for name in names)
        same = "yes" if row["same_answer"] and row.get("same_tokens", True) else "NO"
        lines.append(f"{label(row):<26}{shown}{said(row):>16}{same:>6}")
    return lines


def notes(record: dict) -> list[str]:
    e = record["environment"]
    lines = [
        f"{record['model']}, {record['new_tokens']} new tokens, batch 1; {record['repeats']} repeats after "
        f"{record['warmups']} warm-ups, each beside the full model; median (IQR). expected: at the roofline.",
        f"{e['device']}, {e['dtype']}, {e['backend']}, {e['threads']} threads of {e['cores']} cores, "
        f"torch {e['torch']}, transformers {e['transformers']}, {e['date']}; {e['peak_flops'] / 1e9:.0f} GFLOP/s, "
        f"{e['bandwidth'] / 1e9:.1f} GB/s",
    ]
    if record["warmups"] < 2 or record["repeats"] < 5:
        lines.append("Fewer than 2 warm-ups or 5 repeats: not to be quoted.")
    if e["load_average"] is not None and e["load_average"] > 0.5:
        lines.append(f"The machine was busy at the start (load {e['load_average']:.1f}): trust ratios, not times.")
    return lines
