"""What the engine needs to know of a model: VLM, and the adapter that a family of models provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from vtc_demo import cost
from vtc_demo.core.shape import ModelShape

from .attention import EncoderProbe
from .layout import Inputs, Layout, Prompt
from .parts import Parts


class Adapter(ABC):
    """Where the parts of one family sit. Stateless; every function takes the model, its config or its processor.

    A family overrides what differs from a tower of CLIP-like layers and a decoder with positions on one axis.
    """

    model_type: ClassVar[str]  # config.model_type
    model_class: ClassVar[Any]  # a class of transformers
    description: ClassVar[str]  # for messages: what runs
    probe: ClassVar[type[EncoderProbe]] = EncoderProbe  # attention of one tower layer on demand
    axes: ClassVar[int] = 1  # of position ids
    resizable: ClassVar[bool] = False  # whether a smaller picture makes fewer patches
    countable: ClassVar[bool] = True  # whether who sees whom in the tower follows from the lengths of the views
    nested: ClassVar[bool] = False  # whether its image processor takes a list of pictures for each prompt
    image_options: ClassVar[dict[str, Any]] = {}  # given to it

    @abstractmethod
    def check(self, config) -> None:
        """Raise ValueError if the engine cannot run this configuration of the family."""

    def load(self, source: str, **options):
        """(model, loading info); options go to `from_pretrained`."""
        return self.model_class.from_pretrained(source, output_loading_info=True, **options)

    def load_processor(self, source: str, **options):
        """Something with image_processor, tokenizer and apply_chat_template."""
        return Parts.load(source, **options)

    @abstractmethod
    def shape(self, config) -> ModelShape:
        """With the grid of one view of a typical picture."""

    @abstractmethod
    def spec(self, config) -> cost.ModelSpec:
        """Dimensions, of one view of a typical picture."""

    # -- tower ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def encoder_layers(self, model) -> nn.ModuleList: ...

    @abstractmethod
    def embed(self, model, inputs: Inputs, resized: bool) -> tuple[Tensor, Any]:
        """(what enters encoder layer 0, the tokens of all views one after another [N, C]; details that `run_layer`
        and `attends` need). resized: the picture was scaled for the method."""

    def run_layer(
        self, layer: nn.Module, i: int, h: Tensor, segments: tuple[int, ...], details: Any, bias: Tensor | None = None
    ) -> Tensor:
        """Encoder layer i on h [N, C]; segments: lengths of the views. bias [N]: added to the scores of each key."""
        return by_view(lambda view, mask: layer(view, attention_mask=mask), h, segments, bias)

    def attend(
        self, layer: nn.Module, i: int, h: Tensor, segments: tuple[int, ...], details: Any, bias: Tensor | None = None
    ) -> Tensor:
        """The first half of a layer: h with what its attention adds, [N, C]."""

        def half(view: Tensor, mask: Tensor | None) -> Tensor:
            return view + layer.self_attn(layer.layer_norm1(view), attention_mask=mask)[0]

        return by_view(half, h, segments, bias)

    def feed(self, layer: nn.Module, h: Tensor) -> Tensor:
        """The second half: h with what its MLP adds, [N, C]."""
        return h + layer.mlp(layer.layer_norm2(h))

    def attends(self, i: int, segments: tuple[int, ...], details: Any) -> dict[str, Any]:
        """What `probe` must know of layer i: lengths of the spans that attend to each other; rope."""
        return {"segments": segments}

    def kept(self, details: Any, places: Tensor) -> Any:
        """The details for the tokens that are left, by their old places [N']."""
        return details

    def finish(self, model, h: Tensor) -> Tensor:
        """From the feature layer's output to the features, [N, C]."""
        return h

    def deepstack_layers(self, config) -> tuple[int, ...]:
        """Encoder layers whose outputs are also given to the decoder, one to each of its first layers."""
        return ()

    # -- projector and decoder ------------------------------------------------------------------------------------
    @abstractmethod
    def project(self, model, features: Tensor) -> Tensor:
        """features [1, n, g * C] -> [1, n, D]."""

    def pack(self, model, visual: Tensor, layout: Layout) -> Tensor:
        """From the projector's output to the visual tokens of the LLM, [1, n, D]; only where `layout.blend` is set."""
        return visual

    def project_deepstack(self, model, i: int, features: Tensor) -> Tensor:
        """The same for the i-th of `deepstack_layers`."""
        raise ValueError(f"{self.model_type} has no deepstack features")

    def decoder(self, model) -> nn.Module:
        """The module with embed_tokens, layers, norm and rotary_emb."""
        return model.model.language_model

    def lm_head(self, model) -> nn.Module:
        return model.lm_head

    def newline(self, model) -> Tensor:
        """The learned line break, [D]."""
        return model.model.image_newline

    def positions(self, model, prompt: Prompt, layout: Layout) -> tuple[Tensor | None, int]:
        """(position ids of the whole prompt [axes, 1, S], the next position); None: counted through."""
        return None, 0

    # -- input ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def inputs(self, processor, config, images: list[Image.Image], side: int | None) -> Inputs:
        """Pictures as the tower takes them, float32; scaled to `side` if given."""

    def processed(self, processor, images: list[Image.Image], **options) -> dict[str, Any]:
        """What the family's image processor makes of the pictures of one prompt."""
        given = [images] if self.nested else images
        return processor.image_processor(images=given, return_tensors="pt", **self.image_options, **options)

    def prompt(self, processor, question: str, images: int = 1, turns: tuple[tuple[str, str], ...] = ()) -> str:
        """The chat prompt around the image placeholders; turns: (answer, next question) after the first question."""
        messages = [said("user", question, images)]
        for answer, further in turns:
            messages += [said("assistant", answer), said("user", further)]
        return processor.apply_chat_template(messages, add_generation_prompt=True)


def said(role: str, text: str, images: int = 0) -> dict:
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def by_view(
    run: Callable[[Tensor, Tensor | None], Tensor], h: Tensor, segments: tuple[int, ...], bias: Tensor | None
) -> Tensor:
    """`run` on the views of h [N, C]: as one batch [views, n, C] if they are equally long, else one by one.

    bias [N]: as a mask [views, 1, n, n] of what is added to the scores of each key.
    """

    def mask(view_bias: Tensor | None) -> Tensor | None:  # [views, n]
        return None if view_bias is None else view_bias[:, None, None].expand(-1, 1, view_bias.shape[1], -1).to(h)

    if len(set(segments)) == 1:
        views, n = len(segments), segments[0]
        return run(h.view(views, n, -1), mask(None if bias is None else bias.view(views, n))).flatten(0, 1)
    biases = [None] * len(segments) if bias is None else [part[None] for part in bias.split(segments)]
    return torch.cat([run(view[None], mask(b))[0] for view, b in zip(h.split(segments), biases, strict=True)])


def unbiased(name: str, bias: Tensor | None) -> None:
    """Raise ValueError if a bias is asked of a tower whose attention takes none."""
    if bias is not None:
        raise ValueError(f"the attention of {name} towers takes no bias on its keys, which this method needs there")
