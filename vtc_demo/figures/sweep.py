"""Figures of a sweep's record: curves as a plotly figure, the same figures as an HTML table, where it comes from.

Reads the record of `evaluation.sweep` and knows no model. Colours of text, axes and grid are left to
the page's stylesheet, so that light and dark need no second figure.
"""

from __future__ import annotations

from collections.abc import Collection

import plotly.graph_objects as go
from markupsafe import escape

from vtc_demo.core.units import quantity
from vtc_demo.core.vocabulary import QUANTITIES

from .colours import OTHER
from .render import render

MEASURES = {name: QUANTITIES[name] for name in ("accuracy", "evidence")}
COSTS = {name: QUANTITIES[name] for name in ("final_tokens", "equivalent_tokens", "flops", "ttft_ms")}
FONT = "Inter, Segoe UI, Roboto, Noto Sans, Arial, Liberation Sans, sans-serif"
ALL = "all"  # kinds of question together


def part(row: dict, kind: str) -> dict | None:
    """The figures of a row for one kind of question, or for all; None where that kind was not asked."""
    return row["all"] if kind == ALL else row["kinds"].get(kind)


def value(row: dict, measure: str, kind: str) -> tuple[float, float, float] | None:
    """(figure, low, high) in percent; None where there is none."""
    figures = part(row, kind)
    if figures is not None and measure == "evidence":
        figures = figures["evidence"]
    if figures is None:
        return None
    middle = figures["accuracy" if measure == "accuracy" else "mean"]
    return tuple(100 * x for x in (middle, figures["low"], figures["high"]))


def cost(row: dict, name: str) -> float:
    return row["ttft_ms"]["median"] if name == "ttft_ms" else row[name]


def by_method(record: dict, shown: Collection[str]) -> dict[str, list[dict]]:
    """Rows of the methods shown, by title and hyper-parameters other than the retention, in the order of the record."""
    curves: dict[str, list[dict]] = {}
    for row in record["rows"]:
        if row["method"]["method"] in shown:
            other = {k: v for k, v in row["method"].items() if k != "retention"}
            curves.setdefault(f"{row['title']}{sorted(other.items())}", []).append(row)
    return curves


# -- curves ---------------------------------------------------------------------------------------------------------
def curves(
    record: dict,
    shown: Collection[str],
    hues: dict[str, str],
    *,
    measure: str = "accuracy",
    cost_name: str = "final_tokens",
    kind: str = ALL,
    bands: bool = True,
) -> go.Figure:
    """One curve per method over its budgets, with its 95 % band; the full model is a point and a level line."""
    figure = go.Figure()
    for rows in by_method(record, shown).values():
        told = [(cost(row, cost_name), value(row, measure, kind), row) for row in rows]
        points = [(x, y, row) for x, y, row in told if y is not None]
        points.sort(key=lambda point: (point[0], point[2]["tokens"] or 0))
        if points:
            name = rows[0]["method"]["method"]
            _curve(figure, points, hues.get(name, OTHER[0]), rows[0], kind, bands)
    full = next((row for row in record["rows"] if row["method"]["method"] == "full"), None)
    if full is not None and "full" in shown and (level := value(full, measure, kind)):
        figure.add_hline(level[0], line={"width": 1.2, "dash": "dot", "color": hues.get("full", OTHER[0])})
    return _laid_out(figure, record, measure, cost_name, kind)


def _curve(figure: go.Figure, points: list[tuple], hue: str, row: dict, kind: str, bands: bool) -> None:
    xs, shares = [x for x, _, _ in points], [y for _, y, _ in points]
    name, baseline = row["method"]["method"], row["family"] in ("baseline", "pooling")
    if bands and len(points) > 1:
        edge = [high for _, _, high in shares] + [low for _, low, _ in shares[::-1]]
        figure.add_scatter(
            x=xs + xs[::-1], y=edge, fill="toself", fillcolor=_faint(hue), line={"width": 0}, mode="lines",
            hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
    spread = [[high - y for y, _, high in shares], [y - low for y, low, _ in shares]]
    alone = {"type": "data", "array": spread[0], "arrayminus": spread[1], "thickness": 1.4, "width": 4, "color": hue}
    figure.add_scatter(
        x=xs, y=[y for y, _, _ in shares], mode="lines+markers", name=str(escape(row["title"])), legendgroup=name,
        line={"color": hue, "width": 1.8 if baseline else 2.6, "dash": "dash" if baseline else "solid"},
        marker={"color": hue, "size": 8, "symbol": "diamond" if name == "full" else "circle"},
        error_y=alone if bands and len(points) == 1 else None,
        customdata=[hover(row, kind) for _, _, row in points], hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _faint(hue: str) -> str:
    r, g, b = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},.11)"


def hover(row: dict, kind: str) -> str:
    """Everything about one point, in lines."""
    lines = []
    figures = part(row, kind)
    if figures:
        lines.append(f"accuracy {_interval(figures['accuracy'], figures)} · {figures['right']} of {figures['n']}")
        if figures["evidence"]:
            lines.append(f"evidence {_interval(figures['evidence']['mean'], figures['evidence'])}")
    less = row["minus"].get("random")
    if kind == ALL and less:
        lines.append(f"against random {_points(less)} points")
    lines.append(f"{row['final_tokens']:.4g} tokens at the end, {row['equivalent_tokens']:.4g} on average")
    lines.append(f"{quantity(row['flops'], 'FLOPs')} · KV cache {quantity(row['kv_bytes'], 'B')}")
    times = row["ttft_ms"]
    lines.append(f"first token after {times['median']:.1f} ms (IQR {times['iqr']:.1f}, {times['n']} passes)")
    asked = f" · {row['tokens']} tokens asked for" if row["tokens"] else ""
    return str(render("figures/hover.html", title=row["title"], rest=asked, lines=lines))


