"""Pictures of results: masks over the image, bars, verdicts. Reads `Run.to_dict()` and knows no model.

Everything returned is HTML or SVG with its text escaped. Moving parts (the site slider, hovering) are in
`ui/static/mask.js`, which reads the data that `mask` leaves in the `data-mask` attribute.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from html import escape
from itertools import groupby

import numpy as np
from PIL import Image, ImageOps

SIDE = 336  # pixels of a picture on the page
DROPPED, MERGED, KEPT = 0, 1, 2
HEAT = 8  # steps of colour that show soft provenance
TTFT_STAGES = ("preprocess", "vision", "projector", "compression", "prefill")
STAGES = {
    "preprocess": "preprocessing",
    "vision": "vision tower",
    "projector": "projector",
    "compression": "method's own work",
    "prefill": "prefill",
    "decode": "decoding",
}

# One colour per method, in the order of lists within its family. Red and green are left to wrong and right.
PALETTE = {
    "baseline": ("#94a3b8", "#f59e0b", "#c2884a", "#b0a48a", "#e0b75e"),
    "pooling": ("#f08fb4", "#d4708f"),
    "pruning by vision attention": ("#38bdf8", "#6f8dfb", "#22a7d0", "#7cb7ff"),
    "pruning by text attention": ("#a78bfa", "#d177f0", "#8f6df2", "#e39bf5"),
    "diversity/coverage": ("#2fc6b7", "#5fb8a5"),
    "multi-stage": ("#e08bd0", "#c46fb4"),
    "merging": ("#b7c94f", "#93a83e", "#d3e07f"),
    "learned queries": ("#ff9d6c", "#d9784a", "#ffc2a1"),
    "linear merger": ("#d9c26a",),
    "space-to-depth": ("#a89a4a",),
    "learned sampler": ("#9fb8d9",),
    "attention rework": ("#8c8fd6", "#6d73c4", "#b4b6ee"),
    "weights instead of tokens": ("#c7a7e8",),
}
OTHER = ("#b59df0", "#5fb3d6", "#d9a05b", "#8fa8c8", "#c9b458")


def colours(cards: Iterable) -> dict[str, str]:
    """Method name -> colour, for cards (`.name`, `.family`) in the order of lists. A colour stays with its method."""
    seen: dict[str, int] = {}
    out = {}
    for card in cards:
        place = seen[card.family] = seen.get(card.family, -1) + 1
        shades = PALETTE.get(card.family, OTHER)
        out[card.name] = shades[place % len(shades)]
    return out


# -- pictures -------------------------------------------------------------------------------------------------------
def square(image: Image.Image, side: int = SIDE) -> Image.Image:
    """What the model is shown of an image: its central square."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def data_url(image: Image.Image, quality: int = 92) -> str:
    """The image inside a URL, so that a page needs no second request."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


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


def trims_cache(run: dict) -> bool:
    """Whether a layer's cache holds fewer visual tokens at the end than entered the layer."""
    return cached(run) != run["schedule"]


def site_label(site: str) -> str:
    """ "llm_layer(2)" -> "LLM layer 2"."""
    names = {
        "input_image": "smaller image",
        "vision_layer": "encoder layer",
        "projector": "projector",
        "llm_input": "LLM input",
        "llm_layer": "LLM layer",
        "kv_cache": "KV cache",
    }
    kind, _, layer = site.partition("(")
    return f"{names.get(kind, kind)} {layer.rstrip(')')}".strip()


def frames(run: dict) -> list[dict]:
    """The stations of the pass: label, visual tokens, index of the LLM layer (or None), index into sites (or None)."""
    sites = run["sites"]
    before = [i for i, s in enumerate(sites) if not s["site"].startswith(("llm_layer", "kv_cache"))]
    out = [{"label": "patch grid", "tokens": run["tokens0"], "layer": None, "mask": None}]
    for i in before:
        out.append({"label": site_label(sites[i]["site"]), "tokens": sites[i]["tokens"], "layer": None, "mask": i})
    mask = before[-1] if before else None
    if not before or sites[before[-1]]["site"] != "llm_input":
        tokens = run["schedule"][0] if mask is None or beside(run) else sites[mask]["tokens"]
        out.append({"label": "LLM input", "tokens": tokens, "layer": None, "mask": mask})
    at_layer = {s["site"]: i for i, s in enumerate(sites)}
    for k, tokens in enumerate(run["schedule"]):
        mask = at_layer.get(f"llm_layer({k})", mask)
        out.append({"label": f"LLM layer {k}", "tokens": tokens, "layer": k, "mask": mask})
    if "kv_cache" in at_layer:
        last = at_layer["kv_cache"]
        out.append({"label": "KV cache", "tokens": sites[last]["tokens"], "layer": None, "mask": last})
    return out


