"""What the engine needs to know of a model: VLM, and the adapter that a family of models provides."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from .. import cost
from ..methods.base import ModelShape

MAX_QUESTION = 400  # characters


class Adapter(ABC):
    """Where the parts of one family sit. Stateless; every function takes the model, its config or its processor."""

    model_type: ClassVar[str]  # config.model_type
    description: ClassVar[str]  # for messages: what runs

    @abstractmethod
    def check(self, config) -> None:
        """Raise ValueError if the engine cannot run this configuration of the family."""

    @abstractmethod
    def load(self, source: str, **options):
        """(model, loading info); options go to `from_pretrained`."""

    @abstractmethod
    def shape(self, config) -> ModelShape: ...

    # -- parts ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def encoder_layers(self, model) -> nn.ModuleList: ...

    @abstractmethod
    def embed_image(self, model, pixels: Tensor, resized: bool) -> Tensor:
        """pixels [1, 3, H, W] -> what enters encoder layer 0, [1, extra + patches, C]; resized: not the usual H, W."""

    @abstractmethod
    def project(self, model, features: Tensor) -> Tensor:
        """features [1, n, C] -> [1, n, D]."""

    @abstractmethod
    def decoder(self, model) -> nn.Module:
        """The module with embed_tokens, layers, norm and rotary_emb."""

    @abstractmethod
    def lm_head(self, model) -> nn.Module: ...

    @abstractmethod
    def keeps_cls(self, config) -> bool:
        """Whether CLS is handed to the projector when the method does not decide."""

    # -- input ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def pixels(self, processor, image: Image.Image, side: int | None) -> Tensor:
        """The image as the tower takes it, [1, 3, H, W] float32; scaled to `side` if given."""

    def prompt(self, processor, question: str) -> str:
        """The chat prompt around one image placeholder."""
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return processor.apply_chat_template([message], add_generation_prompt=True)


@dataclass(eq=False)
class VLM:
    """A loaded model: weights, processor and the adapter of its family. The engine never changes it.

    `recent` holds the vision pass of the last image (see engine); it is replaced, never altered, so that threads may
    share a VLM.
    """

    model: Any
    processor: Any
    adapter: Adapter
    name: str
    recent: Any = field(default=None, repr=False)
    warm: bool = field(default=False, repr=False)

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
        return cost.ModelSpec.from_config(self.config)

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

    def prompt_ids(self, question: str) -> tuple[Tensor, Tensor]:
        """Token ids of the chat prompt before and after the image, [1, before] and [1, after] on the device."""
        prompt = self.adapter.prompt(self.processor, self.check_question(question))
        bos = self.tokenizer.bos_token
        special = not (bos and prompt.startswith(bos))
        ids = self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        places = [i for i, token in enumerate(ids) if token == self.config.image_token_id]
        if len(places) != 1:
            raise ValueError(f"the chat template of {self.name} makes {len(places)} image places, expected 1")
        before, after = ids[: places[0]], ids[places[0] + 1 :]
        return tuple(torch.tensor([part], dtype=torch.long, device=self.device) for part in (before, after))

    def pixels(self, image: Image.Image, side: int | None = None) -> Tensor:
        """image (RGB) -> [1, 3, H, W] in the tower's dtype; H = W = side if given."""
        return self.adapter.pixels(self.processor, image, side).to(self.device, self.dtype)

    def seen(self, image: Image.Image) -> Image.Image:
        """The part of the image (RGB) that the model sees, as its patch grid lies on it: resized and cropped."""
        pixels = self.adapter.pixels(self.processor, image, None)[0]  # [3, H, W]
        how = self.processor.image_processor
        mean, std = (torch.tensor(v)[:, None, None] for v in (how.image_mean, how.image_std))
        values = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(values.permute(1, 2, 0).numpy())  # [H, W, 3]
