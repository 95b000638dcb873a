"""A loaded model: what the engine runs and what makes its input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vtc_demo import cost
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.workspace import Workspace

from .adapter import Adapter
from .layout import Inputs, Layout, Prompt
from .text_tower import TextTower

MAX_QUESTION = 400  # characters
MARK = "TEXT-GOES-HERE"  # stands in for a question or an answer while the chat template is filled


@dataclass(eq=False)
class VLM:
    """A loaded model: weights, processor and the adapter of its family. The engine never changes it.

    workspace: what passes leave for the next. text_tower: for methods that compare the picture with the question in
    CLIP's space. compiled: runs the decoder's layers if set (see `engine.compiled`).
    """

    model: Any
    processor: Any
    adapter: Adapter
    name: str
    text_tower: TextTower | None = field(default=None, repr=False)
    workspace: Workspace = field(default_factory=Workspace, repr=False)
    compiled: Callable | None = field(default=None, repr=False)

    def __post_init__(self):
        self.model.eval()
        used = self.config._attn_implementation
        if used != "sdpa":
            raise ValueError(f"the engine needs attn_implementation='sdpa', this model uses {used!r}; load it anew")

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @cached_property
    def shape(self) -> ModelShape:
        return self.adapter.shape(self.config)

    @cached_property
    def spec(self) -> cost.ModelSpec:
        return self.adapter.spec(self.config)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer; empty if the model has none."""
        ids = self.model.generation_config.eos_token_id
        return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)

    # -- input ----------------------------------------------------------------------------------------------------
    def check_question(self, text: str) -> str:
        """The question without surrounding blanks.

        Raises ValueError if it is empty, longer than MAX_QUESTION characters, holds a control token, or holds a word
        that the tokenizer can only write as its unknown token.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the question is empty; type one")
        text = text.strip()
        if len(text) > MAX_QUESTION:
            raise ValueError(f"the question has {len(text)} characters; use at most {MAX_QUESTION}")
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pieces = list(zip(found["input_ids"], found["offset_mapping"]))
        unknown = self.tokenizer.unk_token_id
        control = set(self.tokenizer.all_special_ids) - {unknown}
        for token, (start, end) in pieces:
            if token in control:
                raise ValueError(f"the question holds the control token {text[start:end]!r}; leave it out")
        strange = [text[start:end].strip() for token, (start, end) in pieces if token == unknown]
        if strange:
            raise ValueError(self._unknown_words(list(dict.fromkeys(strange))))
        return text

    def _unknown_words(self, strange: list[str]) -> str:
        words = sorted({w.lstrip("▁") for w in self.tokenizer.get_vocab() if re.fullmatch("▁?[a-z]+", w)})
        near = [f"'{m[0]}'" for w in strange if (m := get_close_matches(w.lower(), words, n=1, cutoff=0.75))]
        message = f"the model does not know: {', '.join(repr(w) for w in strange)}."
        if near:
            message += f" Did you mean {', '.join(near)}?"
        if len(words) > 500:
            return message + " Use other words."
        return message + f" It knows digits and these words only: {', '.join(words)}."

    def prompt(self, question: str, layout: Layout) -> Prompt:
        """Token ids of the chat prompt around its pictures."""
        text = self.adapter.prompt(self.processor, question, len(layout.pieces))
        found = self._encoded(text)
        start = self.adapter.prompt(self.processor, MARK, len(layout.pieces)).find(MARK)
        own = [
            start <= begin and end <= start + len(question) and end > begin for begin, end in found["offset_mapping"]
        ]
        return Prompt.build(found["input_ids"], self.config.image_token_id, layout, self.device, own)

    def next_turn(self, question: str) -> list[int]:
        """Token ids from the end of an answer to the beginning of the next, with the question between them."""
        text = self.adapter.prompt(self.processor, "?", 1, ((MARK, question),))
        if MARK not in text:
            raise ValueError(f"the chat template of {self.name} has no place for an earlier answer; ask anew")
        return self.tokenizer(text.split(MARK)[-1], add_special_tokens=False)["input_ids"]

    def tokenize(self, text: str) -> list[int]:
        """Ids of a chat prompt, with the token of the beginning, if the model has one, exactly once."""
        return self._encoded(text)["input_ids"]

    def _encoded(self, text: str):
        bos = self.tokenizer.bos_token
        special = not (bos and text.startswith(bos))
        return self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)

    def answer_text(self, ids: list[int]) -> str:
        """The words of an answer."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def inputs(self, images: list[Image.Image], side: int | None = None) -> Inputs:
        """Pictures (RGB) as the tower takes them, in its dtype; scaled to `side` pixels if given."""
        pixels, layout = self.adapter.inputs(self.processor, self.config, images, side)
        sources = layout.sources
        layout = replace(layout, sources=None if sources is None else sources.to(self.device))
        return Inputs(pixels.to(self.device, self.dtype), layout)

    def generate_inputs(
        self, images: list[Image.Image], question: str, layout: Layout | None = None
    ) -> dict[str, Tensor]:
        """Arguments of transformers' own `generate` for the prompt and pictures (RGB) that the engine would run.

        Every visual token is one image token of the prompt; pixel values have the model's dtype and device. layout: the
        one of `inputs(images)`, if known already; the pictures are then processed once, not twice.
        """
        made = self.adapter.processed(self.processor, images)
        ids = self.prompt(question, layout or self.inputs(images).layout).ids[None]
        visual = ids < 0
        ids = ids.masked_fill(visual, self.config.image_token_id)
        taken = inspect.signature(self.model.forward).parameters
        out = {name: torch.as_tensor(value).to(self.device) for name, value in made.items() if name in taken}
        out["pixel_values"] = out["pixel_values"].to(self.dtype)
        if self.adapter.axes > 1:
            out["mm_token_type_ids"] = visual.int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | out

    def seen(self, image: Image.Image | list[Image.Image]) -> Image.Image:
        """What the model sees of a picture (RGB), under its patches: cut, and laid out as the trace's grid."""
        images = image if isinstance(image, list) else [image]
        return self.inputs(images).layout.draw(images, self.shape.patch_size)
