"""Figures with three digits and the fitting unit."""

from __future__ import annotations

import math


def quantity(value: float, unit: str = "") -> str:
    """1310000000 -> "1.31 G", 2400000 -> "2.40 M"."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            scaled = value / factor
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def duration(ms: float) -> str:
    """843 µs, 12.3 ms, 4.56 s, 241 s."""
    for factor, unit in ((1e3, "s"), (1.0, "ms"), (1e-3, "µs")):
        if ms >= factor:
            return f"{float(f'{ms / factor:.3g}'):g} {unit}"
    return "0 ms"
