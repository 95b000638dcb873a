"""Scene to pixels. Drawings, cards and texture grain are cached; what is left per scene is pasting."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .things import DRAWINGS, SCALE, Pen
from .vocabulary import COLOURS

if TYPE_CHECKING:
    from .scene import Background, Item, Scene, Tag

SHADOW_PAD, SHADOW_SHIFT = 8, (2, 4)
_BASE = 200  # tone that shows the colour itself; lower is darker, higher is lighter


def render(scene: Scene) -> np.ndarray:
    """Return the picture of a scene, uint8 [size, size, 3]."""
    return np.array(scene.image)


def draw(scene: Scene) -> Image.Image:
    """Return the picture of a scene, PIL RGB, `scene.size` px square."""
    canvas = _background(scene.background, scene.size)
    for item in scene.items:
        _paste_item(canvas, item)
    if scene.tag is not None:
        _paste_tag(canvas, scene.tag)
    return canvas


# ---- items -----------------------------------------------------------------------------------------------------------


class Sprite(NamedTuple):
    alpha: Image.Image  # L, side x side
    tone: Image.Image  # L, side x side; an index into the colour ramp
    shadow: Image.Image  # L, (side + 2 pad) square
    solid: np.ndarray  # bool [side, side], alpha >= 128


@lru_cache(maxsize=1024)
def sprite(thing: str, side: int) -> Sprite:
    """Return the drawing of a thing in a box of `side` px (even)."""
    pen = Pen(side)
    DRAWINGS[thing](pen)
    alpha, dark = pen.mask.reduce(SCALE), np.asarray(pen.dark.reduce(SCALE), np.float32) / 255
    fall = np.linspace(1, -1, side, dtype=np.float32)
    light = fall[:, None] * 0.7 + fall[None, :] * 0.3  # from the upper left
    tone = Image.fromarray(np.clip((_BASE + 22 * light) * (1 - 0.85 * dark), 0, 255).astype(np.uint8))
    return Sprite(alpha, tone, _shadow(alpha), np.asarray(alpha) >= 128)


def _shadow(alpha: Image.Image) -> Image.Image:
    wide = Image.new("L", (alpha.width + 2 * SHADOW_PAD, alpha.height + 2 * SHADOW_PAD), 0)
    wide.paste(alpha, (SHADOW_PAD, SHADOW_PAD))
    return wide.filter(ImageFilter.GaussianBlur(2.5)).point([round(v * 0.5) for v in range(256)])


@lru_cache(maxsize=512)
def _ramp(colour: str, jitter: int) -> bytes:
    """Palette from tone to RGB, 768 bytes. `jitter` in 0..7 shifts the colour by a few units."""
    tables, tone = [], np.arange(256)
    for channel, value in enumerate(COLOURS[colour]):
        shift = 2 if colour == "white" else 6
        value = min(255, max(0, value + (shift if jitter >> channel & 1 else -shift)))
        below = value * (0.12 + 0.88 * tone / _BASE)
        above = value + (255 - value) * (tone - _BASE) / 80
        tables.append(np.where(tone <= _BASE, below, above))
    return _palette(np.stack(tables, 1))


def _palette(ramp: np.ndarray) -> bytes:
    """Colours, float [256, 3], as palette bytes."""
    return np.clip(ramp, 0, 255).astype(np.uint8).tobytes()


def _paint(tone: Image.Image, palette: bytes) -> Image.Image:
    """Colour a tone map (L) by palette. PIL's palette conversion is several times faster than three look-ups."""
    indexed = tone.copy()
    indexed.putpalette(palette)
    return indexed.convert("RGB")


def cutout(thing: str, colour: str, side: int) -> Image.Image:
    """Return the drawing of a thing in a colour on nothing, PIL RGBA, `side` px square (even), without its shadow."""
    art = sprite(thing, side)
    picture = _paint(art.tone, _ramp(colour, 0))
    picture.putalpha(art.alpha)
    return picture


