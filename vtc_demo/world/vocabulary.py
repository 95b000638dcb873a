"""Names of the generated world: things, colours, patterns, written words and question kinds."""

from __future__ import annotations

from functools import lru_cache

THINGS = (
    "circle", "square", "triangle", "diamond", "heart", "star", "moon", "umbrella",
    "airplane", "key", "house", "tree", "fish", "cup", "flower", "car",
)  # fmt: skip
COLOURS = {
    "red": (224, 40, 46),
    "orange": (248, 134, 22),
    "yellow": (250, 222, 50),
    "green": (44, 176, 66),
    "blue": (46, 112, 240),
    "purple": (146, 62, 214),
    "pink": (255, 142, 196),
    "white": (246, 246, 244),
}
SIZES = ("small", "big")
PATTERNS = ("plain", "stripes", "dots", "checks", "clouds")
WORDS = ("stop", "open", "exit", "taxi", "cafe", "sale", "gift", "milk", "ball", "park", "home", "zoo")
KINDS = ("existence", "colour", "object", "size", "counting", "relation", "reading", "background")

PLURALS = {thing: thing + "s" for thing in THINGS} | {"fish": "fish"}
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Return, sorted, every lower-case word that a sampled question or answer can contain. Digits are not listed."""
    from .questions import form_words

    found = {"yes", "no", *form_words(), *THINGS, *PLURALS.values(), *COLOURS, *SIZES, *PATTERNS, *WORDS}
    return tuple(sorted(found))
