"""Figures of a Latency lab record: measured bars beside expected ones, and the roofline with what was timed on it.

Reads the record of `benchmark.lab` and knows no model. Colours of text, axes and grid are left to the
page's stylesheet, so that light and dark need no second figure.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from markupsafe import escape

from vtc_demo.benchmark.lab import report
from vtc_demo.core.units import duration, quantity
from vtc_demo.core.vocabulary import LM_HEAD
from vtc_demo.core.vocabulary import STAGES as NAMES

from .colours import OTHER
from .render import render
from .sweep import FONT

CLEAR = "rgba(0,0,0,0)"
HUES = {"vision": "#22a35a", "projector": "#14b8a6", "prefill": "#3b82f6", "lm_head": "#94a3b8", "decode": "#d99a06"}
STAGES = {stage: ((NAMES | {"lm_head": LM_HEAD})[stage], HUES[stage]) for stage in report.STAGES}
BATCHED = {"decode": ("decode step", HUES["decode"]), "batched_prefill": STAGES["prefill"]}
PHASES = {  # kind of point -> (what it is called, colour, symbol)
    "prefill": ("decoder layer, prefill", HUES["prefill"], "circle"),
    "decode": ("decoder layer, decode step", HUES["decode"], "diamond"),
    "tower": ("vision tower layer", HUES["vision"], "square"),
    "tower full": ("vision tower layer, full attention", HUES["vision"], "square-open"),
    "projector": (NAMES["projector"], HUES["projector"], "cross"),
    "lm_head": (LM_HEAD, HUES["lm_head"], "x"),
}


# -- bars -----------------------------------------------------------------------------------------------------------
def first_token(record: dict) -> go.Figure:
    """Time to the first token by stage: a full bar measured, a pale one under it at the roofline."""
    rows = [(row, row["ms"], row["expected_ms"], row["ratios"]["ttft"]) for row in record["rows"]]
    return _bars(rows, STAGES, "ttft")


def by_batch(record: dict, part: str, batch: int) -> go.Figure:
    """Time of one decode step of all answers, or of the prefill of all prompts, measured and at the roofline. part: a
    key of `settings.BATCHED`."""
    rows = []
    for row in record["rows"]:
        measured, expected, ratio = (report.at(row, f, part, batch) for f in ("ms", "expected_ms", "ratios"))
        rows.append((row, {part: measured}, {part: expected}, ratio))
    return _bars(rows, {part: BATCHED[part]}, part, report.missing(record, part, batch))


def _bars(rows: list[tuple], stages: dict, total: str, missing: str = "") -> go.Figure:
    """rows: (row, measured spreads by stage, expected ms by stage, ratio to the full model or None). missing: why there
    is no bar where nothing was measured."""
    figure, rows = go.Figure(), rows[::-1]  # the first on top
    timed = [(i, *row) for i, row in enumerate(rows) if row[1][total] is not None]
    ends = {  # of the longer bar: stages' medians, whose sum need not be the median of the sums
        i: max(sum(ms[stage]["median"] for stage in stages), expected[total]) for i, _, ms, expected, _ in timed
    }
    longest = max(ends.values(), default=1.0)
    unit, scale = ("seconds", 1e-3) if longest >= 1000 else ("milliseconds", 1.0)
    for stage, (name, hue) in stages.items():
        for measured in (True, False):
            values = [ms[stage]["median"] if measured else expected[stage] for _, _, ms, expected, _ in timed]
            how = "measured" if measured else "at the roofline"
            figure.add_bar(
                y=[i + (0.19 if measured else -0.19) for i, *_ in timed],
                x=[value * scale for value in values],
                width=0.34 if measured else 0.2,
                orientation="h",
                name=name,
                legendgroup=stage,
                showlegend=measured,
                marker={"color": hue, "opacity": 1.0 if measured else 0.42, "line": {"width": 0}},
                customdata=[
                    _hover(row, f"{name} {how}: {duration(value)}", ms[stage] if measured else None)
                    for (_, row, ms, _, _), value in zip(timed, values)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
    for i, _, ms, _, ratio in timed:
        text = f"<b>{duration(ms[total]['median'])}</b>"
        text += "" if ratio is None or ratio["median"] == 1 else f" · {ratio['median']:.2f}×"
        figure.add_annotation(x=ends[i] * scale, y=i + 0.1, text=text, showarrow=False, xanchor="left", xshift=6)
    for i, row in enumerate(rows):
        if row[1][total] is None:
            figure.add_annotation(x=0, y=i, text=missing, showarrow=False, xanchor="left", xshift=6)
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": unit, "font": {"size": 13}}, "range": [0, 1.3 * longest * scale], "automargin": True},
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": [str(escape(report.label(row[0]))) for row in rows],
            "range": [-0.5, len(rows) - 0.5],
            "showgrid": False,
            "ticks": "outside",
            "ticklen": 8,
            "tickcolor": CLEAR,
            "automargin": True,
        },
        showlegend=len(stages) > 1,
    )
    return _laid_out(figure, 96 + 52 * len(rows))


def _hover(row: dict, said: str, spread: dict | None) -> str:
    more = f" (IQR {duration(spread['iqr'])}, {spread['n']} rounds)" if spread else ""
    return str(render("figures/hover.html", title=report.label(row), rest="", lines=[said + more]))


# -- roofline -------------------------------------------------------------------------------------------------------
def roofline(record: dict, batch: int, prompts: int = 1) -> go.Figure:
    """FLOP/s against FLOPs per byte, both logarithmic: the two roofs of the machine and every point under them. batch:
    of the decode steps shown; prompts: of the prefills."""
    wanted = {"decode": batch, "lm_head": batch, "prefill": prompts}
    shown = [p for p in record["points"] if p["kind"] in PHASES and p["batch"] == wanted.get(p["kind"], 1)]
    machine = record["environment"]
    peak, bandwidth, corner = machine["peak_flops"], machine["bandwidth"], report.ridge(record)
    found = [p["flops"] / p["bytes"] for p in shown]
    left, right = min([*found, corner]) / 3, max([*found, corner]) * 3
    figure = go.Figure()
    figure.add_scatter(
        x=[left, corner, right], y=[left * bandwidth, peak, peak], mode="lines", hoverinfo="skip", showlegend=False,
        line={"color": "#94a3b8", "width": 2.4},
    )  # fmt: skip
    figure.add_scatter(
        x=[left, corner, corner, left], y=[left * bandwidth, peak, left * bandwidth / 50, left * bandwidth / 50],
        fill="toself", mode="none", fillcolor="rgba(217,154,6,.08)", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for kind, (name, hue, symbol) in PHASES.items():
        points = [p for p in shown if p["kind"] == kind]
        if points:
            figure.add_scatter(
                x=[p["flops"] / p["bytes"] for p in points],
                y=[1000 * p["flops"] / p["ms"]["median"] for p in points],
                mode="markers",
                name=name,
                marker={"color": hue, "symbol": symbol, "size": 12, "line": {"width": 1, "color": hue}},
                customdata=[_told(record, p, name) for p in points],
                hovertemplate="%{customdata}<extra></extra>",
            )
    low = min([1000 * p["flops"] / p["ms"]["median"] for p in shown] + [left * bandwidth]) / 2
    axis = {"type": "log", "automargin": True, "exponentformat": "SI", "dtick": 1}
    figure.update_layout(
        xaxis=axis
        | {"title": {"text": "FLOPs per byte moved", "font": {"size": 13}}, "range": [np.log10(left), np.log10(right)]},
        yaxis=axis
        | {"title": {"text": "FLOP/s", "font": {"size": 13}}, "range": [np.log10(low), np.log10(peak * 2.5)]},
    )
    for x, text, anchor in ((left * 1.3, "memory decides", "left"), (right / 1.3, "arithmetic decides", "right")):
        figure.add_annotation(
            x=np.log10(x), y=np.log10(peak * 1.7), text=text, showarrow=False, xanchor=anchor, font={"size": 13}
        )
    return _laid_out(figure, 440)


def _told(record: dict, point: dict, name: str) -> str:
    """Everything about one point, in lines."""
    machine, ms = record["environment"], point["ms"]
    reached = 1000 * point["flops"] / ms["median"]
    memory = point["flops"] / point["bytes"] < report.ridge(record)
    roof = machine["bandwidth"] * point["flops"] / point["bytes"] if memory else machine["peak_flops"]
    size = f"{point['tokens']:,} cache entries" if point["kind"] == "decode" else f"{point['tokens']:,} tokens"
    if point["kind"] in ("decode", "prefill", "lm_head"):
        size = f"{'' if point['kind'] == 'lm_head' else size + ', '}batch {point['batch']}"
    lines = (
        f"{quantity(point['flops'], 'FLOPs')}, {quantity(point['bytes'], 'B')}: "
        f"{point['flops'] / point['bytes']:.3g} FLOPs per byte",
        f"{duration(ms['median'])} (IQR {duration(ms['iqr'])}), at the roofline {duration(point['expected_ms'])}",
        f"{quantity(reached, 'FLOP/s')}, {100 * reached / roof:.0f} % of the roof; "
        f"{'memory' if memory else 'arithmetic'} decides",
    )
    return str(render("figures/hover.html", title=name, rest=f", {size}", lines=lines))


def _laid_out(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        font={"family": FONT, "size": 13},
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": "#101730", "bordercolor": "#9da8c8", "font": {"size": 13}},
        legend={"orientation": "h", "y": -0.2 if height > 400 else -90 / height, "yanchor": "top", "x": 0},
        modebar={"remove": ["select2d", "lasso2d", "autoScale2d"]},
    )


# -- table ----------------------------------------------------------------------------------------------------------
def table(record: dict, batch: int, answer: int, hues: dict[str, str], prompts: int = 1) -> str:
    """One line per method: what it costs, its times, and what it gains; answer: tokens of a whole answer."""
    heads = (
        "tokens per layer",
        "FLOPs",
        "own work, FLOPs, not timed",
        f"KV cache × {batch}",
        "first token",
        f"prefill × {prompts}",
        f"decode step × {batch}",
        f"answer of {answer}",
    )
    lines = [_line(record, row, batch, answer, hues, prompts) for row in record["rows"]]
    return render("figures/lab_table.html", heads=heads, lines=lines)


def whole_answer(row: dict, batch: int, answer: int) -> tuple[float, float] | None:
    """Milliseconds of an answer, measured and at the roofline: the first token, and a decode step for each further."""
    step, least = row["ms"]["decode"][str(batch)], row["expected_ms"]["decode"][str(batch)]
    if step is None:
        return None
    steps = answer - 1
    return row["ms"]["ttft"]["median"] + steps * step["median"], row["expected_ms"]["ttft"] + steps * least


def _line(record: dict, row: dict, batch: int, answer: int, hues: dict[str, str], prompts: int) -> dict:
    """One method: its label and colour, counts as text, times as `_time`."""
    full = record["rows"][0]
    whole, of_full = whole_answer(row, batch, answer), whole_answer(full, batch, answer)
    first = row["ratios"]["ttft"]["median"], row["expected_ratios"]["ttft"]
    answered = (of_full[0] / whole[0], of_full[1] / whole[1]) if whole and of_full else None
    left_out = report.missing(record, "decode", batch)
    counts = (
        f"{row['equivalent_tokens']:,.0f}",
        quantity(row["flops"]["total"]),
        "not counted" if row.get("own_flops") is None else quantity(row["own_flops"]),
        quantity(batch * row["kv_bytes"], "B"),
    )
    times = (
        _time(row["ms"]["ttft"]["median"], None if row is full else first),
        _by_batch(record, row, "batched_prefill", prompts),
        _by_batch(record, row, "decode", batch),
        _time(whole and whole[0], None if row is full else answered, left_out),
    )
    hue = hues.get(row["method"]["method"], OTHER[0])
    return {"hue": hue, "label": report.label(row), "counts": counts, "times": times}


def _by_batch(record: dict, row: dict, part: str, batch: int) -> dict:
    ms, ratio, expected = (report.at(row, figures, part, batch) for figures in ("ms", "ratios", "expected_ratios"))
    gains = None if ratio is None or row is record["rows"][0] else (ratio["median"], expected)
    return _time(ms and ms["median"], gains, report.missing(record, part, batch))


def _time(ms: float | None, gains: tuple[float, float] | None, missing: str = "") -> dict:
    """gains: full / method, measured and expected. missing: what is said in place of a time that there is none of."""
    return {"text": None if ms is None else duration(ms), "gains": gains, "missing": missing}
