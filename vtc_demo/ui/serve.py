"""Between the page and the engine: one place that runs the model, for the page and for the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from PIL import Image

from .. import methods, world
from ..compare import compare_events

MAX_METHODS = 4
GPU_SECONDS = 20  # of a ZeroGPU lease, for all the columns of one click


def gpu(function: Callable) -> Callable:
    """On ZeroGPU, run the function in a GPU lease; elsewhere leave it alone."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=GPU_SECONDS)(function)


def streamer(vlm) -> Callable[[Image.Image, str, list], Iterator[tuple[str, int | None, Any]]]:
    """The one function that runs the model: (image, question, methods) -> (kind, column, data) as plain data.

    Kinds are those of `compare_events`; a Run and a Comparison arrive as their dicts. Bad input raises ValueError.
    """

    def events(image: Image.Image, question: str, chosen: list) -> Iterator[tuple[str, int | None, Any]]:
        if not 1 <= len(chosen) <= MAX_METHODS:
            raise ValueError(f"{len(chosen)} methods were given; compare 1 to {MAX_METHODS} at a time")
        for event in compare_events(vlm, image, question, chosen):
            data = event.data.to_dict() if event.kind in ("run", "done") else event.data
            yield event.kind, event.index, data

    return gpu(events)


def scene(seed) -> world.Scene:
    """The built-in scene of that number; ValueError for anything but a whole number from 0 on."""
    try:
        return world.sample(int(seed))
    except (TypeError, OverflowError):
        raise ValueError(f"a scene is a whole number from 0 on, got {seed!r}") from None


def catalogue() -> list[dict]:
    """Every method with its card and its hyper-parameters, JSON-ready."""
    return [asdict(card) | {"parameters": methods.parameters(card.name)} for card in methods.list_methods()]
