"""Several methods, one image and question: a Comparison, or the stream of events that leads to it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from vtc_demo import engine, registry
from vtc_demo.core.environment import environment
from vtc_demo.core.images import Pictures
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM

from . import matching


class Event(NamedTuple):
    """kind, index and method of the column (None at "start" and "done"), data.

    Kinds: "start" (data: titles), "stage" ({"stage": name}; "matching" while a retention is solved), "token" ({"text":
    answer so far}), "run" (Run), "error" (message), "done" (Comparison).
    """

    kind: str
    index: int | None  # type: ignore[assignment]  # hides the method of tuples, which nobody needs here
    method: Method | None
    data: Any


@dataclass
class Comparison:
    """match: the measure, tokens and target of a comparison at equal cost; each run says what it reached."""

    question: str
    model: str
    runs: list[Run]
    environment: dict[str, Any]
    match: dict[str, Any] | None = None

    def to_dict(self) -> dict:
        return {
            "question": self.question,
            "model": self.model,
            "match": self.match,
            "runs": [run.to_dict() for run in self.runs],
            "environment": self.environment,
        }

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)


def run(
    vlm: VLM,
    image,
    question: str,
    method="full",
    *,
    max_new_tokens: int = 16,
    seed: int = 0,
    tiles: str = "global",
    **hyper,
) -> Run:
    """One method on one image. method: anything `methods.resolve` takes; `hyper` overrules its hyper-parameters.

    image: or a list of images, for a prompt with several. tiles: see `engine.stream`. Raises ValueError for bad input
    and for a method that does not suit the model.
    """
    method = registry.resolve(method, **hyper)
    options = {"max_new_tokens": _length(max_new_tokens), "seed": _seed(seed), "tiles": tiles}
    return engine.run(vlm, image, question, method, **options)


def compare(vlm: VLM, image, question: str, chosen: Iterable, **options) -> Comparison:
    """The runs of several methods; `chosen` and options as in `compare_events`."""
    for event in compare_events(vlm, image, question, chosen, **options):
        last = event.data
    return last


def compare_events(
    vlm: VLM,
    image,
    question: str,
    chosen: Iterable,
    *,
    max_new_tokens: int = 16,
    seed: int = 0,
    tiles: str = "global",
    match: str | None = None,
    tokens: int | None = None,
    target: float | None = None,
) -> Generator[Event, None, None]:
    """Run the methods one after another and yield an Event at every step, the last being "done".

    match: compare at equal cost, one of `matching.MATCHES`; each method's retention is then solved, whatever it says.
    tokens: the cost is that of so many visual tokens left before the language model; or target: the cost itself.
    Bad input raises ValueError here, before the first event. A method that does not suit the model or the image gives
    an "error" event and a Run with that error; the other columns go on. Closing the generator stops the work.
    """
    if isinstance(chosen, str | dict | Method):
        chosen = [chosen]
    columns = [registry.resolve(x) for x in chosen]
    if not columns:
        raise ValueError("no method to compare; name at least one")
    pictures = Pictures.open(image)
    question = vlm.check_question(question)
    options = {"max_new_tokens": _length(max_new_tokens), "seed": _seed(seed), "tiles": tiles}
    matching.check(match, tokens, target)
    cost = {"tokens": tokens, "target": target, "seed": seed, "tiles": tiles}
    matcher = matching.Matcher(vlm, pictures, question, match, **cost) if match else None
    return _events(vlm, pictures, question, columns, options, matcher)


def _events(
    vlm: VLM, pictures: Pictures, question: str, columns: list[Method], options: dict, matcher: matching.Matcher | None
) -> Generator[Event, None, None]:
    yield Event("start", None, None, [method.card.title for method in columns])
    engine.warm_up(vlm)
    runs = []
    for index, method in enumerate(columns):
        matched = None
        try:
            if matcher:
                yield Event("stage", index, method, {"stage": "matching"})
                matched = matcher.solve(method)
                method = matched.method
            with closing(engine.stream(vlm, pictures, question, method, **options)) as stream:
                for kind, data in stream:
                    if kind == "run":
                        data.matched = matcher.after(matched, data) if matcher and matched else None
                        runs.append(data)
                    named = {"stage": "stage", "token": "text"}.get(kind)
                    yield Event(kind, index, method, {named: data} if named else data)
        except ValueError as error:
            runs.append(Run(method, error=str(error)))
            yield Event("error", index, method, str(error))
    match = matcher.to_dict() if matcher else None
    yield Event("done", None, None, Comparison(question, vlm.name, runs, environment(vlm.device, vlm.dtype), match))


def _length(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= engine.MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens must be a whole number from 1 to {engine.MAX_NEW_TOKENS}, got {value!r}")
    return value


def _seed(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {value!r}")
    return value
