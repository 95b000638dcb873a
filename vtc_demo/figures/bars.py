"""Bars of one run: visual tokens by LLM layer, time by stage. Reads `Run.to_dict()`."""

from __future__ import annotations

from vtc_demo.core.vocabulary import STAGES


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
