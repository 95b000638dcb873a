"""The one inference loop: encode -> project -> prefill -> decode, asking the method at each of its sites.

Nothing is patched and no state is kept between runs: tokens that a method drops are gone from the hidden states and
from the caches of all later layers. Batch 1, greedy decoding, fused attention (SDPA) without a mask, which means causal
in the prefill and everything in a decode step. Where the visual tokens stand in the prompt is the layout's affair: one
span, rows with line breaks between them, tiles of one picture, or several pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vtc_demo.core.images import load_rgb
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM
from vtc_demo.models.layout import Prompt
from vtc_demo.registry import resolve

from .language import Prefilled
from .one_pass import Pass

__all__ = [
    "MAX_NEW_TOKENS", "Event", "Pass", "check_length", "decode", "first_turn", "picture_key", "pictures",
    "run", "stream", "warm_up",
]  # fmt: skip

MAX_NEW_TOKENS = 1024


class Event(NamedTuple):
    """kind: "stage" (data: its name), "token" (data: the answer so far) or "run" (data: Run)."""

    kind: str
    data: Any


def run(vlm: VLM, image, question: str, method: Method, **options) -> Run:
    """The last event of `stream`."""
    for event in stream(vlm, image, question, method, **options):
        last = event.data
    return last


def pictures(source) -> list[Image.Image]:
    """One picture or several (a list of them), each anything that `load_rgb` takes. Raises ValueError for none."""
    if not isinstance(source, list | tuple):
        return [load_rgb(source)]
    if not source:
        raise ValueError("the list of images is empty; give at least one")
    return [load_rgb(one) for one in source]


def picture_key(image: Image.Image | list[Image.Image]) -> str:
    """The same for images of the same pixels."""
    if isinstance(image, list):
        return "".join(map(picture_key, image))
    return f"{image.size}{hashlib.sha256(image.tobytes()).hexdigest()}"


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
    key: str | None = None,
    budget: str = "global",
) -> Iterator[Event]:
    """Answer a question, as a stream of events that ends with the Run. Closing the generator stops the work.

    image: anything `load_rgb` takes, or a list of such for several pictures. seed: for methods that draw at random.
    ignore_eos: answers of a fixed length, for timing. key: `picture_key` of the image if it is at hand. budget: where
    pictures are encoded as several views, "global" ranks the tokens of all views together, "crop" asks the method view
    by view, so that each keeps its share. The vision pass of the last image is kept on the VLM and shared by methods
    that act neither on the image nor inside the tower. Raises ValueError for bad input and for a method that the model
    or the image does not suit.
    """
    check_length(max_new_tokens)
    images = pictures(image)
    work = Pass(vlm, method, seed, budget)
    yield from first_turn(work, images, vlm.check_question(question), max_new_tokens, ignore_eos, key)


def first_turn(
    work: Pass, images: list[Image.Image], question: str, max_new_tokens: int, ignore_eos: bool, key: str | None = None
) -> Iterator[Event]:
    """The events of `stream`."""
    vlm, watch = work.vlm, work.watch
    yield from watch.pause(Event("stage", "preprocess"))
    encoded = work.recall(key := key or picture_key(images))
    shared = encoded is not None
    if not shared:
        watch.enter("preprocess")
        inputs = vlm.inputs(images, work.side)
        yield from watch.pause(Event("stage", "vision"))
        watch.enter("vision")
        encoded = work.encode(inputs)
        watch.enter(None)
        encoded = work.remember(key, encoded)
    else:
        work.lay(encoded.layout)
    watch.enter("preprocess")
    prompt = vlm.prompt(question, encoded.layout)

    yield from watch.pause(Event("stage", "projector"))
    watch.enter("projector")
    visual = work.project(encoded)

    yield from watch.pause(Event("stage", "prefill"))
    watch.enter("prefill")
    prefilled = work.prefill(prompt, visual)
    ids = yield from decode(work, prefilled, prefilled.token, max_new_tokens, ignore_eos)
    yield Event("run", work.result(encoded, prefilled, ids, shared))


def decode(
    work: Pass, prefilled: Prefilled, token: Tensor, max_new_tokens: int, ignore_eos: bool = False
) -> Iterator[Event]:
    """One event per token from `token` [1] on, then (as the generator's value) the ids of the answer."""
    vlm, watch = work.vlm, work.watch
    ids = token.tolist()
    yield from watch.pause(Event("token", vlm.answer_text(ids)))

    yield from watch.pause(Event("stage", "decode"))
    while len(ids) < max_new_tokens and (ignore_eos or ids[-1] not in vlm.eos_ids):
        watch.enter("decode")
        token = work.step(prefilled, token)
        ids += token.tolist()  # the one wait for the device in a step
        yield from watch.pause(Event("token", vlm.answer_text(ids)))
    watch.enter(None)
    work.prefilled, work.said = prefilled, ids
    return ids


@torch.inference_mode()
def warm_up(vlm: VLM) -> None:
    """One short pass, once per VLM, so that the first run does not pay for what is made once (memory, kernels)."""
    if vlm.warm:
        return
    vlm.warm = True
    work = Pass(vlm, resolve("full"), seed=0)
    inputs = vlm.inputs([Image.new("RGB", (64, 64))])
    placeholder = vlm.config.image_token_id
    prompt = Prompt.build([0] * 8 + [placeholder] + [0] * 8, placeholder, inputs.layout, vlm.device)
    prefilled = work.prefill(prompt, work.project(work.encode(inputs)))
    work.step(prefilled, prefilled.token)


def check_length(max_new_tokens: int) -> int:
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be between 1 and {MAX_NEW_TOKENS}")
    return max_new_tokens