def _paste_item(canvas: Image.Image, item: Item) -> None:
    left, top, right, _ = item.box
    art = sprite(item.thing, right - left)
    jitter = (left * 31 + top * 17 + right) // 3 % 8
    _paste_shadow(canvas, art.shadow, left, top)
    canvas.paste(_paint(art.tone, _ramp(item.colour, jitter)), (left, top), art.alpha)


def _paste_shadow(canvas: Image.Image, shadow: Image.Image, left: int, top: int) -> None:
    canvas.paste((8, 8, 12), (left - SHADOW_PAD + SHADOW_SHIFT[0], top - SHADOW_PAD + SHADOW_SHIFT[1]), shadow)


# ---- tag -------------------------------------------------------------------------------------------------------------


class Glyph(NamedTuple):
    ink: Image.Image  # L, cropped to the ink
    box: tuple[int, int, int, int]  # ink box relative to the pen position on the baseline, px
    advance: float


@lru_cache(maxsize=64)
def _font(height: int):
    return ImageFont.load_default(size=height)


@lru_cache(maxsize=2048)
def _glyph(char: str, height: int) -> Glyph:
    font = _font(height)
    wide = Image.new("L", (3 * height, 3 * height), 0)
    ImageDraw.Draw(wide).text((height, 2 * height), char, fill=255, font=font, anchor="ls", stroke_width=1)
    ink = wide.getbbox()
    assert ink is not None, f"{char!r} leaves no ink"
    x0, y0, x1, y1 = ink
    box = (x0 - height, y0 - 2 * height, x1 - height, y1 - 2 * height)
    return Glyph(wide.crop((x0, y0, x1, y1)), box, font.getlength(char) + 2)


@lru_cache(maxsize=4096)
def _layout(text: str, height: int) -> tuple[tuple[int, int], tuple[tuple[int, int, int, int], ...]]:
    """Card size (width, height) and one ink box per character relative to the card's corner, px."""
    pen = 0.0
    boxes: list[tuple[int, int, int, int]] = []
    for char in text:
        glyph = _glyph(char, height)
        x = round(pen) - (glyph.box[0] if not boxes else 0)
        boxes.append((x + glyph.box[0], glyph.box[1], x + glyph.box[2], glyph.box[3]))
        pen = x + glyph.advance
    ink, card = boxes[-1][2], round(1.35 * height)
    margin = round(0.32 * height)
    cap = _glyph("H", height).box
    base = (card - (cap[3] - cap[1])) // 2 - cap[1]
    size = (ink + 2 * margin, card)
    return size, tuple((a + margin, b + base, c + margin, d + base) for a, b, c, d in boxes)


def card_size(text: str, height: int) -> tuple[int, int]:
    """Width and height in px of the card that carries `text` at font size `height`."""
    return _layout(text, height)[0]


def glyph_boxes(tag: Tag) -> list[tuple[int, int, int, int]]:
    """Ink box of each character in the scene, px (right and bottom exclusive)."""
    left, top, _, _ = tag.box
    return [(a + left, b + top, c + left, d + top) for a, b, c, d in _layout(tag.text, round(tag.height))[1]]


def glyph_ink(tag: Tag) -> list[np.ndarray]:
    """Ink of each character, bool [height, width], one per box of `glyph_boxes`."""
    return [np.asarray(_glyph(char, round(tag.height)).ink) >= 128 for char in tag.text]


