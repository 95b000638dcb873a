"""How many tokens a method leaves at every layer of a shape: one pass through the narrow model.

What the method computes itself is counted at the shape's true size without running it, see `engine.shape_only`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from vtc_demo import registry
from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.engine import ForwardPass, shape_only
from vtc_demo.engine.language import prefill
from vtc_demo.engine.vision import encode, project
from vtc_demo.models.layout import Prompt

from ..budgets import at_budgets
from .shapes import Shape

SPANS = "who sees whom in the tower of this shape depends on more than the number of tokens"
PICTURE = "it depends on the picture in a way that shapes do not show"


@dataclass(frozen=True)
class Plan:
    """Tokens of one pass.

    side: pixels of the picture, where the method scales it. encoder [vision_layers]: tokens of one crop entering each
    encoder layer. projected: rows through the projector. schedule [layers]: visual tokens entering each decoder layer;
    cached [layers]: those in its cache afterwards. text: all other tokens of the prompt, a family's line breaks too.
    own: FLOPs of the method's own work; None if they cannot be counted, `uncounted` then says why.
    """

    method: Method
    side: int | None
    encoder: tuple[int, ...]
    projected: int
    schedule: tuple[int, ...]
    cached: tuple[int, ...]
    text: int
    own: int | None = None
    uncounted: str = ""

    @property
    def equivalent_tokens(self) -> float:
        return sum(self.schedule) / len(self.schedule)


@cache
@torch.inference_mode()
def plan(shape: Shape, method: Method, text: int) -> Plan:
    """Raises ValueError if the method does not suit the shape."""
    vlm = shape.narrow
    work = ForwardPass(vlm, method)
    encoded = encode(work, shape.inputs(work.side))
    image = vlm.config.image_token_id
    prompt = Prompt.build([0] * (text // 2) + [image] + [0] * (text - text // 2), image, encoded.layout, vlm.device)
    asked = work.question("", prompt)
    prefilled = prefill(work, prompt, project(work, encoded, asked), asked)
    crops = len(encoded.layout.segments)
    own = own_work(shape, work, prompt)
    return Plan(
        method,
        work.side,
        tuple(spans.entered // crops for spans in encoded.layers),
        work.projected,
        tuple(work.hooks.trace.schedule),
        tuple(prefilled.cached),
        prefilled.text_tokens,
        own if isinstance(own, int) else None,
        "" if isinstance(own, int) else own,
    )


def own_work(shape: Shape, work: ForwardPass, prompt: Prompt) -> int | str:
    """FLOPs of a method's own work in the true size, or why they cannot be counted. work: its pass through the narrow
    model."""
    vlm, method, trace = shape.sketch, work.method, work.hooks.trace
    if not work.hooks.overhead:  # nothing in a narrow model is nothing in a wide one
        return 0
    if not shape_only.countable(vlm, method):
        return SPANS
    layout = shape.inputs().layout  # of the picture as it comes; counting scales it itself
    counted = shape_only.count(vlm, method, layout, prompt, replay=trace if method.adaptive else None)
    return counted.overhead if list(counted.schedule) == list(trace.schedule) else PICTURE


# -- which methods --------------------------------------------------------------------------------------------------
def offered() -> list[Card]:
    """The cards of the methods that can be timed. One that has trained weights would have to be timed with them."""
    return [card for card in registry.list_methods() if card.training_free]


def check(name: str) -> None:
    """Raise ValueError for a method that does not exist or needs trained weights, be they here or not."""
    key = name.partition("@")[0].strip().lower()
    card = (registry.trained().get(key) or registry.get(key)).card
    if not card.training_free:
        raise ValueError(
            f"{card.title} needs weights of its own that were trained, and the lab has random ones. Choose methods "
            "that need no training"
        )


def plans(shape: Shape, names, tokens, text: int) -> list[Plan]:
    """The full model, then every method at every budget. Raises ValueError for what the shape does not allow, and for
    methods that need trained weights."""
    for name in names:
        check(name)
    chosen = [method for name in names if name != "full" for _, method in at_budgets(name, tokens, shape.visual)]
    return [plan(shape, method, text) for method in (registry.resolve("full"), *chosen)]
