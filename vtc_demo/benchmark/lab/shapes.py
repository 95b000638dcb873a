"""The shapes of real models: configurations of transformers' own classes, built from a ModelSpec, without weights.

A shape can also be had narrow: the same depth, grids and views, but a width of a few values. A pass of a method through
a narrow model takes a moment and leaves the same counts of tokens as through the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
import transformers as tf
from PIL import Image

from vtc_demo import cost
from vtc_demo.models import EMBEDDED, FAMILIES, VLM, Adapter, spec_of
from vtc_demo.models.layout import Inputs
from vtc_demo.models.parts import Parts

IMAGE_TOKEN = 5  # any id that is not used for words


@dataclass(frozen=True)
class Shape:
    """A model's dimensions and how its family is configured. side: pixels of the square picture it is shown."""

    name: str
    title: str
    spec: cost.ModelSpec
    family: Callable[[cost.ModelSpec, int], tuple]
    side: int

    @property
    def visual(self) -> int:
        """Visual tokens without compression."""
        return self.spec.visual_tokens

    @cached_property
    def config(self):
        return self.family(self.spec, self.side)[0]

    @property
    def adapter(self) -> Adapter:
        return FAMILIES[self.config.model_type]

    def inputs(self, side: int | None = None) -> Inputs:
        """A picture of noise as the tower takes it, float32 on the CPU; scaled to `side` if given."""
        values = np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return self.narrow.inputs([Image.fromarray(values)], side)

    @cached_property
    def narrow(self) -> VLM:
        """A model of this depth with random weights, a few values wide. Nothing is asked of it in words."""
        unit = self.spec.projector[0] // self.spec.vision_width  # encoder tokens that are joined to one
        spec = replace(
            self.spec, vision_width=32, vision_heads=4, vision_mlp=32, projector=(32 * unit, 32 * unit, 16),
            hidden=16, heads=2, kv_heads=2, head_dim=8, intermediate=16, vocab=32,
        )  # fmt: skip
        config, images = self.family(spec, self.side)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.adapter.model_class._from_config(config, attn_implementation="sdpa")
        return VLM(model, Parts(images, None), self.adapter, self.name)

    @cached_property
    def sketch(self) -> VLM:
        """The narrow model under the true dimensions: FLOPs can be counted with it, its layers must not be run."""
        vlm = replace(self.narrow)
        vars(vlm).update(spec=self.spec, shape=self.adapter.shape(self.config))
        return vlm


# -- families -------------------------------------------------------------------------------------------------------
def _clip(spec: cost.ModelSpec) -> tf.CLIPVisionConfig:
    """Features are taken one layer before the last, as in LLaVA: the tower has a layer more than are run."""
    return tf.CLIPVisionConfig(
        hidden_size=spec.vision_width,
        intermediate_size=spec.vision_mlp,
        num_hidden_layers=spec.vision_layers + 1,
        num_attention_heads=spec.vision_heads,
        image_size=round(spec.patches**0.5) * spec.patch_size,
        patch_size=spec.patch_size,
        projection_dim=spec.vision_width,
    )


def _text(spec: cost.ModelSpec) -> dict:
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": 1 << 15,
    }


def _square(config) -> dict:
    side = config.image_size
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def llava(spec: cost.ModelSpec, side: int) -> tuple:
    vision, text = _clip(spec), tf.LlamaConfig(**_text(spec), head_dim=spec.head_dim)
    config = tf.LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2, image_token_id=IMAGE_TOKEN)
    return config, tf.CLIPImageProcessorPil(**_square(vision))


def llava_next(spec: cost.ModelSpec, side: int) -> tuple:
    vision, text = _clip(spec), tf.LlamaConfig(**_text(spec), head_dim=spec.head_dim)
    pins = [[side, side]]  # the picture at twice the tower's side: a view of the whole and four tiles
    config = tf.LlavaNextConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-2, image_token_id=IMAGE_TOKEN,
        image_grid_pinpoints=pins,
    )  # fmt: skip
    return config, tf.LlavaNextImageProcessorPil(**_square(vision), image_grid_pinpoints=pins)


def qwen2_5_vl(spec: cost.ModelSpec, side: int) -> tuple:
    merge = round((spec.projector[0] / spec.vision_width) ** 0.5)
    tower = {
        "hidden_size": spec.vision_width,
        "out_hidden_size": spec.hidden,
        "intermediate_size": spec.vision_mlp,
        "depth": spec.vision_layers,
        "num_heads": spec.vision_heads,
        "patch_size": spec.patch_size,
        "spatial_merge_size": merge,
        "temporal_patch_size": spec.frames,
        "window_size": round(spec.window**0.5) * spec.patch_size,
        "fullatt_block_indexes": list(spec.full_layers),
    }
    half = spec.head_dim // 2  # published for 64: 16, 24, 24
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    special = {f"{name}_token_id": IMAGE_TOKEN + i for i, name in enumerate(("image", "vision_start", "video"))}
    text = _text(spec) | {"rope_parameters": rope, "bos_token_id": None, "eos_token_id": None}
    config = tf.Qwen2_5_VLConfig(
        vision_config=tower, text_config=text, tie_word_embeddings=False, **special, vision_end_token_id=IMAGE_TOKEN + 3
    )
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=spec.patch_size, merge_size=merge, temporal_patch_size=spec.frames,
        size={"shortest_edge": side * side, "longest_edge": side * side},
    )  # fmt: skip
    return config, images


# -- the shapes -----------------------------------------------------------------------------------------------------
@cache
def catalogue() -> dict[str, Shape]:
    """By name. The embedded VLM's is read from its configuration; it is left out if there is none."""
    known = [
        Shape("llava-1.5-7b", "LLaVA-1.5-7B", cost.SPECS["llava-1.5-7b"], llava, 336),
        Shape("llava-1.5-13b", "LLaVA-1.5-13B", cost.SPECS["llava-1.5-13b"], llava, 336),
        Shape("llava-next-7b", "LLaVA-NeXT-7B", cost.SPECS["llava-next-7b"], llava_next, 672),
        Shape("qwen2.5-vl-7b", "Qwen2.5-VL-7B", cost.SPECS["qwen2.5-vl-7b"], qwen2_5_vl, 672),
    ]
    if (EMBEDDED / "config.json").is_file():
        spec = spec_of(tf.AutoConfig.from_pretrained(EMBEDDED, local_files_only=True))
        known.append(Shape("embedded", "Embedded VLM", replace(spec, name="embedded"), llava, 336))
    return {shape.name: shape for shape in known}


def pick(name: str) -> Shape:
    """The shape of that name. Raises ValueError with the names there are."""
    if name not in catalogue():
        raise ValueError(f"unknown model shape {name!r}; choose one of {', '.join(catalogue())}")
    return catalogue()[name]


def default_tokens(name: str) -> tuple[int, ...]:
    """One ninth of a shape's visual tokens: 64 of 576, 320 of 2,880."""
    return (max(1, pick(name).visual // 9),)
