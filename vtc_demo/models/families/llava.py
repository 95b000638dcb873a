"""The LLaVA family: CLIP tower, MLP projector, Llama-like decoder (LlavaForConditionalGeneration)."""

from __future__ import annotations

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vtc_demo.core.shape import ModelShape

from ..adapter import Adapter
from ..layout import VISUAL, WHOLE, Crop, Inputs, Layout, centre, per_image
from ..spec import build_spec

DECODERS = ("llama", "mistral", "qwen2")  # pre-norm layers with q_proj, k_proj, one RoPE, full causal attention


class LlavaAdapter(Adapter):
    model_type = "llava"
    model_class = LlavaForConditionalGeneration
    description = "LLaVA (LlavaForConditionalGeneration) with a CLIP tower and a Llama, Mistral or Qwen2 decoder"
    towers = {"clip_vision_model": True}  # model type -> whether it has a CLS token
    crops = 1  # views of a square picture, for the spec
    resizable = True

    def check(self, config):
        tower, text = config.vision_config, config.text_config
        if tower.model_type not in self.towers:
            raise ValueError(f"its vision tower is {tower.model_type}, which is not supported")
        if text.model_type not in DECODERS:
            raise ValueError(f"its decoder is {text.model_type}, which is not supported")
        if not isinstance(config.vision_feature_layer, int):
            raise ValueError("it takes features from several vision layers, which is not supported")
        if self.shape(config).feature_layer not in range(tower.num_hidden_layers):
            raise ValueError(f"vision_feature_layer={config.vision_feature_layer} is no layer of its tower")

    def load_processor(self, source, **options):
        return AutoProcessor.from_pretrained(source, **options)

    def shape(self, config):
        tower, feature = config.vision_config, config.vision_feature_layer
        side = tower.image_size // tower.patch_size
        # hidden_states[0] is what enters layer 0, so hidden_states[f] is the output of layer f - 1.
        entry = feature if feature >= 0 else tower.num_hidden_layers + 1 + feature
        return ModelShape(
            grid=(side, side),
            patch_size=tower.patch_size,
            vision_layers=tower.num_hidden_layers,
            feature_layer=entry - 1,
            llm_layers=config.text_config.num_hidden_layers,
            has_cls=self.towers[tower.model_type],
            vision_heads=tower.num_attention_heads,
        )

    def spec(self, config):
        shape, width = self.shape(config), config.text_config.hidden_size
        keeps_cls = shape.has_cls and config.vision_feature_select_strategy == "full"
        return build_spec(
            config,
            patches=shape.patches,
            extra=int(shape.has_cls),
            vision_layers=shape.feature_layer + 1,
            projector=(config.vision_config.hidden_size, width, width),
            visual_tokens=self.crops * (shape.patches + keeps_cls),
            crops=self.crops,
        )

    def encoder_layers(self, model):
        return model.model.vision_tower.encoder.layers

    def embed(self, model, inputs, resized):
        tower = model.model.vision_tower
        h = tower.embeddings(inputs.pixels, interpolate_pos_encoding=resized)
        h = tower.pre_layrnorm(h) if hasattr(tower, "pre_layrnorm") else h  # [views, s, C]
        return h.flatten(0, 1), None

    def project(self, model, features):
        return model.model.multi_modal_projector(features)

    def inputs(self, processor, config, images, side):
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}} if side else {}
        pixels = self.processed(processor, images, **size)["pixel_values"]
        patch, count = config.vision_config.patch_size, len(images)
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        patches, keeps = grid[0] * grid[1], config.vision_feature_select_strategy == "full"
        cut = bool(processor.image_processor.do_center_crop)
        crops = tuple(
            Crop(torch.arange(i * patches, (i + 1) * patches), grid, centre(image) if cut else WHOLE, i)
            for i, image in enumerate(images)
        )
        layout = Layout(
            crops,
            pieces=([VISUAL] * (patches + keeps),) * count,
            segments=(patches + 1,) * count,
            extra=count,
            sources=per_image(count, patches, cls=True),
            keeps_extra=keeps,
        )
        return Inputs(pixels, layout)
