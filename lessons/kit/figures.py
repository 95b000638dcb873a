"""Figures of the lessons, all plotly: they can be hovered in Jupyter, and the builder adds a static picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from vtc_demo.core.vocabulary import LM_HEAD, STAGES
from vtc_demo.figures.colours import colours
from vtc_demo.figures.pictures import data_url, square

CLEAR = "rgba(0,0,0,0)"
FATES = {"dropped": "rgba(12,16,24,0.78)", "merged into another token": "rgba(245,158,11,0.5)", "kept": CLEAR}
SERIES = ("#2563a8", "#e07b39", "#2a9d8f", "#a04fbf", "#c9a227", "#c2476b", "#6b7a8f")
STAGE_COLOURS = dict(
    zip([*STAGES, "lm_head"], ("#94a3b8", "#38bdf8", "#2fc6b7", "#f59e0b", "#8b6fe8", "#f08fb4", "#c9a227"))
)
EVIDENCE = "#22e06b"
SIDE = 280  # px of one picture


def layout(figure: go.Figure, title: str = "", **settings) -> go.Figure:
    """The common look. No template of plotly's: each would put 7 kB into the notebook."""
    margin = {"l": 60, "r": 20, "t": 60 if title else 30, "b": 50}
    axis = {"gridcolor": "#e3e8ef", "zerolinecolor": "#c3ccd8", "ticks": "outside", "tickcolor": "#c3ccd8"}
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0.01, "font": {"size": 16}},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#243042"},
        xaxis=axis,
        yaxis=axis,
        **({"margin": margin, "height": 380} | settings),
    )
    return figure


# -- pictures -------------------------------------------------------------------------------------------------------
def picture(image, grid: tuple[int, int] | None = None, title: str = "", evidence=None) -> go.Figure:
    """The picture as the model sees it; grid (rows, columns): with the patches drawn. evidence: bool [rows, columns]."""
    rows, columns = grid or (24, 24)
    figure = panels(image, [""], (rows, columns), title, side=380)
    if grid:
        edges = [(c, c, 0, rows) for c in range(columns + 1)] + [(0, columns, r, r) for r in range(rows + 1)]
        figure.add_trace(segments(edges, "rgba(255,255,255,0.55)", 0.7), 1, 1)
    numbers = np.arange(rows * columns).reshape(rows, columns)
    figure.add_trace(cells(numbers, "patch %{z}", [[0, CLEAR], [1, CLEAR]]), 1, 1)
    outline_evidence(figure, evidence, (rows, columns), 1)
    return figure


def masks(image, runs: Iterable, question=None, title: str = "", site=None, names=None) -> go.Figure:
    """What became of every patch, one panel per run: dropped dark, merged amber, kept clear; evidence outlined green.

    runs: of `vtc.run`; question: of a scene, for its evidence; site: a `vtc.core.tokens.Site`, default the end of the pass;
    names: of the panels, default the methods' titles. The answer stands below the name.
    """
    runs = list(runs)
    names = [run.method.card.title for run in runs] if names is None else names
    names = [f"{name}, {run.visual_tokens} tokens<br>“{run.answer}”" for name, run in zip(names, runs)]
    grid = runs[0].trace.grid
    figure = panels(image, names, grid, title)
    for column, run in enumerate(runs, 1):
        status = run.trace.on_grid(run.trace.fate(site).status).reshape(grid).numpy()
        for value, (fate, veil) in enumerate(FATES.items()):  # a trace per fate: its name is told on hovering
            if (status == value).any():
                there = np.where(status == value, value, np.nan)
                figure.add_trace(cells(there, fate, [[0, veil], [1, veil]]), 1, column)
        outline_evidence(figure, None if question is None else question.evidence, grid, column)
    return figure


def heat(image, maps: dict[str, torch.Tensor], grid: tuple[int, int] = (24, 24), title: str = "") -> go.Figure:
    """Scores per patch over the picture, one panel per entry of maps (name -> [patches]); each on its own scale."""
    figure = panels(image, list(maps), grid, title)
    scale = [[0, "rgba(20,10,60,0.75)"], [0.5, "rgba(200,40,110,0.6)"], [1, "rgba(255,225,60,0.75)"]]
    for column, values in enumerate(maps.values(), 1):
        z = torch.as_tensor(values).detach().float().reshape(grid).numpy()
        figure.add_trace(cells(z, "%{z:.4g}", scale), 1, column)
    return figure


