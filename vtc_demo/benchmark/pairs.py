"""Two jobs in turn, and ratios within each pair: what else the machine does then slows both."""

from __future__ import annotations

from collections.abc import Callable

from . import timing

Times = dict[str, float]  # milliseconds by name


def pairs(first: Callable, second: Callable, warmups: int, repeats: int) -> tuple[list, list]:
    """Results of both, called in turn. Which one goes first alternates, so that neither always follows the other."""
    firsts, seconds = [], []
    for i in range(warmups + repeats):
        if i % 2:
            y, x = second(), first()
        else:
            x, y = first(), second()
        if i >= warmups:
            firsts.append(x)
            seconds.append(y)
    return firsts, seconds


def paired(top: list[Times], bottom: list[Times], of: str, over: str | None = None) -> dict[str, float]:
    """Spread of top[i][of] / bottom[i][over]; `over` defaults to `of`."""
    return timing.spread([x[of] / y[over or of] for x, y in zip(top, bottom)])


def spreads(rows: list[Times]) -> dict[str, dict[str, float]]:
    return {name: timing.spread([row[name] for row in rows]) for name in rows[0]}


def medians(figures: dict[str, dict[str, float]]) -> Times:
    return {name: spread["median"] for name, spread in figures.items()}
