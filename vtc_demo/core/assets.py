"""Where the shipped files lie: models, example records, papers."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def _find() -> Path:
    """In an installed package beside its modules, in a checkout at the top."""
    package = Path(str(files("vtc_demo")))
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent / "assets"


ASSETS = _find()
MEASUREMENTS = ASSETS / "measurements"