def _interval(middle: float, bounds: dict) -> str:
    return f"{100 * middle:.1f} % ({100 * bounds['low']:.0f} to {100 * bounds['high']:.0f})"


def _points(less: dict) -> str:
    return f"{100 * less['mean']:+.1f} ({100 * less['low']:+.1f} to {100 * less['high']:+.1f})"


def _laid_out(figure: go.Figure, record: dict, measure: str, cost_name: str, kind: str) -> go.Figure:
    clear = "rgba(0,0,0,0)"
    y = MEASURES[measure] + ("" if kind == ALL else f" · {kind}") + ", %"
    x = {"title": {"text": COSTS[cost_name]}, "automargin": True}
    if cost_name.endswith("tokens"):  # budgets double from one to the next
        marks = sorted({row["tokens"] for row in record["rows"] if row["tokens"]} | {record["model"]["patches"]})
        x |= {"type": "log", "tickvals": marks, "ticktext": [str(n) for n in marks]}
    elif cost_name == "flops":
        x |= {"rangemode": "tozero", "exponentformat": "SI"}
    else:
        x |= {"rangemode": "tozero"}
    return figure.update_layout(
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        height=520,
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        font={"family": FONT, "size": 13},
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": "#10162b", "font": {"size": 13, "color": "#ffffff"}},
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0},
        xaxis=x,
        yaxis={"title": {"text": y}, "range": [-2, 104], "tickvals": [0, 20, 40, 60, 80, 100], "automargin": True},
        modebar={"remove": ["select2d", "lasso2d", "autoScale2d"]},
    )


# -- table ----------------------------------------------------------------------------------------------------------
def table(
    record: dict, shown: Collection[str], hues: dict[str, str], *, measure: str = "accuracy", kind: str = ALL
) -> str:
    """Methods x budgets: the chosen figure with its interval; signs where a method differs from random."""
    budgets = sorted({row["tokens"] for row in record["rows"] if row["tokens"]})
    told = measure == "accuracy" and kind == ALL
    best = {n: _best(record, shown, n, measure, kind) for n in budgets}
    lines = [_line(rows, hues, measure, kind, told, best) for rows in by_method(record, shown).values()]
    what = MEASURES[measure].lower() + ("" if kind == ALL else f" on {kind} questions")
    return render("figures/sweep_table.html", what=what.capitalize(), budgets=budgets, lines=lines)


def _best(record: dict, shown: Collection[str], tokens: int, measure: str, kind: str) -> float | None:
    """The highest figure at a budget among the methods shown."""
    rows = [r for r in record["rows"] if r["tokens"] == tokens and r["method"]["method"] in shown]
    return max((v[0] for r in rows if (v := value(r, measure, kind))), default=None)


def _line(rows: list[dict], hues: dict, measure: str, kind: str, told: bool, best: dict[int, float | None]) -> dict:
    """One method: whole (its figure where it takes no budget, else None), cells (a figure or None per budget)."""
    first = rows[0]
    line = {"title": first["title"], "hue": hues.get(first["method"]["method"], OTHER[0]), "whole": None, "cells": []}
    if first["tokens"] is None:
        return line | {"whole": _cell(first, measure, kind, False, None)}
    at = {row["tokens"]: row for row in rows}
    return line | {"cells": [_cell(at[n], measure, kind, told, best[n]) if n in at else None for n in best]}


def _cell(row: dict, measure: str, kind: str, told: bool, best: float | None) -> dict | None:
    figures = value(row, measure, kind)
    if figures is None:
        return None
    middle, low, high = figures
    sign = _sign(row) if told else None
    return {"middle": middle, "low": low, "high": high, "sign": sign, "best": middle == best}


def against_random(row: dict) -> int:
    """1 or -1 where the interval of the paired difference to random does not contain zero, else 0."""
    less = row["minus"].get("random")
    return 0 if not less else int(less["low"] > 0) - int(less["high"] < 0)


def _sign(row: dict) -> dict | None:
    less, better = row["minus"].get("random"), against_random(row)
    if not better:
        return None
    word, sign, style = ("better", "▲", "up") if better > 0 else ("worse", "▼", "down")
    said = f"{word} than random on the same questions: {_points(less)} points"
    return {"style": style, "said": said, "mark": sign}


# -- words ----------------------------------------------------------------------------------------------------------
def summary(record: dict, tokens: int = 64) -> str:
    """How many methods differ from random, at a budget or the one nearest to it, beside the full model."""
    budgets = {row["tokens"] for row in record["rows"] if row["tokens"]}
    nearest = min(budgets, key=lambda n: abs(n - tokens))
    rows = [r for r in record["rows"] if r["tokens"] == nearest and r["method"]["method"] != "random"]
    better, worse = (sum(against_random(row) == sign for row in rows) for sign in (1, -1))
    full = next((row for row in record["rows"] if row["method"]["method"] == "full"), None)
    rest = len(rows) - better - worse
    text = (
        f"At {nearest} of {record['model']['patches']} tokens, {better} of {len(rows)} methods {_are(better)} better "
    )
    text += f"than random on the same questions and {worse} {_are(worse)} worse; for {rest} it cannot be told"
    every = full and value(full, "accuracy", ALL)
    return text + (f". With every token {every[0]:.0f} % is right." if every else ".")


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def provenance(record: dict) -> str:
    """How many questions, of which model, when and on what."""
    where, name = record["environment"], record["model"]["name"]
    model = "the embedded VLM" if name == "embedded" else name
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    return (
        f"{record['questions']} held-out questions on {record['scenes']} scenes per point, "
        f"{model}, {where['date'][:10]}, {where['device']}, {where['dtype']}, {threads}"
    )
