"""The chosen picture as the model is shown it."""

from __future__ import annotations

from markupsafe import Markup
from PIL import Image

from vtc_demo.figures.pictures import data_url, square
from vtc_demo.figures.render import render


def preview(image: Image.Image, note: str = "") -> Markup:
    """note: a remark below it."""
    return render("ui/components/preview.html", url=data_url(square(image)), note=note)
