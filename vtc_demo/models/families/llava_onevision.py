"""LLaVA-OneVision: as LLaVA-NeXT, with a SigLIP tower and a cap on the tokens of large pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from ..layout import NEWLINE, VISUAL, Crop, Inputs
from .llava_next import LlavaNextAdapter


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """No CLS. One picture is cut into tiles; of several, each is padded to a square and seen whole.

    The tiles of a picture with more tokens than the cap are scaled down after the projector, which mixes neighbours.
    There a patch is a token of the scaled grid, and methods can act from the LLM's input on.
    """

    model_type = "llava_onevision"
    model_class = LlavaOnevisionForConditionalGeneration
    description = "LLaVA-OneVision (LlavaOnevisionForConditionalGeneration) with a SigLIP tower"
    nested = True
    towers = {"siglip_vision_model": False}
    strategy = "full"

    def inputs(self, processor, config, images, side):
        made = self.processed(processor, images)
        if len(images) > 1:
            pixels = torch.cat([one[:1] for one in made["pixel_values"]])
            layout = self.layout(config, [None] * len(images), [1] * len(images))
            squares = (square(*image.size) for image in images)
            crops = tuple(replace(crop, box=box) for crop, box in zip(layout.crops, squares))
            return Inputs(pixels, replace(layout, crops=crops))
        fine, tiles = self.fine_grid(config, made["image_sizes"][0].tolist())
        layout = self.layout(config, [fine], [1 + tiles])
        blend = self.scaled(config, *fine.shape)
        return Inputs(made["pixel_values"][0][: 1 + tiles], blended(layout, fine.shape, blend) if blend else layout)

    def scaled(self, config, rows: int, columns: int) -> tuple[int, int] | None:
        """The grid to which a fine grid is scaled down, if it is above the cap."""
        cap, side = int(config.vision_aspect_ratio.removeprefix("anyres_max_")), self.shape(config).grid[0]
        ratio = math.sqrt(rows * columns / (cap * side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else None

    def pack(self, model, visual, layout):
        if layout.blend is None:
            return visual
        old, new = layout.blend
        n = old[0] * old[1]
        fine = visual[:, -n:].transpose(1, 2).unflatten(2, old)  # [1, D, rows, columns]
        fine = nn.functional.interpolate(fine, new, mode="bilinear").flatten(2).transpose(1, 2)
        return torch.cat([visual[:, :-n], fine], 1)


def blended(layout, old: tuple[int, int], new: tuple[int, int]):
    """The layout once the fine grid `old` has become `new`: one view of the whole picture."""
    base, (rows, columns) = layout.crops[0], new
    fine = Crop(len(base.units) + torch.arange(rows * columns), new)
    pieces = ([VISUAL] * len(base.units) + ([VISUAL] * columns + [NEWLINE]) * rows,)
    return replace(layout, crops=(base, fine), pieces=pieces, blend=(tuple(old), new))


def square(width: int, height: int) -> tuple[float, float, float, float]:
    """The box of the smallest square around a picture, which lies in its middle."""
    side = max(width, height)
    left, top = -((side - width) // 2) / width, -((side - height) // 2) / height
    return left, top, left + side / width, top + side / height
