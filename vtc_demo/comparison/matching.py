"""Comparing at equal cost: the retention at which a method costs what it is allowed to.

Methods mean different things by their retention: what is left at the end, on average, or from some layer on. So the
same retention is rarely the same cost. Here the cost is given, in one of three measures, and the retention is solved:

- "final tokens": visual tokens entering the last layer of the language model;
- "equivalent tokens": mean over its layers of the visual tokens entering each;
- "flops": FLOPs of the pass up to the first token of the answer, the method's own work included. The rest of the answer
  is left out, because its length is not the method's.

The nearest cost that the method can reach is taken, be it above or below; what is missed is said in `Matched.note`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from vtc_demo import engine, registry
from vtc_demo.core.images import Pictures
from vtc_demo.core.method import Method
from vtc_demo.core.run import Matched, Run
from vtc_demo.cost.counts import prefill_flops
from vtc_demo.engine import shape_only
from vtc_demo.engine.answer import prepared
from vtc_demo.engine.shape_only import Cost
from vtc_demo.models import VLM

from .request import UNITS, Settings

STEPS = 4  # retentions tried lie this many to a token: cuts in several places change at different ones
NEAR = 0.25  # tokens' worth: so near to the target a search ends
MISSED = 1.0  # tokens' worth from which a miss is told


class Matcher:
    """Solves the retention of methods for one picture, question and target.

    match: one of MATCHES. Either tokens: the target is what that many visual tokens cost that are left before the
    language model at no cost of the choice; or target: in the unit of the measure, FLOPs for "flops". Other arguments
    as in `vtc_demo.run`; cancel: of the passes. Raises ValueError for a measure that does not exist and a target that
    cannot be meant.
    """

    def __init__(
        self,
        vlm: VLM,
        image,
        question: str,
        match: str,
        *,
        tokens=None,
        target=None,
        seed=0,
        tiles="global",
        cancel: engine.Cancel | None = None,
    ):
        self.cancel = cancel
        self.vlm, self.question, self.seed, self.tiles = vlm, vlm.check_question(question), seed, tiles
        self.pictures = Pictures.open(image)
        self.match, self.tokens, self._target = match, tokens, target
        Settings.parse({"match": match, "tokens": tokens, "target": target})
        self._passes: dict[Method, tuple[Run, Cost]] = {}  # real ones
        least = max(1, math.ceil(self.total * 0.01))
        if tokens is not None and not least <= tokens <= self.total:
            raise ValueError(f"tokens={tokens} is out of range; this picture has {self.total}, keep {least} or more")

    # -- what is given ------------------------------------------------------------------------------------------------
    @cached_property
    def layout(self):
        return prepared(self.vlm, self.pictures)[0].layout

    @cached_property
    def prompt(self):
        return self.vlm.prompt(self.question, self.layout)

    @property
    def total(self) -> int:
        """Visual tokens entering the language model without compression."""
        return len(self.prompt.visual)

    @cached_property
    def target(self) -> float:
        if self._target is not None:
            return self._target
        if self.match != "flops":
            return self.tokens
        return self._price(registry.resolve("random", retention=self.tokens / self.total)).flops  # no work of its own

    @cached_property
    def worth(self) -> float:
        """One visual token in the unit of the measure; in FLOPs, the least that it costs in the language model."""
        if self.match != "flops":
            return 1
        spec, text = self.vlm.spec, len(self.prompt.others)
        cut, whole = ([text + n] * spec.layers for n in (0, 1))
        return prefill_flops(spec, whole) - prefill_flops(spec, cut)

    def to_dict(self) -> dict:
        return {"by": self.match, "tokens": self.tokens, "target": self.target}

    # -- what is looked for -------------------------------------------------------------------------------------------
    def solve(self, method: Method) -> Matched:
        """The method at the nearest cost; its own retention is of no matter. One whose retention is fixed stays as it
        is. Raises ValueError if the method does not suit the model or the picture."""
        if fixed(method):
            return self._matched(method, self.measure(self._price(method)), "its retention cannot be set")
        if method.adaptive and (found := self._foreseen(method)):
            return found
        return self._search(method, self._price)

    def _foreseen(self, method: Method) -> Matched | None:
        """Of a method whose counts depend on the picture, by one real pass: what that leaves before the language model
        is taken to be so at any retention. None where this does not foretell what real passes cost."""
        guess = self._at(method, self._first(method))
        run, paid = self._pass(guess)
        price = lambda m: self._count(m, run) or self._pass(m)[1]  # noqa: E731
        if price(guess) != paid:
            return None
        found = self._search(method, price)
        return found if self._pass(found.method)[1] == price(found.method) else None

    def after(self, matched: Matched, run: Run) -> Matched:
        """The same with what a run of it has really cost."""
        reached = self.measure(Cost.of(run))
        if reached == matched.reached:
            return matched
        note = matched.note
        if self._misses(reached):
            note = f"was expected at {self.text(matched.reached)}, but what it keeps depends on the picture"
        return replace(matched, reached=reached, note=note)

    def measure(self, paid: Cost) -> float:
        """A cost in the unit of the measure."""
        if self.match == "flops":
            return paid.flops
        return paid.schedule[-1] if self.match == "final tokens" else sum(paid.schedule) / len(paid.schedule)

    def text(self, value: float) -> str:
        return in_words(self.match, value)

    def _matched(self, method: Method, reached: float, note: str) -> Matched:
        return Matched(method, self.match, self.target, reached, note if self._misses(reached) else "")

    def _misses(self, reached: float) -> bool:
        return abs(reached - self.target) >= MISSED * self.worth

    # -- search -------------------------------------------------------------------------------------------------------
    @property
    def _grid(self) -> int:
        return STEPS * self.total

    def _at(self, method: Method, step: int) -> Method:
        return registry.resolve(method, retention=step / self._grid)

    def _first(self, method: Method) -> int:
        """Where the search begins: the retention at which the target is met before the language model."""
        low, high = self._ends(method)
        tokens = self.tokens
        if tokens is None:
            full = self._price(registry.resolve("full"))
            tokens = self.total * self.target / self.measure(full)
        return min(high, max(low, round(STEPS * tokens)))

    def _ends(self, method: Method) -> tuple[int, int]:
        low, high = limits(method)
        return math.ceil(low * self._grid), math.floor(high * self._grid)

    def _search(self, method: Method, price: Callable[[Method], Cost]) -> Matched:
        low, high = self._ends(method)
        value = lambda step: self.measure(price(self._at(method, step)))  # noqa: E731
        step, seen = nearest(value, self.target, low, high, self._first(method), NEAR * self.worth)
        return self._matched(self._at(method, step), seen[step], self._reason(seen))

    def _reason(self, seen: dict[int, float]) -> str:
        below = max((v for v in seen.values() if v < self.target), default=None)
        above = min((v for v in seen.values() if v > self.target), default=None)
        if below is None:
            return f"cannot go below {self.text(min(seen.values()))}"
        if above is None:
            return f"cannot go above {self.text(max(seen.values()))}"
        return f"its steps next to this are {self.text(below)} and {self.text(above)}"

    # -- prices -------------------------------------------------------------------------------------------------------
    def _price(self, method: Method) -> Cost:
        paid = None if method.adaptive else self._count(method)
        return paid or self._pass(method)[1]

    def _count(self, method: Method, like: Run | None = None) -> Cost | None:
        """Counted on shapes, or None if that takes a real pass."""
        if not shape_only.countable(self.vlm, method):
            return None
        replay = None if like is None else like.trace
        return shape_only.count(self.vlm, method, self.layout, self.prompt, self.seed, self.tiles, replay)

    def _pass(self, method: Method) -> tuple[Run, Cost]:
        """A real pass up to the first token, made once; the vision pass is shared as in any run."""
        if method not in self._passes:
            options = {"max_new_tokens": 1, "seed": self.seed, "tiles": self.tiles, "cancel": self.cancel}
            run = engine.run(self.vlm, self.pictures, self.question, method, **options)
            self._passes[method] = run, Cost.of(run)
        return self._passes[method]


def in_words(match: str, value: float) -> str:
    """A value of a measure with its unit."""
    return f"{value / 1e9:.4g} GFLOPs" if match == "flops" else f"{value:.4g} {UNITS[match]}"


def line(matched: Matched) -> str:
    """A line of text for a table: what a method reached and why it is not the target."""
    reached, target = (in_words(matched.match, value) for value in (matched.reached, matched.target))
    note = f"; {matched.note}" if matched.note else ""
    return f"{matched.method.card.title}: {reached}, asked for {target}{note}"


def limits(method: Method) -> tuple[float, float]:
    """The range of a method's retention; where a method sets none, that of all."""
    field = next(f for f in dataclasses.fields(method) if f.name == "retention")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    return 0.01 if low is None else low, 1.0 if high is None else high


