"""Pictures as the model is shown them, and inside a page."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

SIDE = 336  # pixels of a picture on the page


def square(image: Image.Image, side: int = SIDE) -> Image.Image:
    """What the model is shown of an image: its central square."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def data_url(image: Image.Image, quality: int = 92) -> str:
    """The image inside a URL, so that a page needs no second request."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
