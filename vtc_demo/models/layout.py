"""Where visual tokens come from and go to: views of pictures, tower tokens, places in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

VISUAL, NEWLINE = -1, -2  # ids of a prompt that are no words: a visual token, the model's learned line break
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Crop:
    """One view of a picture, a grid of patches over a part of it.

    units [rows * columns]: its patches, in raster order, as places in the order in which all visual tokens enter the
    LLM. box: left, top, right, bottom of the grid as shares of the picture. image: which picture of the prompt.
    """

    units: Tensor
    grid: tuple[int, int]
    box: tuple[float, float, float, float] = WHOLE
    image: int = 0


@dataclass(frozen=True)
class Layout:
    """Of the pictures of one prompt. A patch here is what becomes one visual token.

    pieces: for each picture the ids that take the place of its placeholder, VISUAL and NEWLINE among them.
    segments: lengths of the spans of tower tokens that attend to each other.
    sources [extra + patches, g]: tower tokens from which each token at the projector is made, g side by side; None if
    they are the tower's own, in its order. extra: leading tokens that are no patch (CLS, one per crop).
    keeps_extra: those, too, have a place in the prompt (before their crop).
    sizes: rows and columns of the tower's own patches, per picture, where a family needs them.
    blend: (grid, scaled grid) if the last view is scaled after the projector; patches are then those after it.
    """

    crops: tuple[Crop, ...]
    pieces: tuple[list[int], ...]
    segments: tuple[int, ...]
    extra: int = 0
    sources: Tensor | None = None
    keeps_extra: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    blend: tuple[tuple[int, int], tuple[int, int]] | None = None

    @property
    def units(self) -> int:
        return sum(crop.grid[0] * crop.grid[1] for crop in self.crops)

    @property
    def plain(self) -> bool:
        """One view, whose tower tokens reach the LLM one by one."""
        return len(self.segments) == 1 and self.sources is None

    def thumbnail(self, crop: Crop) -> bool:
        """Whether it shows a whole picture of which there are other views: of several that do, the coarsest."""
        views = [other for other in self.crops if other.image == crop.image]
        whole = [view for view in views if view.box == WHOLE]
        return len(views) > 1 and bool(whole) and crop is min(whole, key=lambda view: len(view.units))

    @cached_property
    def owner(self) -> Tensor:
        """The crop of every token at the projector, [extra + patches]."""
        owner = torch.empty(self.extra + self.units, dtype=torch.long)
        owner[: self.extra] = torch.arange(self.extra)
        for i, crop in enumerate(self.crops):
            owner[self.extra + crop.units] = i
        return owner

    @cached_property
    def rank(self) -> Tensor:
        """Order in which the tokens at the projector enter the LLM, doubled, [extra + patches].

        Even: twice the number of the visual place. Odd: just before that place, for a CLS without one.
        """
        first = torch.stack([crop.units.min() for crop in self.crops])
        if self.keeps_extra:  # the place of each crop's CLS is before its patches
            units = torch.arange(self.units)
            shift = (units[:, None] >= first).sum(1)
            return 2 * torch.cat([first + torch.arange(self.extra), units + shift])
        return torch.cat([2 * first[: self.extra] - 1, 2 * torch.arange(self.units)])

    # -- the picture ----------------------------------------------------------------------------------------------
    @cached_property
    def sheet(self) -> tuple[tuple[int, int], list[tuple[int, int]]]:
        """(rows, columns) of one grid that holds all crops, and where the top left patch of each lies on it.

        Crops that tile a picture lie side by side as in it; everything else is stacked.
        """
        panels: dict = {}
        for i, crop in enumerate(self.crops):
            panels.setdefault((crop.image, i if crop.box == WHOLE else None), []).append(i)
        corners, top, width = [(0, 0)] * len(self.crops), 0, 0
        for members in panels.values():
            ys, height = _offsets([(self.crops[i].box[1], self.crops[i].grid[0]) for i in members])
            xs, wide = _offsets([(self.crops[i].box[0], self.crops[i].grid[1]) for i in members])
            for i in members:
                corners[i] = (top + ys[self.crops[i].box[1]], xs[self.crops[i].box[0]])
            top, width = top + height, max(width, wide)
        return (top, width), corners

    @cached_property
    def cells(self) -> Tensor | None:
        """Place of every patch on the sheet in raster order, [patches]; None if that is the order of the patches."""
        if len(self.crops) == 1:
            return None
        (_, width), corners = self.sheet
        cells = torch.empty(self.units, dtype=torch.long)
        for crop, (y, x) in zip(self.crops, corners):
            rows, columns = torch.arange(crop.grid[0]), torch.arange(crop.grid[1])
            cells[crop.units] = ((y + rows)[:, None] * width + x + columns).flatten()
        return cells

    def draw(self, images: list[Image.Image], patch: int) -> Image.Image:
        """The sheet as a picture, `patch` pixels per patch: what the model sees, under its patches."""
        (rows, columns), corners = self.sheet
        sheet = Image.new("RGB", (columns * patch, rows * patch))
        for crop, (y, x) in zip(self.crops, corners):
            image = images[crop.image]
            left, upper, right, lower = (share * length for share, length in zip(crop.box, image.size * 2))
            margin = round(-min(left, upper, right, lower, 0))
            if margin:  # the view is wider than the picture
                image = ImageOps.expand(image, margin)
            box = (left + margin, upper + margin, right + margin, lower + margin)
            size = (crop.grid[1] * patch, crop.grid[0] * patch)
            sheet.paste(image.resize(size, Image.Resampling.BICUBIC, box=box), (x * patch, y * patch))
        return sheet


def _offsets(spans: list[tuple[float, int]]) -> tuple[dict[float, int], int]:
    """(start, cells) of tiles along an axis -> {start: first cell}, all cells."""
    longest: dict[float, int] = {}
    for start, n in spans:
        longest[start] = max(n, longest.get(start, 0))
    out, total = {}, 0
    for start in sorted(longest):
        out[start] = total
        total += longest[start]
    return out, total


class Inputs(NamedTuple):
    """pixels as the tower takes them, and where the visual tokens belong."""

    pixels: Tensor
    layout: Layout


@dataclass(frozen=True)
class Prompt:
    """ids [S]: words, VISUAL and NEWLINE. visual [v], others [o]: places of the visual tokens and of all others.

    text [t]: which of `others` are words of the chat, not part of a picture's frame. after: those that follow the
    last picture.
    """

    ids: Tensor
    visual: Tensor
    others: Tensor
    text: Tensor
    after: int
    newlines: Tensor = field(repr=False)  # which of `others` are line breaks
    question: Tensor = field(repr=False)  # which of `text` are words of the question itself

    @property
    def in_one_span(self) -> bool:
        return len(self.visual) == 1 + int(self.visual[-1] - self.visual[0])

    def to(self, device) -> Prompt:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "after"}
        return replace(self, **moved)

    @classmethod
    def build(
        cls, ids: list[int], placeholder: int, layout: Layout, device, own: Sequence[bool] | None = None
    ) -> Prompt:
        """Put each picture's pieces in the place of its placeholder. own: which of the ids are the question's, default
        none. Raises ValueError if the numbers of pictures and placeholders differ."""
        count = ids.count(placeholder)
        if count != len(layout.pieces):
            raise ValueError(f"the chat template makes {count} image places, expected {len(layout.pieces)}")
        pieces, out, words, after = iter(layout.pieces), [], [], 0
        asked = [mine for token, mine in zip(ids, own or [False] * len(ids), strict=True) if token != placeholder]
        for token in ids:
            new = next(pieces) if token == placeholder else [token]
            out += new
            words += [token != placeholder] * len(new)
            after = 0 if token == placeholder else after + 1
        all_ids, word = torch.tensor(out), torch.tensor(words)
        others = (all_ids != VISUAL).nonzero().flatten()
        return cls(
            all_ids.to(device),
            (all_ids == VISUAL).nonzero().flatten().to(device),
            others.to(device),
            word[others].nonzero().flatten().to(device),
            after,
            (all_ids[others] == NEWLINE).nonzero().flatten().to(device),
            torch.tensor(asked, dtype=torch.bool).nonzero().flatten().to(device),
        )


def per_image(crops: int, patches: int, cls: bool) -> Tensor | None:
    """`Layout.sources` [crops + crops * patches, 1] of a tower that puts a CLS before the patches of each crop: all CLS
    first, then the patches in the tower's order. None if that is the tower's own order."""
    if crops == 1 or not cls:
        return None
    places = torch.arange(crops * (patches + 1)).view(crops, patches + 1)
    return torch.cat([places[:, 0], places[:, 1:].flatten()])[:, None]


def centre(image: Image.Image) -> tuple[float, float, float, float]:
    """The box of the largest square in the middle of a picture."""
    side = min(image.size)
    left, top = ((length - side) // 2 / length for length in image.size)
    return left, top, left + side / image.width, top + side / image.height


def tiled(grids: list[tuple[int, int, bool]], join: Tensor, pieces: tuple[list[int], ...], cls: bool) -> Layout:
    """Of towers whose every crop is a square that gives the same tokens, tile after tile.

    grids: for each picture its rows and columns of tiles and whether the whole picture follows them. join [h, w, g]:
    places of the patches of a crop that are joined to each token. cls: the tower puts one before the patches.
    """
    rows, columns, _ = join.shape
    n, span = rows * columns, join.numel() + cls
    boxes = []
    for i, (down, across, whole) in enumerate(grids):
        for r in range(down):
            for c in range(across):
                boxes.append(((c / across, r / down, (c + 1) / across, (r + 1) / down), i))
        boxes += [(WHOLE, i)] * whole
    crops = tuple(Crop(torch.arange(k * n, (k + 1) * n), (rows, columns), box, i) for k, (box, i) in enumerate(boxes))
    first = torch.arange(len(crops))[:, None, None] * span + cls
    return Layout(crops, pieces, (span,) * len(crops), sources=(first + join.flatten(0, 1)).flatten(0, 1))
