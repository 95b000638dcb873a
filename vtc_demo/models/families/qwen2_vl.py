"""Qwen2-VL: a tower for pictures of any size, 2 x 2 patches joined to one token, positions on three axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from vtc_demo.core.shape import ModelShape

from ..adapter import Adapter, unbiased
from ..attention import EncoderProbe
from ..layout import VISUAL, Crop, Inputs, Layout
from ..spec import build_spec

TYPICAL = 16  # rows and columns of the visual tokens of a picture of usual size


class FusedProbe(EncoderProbe):
    """A layer with q, k and v in one matrix."""

    @property
    def block(self):
        return self.layer.attn

    @property
    def scale(self):
        return self.block.scaling

    def norm(self, x):
        return self.layer.norm1(x)

    def project(self, x, which):
        qkv, width = self.block.qkv, x.shape[-1]
        start = "qkv".index(which) * width
        rows = slice(start, start + width)
        return nn.functional.linear(x, qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows])


@dataclass(frozen=True)
class Spans:
    """What the layers need. limits: bounds of the pictures among the tokens; windows: of the attention windows, in the
    layers outside `full`. rope: (cos, sin), [N, d] each."""

    limits: Tensor
    rope: tuple[Tensor, Tensor]
    windows: Tensor | None = None
    full: tuple[int, ...] = ()

    def keep(self, places: Tensor) -> Spans:
        """For the tokens that are left, at these old places [N'], which ascend."""
        left = lambda limits: torch.searchsorted(places, limits.to(places)).unique_consecutive().to(limits)  # noqa: E731
        rope = (self.rope[0][places], self.rope[1][places])
        windows = None if self.windows is None else left(self.windows)
        return Spans(left(self.limits), rope, windows, self.full)

    def at(self, i: int) -> Tensor:
        return self.limits if self.windows is None or i in self.full else self.windows


class Qwen2VLAdapter(Adapter):
    """A patch of the trace is a visual token: 2 x 2 patches of the tower. Tokens dropped before the LLM leave their
    positions vacant, because positions tell row and column here."""

    model_type = "qwen2_vl"
    model_class = Qwen2VLForConditionalGeneration
    description = "Qwen2-VL (Qwen2VLForConditionalGeneration)"
    probe = FusedProbe
    axes = 3
    countable = False  # spans of the tower come from its rotary details

    def check(self, config):
        text = config.text_config
        if set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise ValueError("its decoder has layers with sliding windows, which are not supported")

    def merge(self, config) -> int:
        """Patches along a side of a visual token."""
        return config.vision_config.spatial_merge_size

    def shape(self, config):
        tower = config.vision_config
        return ModelShape(
            grid=(TYPICAL, TYPICAL),
            patch_size=tower.patch_size * self.merge(config),
            vision_layers=tower.depth,
            feature_layer=tower.depth - 1,
            llm_layers=config.text_config.num_hidden_layers,
            has_cls=False,
            vision_heads=tower.num_heads,
        )

    def tower_spec(self, tower) -> dict:
        """Fields of ModelSpec that this family's vision_config names in its own way."""
        return {"vision_width": tower.embed_dim, "vision_mlp": int(tower.embed_dim * tower.mlp_ratio)}

    def spec(self, config):
        tower, unit = self.tower_spec(config.vision_config), self.merge(config) ** 2
        joined = tower["vision_width"] * unit
        return build_spec(
            config,
            patches=TYPICAL**2 * unit,
            projector=(joined, joined, config.text_config.hidden_size),
            visual_tokens=TYPICAL**2,
            frames=config.vision_config.temporal_patch_size,
            **tower,
        )

    # -- tower ----------------------------------------------------------------------------------------------------
    def encoder_layers(self, model):
        return model.model.visual.blocks

    def embed(self, model, inputs, resized):
        tower, grid = model.model.visual, frames(inputs.layout, inputs.pixels.device)
        h = tower.patch_embed(inputs.pixels)  # [N, C]
        rope = tower.rotary_pos_emb(h, get_vision_position_ids(grid, tower.spatial_merge_size))
        return h, Spans(get_vision_cu_seqlens(grid), rope)

    def run_layer(self, layer, i, h, segments, details, bias=None):
        unbiased(self.model_type, bias)
        return layer(h, cu_seqlens=details.at(i), position_embeddings=details.rope)

    def attend(self, layer, i, h, segments, details, bias=None):
        unbiased(self.model_type, bias)
        return h + layer.attn(layer.norm1(h), cu_seqlens=details.at(i), position_embeddings=details.rope)

    def feed(self, layer, h):
        return h + layer.mlp(layer.norm2(h))

    def attends(self, i, segments, details):
        return {"segments": tuple(details.at(i).diff().tolist()), "rope": details.rope}

    def kept(self, details, places):
        return details.keep(places)

    def project(self, model, features):
        joined = model.model.visual.merger(features.unflatten(-1, (self.merge(model.config) ** 2, -1)).flatten(0, 2))
        return joined[None]

    def positions(self, model, prompt, layout):
        ids, types = prompt.ids.cpu(), (prompt.ids == VISUAL).int().cpu()
        ids = ids.where(ids >= 0, torch.tensor(model.config.image_token_id))
        found, _ = model.model.get_rope_index(ids[None], types[None], image_grid_thw=frames(layout, "cpu"))
        return found.to(prompt.ids.device), int(found.max()) + 1

    # -- input ----------------------------------------------------------------------------------------------------
    def inputs(self, processor, config, images, side):
        made = self.processed(processor, images)
        sizes = tuple((h, w) for _, h, w in made["image_grid_thw"].tolist())
        merge, crops, start = self.merge(config), [], 0
        for i, (height, width) in enumerate(sizes):
            grid = (height // merge, width // merge)
            crops.append(Crop(torch.arange(start, start + grid[0] * grid[1]), grid, image=i))
            start += grid[0] * grid[1]
        layout = Layout(
            tuple(crops),
            pieces=tuple([VISUAL] * len(crop.units) for crop in crops),
            segments=tuple(h * w for h, w in sizes),
            sources=self.sources(config, sizes, torch.arange(start * merge**2).view(start, merge**2)),
            sizes=sizes,
        )
        return Inputs(made["pixel_values"], layout)

    def sources(self, config, sizes, sources: Tensor) -> Tensor:
        """The tower's tokens behind each visual token; the processor has put them side by side."""
        return sources


def frames(layout: Layout, device) -> Tensor:
    """(1, rows, columns) of every picture, [pictures, 3], as the tower counts frames of a film."""
    return torch.tensor([(1, *size) for size in layout.sizes], device=device)
