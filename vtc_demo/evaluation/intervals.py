"""95 % intervals: of a share of right answers, and of means and differences over scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927). Questions count as independent."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def share(hits: Sequence[bool]) -> dict:
    """right, n, accuracy and its interval [low, high], JSON-ready."""
    right, n = sum(map(bool, hits)), len(hits)
    low, high = wilson(right, n)
    return {
        "right": right,
        "n": n,
        "accuracy": round(right / max(1, n), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


class Scenes:
    """Bootstrap over scenes: questions about one scene are not independent, so whole scenes are drawn anew.

    scenes [n]: the scene of each question. The draws are made once and are the same for every mean taken.
    """

    def __init__(self, scenes: Sequence[int], resamples: int = RESAMPLES, seed: int = 0):
        _, self.place = np.unique(np.asarray(scenes, dtype=np.int64), return_inverse=True)  # [n]
        count = int(self.place.max()) + 1 if len(self.place) else 1
        rng = np.random.default_rng(seed)
        self.times = rng.multinomial(count, np.full(count, 1 / count), resamples)  # [resamples, scenes]

    def mean(self, values: Sequence[float | None]) -> dict[str, float] | None:
        """mean of values [n], None and nan left out, with its percentile interval {mean, low, high}; None of nothing.

        The bounds include the mean: with few scenes every draw may miss what lies beyond.
        """
        given = np.array([math.nan if v is None else v for v in values], dtype=float)
        told = ~np.isnan(given)
        if not told.any():
            return None
        total, n = (np.bincount(self.place[told], weights, self.times.shape[1]) for weights in (given[told], None))
        drawn = self.times @ n
        means = (self.times @ total)[drawn > 0] / drawn[drawn > 0]
        low, high = np.quantile(means, (0.025, 0.975))
        mean = float(given[told].mean())
        return {
            "mean": round(mean, 4),
            "low": round(min(mean, float(low)), 4),
            "high": round(max(mean, float(high)), 4),
        }
