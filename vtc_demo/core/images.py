"""Opening images: whatever a visitor brings becomes an RGB picture, or a ValueError says what is wrong with it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000  # an RGB copy takes three bytes per pixel
MIN_SIDE = 8  # pixels
MAX_RATIO = 20  # long side over short side; the model resizes by the short one


@dataclass(frozen=True)
class Pictures:
    """The pictures of one prompt, opened once. Passed on in place of what they were opened from."""

    images: tuple[Image.Image, ...]

    @classmethod
    def open(cls, source) -> Pictures:
        """One picture or several (a list of them), each anything that `load_rgb` takes. Raises ValueError for none."""
        if isinstance(source, Pictures):
            return source
        if not isinstance(source, list | tuple):
            return cls((load_rgb(source),))
        if not source:
            raise ValueError("the list of images is empty; give at least one")
        return cls(tuple(load_rgb(one) for one in source))

    @cached_property
    def key(self) -> str:
        """The same for pictures of the same pixels; computed once."""
        return "".join(f"{image.size}{hashlib.sha256(image.tobytes()).hexdigest()}" for image in self.images)


def load_rgb(source) -> Image.Image:
    """The picture as RGB, upright, on white where it was transparent.

    source: a path, the bytes of a file, an open binary file or a PIL image. Of an animation the first frame is taken;
    16-bit grey is scaled to 8 bits, deeper modes by their range.
    Raises ValueError for a missing, damaged, unknown, huge, tiny or very narrow image.
    """
    if isinstance(source, Image.Image):
        return _convert(source, "the image")
    name = "the image"
    if isinstance(source, str | Path):
        path = Path(source)
        name = path.name
        if not path.is_file():
            raise ValueError(f"there is no image file {str(source)!r}")
        source = path
    elif isinstance(source, bytes | bytearray):
        source = io.BytesIO(source)
    elif not hasattr(source, "read"):
        raise ValueError(f"expected an image, a path or the bytes of a file, got {type(source).__name__}")
    try:
        with Image.open(source, formats=FORMATS) as image:
            return _convert(image, name)
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that can be read; use one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} is too large; use at most {MAX_PIXELS // 10**6} million pixels") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be opened: {error.strerror or 'it is damaged'}") from None


def _convert(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    try:
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # a damaged file fails in the decoder's own way: OSError, SyntaxError, struct.error ...
        raise ValueError(f"{name} is cut off or damaged ({type(error).__name__}); save it again") from None


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is too large: {width} x {height}; use at most {MAX_PIXELS // 10**6} million pixels")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is too small: {width} x {height}; use at least {MIN_SIDE} pixels a side")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"{name} is too narrow: {width} x {height}; use at most {MAX_RATIO} to 1")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; a broken tag turns nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF is a file format of its own, and often broken in pictures that are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))  # Pillow's own conversion clips
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_stretch(np.asarray(image, dtype=np.float64)))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _stretch(values: np.ndarray) -> np.ndarray:
    """[H, W] -> uint8. The range is taken as 0 to 1, 0 to 255 or 0 to 65535 if it fits, else minimum to maximum."""
    values = np.nan_to_num(values)
    low, high = values.min(), values.max()
    full = next((top for top in (1, 255, 65535) if low >= 0 and high <= top), None)
    low, high = (low, high) if full is None else (0, full)
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
