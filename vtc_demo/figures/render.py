"""HTML and SVG from templates. A template stands beside the module that fills it; every value is escaped."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

LAYOUT = re.compile(r"(?<=[>}])\s*\n\s*|\s*\n\s*(?=<|\{%)")


class _Layout(Extension):
    """Line breaks around tags and statements lay a template out; they are no spaces on the page."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return LAYOUT.sub("", source.strip())


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1]),
    autoescape=True,
    undefined=StrictUndefined,
    auto_reload=False,
    extensions=[_Layout],
)


def render(name: str, **values) -> Markup:
    """The template `name`, a path inside the package as "figures/mask.html", with its values.

    Text is escaped; what another template made stays as it is. Raises `UndefinedError` for a value that is missing.
    """
    return Markup(ENVIRONMENT.get_template(name).render(values))
