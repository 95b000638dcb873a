"""Bars of one run: visual tokens by LLM layer, time by stage. Reads `Run.to_dict()`."""

from __future__ import annotations

from vtc_demo.core.vocabulary import STAGES

from .render import render


def cached(run: dict) -> list[int]:
    """Visual tokens left in each layer's cache at the end. The text beside them is the same in all layers."""
    text = run["kv_lengths"][-1] - run["schedule"][-1]  # nothing leaves the last layer's cache after its pass
    return [length - text for length in run["kv_lengths"]]


def trims_cache(run: dict) -> bool:
    """Whether a layer's cache holds fewer visual tokens at the end than entered the layer."""
    return cached(run) != run["schedule"]


def layer_bars(run: dict) -> str:
    """Visual tokens entering each LLM layer, as bars on the scale of all patches.

    Where a method trims the cache, the part of a bar that left it again is paler.
    """
    schedule, left, top = run["schedule"], cached(run), max(run["tokens0"], *run["schedule"], 1)
    label = f"visual tokens entering LLM layers 0 to {len(schedule) - 1}: {', '.join(map(str, schedule))}"
    if left != schedule:
        label += f"; left in their caches at the end: {', '.join(map(str, left))}"
    layers = [
        {"tokens": n, "kept": kept, "height": max(100 * n / top, 3), "left": 100 * kept / max(n, 1)}
        for n, kept in zip(schedule, left, strict=True)
    ]
    return render("figures/layer_bars.html", layers=layers, label=label)


def stage_bar(run: dict, longest: float) -> str:
    """Where the time went, as one stacked bar on the scale of `longest` (ms)."""
    times = run["timings_ms"]
    parts = [(stage, name, times.get(stage, 0.0)) for stage, name in STAGES.items()]
    label = ", ".join(f"{name} {ms:.1f} ms" for _, name, ms in parts)
    drawn = [(*part, 100 * part[-1] / max(longest, 1e-9)) for part in parts]
    return render("figures/stage_bar.html", parts=drawn, label=label)


def busy_ms(run: dict) -> float:
    """Milliseconds of all the stages that `stage_bar` shows."""
    return sum(run["timings_ms"].get(stage, 0.0) for stage in STAGES)
