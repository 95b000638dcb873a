"""LLaVA-NeXT: the whole picture and tiles of it through one tower, rows of tiles ended by a learned line break."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from ..layout import NEWLINE, VISUAL, Crop, Inputs, Layout
from .llava import LlavaAdapter


class LlavaNextAdapter(LlavaAdapter):
    """Patches in the order of the LLM: the whole picture at tower size, then the tiles as one fine grid in raster order
    without its padding. Line breaks belong to no method and stay."""

    model_type = "llava_next"
    model_class = LlavaNextForConditionalGeneration
    description = "LLaVA-NeXT (LlavaNextForConditionalGeneration) with a CLIP tower"
    crops = 5  # of a square at twice the tower's side: the whole and four tiles; line breaks are not counted
    resizable = False
    strategy = "default"

    def check(self, config):
        super().check(config)
        if config.vision_feature_select_strategy != self.strategy:
            raise ValueError(f"vision_feature_select_strategy must be {self.strategy!r} in this family")

    def load_processor(self, source, **options):
        return super(LlavaAdapter, self).load_processor(source, **options)

    def inputs(self, processor, config, images, side):
        made = self.processed(processor, images)
        fines = [self.fine_grid(config, size.tolist()) for size in made["image_sizes"]]
        counts = [1 + fine[1] for fine in fines]
        pixels = torch.cat([one[:count] for one, count in zip(made["pixel_values"], counts)])
        return Inputs(pixels, self.layout(config, [fine[0] for fine in fines], counts))

    def fine_grid(self, config, size: list[int]) -> tuple[Tensor, int]:
        """(tile tokens of a picture of `size` (height, width) as [rows, columns], number of tiles). A token is a place
        among those of the picture's tiles, CLS left out."""
        side = self.shape(config).grid[0]
        down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        tokens = torch.arange(down * across * side * side).view(down, across, side, side)
        tokens = tokens.transpose(1, 2).reshape(1, down * side, across * side)
        return unpad_image(tokens, size)[0], down * across

    def layout(self, config, fines: list[Tensor | None], counts: list[int]) -> Layout:
        """fines: `fine_grid` of each picture, or None for its whole view alone; counts: tower crops of each."""
        side, cls = self.shape(config).grid[0], int(self.shape(config).has_cls)
        patches, crops, sources, cls_sources, pieces, first, unit = side * side, [], [], [], [], 0, 0
        span = patches + cls
        for i, (fine, count) in enumerate(zip(fines, counts)):
            crops.append(Crop(unit + torch.arange(patches), (side, side), image=i))
            cls_sources.append(first * span)
            sources.append(first * span + cls + torch.arange(patches))
            unit += patches
            if fine is None:
                pieces.append([VISUAL] * patches + [NEWLINE])
            else:
                tile = fine // patches  # [rows, columns]
                units = unit + torch.arange(fine.numel()).view_as(fine)
                for t in tile.unique().tolist():
                    crops.append(tile_of(tile == t, units, i))
                    cls_sources.append((first + 1 + t) * span)
                sources.append(((first + 1 + tile) * span + cls + fine % patches).flatten())
                unit += fine.numel()
                pieces.append([VISUAL] * patches + ([VISUAL] * fine.shape[1] + [NEWLINE]) * fine.shape[0])
            first += count
        places = torch.cat([torch.tensor(cls_sources)[: len(crops) * cls], *sources])
        return Layout(
            tuple(crops), tuple(pieces), (span,) * first, extra=len(crops) * cls, sources=places[:, None].long()
        )


def tile_of(inside: Tensor, units: Tensor, image: int) -> Crop:
    """The crop of the units [rows, columns] for which `inside` holds, a rectangle of them."""
    rows, columns = (inside.any(d).nonzero().flatten() for d in (1, 0))
    top, left, bottom, right = rows[0].item(), columns[0].item(), rows[-1].item() + 1, columns[-1].item() + 1
    height, width = inside.shape
    box = (left / width, top / height, right / width, bottom / height)
    return Crop(units[inside], (len(rows), len(columns)), box, image)
