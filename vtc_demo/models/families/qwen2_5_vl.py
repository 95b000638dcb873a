"""Qwen2.5-VL: as Qwen2-VL, with windows in most layers of the tower."""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from ..layout import Layout
from .qwen2_vl import Qwen2VLAdapter, Spans, frames


class Qwen25VLAdapter(Qwen2VLAdapter):
    """The tower's tokens are ordered window by window; `sources` restores the raster order."""

    model_type = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    description = "Qwen2.5-VL (Qwen2_5_VLForConditionalGeneration)"

    def tower_spec(self, tower):
        return {
            "vision_width": tower.hidden_size,
            "vision_mlp": tower.intermediate_size,
            "vision_mlp_gated": True,
            "window": (tower.window_size // tower.patch_size) ** 2,
            "full_layers": tuple(tower.fullatt_block_indexes),
        }

    def windows(self, config, grid):
        tower = config.vision_config
        return get_vision_window_index(
            grid, tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
        )

    def embed(self, model, inputs, resized):
        tower, device = model.model.visual, inputs.pixels.device
        grid = frames(inputs.layout, "cpu")
        joined, limits = self.windows(model.config, grid)
        unit = self.merge(model.config) ** 2
        order = (joined[:, None] * unit + torch.arange(unit)).flatten().to(device)  # [N]
        h = tower.patch_embed(inputs.pixels)[order]  # [N, C]
        rope = tower.rotary_pos_emb(h, get_vision_position_ids(grid, tower.spatial_merge_size).to(device))
        rope = tuple(part[order] for part in rope)
        full = tuple(model.config.vision_config.fullatt_block_indexes)
        return h, Spans(get_vision_cu_seqlens(grid), rope, limits, full)

    def sources(self, config, sizes, sources):
        joined, _ = self.windows(config, frames(Layout((), (), (), sizes=sizes), "cpu"))
        return sources[joined.argsort()]