@lru_cache(maxsize=1024)
def _card(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    big = Image.new("L", (width * SCALE, height * SCALE), 0)
    radius = height * SCALE // 5
    ImageDraw.Draw(big).rounded_rectangle((0, 0, big.width - 1, big.height - 1), radius=radius, fill=255)
    alpha = big.reduce(SCALE)
    return alpha, _shadow(alpha)


def _paste_tag(canvas: Image.Image, tag: Tag) -> None:
    left, top, right, bottom = tag.box
    alpha, shadow = _card(right - left, bottom - top)
    _paste_shadow(canvas, shadow, left, top)
    canvas.paste((250, 249, 244), (left, top), alpha)
    for char, box in zip(tag.text, glyph_boxes(tag), strict=True):
        canvas.paste((26, 28, 38), box[:2], _glyph(char, round(tag.height)).ink)


# ---- background ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _grain(size: int) -> Image.Image:
    noise = np.random.default_rng(0).normal(128, 44, (size + 64, size + 64))
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _soft(values: np.ndarray, steepness: float) -> list[int]:
    """256-entry table: a smooth step that keeps pattern edges antialiased."""
    return np.clip(127.5 + 127.5 * values * steepness, 0, 255).astype(int).tolist()


def _stripes(rng: np.random.Generator, size: int) -> Image.Image:
    period, angle = rng.uniform(22, 44), rng.uniform(0, np.pi)
    along = np.arange(size) * 256 / period
    x, y = (np.round(along * f).astype(np.int64) & 255 for f in (np.cos(angle), np.sin(angle)))
    phase = np.add.outer(y.astype(np.uint8), x.astype(np.uint8))  # wraps at 256, one period
    return Image.fromarray(phase).point(_soft(np.sin(np.arange(256) * np.pi / 128), period / 6))


def _dots(rng: np.random.Generator, size: int) -> Image.Image:
    period = rng.uniform(20, 34)
    axes = []
    for _ in range(2):
        offset = (np.arange(size) + rng.uniform(0, period)) % period - period / 2
        axes.append(np.round(offset**2 * 508 / period**2).astype(np.uint8))  # 127 at half a period
    radius = np.sqrt(np.arange(256) / 508)  # in periods
    return Image.fromarray(np.add.outer(axes[1], axes[0])).point(_soft(0.29 - radius, period * 1.2))


def _checks(rng: np.random.Generator, size: int) -> Image.Image:
    cell = rng.uniform(16, 30)
    axes = []
    for _ in range(2):
        wave = np.sin((np.arange(size) + rng.uniform(0, 2 * cell)) * np.pi / cell) * cell / 3
        axes.append(np.round(np.clip(wave, -1, 1) * 11).astype(np.int8))
    return Image.fromarray(np.multiply.outer(axes[1], axes[0]).view(np.uint8) ^ np.uint8(128))


def _noise(rng: np.random.Generator, size: int, cells: int) -> Image.Image:
    low = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    return Image.fromarray(low).resize((size, size), Image.Resampling.BICUBIC)


def _clouds(rng: np.random.Generator, size: int) -> Image.Image:
    cells = max(4, round(size / 42))
    middle = 6 * cells  # both octaves meet here, so that only one image is enlarged to full size
    both = Image.blend(_noise(rng, middle, cells), _noise(rng, middle, 2 * cells), 0.36)
    return both.resize((size, size), Image.Resampling.BICUBIC).point(_soft((np.arange(256) - 128) / 128, 2.1))


@lru_cache(maxsize=64)
def _drift(size: int, variant: int) -> Image.Image:
    """Slow change of brightness over the canvas, one of 32."""
    return _noise(np.random.default_rng(variant), size, 4)


_PATTERN = {"stripes": _stripes, "dots": _dots, "checks": _checks, "clouds": _clouds}


def _background(background: Background, size: int) -> Image.Image:
    rng = np.random.default_rng(background.seed)
    tone = _drift(size, int(rng.integers(32)))
    if background.pattern in _PATTERN:
        tone = Image.blend(tone, _PATTERN[background.pattern](rng, size), 0.72)
    else:
        tone = tone.point([96 + v // 4 for v in range(256)])
    x, y = (int(v) for v in rng.integers(0, 64, 2))
    tone = Image.blend(tone, _grain(size).crop((x, y, x + size, y + size)), 0.16)
    base, saturation = rng.uniform(64, 84), rng.uniform(0.12, 0.3)
    colour = np.array(colorsys.hsv_to_rgb(background.hue, saturation, 1.0))
    colour /= colour @ (0.299, 0.587, 0.114)
    return _paint(tone, _palette(np.outer(base + (np.arange(256) - 128) * 0.2, colour)))
