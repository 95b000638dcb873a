"""Several methods, one image and question: a Comparison, or the stream of events that leads to it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from vtc_demo import engine, registry
from vtc_demo.core.environment import environment
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.engine import Cancel, Stopped
from vtc_demo.models import VLM

from . import matching
from .request import Request, Settings


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
    settings = Settings.parse({"max_new_tokens": max_new_tokens, "seed": seed, "tiles": tiles})
    return engine.run(vlm, image, question, registry.resolve(method, **hyper), **of_engine(settings))


def compare(vlm: VLM, image, question: str, chosen: Iterable, **options) -> Comparison:
    """The runs of several methods; `chosen` and options as in `compare_events`."""
    for event in compare_events(vlm, image, question, chosen, **options):
        last = event.data
    return last


def compare_events(
    vlm: VLM, image, question: str, chosen: Iterable, *, cancel: Cancel | None = None, **settings
) -> Generator[Event, None, None]:
    """Run the methods one after another and yield an Event at every step, the last being "done".

    settings: of `request.Settings`. match: compare at equal cost, one of `request.MATCHES`; each method's retention is
    then solved, whatever it says. tokens: the cost is that of so many visual tokens left before the language model; or
    target: the cost itself. cancel: see `stream`. Bad input raises ValueError here, before the first event.
    """
    return stream(vlm, Request.parse(vlm, image, question, chosen, **settings), cancel)


def stream(vlm: VLM, request: Request, cancel: Cancel | None = None) -> Generator[Event, None, None]:
    """The events of a request. Raises ValueError here for a budget that its pictures do not allow.

    A method that does not suit the model or the image gives an "error" event and a Run with that error; the other
    columns go on. Closing the generator stops the work. A press of `cancel`, or its deadline, ends it between two
    layers: that column gives an "error" event, those after it are not begun, and "done" has the runs so far.
    """
    settings = request.settings
    cost = settings.model_dump(include={"tokens", "target", "seed", "tiles"})
    matcher = None
    if settings.match is not None:
        matcher = matching.Matcher(vlm, request.pictures, request.question, settings.match, cancel=cancel, **cost)
    return _events(vlm, request, matcher, cancel)


def of_engine(settings: Settings) -> dict[str, Any]:
    """What `engine.stream` takes of them."""
    return settings.model_dump(include={"max_new_tokens", "seed", "tiles"})


def _events(
    vlm: VLM, request: Request, matcher: matching.Matcher | None, cancel: Cancel | None
) -> Generator[Event, None, None]:
    columns, options = request.methods, of_engine(request.settings) | {"cancel": cancel}
    yield Event("start", None, None, [method.card.title for method in columns])
    engine.warm_up(vlm)
    runs: list[Run] = []
    stopped = False
    for index, method in enumerate(columns):
        matched = None
        try:
            if matcher:
                yield Event("stage", index, method, {"stage": "matching"})
                matched = matcher.solve(method)
                method = matched.method
            with closing(engine.stream(vlm, request.pictures, request.question, method, **options)) as stream:
                for kind, data in stream:
                    if kind == "run":
                        data.matched = matcher.after(matched, data) if matcher and matched else None
                        runs.append(data)
                    named = {"stage": "stage", "token": "text"}.get(kind)
                    yield Event(kind, index, method, {named: data} if named else data)
        except (ValueError, Stopped) as error:
            runs.append(Run(method, error=str(error)))
            yield Event("error", index, method, str(error))
            if stopped := isinstance(error, Stopped):
                break
    known = not stopped or any(run.matched for run in runs)  # the target may need a pass
    match = matcher.to_dict() if matcher and known else None
    around = environment(vlm.device, vlm.dtype)
    yield Event("done", None, None, Comparison(request.question, vlm.name, runs, around, match))
