"""The scene composer: a dialog in which the visitor builds the picture that breaks a method.

A draft is `Scene.to_dict` data. `composer.js` holds it and moves its objects about; every picture at rest, and the one
that the model is shown, is drawn here by the world's renderer, from a draft that was checked here.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import random
from functools import lru_cache

import gradio as gr
from PIL import Image

from vtc_demo import world
from vtc_demo.figures.pictures import data_url
from vtc_demo.figures.render import render
from vtc_demo.world.render import card_size, cutout
from vtc_demo.world.scene import BIG_FROM, MAX_ITEMS, MAX_TEXT, MIN_ITEM, MIN_TEXT, finite

from ..running import QUIET

CANVAS = 336  # px; the picture that the embedded VLM was trained on
ITEM_SIZES = (MIN_ITEM, 160)  # px
NEW_ITEM, NEW_TEXT = 64, 28  # px
TAUGHT_ITEM, TAUGHT_TEXT, TAUGHT_NUMBER = (36, 84), (24, 30), (10, 999)  # px, px, value: all that `world.sample` draws
LONGEST = 20_000  # characters of a scene as text; twelve objects and a card take about 1000
SPRITE, MARGIN = 80, 4  # px; the margin keeps neighbours on the sheet apart when the browser scales it
STAGE = "The picture. Arrow keys move an object, plus and minus change its size, the delete key removes it."
HINT = "Drag an object to move it, or its corner to change its size. Choose one to change it."
IDEAS = (
    "Write a number far away from a crowd of objects and ask what number is written.",
    "Put in ten small stars and ask how many stars there are.",
    "Hide one small key far from everything else and ask whether there is a key.",
)
FAILED = "The picture could not be drawn. Undo the last step and try again."


# -- drafts -----------------------------------------------------------------------------------------------------------
def tidy(draft: object) -> world.Scene:
    """The scene of a draft: what reaches over the edge is moved inside, sizes are brought into their range.

    draft: as `Scene.to_dict`. Raises ValueError, in at most 200 characters, for a draft that is no such scene: a field
    missing, unknown or of the wrong kind, more than 12 objects, a canvas of another size.
    """
    try:
        if not isinstance(draft, dict):
            raise ValueError(f"a scene must be an object with named fields, got {draft!r}")
        if draft.get("size", CANVAS) != CANVAS:
            raise ValueError(f"a composed scene is {CANVAS} pixels wide and high, got {draft['size']!r}")
        items = draft.get("items")
        if isinstance(items, list) and len(items) <= MAX_ITEMS:
            items = [_tidy_item(item) for item in items]
        return world.Scene.from_dict({**draft, "items": items, "tag": _tidy_tag(draft.get("tag"))})
    except ValueError as error:
        text = str(error)
        raise ValueError(text if len(text) <= 200 else f"{text[:199]}…") from None


def _tidy_item(item: object) -> object:
    """Moved inside the canvas. What is no number or no item is left for `Scene.from_dict` to refuse."""
    if not isinstance(item, dict):
        return item
    size = _clamp(item.get("size_px"), *ITEM_SIZES)
    if not finite(size):
        return item
    half = int(size / 2 + 0.5)
    return item | {"size_px": size} | {axis: _clamp(item[axis], half, CANVAS - half) for axis in "xy" if axis in item}


def _tidy_tag(tag: object) -> object:
    """Capitals, moved inside the canvas; anything but a tag is left for `Scene.from_dict` to refuse."""
    if not isinstance(tag, dict) or not isinstance(tag.get("text"), str):
        return tag
    tag = tag | {"text": tag["text"].strip().upper(), "height": _clamp(tag.get("height", NEW_TEXT), MIN_TEXT, MAX_TEXT)}
    world.Tag(tag["text"], 0, 0, tag["height"])  # raises for a text or height without a card
    for axis, length in zip("xy", card_size(tag["text"], round(tag["height"]))):
        if axis in tag:
            tag[axis] = _clamp(tag[axis], length // 2, CANVAS - (length - length // 2))
    return tag


def _clamp(value, low: float, high: float):
    """The nearest whole number in the range; what is no finite number stays as it is."""
    return round(min(max(value, low), high)) if finite(value) else value


def to_text(scene: world.Scene) -> str:
    """A scene as compact JSON, for a link."""
    return json.dumps(scene.to_dict(), separators=(",", ":"))


def from_text(text: str) -> world.Scene:
    """The scene that `to_text` wrote. Raises ValueError for any other text, and as `tidy`."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"a scene as text is JSON of at most {LONGEST} characters")
    try:
        draft = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the text of the scene is not JSON; it may be cut off") from None
    return tidy(draft)


