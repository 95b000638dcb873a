"""Where the weights of trained connectors lie: assets/models/zoo/NAME."""

from __future__ import annotations

from vtc_demo.core.assets import ASSETS

FOLDER = ASSETS / "models" / "zoo"
WEIGHTS, FACTS = "model.safetensors", "zoo.json"


def has(name: str) -> bool:
    """Whether the weights of a method are here."""
    return (FOLDER / name / FACTS).is_file() and (FOLDER / name / WEIGHTS).is_file()
