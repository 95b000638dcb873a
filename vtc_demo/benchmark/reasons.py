"""Why a method gains less time than its FLOPs promise, in words."""

from __future__ import annotations

from .pairs import Times

BEFORE_PREFILL = {"preprocess": "preprocessing", "vision": "the vision tower", "projector": "the projector"}
SLACK = 0.95  # ratios within 5 % of one another need no explanation


def reasons(full: Times, reduced: Times, expected: float, gains: dict[str, float]) -> list[str]:
    """Why the prefill's ratio is below the expected one, and TTFT's below the prefill's; a sentence each.

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
    overhead = 100 * reduced["compression"] / full["ttft"]
    said = []
    if same:
        named = " and ".join(f"{BEFORE_PREFILL[stage]} ({share[stage]:.0f} %)" for stage in same)
        said.append(f"{named} of the full time {'is' if len(same) == 1 else 'are'} not compressed")
    if overhead >= 1:
        said.append(f"overhead adds {overhead:.0f} %")
    return "; ".join(said) or "the stages before the prefill shrink less"
