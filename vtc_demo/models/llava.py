"""The LLaVA family: CLIP tower, MLP projector, Llama-like decoder (LlavaForConditionalGeneration)."""

from __future__ import annotations

from transformers import LlavaForConditionalGeneration

from ..methods.base import ModelShape
from .base import Adapter

DECODERS = ("llama", "mistral", "qwen2")  # pre-norm layers with q_proj, k_proj, one RoPE, full causal attention


class LlavaAdapter(Adapter):
    model_type = "llava"
    description = "LLaVA (LlavaForConditionalGeneration) with a CLIP tower and a Llama, Mistral or Qwen2 decoder"

    def check(self, config):
        tower, text = config.vision_config, config.text_config
        if tower.model_type != "clip_vision_model":
            raise ValueError(f"its vision tower is {tower.model_type}, which is not supported")
        if text.model_type not in DECODERS:
            raise ValueError(f"its decoder is {text.model_type}, which is not supported")
        if not isinstance(config.vision_feature_layer, int):
            raise ValueError("it takes features from several vision layers, which is not supported")
        if self.shape(config).feature_layer not in range(tower.num_hidden_layers):
            raise ValueError(f"vision_feature_layer={config.vision_feature_layer} is no layer of its tower")

    def load(self, source, **options):
        return LlavaForConditionalGeneration.from_pretrained(source, output_loading_info=True, **options)

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
            has_cls=True,
            vision_heads=tower.num_attention_heads,
        )

    def encoder_layers(self, model):
        return model.model.vision_tower.encoder.layers

    def embed_image(self, model, pixels, resized):
        tower = model.model.vision_tower
        return tower.pre_layrnorm(tower.embeddings(pixels, interpolate_pos_encoding=resized))

    def project(self, model, features):
        return model.model.multi_modal_projector(features)

    def decoder(self, model):
        return model.model.language_model

    def lm_head(self, model):
        return model.lm_head

    def keeps_cls(self, config):
        return config.vision_feature_select_strategy == "full"

    def pixels(self, processor, image, side):
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}} if side else {}
        return processor.image_processor(images=image, return_tensors="pt", **size)["pixel_values"]
