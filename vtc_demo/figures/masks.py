"""What became of the patches of a picture, site by site: masks over it. Reads `Run.to_dict()`.

Moving parts (the site slider, hovering) are in `ui/static/mask.js`, which reads the data that `mask` leaves in the
`data-mask` attribute.
"""

from __future__ import annotations

import json
from itertools import groupby

import numpy as np

from vtc_demo.core.vocabulary import station

from .render import render

DROPPED, MERGED, KEPT = 0, 1, 2
HEAT = 8  # steps of colour that show soft provenance


def frames(run: dict) -> list[dict]:
    """The stations of the pass: label, visual tokens, index of the LLM layer (or None), index into sites (or None)."""
    sites = run["sites"]
    before = [i for i, s in enumerate(sites) if not s["site"].startswith(("llm_layer", "kv_cache"))]
    out = [{"label": "patch grid", "tokens": run["tokens0"], "layer": None, "mask": None}]
    for i in before:
        out.append({"label": station(sites[i]["site"]), "tokens": sites[i]["tokens"], "layer": None, "mask": i})
    mask = before[-1] if before else None
    if not before or sites[before[-1]]["site"] != "llm_input":
        tokens = run["schedule"][0] if mask is None or outside(run) else sites[mask]["tokens"]
        out.append({"label": "LLM input", "tokens": tokens, "layer": None, "mask": mask})
    at_layer = {s["site"]: i for i, s in enumerate(sites)}
    for k, tokens in enumerate(run["schedule"]):
        mask = at_layer.get(f"llm_layer({k})", mask)
        out.append({"label": f"LLM layer {k}", "tokens": tokens, "layer": k, "mask": mask})
    if "kv_cache" in at_layer:
        last = at_layer["kv_cache"]
        out.append({"label": "KV cache", "tokens": sites[last]["tokens"], "layer": None, "mask": last})
    return out


def outside(run: dict) -> bool:
    """Whether a connector holds the picture for the layers, and no token stands in the sequence.

    Where a method has withdrawn all tokens nothing holds it.
    """
    return bool(run["sites"]) and not any(run["schedule"]) and run["sites"][-1]["tokens"] > 0


def counts(site: dict, outside: bool = False) -> str:
    """ "64 kept · 512 dropped"; what there is none of is left out. outside: nothing of it is in the sequence."""
    if site["soft"]:
        told = [f"{site['tokens']} {'mixes of patches' if outside else 'tokens, each a mix of patches'}"]
    else:
        told = [f"{n} {fate}" for fate in ("kept", "merged", "dropped") if (n := site["counts"][fate])]
    return " · ".join([*told, "none in the sequence"] if outside else told)


def mask(run: dict, picture: str, evidence: np.ndarray | None = None, title: str = "") -> str:
    """SVG of the picture (a data URL) under the masks of all sites, the last one shown.

    evidence: bool [g, g] on a grid of its own. The fates of merged patches and the share of the evidence that is left
    at each site travel in `data-mask` for the page's script.
    """
    rows, columns = run["grid"]
    stations = frames(run)
    sites = [_fates(site, outside(run)) | {"evidence": _share(site, run["grid"], evidence)} for site in run["sites"]]
    data = {"grid": run["grid"], "cells": run["cells"], "frames": stations, "sites": sites}
    told = evidence if evidence is not None and evidence.any() and not evidence.all() else None
    return render(
        "figures/mask.html",
        rows=rows,
        columns=columns,
        picture=picture,
        label=f"{title}: {_summary(run)}. The arrow keys move over the patches.",
        data=json.dumps(data, separators=(",", ":")),
        layers=[_paths(site, rows, columns) for site in run["sites"]],
        shown=stations[-1]["mask"],
        outline="" if told is None else outline(told),
        scale="" if told is None else f"scale({columns / told.shape[1]:g} {rows / told.shape[0]:g})",
    )


def _paths(site: dict, rows: int, columns: int) -> list[dict]:
    """The SVG paths of one site: kind (its class), d, level (of soft provenance, else empty)."""
    if site["soft"]:
        return _heat(np.array(site["weight"]).reshape(rows, columns))
    status = np.array(site["status"]).reshape(rows, columns)
    kept = outline(status == KEPT) if (status == KEPT).sum() < status.size else ""
    drawn = {"vtc-dropped": cells(status == DROPPED), "vtc-merged": cells(status == MERGED), "vtc-kept": kept}
    return [{"kind": kind, "d": d, "level": ""} for kind, d in drawn.items()]


def _heat(share: np.ndarray) -> list[dict]:
    """Every patch has a share in many tokens: its largest share, in steps of the site's maximum."""
    level = np.ceil(HEAT * share / max(share.max(), 1e-9)).astype(int)
    steps = [step for step in range(HEAT + 1) if (level == step).any()]
    return [{"kind": "vtc-heat", "d": cells(level == step), "level": f"{step / HEAT:.3g}"} for step in steps]


def _fates(site: dict, outside: bool) -> dict:
    """status as a string of digits; for merged patches their home and weight, by patch."""
    merged = [i for i, s in enumerate(site["status"]) if s == MERGED]
    return {
        "label": station(site["site"]),
        "counts": counts(site, outside),
        "soft": site["soft"],
        "status": "".join(map(str, site["status"])),
        "merged": {i: [site["home"][i], site["weight"][i]] for i in merged},
    }


def _summary(run: dict) -> str:
    if not run["sites"]:
        return "every patch is kept"
    return f"patches at the end of the pass: {counts(run['sites'][-1], outside(run))}"


def evidence_share(run: dict, evidence: np.ndarray) -> float | None:
    """Share of the evidence that is kept or merged at the end of the pass; None where there is no evidence."""
    if not evidence.any():
        return None
    return _share(run["sites"][-1], run["grid"], evidence) if run["sites"] else 1.0


def _share(site: dict, grid: list[int], evidence: np.ndarray | None) -> float | None:
    """The same at one site; the evidence may be on another grid than the patches."""
    if evidence is None or not evidence.any():
        return None
    (rows, columns), (r, c) = grid, np.nonzero(evidence)
    status = np.array(site["status"]).reshape(rows, columns)
    there = status[r * rows // evidence.shape[0], c * columns // evidence.shape[1]]
    return float((there > DROPPED).mean())


def cells(where: np.ndarray) -> str:
    """SVG path of the true cells of [rows, columns], one rectangle per horizontal stretch."""
    path = []
    for r, row in enumerate(where.tolist()):
        for on, stretch in groupby(enumerate(row), key=lambda item: item[1]):
            columns = [c for c, _ in stretch]
            if on:
                path.append(f"M{columns[0]} {r}h{len(columns)}v1h-{len(columns)}z")
    return "".join(path)


def outline(where: np.ndarray) -> str:
    """SVG path of the border between true and false cells of [rows, columns]."""
    padded = np.pad(where.astype(bool), 1)
    across = (padded[1:] != padded[:-1])[:, 1:-1]  # [rows + 1, columns] horizontal edges
    down = (padded[:, 1:] != padded[:, :-1])[1:-1].T  # [columns + 1, rows] vertical edges
    path = []
    for lines, form in ((across, "M{a} {line}h{n}"), (down, "M{line} {a}v{n}")):
        for line, edges in enumerate(lines.tolist()):
            for on, stretch in groupby(enumerate(edges), key=lambda item: item[1]):
                places = [i for i, _ in stretch]
                if on:
                    path.append(form.format(a=places[0], line=line, n=len(places)))
    return "".join(path)