def fixed(method: Method) -> bool:
    """Whether the retention cannot be set, as that of the full model."""
    low, high = limits(method)
    return low == high


def nearest(
    value: Callable[[int], float], target: float, low: int, high: int, guess: int, near: float
) -> tuple[int, dict[int, float]]:
    """The whole number from low to high whose value comes nearest to the target; and all values that were looked up.

    The value must not fall from one number to the next; it may stay. Interpolation and halving take turns, which is
    quick on a slope and safe on steps. Ends at a value within `near`, or at neighbours on either side of the target.
    Of equally near ones the cheapest.
    """
    seen = {guess: value(guess)}
    while True:
        best = min(seen, key=lambda j: (abs(seen[j] - target), j))
        below = max((j for j in seen if seen[j] < target), default=None)
        above = min((j for j in seen if seen[j] > target), default=None)
        if abs(seen[best] - target) <= near:
            return best, seen
        if below is None or above is None:
            end = low if below is None else high
            if end in seen:
                return best, seen
            seen[end] = value(end)
            continue
        if above - below <= 1:
            return best, seen
        share = (target - seen[below]) / (seen[above] - seen[below]) if len(seen) % 2 else 0.5
        step = min(above - 1, max(below + 1, below + round(share * (above - below))))
        seen[step] = value(step)
