"""Methods at budgets of visual tokens."""

from __future__ import annotations

import math

from vtc_demo import registry
from vtc_demo.comparison.matching import fixed
from vtc_demo.core.method import Method


def at_budgets(name: str, tokens, patches: int) -> list[tuple[int, Method]]:
    """(budget, method) for each budget of visual tokens out of `patches`; of a method with its own count, that one.

    The retention is rounded up in the sixth place, so that rounding loses no token. Raises ValueError for a budget that
    the model has not.
    """
    method, out = registry.resolve(name), []
    if fixed(method):
        return [(method.keep(patches), method)]
    for budget in tokens:
        if not 0 < budget <= patches:
            raise ValueError(f"cannot leave {budget} tokens; this model has {patches}, give 1 to {patches}")
        out.append((budget, registry.resolve(name, retention=min(1.0, math.ceil(1e6 * budget / patches) / 1e6))))
    return out
