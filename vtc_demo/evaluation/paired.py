"""Paired statistics of two methods that answered the same questions.

`McNemar` asks whether one is right more often, `difference` by how much (over scenes), `holm` corrects a family of such
tests, `questions_needed` says how many questions a difference takes. Everywhere `a` comes first and figures are b's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from .intervals import Scenes


@dataclass(frozen=True)
class McNemar:
    """Exact test of McNemar (1947): are the questions that only one method gets right split like a fair coin?

    better, worse: questions that only b, or only a, answers right; n: all questions. Questions that both get right, or
    both wrong, say nothing. Questions count as independent: beside it stands the bootstrap over scenes.
    """

    better: int
    worse: int
    n: int

    def __post_init__(self):
        if min(self.better, self.worse) < 0 or self.better + self.worse > self.n:
            raise ValueError(f"{self.better} and {self.worse} discordant of {self.n} questions cannot be")

    @staticmethod
    def of(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
        """From what each got right, question by question. Raises ValueError unless they are as many."""
        _as_many(a, b)
        better = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
        worse = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
        return McNemar(better, worse, len(a))

    @property
    def p(self) -> float:
        """Two-sided: 2 P(X <= the smaller count), X ~ Binomial(better + worse, 1/2), at most 1."""
        tosses, tail, term = self.better + self.worse, 0, 1
        for k in range(min(self.better, self.worse) + 1):
            tail += term
            term = term * (tosses - k) // (k + 1)  # the next binomial coefficient, exactly
        return min(1.0, 2 * tail / 2**tosses)

    def sentence(self, b: str = "b") -> str:
        return f"{b} better on {self.better}, worse on {self.worse} of {self.n}: p {_equals(self.p)}"


@dataclass(frozen=True)
class Difference:
    """Mean of b minus mean of a, with its 95 % interval; n questions of `scenes` scenes."""

    mean: float
    low: float
    high: float
    n: int
    scenes: int

    def sentence(self, b: str = "b") -> str:
        """In points: for shares, and for right answers as 0 and 1."""
        mean, low, high = (f"{100 * value:+.1f}" for value in (self.mean, self.low, self.high))
        return f"{b} {mean} points (95 %: {low} to {high}) over {self.n} questions of {self.scenes} scenes"


def difference(
    a: Sequence[float | None], b: Sequence[float | None], scenes: Sequence[int], seed: int = 0
) -> Difference | None:
    """Paired bootstrap: whole scenes are drawn anew, each with the differences b - a of its questions.

    a, b, scenes [n]: one figure per question, and its scene. Questions without a figure of both (None or nan) are left
    out; None if none is left. Raises ValueError unless all three are as long.
    """
    _as_many(a, b, scenes)
    gaps = [math.nan if x is None or y is None else float(y) - float(x) for x, y in zip(a, b, strict=True)]
    told = [i for i, gap in enumerate(gaps) if not math.isnan(gap)]
    asked = [scenes[i] for i in told]
    found = Scenes(asked, seed=seed).mean([gaps[i] for i in told])
    return None if found is None else Difference(**found, n=len(told), scenes=len(set(asked)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979), in the order given; compare each with alpha itself.

    The k-th smallest (from 0) of m is multiplied by m - k, is at least the one before it, and at most 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1, got {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Needed:
    """How many questions tell two methods apart, and under which assumptions."""

    questions: int
    discordance: float
    difference: float
    alpha: float
    power: float

    def sentence(self) -> str:
        return (
            f"{100 * self.difference:+.1f} points, where {100 * self.discordance:.0f} % of the questions are answered "
            f"right by only one, take {self.questions:,} questions (alpha {self.alpha:g}, power {self.power:g})"
        )


def questions_needed(discordance: float, difference: float, alpha: float = 0.05, power: float = 0.8) -> Needed:
    """Questions that McNemar's two-sided test at level `alpha` needs to find a difference with probability `power`.

    discordance: share of the questions that only one of the two gets right; difference: b's accuracy minus a's, both
    as shares. Connor (1987, Biometrics 43, 207-211), normal approximation:
    n = (z[1 - alpha/2] sqrt(discordance) + z[power] sqrt(discordance - difference^2))^2 / difference^2.
    The exact test is a little more careful and takes some questions more. Raises ValueError for what cannot be.
    """
    if not 0 < abs(difference) <= discordance <= 1:
        raise ValueError(f"need 0 < |difference| <= discordance <= 1, got {difference} and {discordance}")
    if not 0 < alpha < power < 1:
        raise ValueError(f"need 0 < alpha < power < 1, got {alpha} and {power}")
    z = NormalDist().inv_cdf
    spread = z(1 - alpha / 2) * math.sqrt(discordance) + z(power) * math.sqrt(discordance - difference**2)
    return Needed(math.ceil(spread**2 / difference**2), discordance, difference, alpha, power)


def _as_many(*sequences: Sequence) -> None:
    if len(set(map(len, sequences))) > 1:
        raise ValueError(f"paired figures must be as many: {', '.join(str(len(s)) for s in sequences)}")


def _equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