def mask(run: dict, picture: str, evidence: np.ndarray | None = None, title: str = "") -> str:
    """SVG of the picture (a data URL) under the masks of all sites, the last one shown.

    evidence: bool [g, g] on a grid of its own. The fates of merged patches and the share of the evidence that is left
    at each site travel in `data-mask` for the page's script.
    """
    rows, columns = run["grid"]
    stations = frames(run)
    shown = stations[-1]["mask"]
    layers = "".join(_layer(site, i, i == shown, rows, columns) for i, site in enumerate(run["sites"]))
    sites = [_fates(site, beside(run)) | {"evidence": _share(site, run["grid"], evidence)} for site in run["sites"]]
    data = {"grid": run["grid"], "cells": run["cells"], "frames": stations, "sites": sites}
    label = f"{title}: {_summary(run)}. The arrow keys move over the patches."
    return (
        f'<svg class="vtc-mask" viewBox="0 0 {columns} {rows}" role="application" tabindex="0" '
        f'aria-label="{escape(label)}" data-mask="{escape(json.dumps(data, separators=(",", ":")))}">'
        f'<image href="{escape(picture)}" width="{columns}" height="{rows}" preserveAspectRatio="none"/>'
        f"{layers}{_evidence(evidence, rows, columns)}"
        '<path class="vtc-group"/><g class="vtc-links"></g>'
        '<rect class="vtc-cursor" width="1" height="1" visibility="hidden"/></svg>'
    )


def _layer(site: dict, index: int, shown: bool, rows: int, columns: int) -> str:
    status = np.array(site["status"]).reshape(rows, columns)
    drawn = _heat(site, rows, columns) if site["soft"] else _hard(status)
    return f'<g class="vtc-layer{" on" if shown else ""}" data-site="{index}">{drawn}</g>'


def _hard(status: np.ndarray) -> str:
    kept = outline(status == KEPT) if (status == KEPT).sum() < status.size else ""
    return (
        f'<path class="vtc-dropped" d="{cells(status == DROPPED)}"/>'
        f'<path class="vtc-merged" d="{cells(status == MERGED)}"/>'
        f'<path class="vtc-kept" d="{kept}"/>'
    )


def _heat(site: dict, rows: int, columns: int) -> str:
    """Soft provenance: every patch has a share in many tokens. Its largest share, in steps of the site's maximum."""
    share = np.array(site["weight"]).reshape(rows, columns)
    level = np.ceil(HEAT * share / max(share.max(), 1e-9)).astype(int)
    return "".join(
        f'<path class="vtc-heat" style="--level:{step / HEAT:.3g}" d="{cells(level == step)}"/>'
        for step in range(HEAT + 1)
        if (level == step).any()
    )


def _fates(site: dict, outside: bool) -> dict:
    """status as a string of digits; for merged patches their home and weight, by patch."""
    merged = [i for i, s in enumerate(site["status"]) if s == MERGED]
    return {
        "label": site_label(site["site"]),
        "counts": counts(site, outside),
        "soft": site["soft"],
        "status": "".join(map(str, site["status"])),
        "merged": {i: [site["home"][i], site["weight"][i]] for i in merged},
    }


def _evidence(evidence: np.ndarray | None, rows: int, columns: int) -> str:
    if evidence is None or not evidence.any() or evidence.all():
        return ""
    path = outline(evidence)
    scale = f"scale({columns / evidence.shape[1]:g} {rows / evidence.shape[0]:g})"
    return f'<g class="vtc-evidence" transform="{scale}"><path class="under" d="{path}"/><path d="{path}"/></g>'


def _summary(run: dict) -> str:
    if not run["sites"]:
        return "every patch is kept"
    return f"patches at the end of the pass: {counts(run['sites'][-1], beside(run))}"


def counts(site: dict, outside: bool = False) -> str:
    """ "64 kept · 512 dropped"; what there is none of is left out. outside: nothing of it is in the sequence."""
    if site["soft"]:
        told = [f"{site['tokens']} {'mixes of patches' if outside else 'tokens, each a mix of patches'}"]
    else:
        told = [f"{n} {fate}" for fate in ("kept", "merged", "dropped") if (n := site["counts"][fate])]
    return " · ".join([*told, "none in the sequence"] if outside else told)


