"""Idefics3: tiles named by row and column, then the whole picture; patches joined to one token by pixel shuffle."""

from __future__ import annotations

import torch
from transformers import Idefics3ForConditionalGeneration
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from vtc_demo.core.shape import ModelShape

from ..adapter import Adapter
from ..layout import VISUAL, Inputs, tiled
from ..spec import build_spec

FAKE, WHOLE_PICTURE = "<fake_token_around_image>", "<global-img>"


class Idefics3Adapter(Adapter):
    """A patch of the trace is a visual token: `scale_factor` squared patches of the tower. The words that name the
    tiles belong to no method and stay."""

    model_type = "idefics3"
    model_class = Idefics3ForConditionalGeneration
    description = "Idefics3 (Idefics3ForConditionalGeneration)"
    nested = True
    image_options = {"return_row_col_info": True}

    def check(self, config):
        if config.text_config.model_type != "llama":
            raise ValueError(f"its decoder is {config.text_config.model_type}, which is not supported")

    def side(self, config) -> int:
        """Patches along a side of a tile."""
        return config.vision_config.image_size // config.vision_config.patch_size

    def shape(self, config):
        tower, units = config.vision_config, self.side(config) // config.scale_factor
        return ModelShape(
            grid=(units, units),
            patch_size=tower.patch_size * config.scale_factor,
            vision_layers=tower.num_hidden_layers,
            feature_layer=tower.num_hidden_layers - 1,
            llm_layers=config.text_config.num_hidden_layers,
            has_cls=False,
            vision_heads=tower.num_attention_heads,
        )

    def spec(self, config):
        joined = config.vision_config.hidden_size * config.scale_factor**2
        return build_spec(
            config,
            patches=self.side(config) ** 2,
            projector=(joined, config.text_config.hidden_size),
            visual_tokens=self.shape(config).patches,
        )

    # -- tower ----------------------------------------------------------------------------------------------------
    def encoder_layers(self, model):
        return model.model.vision_model.encoder.layers

    def embed(self, model, inputs, resized):
        tower, side = model.model.vision_model, self.side(model.config)
        whole = torch.ones((len(inputs.pixels), side, side), dtype=torch.bool, device=inputs.pixels.device)
        return tower.embeddings(pixel_values=inputs.pixels, patch_attention_mask=whole).flatten(0, 1), None

    def finish(self, model, h):
        return model.model.vision_model.post_layernorm(h)

    def project(self, model, features):
        return model.model.connector.modality_projection(features)

    def decoder(self, model):
        return model.model.text_model

    # -- input ----------------------------------------------------------------------------------------------------
    def inputs(self, processor, config, images, side):
        made = self.processed(processor, images)
        pixels, size = made["pixel_values"][0], config.vision_config.image_size  # [crops, 3, H, W]
        if pixels.shape[-2:] != (size, size):
            raise ValueError(f"the tower takes tiles of {size} pixels, the image processor makes {pixels.shape[-1]}")
        # A picture that is not cut is its whole view alone, which is the only tile of a grid here.
        grids = [(r, c, True) if r else (1, 1, False) for r, c in zip(made["rows"][0], made["cols"][0])]
        places = torch.arange(self.side(config) ** 2)[None, :, None]
        units = self.shape(config).grid
        join = Idefics3Connector.pixel_shuffle(None, places, config.scale_factor)[0].unflatten(0, units)
        pieces = tuple(self.piece(processor, config, grid) for grid in grids)
        return Inputs(pixels, tiled(grids, join, pieces, cls=False))

    def piece(self, processor, config, grid) -> list[int]:
        rows, columns, cut = grid
        image = processor.tokenizer.convert_ids_to_tokens(config.image_token_id)
        visual, text = image * self.shape(config).patches, ""
        for r in range(rows if cut else 0):
            text += "".join(f"{FAKE}<row_{r + 1}_col_{c + 1}>{visual}" for c in range(columns)) + "\n"
        text += ("\n" if cut else "") + FAKE + WHOLE_PICTURE + visual + FAKE
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [VISUAL if token == config.image_token_id else token for token in ids]
