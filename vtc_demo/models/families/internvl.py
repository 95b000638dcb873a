"""InternVL: tiles and a thumbnail through InternViT, 2 x 2 patches joined to one token by pixel shuffle."""

from __future__ import annotations

import torch
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.internvl.modeling_internvl import InternVLModel

from vtc_demo.core.shape import ModelShape

from ..adapter import Adapter, by_view, unbiased
from ..attention import EncoderProbe
from ..layout import VISUAL, Inputs, tiled
from ..spec import build_spec

DECODERS = ("llama", "qwen2", "qwen3")


class InternProbe(EncoderProbe):
    """A layer of InternViT."""

    @property
    def block(self):
        return self.layer.attention

    def norm(self, x):
        return self.layer.layernorm_before(x)

    def project(self, x, which):
        projected = super().project(x, which)
        return projected if which == "v" else getattr(self.block, f"{which}_norm")(projected)


class InternVLAdapter(Adapter):
    """A patch of the trace is a visual token: 2 x 2 patches of the tower. The tower's CLS token takes part in it but
    cannot be joined to three others, so methods are shown a tower without CLS."""

    model_type = "internvl"
    model_class = InternVLForConditionalGeneration
    description = "InternVL (InternVLForConditionalGeneration)"
    image_options = {"crop_to_patches": True}
    probe = InternProbe

    def check(self, config):
        if config.text_config.model_type not in DECODERS:
            raise ValueError(f"its decoder is {config.text_config.model_type}, which is not supported")
        if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
            raise ValueError("only features of one layer without CLS are supported")

    def side(self, config) -> int:
        """Patches along a side of a tile."""
        return config.vision_config.image_size[0] // config.vision_config.patch_size[0]

    def shape(self, config):
        tower, feature = config.vision_config, config.vision_feature_layer
        units, join = int(self.side(config) * config.downsample_ratio), round(1 / config.downsample_ratio)
        return ModelShape(
            grid=(units, units),
            patch_size=tower.patch_size[0] * join,
            vision_layers=tower.num_hidden_layers,
            feature_layer=(feature if feature >= 0 else tower.num_hidden_layers + 1 + feature) - 1,
            llm_layers=config.text_config.num_hidden_layers,
            has_cls=False,
            vision_heads=tower.num_attention_heads,
        )

    def spec(self, config):
        shape, width = self.shape(config), config.text_config.hidden_size
        joined = config.vision_config.hidden_size * round(1 / config.downsample_ratio) ** 2
        return build_spec(
            config,
            patches=self.side(config) ** 2,
            extra=1,
            projector=(joined, width, width),
            visual_tokens=shape.patches,
            vision_layers=shape.feature_layer + 1,
        )

    # -- tower ----------------------------------------------------------------------------------------------------
    def encoder_layers(self, model):
        return model.model.vision_tower.encoder.layer

    def embed(self, model, inputs, resized):
        return model.model.vision_tower.embeddings(inputs.pixels).flatten(0, 1), None

    def run_layer(self, layer, i, h, segments, details, bias=None):
        unbiased(self.model_type, bias)
        return by_view(lambda view, _: layer(view), h, segments, None)

    def attend(self, layer, i, h, segments, details, bias=None):
        def half(view, _):
            return view + layer.lambda_1 * layer.attention(layer.layernorm_before(view))[0]

        unbiased(self.model_type, bias)
        return by_view(half, h, segments, None)

    def feed(self, layer, h):
        return h + layer.lambda_2 * layer.mlp(layer.layernorm_after(h))

    def finish(self, model, h):
        return model.model.vision_tower.layernorm(h) if model.config.vision_feature_layer == -1 else h

    def project(self, model, features):
        return model.model.multi_modal_projector(features)

    # -- input ----------------------------------------------------------------------------------------------------
    def inputs(self, processor, config, images, side):
        how = processor.image_processor
        made = self.processed(processor, images)
        size, tokenizer = (how.size["height"], how.size["width"]), processor.tokenizer
        grids = []
        for image, count in zip(images, made["num_patches"].tolist()):
            columns, rows = get_optimal_tiled_canvas(
                (image.height, image.width), size, how.min_patches, how.max_patches
            )
            grids.append((rows, columns, count > rows * columns))
        places = torch.arange(self.side(config) ** 2).view(1, self.side(config), self.side(config), 1)
        join = InternVLModel.pixel_shuffle(None, places, scale_factor=config.downsample_ratio)[0]  # [h, w, 4]
        visual = [VISUAL] * (join.shape[0] * join.shape[1])
        start, end = tokenizer.start_image_token_id, tokenizer.end_image_token_id
        pieces = tuple([start] + visual * (r * c + extra) + [end] for r, c, extra in grids)
        return Inputs(made["pixel_values"], tiled(grids, join, pieces, cls=True))