def beside(run: dict) -> bool:
    """Whether a connector holds the picture for the layers, and no token stands in the sequence."""
    return bool(run["sites"]) and not any(run["schedule"])


# -- figures --------------------------------------------------------------------------------------------------------
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


def ttft_flops(run: dict) -> int:
    """FLOPs up to the first token."""
    return run["flops"]["total"] - run["flops"].get("decode", 0)


def speedup(run: dict, full: dict) -> tuple[float, float]:
    """Time to first token of the full model over that of the run: measured, and as the FLOPs alone would have it."""
    measured = full["timings_ms"]["ttft"] / max(run["timings_ms"]["ttft"], 1e-9)
    return measured, ttft_flops(full) / max(ttft_flops(run), 1)


def same(a: str, b: str) -> bool:
    """Two answers are the same up to case, spaces and a closing full stop."""
    plain = [" ".join(x.casefold().split()).strip(" .") for x in (a, b)]
    return plain[0] == plain[1]


def verdict(run: dict, truth: str | None, full: dict | None) -> tuple[str, str]:
    """(state, remark): "right" or "wrong" where the truth is known, else "neutral" with the full model's view."""
    if truth is not None:
        return ("right", "right") if same(run["answer"], truth) else ("wrong", f"truth: {truth}")
    if full is None or full is run:
        return "neutral", "reference" if full is run else ""
    return "neutral", "as the full model" if same(run["answer"], full["answer"]) else f"full model: {full['answer']}"


def cost(match: str, value: float) -> str:
    """A cost in the measure `match` of `matching`, in words."""
    if match == "flops":
        return quantity(value, "FLOPs")
    return f"{value:.4g} tokens " + ("at the end" if match == "final tokens" else "on average")


def quantity(value: float, unit: str = "") -> str:
    """1310000000 -> "1.31 G", 2400000 -> "2.40 M": three digits."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_three(value / factor)} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def _three(value: float) -> str:
    return f"{value:.{max(0, 2 - int(np.log10(value)))}f}"


def cached(run: dict) -> list[int]:
    """Visual tokens left in each layer's cache at the end. The text beside them is the same in all layers."""
    text = run["kv_lengths"][-1] - run["schedule"][-1]  # nothing leaves the last layer's cache after its pass
    return [length - text for length in run["kv_lengths"]]


def layer_bars(run: dict) -> str:
    """Visual tokens entering each LLM layer, as bars on the scale of all patches.

    Where a method trims the cache, the part of a bar that left it again is paler.
    """
    schedule, left, top = run["schedule"], cached(run), max(run["tokens0"], *run["schedule"], 1)
    bars = "".join(
        f'<span data-layer="{k}" style="height:{max(100 * n / top, 3):.1f}%;--left:{100 * kept / max(n, 1):.0f}%" '
        f'title="LLM layer {k}: {n} tokens enter, {kept} in its cache at the end"></span>'
        for k, (n, kept) in enumerate(zip(schedule, left, strict=True))
    )
    label = f"visual tokens entering LLM layers 0 to {len(schedule) - 1}: {', '.join(map(str, schedule))}"
    if left != schedule:
        label += f"; left in their caches at the end: {', '.join(map(str, left))}"
    return (
        f'<div class="vtc-bars" role="img" aria-label="{label}">{bars}</div>'
        f'<div class="vtc-axis"><span>layer 0</span><span>{len(schedule) - 1}</span></div>'
    )


def stage_bar(run: dict, longest: float) -> str:
    """Where the time went, as one stacked bar on the scale of `longest` (ms)."""
    times = run["timings_ms"]
    parts = [(stage, times.get(stage, 0.0)) for stage in STAGES]
    bar = "".join(
        f'<span class="vtc-stage-{stage}" style="width:{100 * ms / max(longest, 1e-9):.2f}%" '
        f'title="{STAGES[stage]}: {ms:.1f} ms"></span>'
        for stage, ms in parts
        if ms > 0
    )
    label = ", ".join(f"{STAGES[stage]} {ms:.1f} ms" for stage, ms in parts)
    return f'<div class="vtc-time" role="img" aria-label="{label}">{bar}</div>'


def busy_ms(run: dict) -> float:
    """Milliseconds of all the stages that `stage_bar` shows."""
    return sum(run["timings_ms"].get(stage, 0.0) for stage in STAGES)
