"""How many tokens a method leaves at every layer of a shape: one pass through the narrow model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from .. import methods
from ..bench import at_budgets
from ..engine import Pass
from ..methods.base import Method
from ..models.layout import Prompt
from .shapes import Shape


@dataclass(frozen=True)
class Plan:
    """Tokens of one pass.

    side: pixels of the picture, where the method scales it. encoder [vision_layers]: tokens of one crop entering each
    encoder layer. projected: rows through the projector. schedule [layers]: visual tokens entering each decoder layer;
    cached [layers]: those in its cache afterwards. text: all other tokens of the prompt, a family's line breaks too.
    """

    method: Method
    side: int | None
    encoder: tuple[int, ...]
    projected: int
    schedule: tuple[int, ...]
    cached: tuple[int, ...]
    text: int

    @property
    def equivalent_tokens(self) -> float:
        return sum(self.schedule) / len(self.schedule)


@cache
@torch.inference_mode()
def plan(shape: Shape, method: Method, text: int) -> Plan:
    """Raises ValueError if the method does not suit the shape."""
    vlm = shape.narrow
    work = Pass(vlm, method, seed=0)
    encoded = work.encode(shape.inputs(work.side))
    image = vlm.config.image_token_id
    prompt = Prompt.build([0] * (text // 2) + [image] + [0] * (text - text // 2), image, encoded.layout, vlm.device)
    prefilled = work.prefill(prompt, work.project(encoded))
    crops = len(encoded.layout.segments)
    return Plan(
        method,
        work.side,
        tuple(n // crops for n in encoded.schedule),
        work.projected,
        tuple(work.trace.schedule),
        tuple(prefilled.cached),
        prefilled.text_tokens,
    )


def plans(shape: Shape, names, tokens, text: int) -> list[Plan]:
    """The full model, then every method at every budget. Raises ValueError for what the shape does not allow."""
    chosen = [method for name in names if name != "full" for _, method in at_budgets(name, tokens, shape.visual)]
    return [plan(shape, method, text) for method in (methods.resolve("full"), *chosen)]
