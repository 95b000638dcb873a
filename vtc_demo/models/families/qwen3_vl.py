"""Qwen3-VL: as Qwen2-VL, with features of earlier tower layers added after the first layers of the decoder."""

from __future__ import annotations

from transformers import Qwen3VLForConditionalGeneration
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from .qwen2_vl import Qwen2VLAdapter, Spans, frames


class Qwen3VLAdapter(Qwen2VLAdapter):
    """What is added (deepstack) goes through every reduction of the visual tokens, so that it meets the survivors."""

    model_type = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    description = "Qwen3-VL (Qwen3VLForConditionalGeneration)"

    def tower_spec(self, tower):
        return {"vision_width": tower.hidden_size, "vision_mlp": tower.intermediate_size}

    def embed(self, model, inputs, resized):
        tower, grid = model.model.visual, frames(inputs.layout, inputs.pixels.device)
        h = tower.patch_embed(inputs.pixels)  # [N, C]
        places, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
        )
        h = h + (tower.pos_embed(places) * weights[:, :, None]).sum(1).to(h.dtype)
        rope = tower.rotary_pos_emb(h, get_vision_position_ids(grid, tower.spatial_merge_size))
        return h, Spans(get_vision_cu_seqlens(grid), rope)

    def deepstack_layers(self, config):
        return tuple(config.vision_config.deepstack_visual_indexes)

    def project_deepstack(self, model, i, features):
        merger = model.model.visual.deepstack_merger_list[i]
        return merger(features.unflatten(-1, (self.merge(model.config) ** 2, -1)).flatten(0, 2))[None]
