"""A scene as data: what is in the picture and where. Pixels, labels and questions are derived from it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .vocabulary import CHARACTERS, COLOURS, PATTERNS, THINGS

if TYPE_CHECKING:
    from PIL import Image

    from .questions import Question

PATCH = 14
MAX_ITEMS = 12
MIN_ITEM, MIN_TEXT, MAX_TEXT = 20, 12, 64
BIG_FROM = 52


def finite(value: object) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _number(name: str, value: object) -> None:
    if not finite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _choice(name: str, value: object, allowed: Collection[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose from: {', '.join(allowed)}")


@dataclass(frozen=True)
class Item:
    """One object. `size_px` is the side of its square box in pixels (drawn at the nearest even number);
    `x`, `y` is the centre of the box in pixels. Raises ValueError for an unknown thing or colour."""

    thing: str
    colour: str
    size_px: float
    x: float
    y: float

    def __post_init__(self):
        _choice("thing", self.thing, THINGS)
        _choice("colour", self.colour, COLOURS)
        for name in ("size_px", "x", "y"):
            _number(name, getattr(self, name))
        if not MIN_ITEM <= self.size_px <= 2048:
            raise ValueError(f"size_px must be between {MIN_ITEM} and 2048, got {self.size_px!r}")

    @property
    def size(self) -> str:
        """ "small" below 52 px, else "big"."""
        return "small" if self.size_px < BIG_FROM else "big"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the drawn box in pixels (right and bottom exclusive)."""
        side = 2 * int(self.size_px / 2 + 0.5)
        left, top = math.floor(self.x + 0.5) - side // 2, math.floor(self.y + 0.5) - side // 2
        return left, top, left + side, top + side


@dataclass(frozen=True)
class Tag:
    """A white card with dark text. `x`, `y` is its centre and `height` the font size, all in pixels.
    Raises ValueError unless `text` is 1-4 characters of A-Z and 0-9."""

    text: str
    x: float
    y: float
    height: float = 28

    def __post_init__(self):
        if not isinstance(self.text, str) or not 1 <= len(self.text) <= 4 or set(self.text) - set(CHARACTERS):
            raise ValueError(f"tag text must be 1-4 characters of A-Z and 0-9, got {self.text!r}")
        for name in ("x", "y", "height"):
            _number(name, getattr(self, name))
        if not MIN_TEXT <= self.height <= MAX_TEXT:
            raise ValueError(f"tag height must be between {MIN_TEXT} and {MAX_TEXT}, got {self.height!r}")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the card in pixels (right and bottom exclusive)."""
        from .render import card_size

        width, height = card_size(self.text, round(self.height))
        left, top = math.floor(self.x + 0.5) - width // 2, math.floor(self.y + 0.5) - height // 2
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Background:
    """A muted texture. `hue` is in [0, 1]; `seed` (>= 0) fixes the texture's phase, scale and noise."""

    pattern: str = "plain"
    hue: float = 0.6
    seed: int = 0

    def __post_init__(self):
        _choice("pattern", self.pattern, PATTERNS)
        _number("hue", self.hue)
        if not 0 <= self.hue <= 1:
            raise ValueError(f"hue must be between 0 and 1, got {self.hue!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"background seed must be an integer >= 0, got {self.seed!r}")


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int = 0) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


@dataclass(frozen=True)
class Scene:
    """Items (later ones in front), at most one tag (in front of all items) and a background.

    `size` is the side of the square canvas in pixels, a multiple of 14. Raises ValueError for more than 12 items, a bad
    size, or an item or tag that does not lie inside the canvas. Items may overlap.
    """

    items: tuple[Item, ...] = ()
    tag: Tag | None = None
    background: Background = Background()
    size: int = 336

    def __post_init__(self):
        object.__setattr__(self, "items", tuple(self.items))
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size % PATCH:
            raise ValueError(f"scene size must be an integer multiple of {PATCH}, got {self.size!r}")
        if not 56 <= self.size <= 1344:
            raise ValueError(f"scene size must be between 56 and 1344 px, got {self.size}")
        if len(self.items) > MAX_ITEMS:
            raise ValueError(f"too many items: {len(self.items)}, at most {MAX_ITEMS}")
        if not isinstance(self.background, Background):
            raise ValueError(f"background must be a Background, got {self.background!r}")
        for item in self.items:
            if not isinstance(item, Item):
                raise ValueError(f"items must be Item objects, got {item!r}")
            self._inside(f"the {item.colour} {item.thing}", item.box)
        if self.tag is not None:
            if not isinstance(self.tag, Tag):
                raise ValueError(f"tag must be a Tag or None, got {self.tag!r}")
            self._inside(f"the tag {self.tag.text}", self.tag.box)

    def _inside(self, what: str, box: tuple[int, int, int, int]) -> None:
        if min(box[:2]) < 0 or max(box[2:]) > self.size:
            raise ValueError(f"{what} lies outside the canvas: box {box}, canvas {self.size} x {self.size} px")

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.size // PATCH

    @cached_property
    def image(self) -> Image.Image:
        """The picture, PIL RGB, `size` x `size`."""
        from .render import draw

        return draw(self)

    @cached_property
    def questions(self) -> list[Question]:
        """A fixed, varied selection of questions for display."""
        from .questions import ask

        return ask(self)

    @cached_property
    def owner(self):
        """uint8 array [size, size]: which item a pixel shows (index + 1), 0 background, 255 the tag's card."""
        from .labels import owner_map

        return owner_map(self)

    @cached_property
    def seen(self) -> tuple[int, ...]:
        """Indices of the items that can be seen: at least a tenth of the item's mask is not covered."""
        boxes = [item.box for item in self.items] + ([self.tag.box] if self.tag else [])
        if all(_apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            return tuple(range(len(self.items)))
        from .labels import visible_items

        return visible_items(self)

    def to_dict(self) -> dict:
        """Return plain JSON data; `from_dict` reads it back."""
        return {
            "size": self.size,
            "items": [asdict(item) for item in self.items],
            "tag": asdict(self.tag) if self.tag else None,
            "background": asdict(self.background),
        }

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        """Build a scene from `to_dict` data. Raises ValueError that names what is missing, unknown or out of range."""
        data = _fields("scene", data, {"items"}, {"size", "tag", "background"})
        if not isinstance(data["items"], (list, tuple)):
            raise ValueError(f"scene items must be a list, got {data['items']!r}")
        if len(data["items"]) > MAX_ITEMS:
            raise ValueError(f"too many items: {len(data['items'])}, at most {MAX_ITEMS}")
        items = [Item(**_fields("item", one, {"thing", "colour", "size_px", "x", "y"}, set())) for one in data["items"]]
        tag, back = data.get("tag"), data.get("background")
        back = {} if back is None else back
        return cls(
            items=tuple(items),
            tag=None if tag is None else Tag(**_fields("tag", tag, {"text", "x", "y"}, {"height"})),
            background=Background(**_fields("background", back, set(), {"pattern", "hue", "seed"})),
            size=data.get("size", 336),
        )


def _fields(name: str, data: object, needed: set[str], optional: set[str]) -> dict:
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be an object with named fields, got {data!r}")
    if missing := needed - set(data):
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
    if extra := set(data) - needed - optional:
        raise ValueError(f"{name} has unknown fields: {', '.join(sorted(map(str, extra)))}")
    return data
