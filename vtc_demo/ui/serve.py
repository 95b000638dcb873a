"""Between the page and the engine: one place that runs the model, for the page and for the API."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from vtc_demo import models, registry, world
from vtc_demo.comparison import Request, stream
from vtc_demo.engine import Cancel
from vtc_demo.evaluation.findings import finding

ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
if ZERO_GPU:
    import spaces  # here, because it must come before the model is moved to the GPU, which it emulates until a lease

MAX_METHODS = 4
GPU_SECONDS = 20  # of a ZeroGPU lease, for all the columns of one click
NO_LEASE = "This page borrows a GPU for each click. Press Compare to see the first results."


def load(name: str) -> tuple[models.VLM, str]:
    """(the model of that name, ""), or the embedded one and a sentence on why.

    On a Space only the embedded model and those of the catalogue are loaded. Raises ValueError if the embedded model
    cannot be loaded either.
    """
    try:
        if name != "embedded" and os.environ.get("SPACE_ID"):
            models.catalog.pick(name)
        return models.load_vlm(name), ""
    except ValueError as error:
        if name == "embedded":
            raise
        reason = str(error)
    notice = f"The embedded model is running in place of {name}. {reason[:1].upper()}{reason[1:]}"
    return models.load_vlm("embedded"), notice


def gpu(function: Callable, seconds: int = GPU_SECONDS) -> Callable:
    """On ZeroGPU, run a generator function in one GPU lease per call; elsewhere leave it alone.

    Its arguments and what it yields cross into another process: plain data on the CPU. A ValueError crosses as it is.
    Outside a visitor's request there is no lease to be had: ValueError.
    """
    if not ZERO_GPU:
        return function

    def work(*args):
        try:
            yield from function(*args)
        except gr.Error:
            raise
        except ValueError as error:  # of errors only gr.Error, itself a ValueError, keeps its message
            raise gr.Error(str(error), print_exception=False) from None

    leased = spaces.GPU(duration=seconds)(work)

    def events(*args):
        if LocalContext.event_id.get(None) is None:
            raise ValueError(NO_LEASE)
        try:
            yield from leased(*args)
        except gr.Error as error:  # from `work`, or from ZeroGPU: no quota left, no GPU free
            logging.info("a GPU call ended: %s", error)
            raise ValueError(str(error.message)) from None

    return events


def streamer(vlm) -> Callable[..., Iterator[tuple[str, int | None, Any]]]:
    """The one function that runs the model: (image, question, methods[, options]) -> (kind, column, data), plain data.

    options: `comparison.Settings`, by name. cancel: ends the work between two layers. Kinds are those of the events of
    `comparison.stream`; a Run and a Comparison arrive as their dicts. Bad input raises ValueError.
    """

    def run(request: Request, cancel: Cancel | None) -> Iterator[tuple[str, int | None, Any]]:
        for event in stream(vlm, request, cancel):
            data = event.data.to_dict() if event.kind in ("run", "done") else event.data
            yield event.kind, event.index, data

    leased = gpu(run)

    def events(image, question: str, chosen: list, options: dict | None = None, cancel: Cancel | None = None):
        if not 1 <= len(chosen) <= MAX_METHODS:
            raise ValueError(f"{len(chosen)} methods were given; compare 1 to {MAX_METHODS} at a time")
        request = Request.parse(vlm, image, question, chosen, **(options or {}))
        stream(vlm, request)  # bad input is told before a GPU is asked for; nothing has run yet
        yield from leased(request, None if ZERO_GPU else cancel)  # a press does not reach another process

    return events


def scene(seed) -> world.Scene:
    """The built-in scene of that number; ValueError for anything but a whole number from 0 on."""
    try:
        return world.sample(int(seed))
    except (TypeError, OverflowError):
        raise ValueError(f"a scene is a whole number from 0 on, got {seed!r}") from None


def catalogue(model: str) -> list[dict]:
    """Every method that runs on the model of that name, with its card and its hyper-parameters, JSON-ready."""
    more = lambda card: {"finding": finding(card), "parameters": registry.parameters(card.name)}  # noqa: E731
    return [asdict(card) | more(card) for card in registry.suiting(model)]