def panels(image, names: Sequence[str], grid: tuple[int, int], title: str, side: int = SIDE) -> go.Figure:
    """The same picture once per name, side by side, in units of patches."""
    rows, columns = grid
    gap = 0.03 / max(1, len(names) - 1) if len(names) > 1 else 0
    figure = make_subplots(1, len(names), subplot_titles=list(names), horizontal_spacing=gap)
    source = data_url(square(image, SIDE), quality=80)
    for i in range(1, len(names) + 1):
        place = {"xref": f"x{i if i > 1 else ''}", "yref": f"y{i if i > 1 else ''}", "x": -0.5, "y": -0.5}
        figure.add_layout_image(
            source=source, **place, sizex=columns, sizey=rows, sizing="stretch", yanchor="top", layer="below"
        )
    above = (50 if title else 10) + (45 if any(names) else 0)
    size = {"width": (side + 12) * len(names) + 40, "height": side + above + 20}
    layout(figure, title, **size, margin={"l": 20, "r": 20, "t": above, "b": 20}, showlegend=False)
    hidden = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(range=[-0.5, columns - 0.5], **hidden)
    figure.update_yaxes(range=[rows - 0.5, -0.5], scaleanchor="x", **hidden)
    return figure.update_annotations(font={"size": 13})


def cells(values: np.ndarray, told: str, scale) -> go.Heatmap:
    """One translucent cell per patch; told: what hovering says after its place. values [rows, columns], nan: no cell."""
    return go.Heatmap(
        z=values.astype(np.float32),
        x0=0,
        y0=0,
        dx=1,
        dy=1,
        colorscale=scale,
        showscale=False,
        hovertemplate=f"row %{{y}}, column %{{x}}: {told}<extra></extra>",
    )


def segments(edges: Iterable[tuple], colour: str, width: float) -> go.Scatter:
    """Straight lines (x0, x1, y0, y1) as one trace; in patches from the top left corner, where centres are whole."""
    x, y = [], []
    for x0, x1, y0, y1 in edges:
        x += [x0 - 0.5, x1 - 0.5, None]
        y += [y0 - 0.5, y1 - 0.5, None]
    return go.Scatter(x=x, y=y, mode="lines", line={"color": colour, "width": width}, hoverinfo="skip")


def outline_evidence(figure: go.Figure, evidence, grid: tuple[int, int], column: int) -> None:
    """A line around the evidence patches, bool [g, g]."""
    if evidence is None or evidence.all():
        return
    padded = np.pad(evidence, 1)
    across = np.argwhere(padded[1:] != padded[:-1])  # rows of [y, x + 1]
    down = np.argwhere(padded[:, 1:] != padded[:, :-1])  # rows of [y + 1, x]
    sx, sy = grid[1] / evidence.shape[1], grid[0] / evidence.shape[0]
    edges = [((x - 1) * sx, x * sx, y * sy, y * sy) for y, x in across.tolist()]
    edges += [(x * sx, x * sx, (y - 1) * sy, y * sy) for y, x in down.tolist()]
    figure.add_trace(segments(edges, EVIDENCE, 2.5), 1, column)


# -- charts ---------------------------------------------------------------------------------------------------------
def bars(rows: dict[str, dict[str, float]], unit: str, title: str = "", names: dict[str, str] | None = None):
    """Stacked horizontal bars: row -> {part: value}. Stages of a pass get their usual names (or `names`)."""
    names = STAGES | {"lm_head": LM_HEAD} | (names or {})
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    spare = dict(zip(parts, SERIES * 3)) | STAGE_COLOURS
    figure = go.Figure()
    for part in parts:
        values = [row.get(part, 0.0) for row in rows.values()]
        look = {"marker_color": spare[part], "hovertemplate": f"%{{y}}: %{{x:.3g}} {unit}"}
        figure.add_bar(y=list(rows), x=values, name=names.get(part, part), orientation="h", **look)
    layout(figure, title, barmode="stack", height=170 + 46 * len(rows), bargap=0.3)
    figure.update_layout(
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"}, margin_t=95
    )
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="")
    return figure.update_xaxes(title=unit)


def lines(curves: dict, x_title: str, y_title: str, title: str = "", **settings) -> go.Figure:
    """Curves: name -> (x, y) or (x, y, low, high) with a band of confidence. Names of methods get their colour."""
    import vtc_demo as vtc

    known = colours(vtc.list_methods())
    figure = go.Figure()
    for (name, curve), spare in zip(curves.items(), SERIES * 3):
        x, y, *band = ([float(v) for v in values] for values in curve)
        colour = known.get(name, spare)
        if band:
            low, high = band
            figure.add_scatter(
                x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.15, line={"width": 0},
                hoverinfo="skip", showlegend=False, mode="lines",
            )  # fmt: skip
        figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": colour, "width": 2})
    layout(figure, title, **settings)
    figure.update_xaxes(title=x_title)
    return figure.update_yaxes(title=y_title, rangemode="tozero")


def matrix(values: torch.Tensor, x_title: str = "old token", y_title: str = "new token", title: str = "") -> go.Figure:
    """A matrix [m, n] as an image, row 0 on top: for the reduction matrix R."""
    z = torch.as_tensor(values).float().numpy()
    figure = go.Figure(go.Heatmap(z=z, colorscale="Blues", zmin=0, zmax=max(1e-9, float(z.max())), xgap=1, ygap=1))
    layout(figure, title)
    figure.update_xaxes(title=x_title, constrain="domain", showgrid=False)
    return figure.update_yaxes(title=y_title, autorange="reversed", scaleanchor="x", constrain="domain", showgrid=False)
