"""A run of the model for one visitor: its updates of the page until it is done, stopped or failed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from vtc_demo.engine import Cancel, Stopped

from .components import status

QUIET: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}  # events that do not run the model
# Those that do: one at a time, and of those that wait only the last is remembered.
MODEL: dict[str, Any] = {
    "trigger_mode": "always_last", "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden",
    "api_visibility": "private",
}  # fmt: skip
NEXT = "() => Math.random()"  # the number of a request, drawn in the browser
FAILED = "Something went wrong on our side."

Update = Any  # what a handler yields: one value per output


@dataclass
class StopButton:
    """Between the Stop button and the requests of one visitor: how often it was pressed, and at which request.

    A request looks at it between two steps, its pass of the model (`work`) between two layers. Cancelling the event
    instead can lose the visitor's next click: the browser then waits for the end of an event that is gone.
    """

    presses: int = 0
    request: float | None = None
    work: Cancel = field(default_factory=Cancel)

    def press(self, request: float) -> None:
        self.presses, self.request = self.presses + 1, request
        self.work.press()

    def begin(self) -> Cancel:
        """Of the pass that begins now."""
        self.work = Cancel()
        return self.work


def follow(
    updates: Generator[Update, None, None],
    cancel: StopButton,
    request: float,
    *,
    nothing: Update,
    problem: Callable[[str], Update],
    retry: str,
    stopped: Callable[[], Update] | None = None,
) -> Iterator[Update]:
    """The updates of one request, looking at `cancel` between two of them.

    nothing: the update that leaves the page as it is; problem: the one that says what is wrong; stopped: the last one
    of a request that was stopped, if there is any. ValueErrors are told; after any other error, what to `retry`.
    """
    presses = cancel.presses
    if request == cancel.request:  # stopped while it was waiting for its turn
        yield nothing  # what never yields empties its outputs
        return
    try:
        with closing(updates):
            for update in updates:
                if cancel.presses != presses:
                    if stopped:
                        yield stopped()
                    return
                yield update
    except Stopped:
        yield stopped() if stopped else nothing
    except ValueError as error:
        yield problem(sentence(error))
    except Exception:
        logging.exception("a run on the page failed")
        yield problem(f"{FAILED} {retry}")


def measure(
    updates: Generator[tuple[Any, dict | None], None, None],
    cancel: StopButton,
    request: float,
    shown: dict | None,
    *,
    stopped: Callable[[dict | None], str],
    retry: str,
) -> Iterator[tuple]:
    """`follow` for tabs that measure: (status, record or None) -> (status, record, a number that starts the drawing).

    shown: the record on the page; stopped: the status when the run ends with that record or a later one on it.
    """

    def drawn():
        nonlocal shown
        with closing(updates):
            for said, record in updates:
                yield only(said) if record is None else (said, record, random.random())
                shown = record or shown

    yield from follow(
        drawn(), cancel, request, nothing=only(gr.skip()), problem=lambda text: only(status.problem(text)),
        stopped=lambda: only(stopped(shown)),  # again: progress may have come after it
        retry=retry,
    )  # fmt: skip


def only(said) -> tuple:
    """A new status; record and drawing stay."""
    return said, gr.skip(), gr.skip()


def sentence(error: object) -> str:
    """A message as a sentence: a capital letter, unless it begins with the name of a file, and a full stop."""
    text = str(error)
    if "." not in text.split(" ")[0]:
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")