# -- what the script asks for -----------------------------------------------------------------------------------------
def paint(draft: object) -> dict:
    """The picture of a draft: {"picture": data URL, "scene": tidied draft, "card": box or None, "note": text}.

    Bad drafts give {"error": text}: this is an endpoint of its own, so it gets whatever is sent.
    """
    try:
        scene = tidy(draft)
        card = scene.tag and scene.tag.box
        return {"picture": data_url(scene.image), "scene": scene.to_dict(), "card": card, "note": _note(scene)}
    except ValueError as error:
        text = str(error)
        return {"error": f"{text[:1].upper()}{text[1:]}."}
    except Exception:
        logging.exception("a composed scene could not be drawn")
        return {"error": FAILED}


def _note(scene: world.Scene) -> str:
    """What the visitor may not expect of this scene, or nothing."""
    text = scene.tag.text if scene.tag else ""
    if len(scene.seen) < len(scene.items):
        return "An object that is almost wholly covered does not count as being in the picture."
    if text.isdigit() and not _within(int(text), TAUGHT_NUMBER):
        return "The embedded model was taught numbers from {} to {}; any other is new to it.".format(*TAUGHT_NUMBER)
    if text and not text.isdigit() and text.lower() not in world.WORDS:
        return "The embedded model was taught numbers and the twelve words offered here; any other text is new to it."
    if scene.tag and not _within(scene.tag.height, TAUGHT_TEXT):
        return "The embedded model was taught text of {} to {} px; any other size is new to it.".format(*TAUGHT_TEXT)
    if not all(_within(item.size_px, TAUGHT_ITEM) for item in scene.items):
        return "The embedded model was taught objects of {} to {} px; any other size is new to it.".format(*TAUGHT_ITEM)
    return ""


def _within(value: float, limits: tuple[int, int]) -> bool:
    return limits[0] <= value <= limits[1]


def kit(_) -> dict:
    """Pictures for the tools, fetched when the dialog first opens: {"sheet": data URL, "patterns": {name: data URL}}.

    The sheet holds every thing (across) in every colour (down).
    """
    return _kit()


@lru_cache(maxsize=1)
def _kit() -> dict:
    cell = SPRITE + 2 * MARGIN
    sheet = Image.new("RGBA", (cell * len(world.THINGS), cell * len(world.COLOURS)))
    for column, thing in enumerate(world.THINGS):
        for row, colour in enumerate(world.COLOURS):
            sheet.paste(cutout(thing, colour, SPRITE), (column * cell + MARGIN, row * cell + MARGIN))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=80)
    grounds = {name: world.Scene(background=world.Background(name, seed=3)).image for name in world.PATTERNS}
    return {
        "sheet": "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(),
        "patterns": {name: data_url(image.crop((0, 0, 112, 112))) for name, image in grounds.items()},
    }


# -- in the page ------------------------------------------------------------------------------------------------------
class Composer:
    """The button that opens the dialog, and the dialog. It triggers "pick" with {"scene": draft} as its value."""

    def build(self) -> None:
        self.button = gr.Button("Compose a scene", elem_id="vtc-compose", size="sm")
        limits = {
            "side": CANVAS, "most": MAX_ITEMS, "big": BIG_FROM, "item": ITEM_SIZES, "text": (MIN_TEXT, MAX_TEXT),
            "newItem": NEW_ITEM, "newText": NEW_TEXT,
        }  # fmt: skip
        self.dialog = gr.HTML(
            {"scene": None},
            html_template="${markup}",
            js_on_load="window.vtc.composer(element, props, (data) => trigger('pick', data), watch, server)",
            apply_default_css=False,
            elem_classes=["vtc-control", "vtc-composer"],
            server_functions=[paint, kit],
            markup=_markup(),
            things=list(world.THINGS),
            colours=list(world.COLOURS),
            limits=limits,
        )

    def wire(self, state: gr.State, used, changed: list) -> None:
        """state: the Source shown, edited when the dialog opens. used: handler of "pick"; its outputs are `changed`."""
        self.button.click(_opened, state, self.dialog, **QUIET)
        self.dialog.pick(used, self.dialog, changed, **QUIET)


def _opened(source) -> dict:
    """The scene to edit; of an upload an empty canvas. The number makes it a change even when the scene is the same."""
    scene = source.scene if source.scene and source.scene.size == CANVAS else world.Scene()
    return {"scene": scene.to_dict(), "opened": random.random()}


def composed(value: object) -> world.Scene:
    """The scene that the dialog was left with. ValueError as `tidy`."""
    return tidy(value.get("scene") if isinstance(value, dict) else value)


def _markup() -> str:
    named = {"things": world.THINGS, "colours": world.COLOURS, "words": world.WORDS, "patterns": world.PATTERNS}
    return str(render("ui/components/composer.html", stage=STAGE, hint=HINT, ideas=IDEAS, **named))
