"""Methods that do what a test tells them, and what transformers' own functions make of the tiny model's input."""

from dataclasses import dataclass, field
from typing import ClassVar

import tiny
import torch

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction

IMAGE = tiny.image()
N = 36  # visual tokens of the tiny model


def card(name):
    return Card(name, name, "test", "A method of a test.", ("llm_layer",), "baseline")


@dataclass(frozen=True)
class Fixed(Method):
    """Does at each site what it was told: {Site: Reduction}."""

    card: ClassVar[Card] = card("fixed")
    plan: dict = field(default_factory=dict)

    def sites(self, shape):
        return tuple(self.plan)

    def reduce(self, context):
        return self.plan[context.site]


@dataclass(frozen=True)
class Renumbered(Fixed):
    card: ClassVar[Card] = card("renumbered")
    positions = "renumber"


@dataclass(frozen=True)
class Spy(Fixed):
    """Shows every context to a function first."""

    card: ClassVar[Card] = card("spy")
    look: object = None

    def reduce(self, context):
        self.look(context)
        return self.plan[context.site]


def keep(*share, n=N, seed=3):
    """A selection of about share[0] of n tokens, ascending."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return Reduction.select(order[: int(n * share[0])].sort().values, n)


def inputs(vlm, image=IMAGE):
    prompt = vlm.adapter.prompt(vlm.processor, tiny.QUESTION)
    return vlm.processor(images=image, text=prompt, return_tensors="pt")


@torch.no_grad()
def reference_embeds(vlm):
    """(embeddings [1, S, D], first visual place) by transformers' own functions."""
    given = inputs(vlm)
    features = vlm.model.get_image_features(given["pixel_values"]).pooler_output[0]
    embeds = vlm.model.get_input_embeddings()(given["input_ids"]).clone()
    places = (given["input_ids"][0] == vlm.config.image_token_id).nonzero().flatten()
    embeds[0, places] = features
    assert places[0] > 0 and places[-1] < embeds.shape[1] - 1  # text on both sides
    return embeds, int(places[0])


def close(a, b):
    return a.dtype == torch.float32 and a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
