"""What a run says beside the truth and beside the full model. Reads `Run.to_dict()`."""

from __future__ import annotations

from vtc_demo.core.measures import right, ttft_flops
from vtc_demo.core.units import quantity


def speedup(run: dict, full: dict) -> tuple[float, float]:
    """Time to first token of the full model over that of the run: measured, and as the FLOPs alone would have it."""
    measured = full["timings_ms"]["ttft"] / max(run["timings_ms"]["ttft"], 1e-9)
    return measured, _ttft_flops(full) / max(_ttft_flops(run), 1)


def verdict(run: dict, truth: str | None, full: dict | None) -> tuple[str, str]:
    """(state, remark): "right" or "wrong" where the truth is known, else "neutral" with the full model's view."""
    if truth is not None:
        return ("right", "right") if right(run["answer"], truth) else ("wrong", f"truth: {truth}")
    if full is None or full is run:
        return "neutral", "reference" if full is run else ""
    return "neutral", "as the full model" if right(run["answer"], full["answer"]) else f"full model: {full['answer']}"


def cost(match: str, value: float) -> str:
    """A cost in the measure `match` of `matching`, in words."""
    if match == "flops":
        return quantity(value, "FLOPs")
    return f"{value:.4g} tokens " + ("at the end" if match == "final tokens" else "on average")


def _ttft_flops(run: dict) -> int:
    return ttft_flops(run["flops"], run["new_tokens"])
