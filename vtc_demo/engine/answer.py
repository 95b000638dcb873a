"""Answering a question about pictures: encode -> project -> prefill -> decode, as a stream of events."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vtc_demo.core.images import Pictures
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM
from vtc_demo.models.layout import Inputs, Prompt
from vtc_demo.registry import resolve

from .cancel import Cancel
from .forward import ForwardPass
from .language import Prefilled, prefill, step
from .vision import encode, project

MAX_NEW_TOKENS = 1024


class PassEvent(NamedTuple):
    """kind: "stage" (data: its name), "token" (data: the answer so far) or "run" (data: Run)."""

    kind: str
    data: Any


def run(vlm: VLM, image, question: str, method: Method, **options) -> Run:
    """The last event of `stream`."""
    for event in stream(vlm, image, question, method, **options):
        last = event.data
    return last


@torch.inference_mode()  # entered at each step of the generator and left at each yield
def stream(
    vlm: VLM,
    image,
    question: str,
    method: Method,
    *,
    max_new_tokens: int = 16,
    seed: int = 0,
    ignore_eos: bool = False,
    tiles: str = "global",
    cancel: Cancel | None = None,
) -> Generator[PassEvent, None, None]:
    """Answer a question, as a stream of events that ends with the Run. Closing the generator stops the work.

    image: anything `load_rgb` takes, a list of such for several pictures, or `Pictures` that are open already. seed:
    for methods that draw at random. ignore_eos: answers of a fixed length, for timing. tiles: where pictures are
    encoded as several views, "global" ranks the tokens of all views together, "crop" asks the method view by view, so
    that each keeps its share. cancel: looked at between layers and decode steps. The vision pass of the last picture
    is kept in the VLM's workspace and shared by methods that act neither on the picture nor inside the tower. Raises
    ValueError for bad input and for a method that the model or the picture does not suit, Stopped if it is cancelled.
    """
    check_length(max_new_tokens)
    pictures = Pictures.open(image)
    work = ForwardPass(vlm, method, seed, tiles, cancel)
    yield from first_turn(work, pictures, vlm.check_question(question), max_new_tokens, ignore_eos)


def first_turn(
    work: ForwardPass, pictures: Pictures, question: str, max_new_tokens: int, ignore_eos: bool = False
) -> Iterator[PassEvent]:
    """The events of `stream`."""
    vlm, watch = work.vlm, work.watch
    yield from watch.pause(PassEvent("stage", "preprocess"))
    encoded = work.recall(pictures.key)
    shared = encoded is not None
    if encoded is None:
        watch.enter("preprocess")
        inputs, seconds = prepared(vlm, pictures, work.side)
        watch.add("preprocess", seconds)
        yield from watch.pause(PassEvent("stage", "vision"))
        watch.enter("vision")
        encoded = encode(work, inputs)
        watch.enter(None)
        encoded = work.remember(pictures.key, encoded)
    else:
        work.begin(encoded.layout)
    watch.enter("preprocess")
    prompt = vlm.prompt(question, encoded.layout)
    asked = work.question(question, prompt)

    yield from watch.pause(PassEvent("stage", "projector"))
    watch.enter("projector")
    projected = project(work, encoded, asked)

    yield from watch.pause(PassEvent("stage", "prefill"))
    watch.enter("prefill")
    prefilled = prefill(work, prompt, projected, asked)
    ids = yield from decode(work, prefilled, prefilled.token, max_new_tokens, ignore_eos)
    yield PassEvent("run", work.result(encoded, prefilled, ids, shared))


def prepared(vlm: VLM, pictures: Pictures, side: int | None = None) -> tuple[Inputs, float]:
    """(the pictures as the tower takes them, seconds that this took earlier). Made once for the last pictures."""
    key = (pictures.key, side)
    found = vlm.workspace.get("inputs", key)
    if found is not None:
        return found
    begun = time.perf_counter()
    inputs = vlm.inputs(list(pictures.images), side)
    vlm.workspace.put("inputs", key, (inputs, time.perf_counter() - begun))
    return inputs, 0.0


def decode(
    work: ForwardPass, prefilled: Prefilled, token: Tensor, max_new_tokens: int, ignore_eos: bool = False
) -> Generator[PassEvent, None, list[int]]:
    """One event per token from `token` [1] on, then (as the generator's value) the ids of the answer."""
    vlm, watch = work.vlm, work.watch
    ids = token.tolist()
    yield from watch.pause(PassEvent("token", vlm.answer_text(ids)))

    yield from watch.pause(PassEvent("stage", "decode"))
    while len(ids) < max_new_tokens and (ignore_eos or ids[-1] not in vlm.eos_ids):
        work.cancel.look()
        watch.enter("decode")
        token = step(work, prefilled, token)
        ids += token.tolist()  # the one wait for the device in a step
        yield from watch.pause(PassEvent("token", vlm.answer_text(ids)))
    watch.enter(None)
    work.prefilled, work.said = prefilled, ids
    return ids


@torch.inference_mode()
def warm_up(vlm: VLM) -> None:
    """One short pass, once per VLM, so that the first run does not pay for what is made once (memory, kernels)."""
    if vlm.workspace.warm:
        return
    vlm.workspace.warm = True
    work = ForwardPass(vlm, resolve("full"))
    inputs = vlm.inputs([Image.new("RGB", (64, 64))])
    placeholder = vlm.config.image_token_id
    prompt = Prompt.build([0] * 8 + [placeholder] + [0] * 8, placeholder, inputs.layout, vlm.device)
    prefilled = prefill(work, prompt, project(work, encode(work, inputs)))
    step(work, prefilled, prefilled.token)


def check_length(max_new_tokens: int) -> int:
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be between 1 and {MAX_NEW_TOKENS}")
    return max_new_tokens
