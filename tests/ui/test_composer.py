"""The scene composer: drafts are checked and tidied in Python; the dialog is driven in a browser."""

import json
import math
from contextlib import ExitStack

import gradio as gr
import httpx
import pytest
from pages import served, watched
from playwright.sync_api import expect

from vtc_demo import ui, world
from vtc_demo.figures import pictures
from vtc_demo.ui.components import composer
from vtc_demo.ui.tabs.compare import SCENES
from vtc_demo.world import Item, Scene, Tag

expect.set_options(timeout=60_000)
HEART = {"thing": "heart", "colour": "red", "size_px": 60, "x": 100, "y": 120}


def draft(**changes) -> dict:
    return {
        "size": 336,
        "items": [HEART],
        "tag": None,
        "background": {"pattern": "dots", "hue": 0.3, "seed": 4},
    } | changes


# -- drafts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [*range(12), 27, 32])
def test_a_built_in_scene_is_tidy_already(seed):
    scene = world.sample(seed)
    assert composer.tidy(scene.to_dict()) == scene
    assert composer.from_text(composer.to_text(scene)) == scene


def test_text_of_a_scene_is_its_dict_without_blanks():
    scene = world.sample(12)
    assert json.loads(composer.to_text(scene)) == scene.to_dict()
    assert " " not in composer.to_text(scene)


@pytest.mark.parametrize("x, y", [(-900, 120), (5000, 120), (100, -1e9), (100, 1e9), (0, 336)])
@pytest.mark.parametrize("size", [-4, 20, 61, 1e9])
def test_an_object_over_the_edge_is_moved_inside(x, y, size):
    found = composer.tidy(draft(items=[HEART | {"x": x, "y": y, "size_px": size}])).items[0]
    assert 20 <= found.size_px <= 160
    assert min(found.box) >= 0 and max(found.box) <= 336
    half = (found.box[2] - found.box[0]) / 2
    assert (found.x, found.y) == tuple(min(max(c, half), 336 - half) for c in (x, y))  # no farther than it must be


@pytest.mark.parametrize("text", ["1", "407", "WWWW", " zoo "])
@pytest.mark.parametrize("height", [1, 12, 29, 64, 500])
@pytest.mark.parametrize("x, y", [(-50, 400), (336, 0), (168, 168)])
def test_a_card_over_the_edge_is_moved_inside(text, height, x, y):
    found = composer.tidy(draft(tag={"text": text, "x": x, "y": y, "height": height})).tag
    assert found.text == text.strip().upper()
    assert 12 <= found.height <= 64
    assert min(found.box) >= 0 and max(found.box) <= 336
    if x == 168:
        assert (found.x, found.y) == (168, 168)


HOSTILE = {
    "nothing": (None, "named fields"),
    "a list": ([1, 2], "named fields"),
    "no items": ({"size": 336}, "items must be a list"),
    "another canvas": (draft(size=1344), "336 pixels"),
    "size as text": (draft(size="336"), "336 pixels"),
    "an unknown field": (draft(script="x"), "unknown fields: script"),
    "too many": (draft(items=[HEART] * 13), "too many items: 13, at most 12"),
    "a hundred thousand": (draft(items=[None] * 10**5), "too many items"),
    "not an item": (draft(items=["heart"]), "item must be an object"),
    "a field missing": (draft(items=[{"thing": "heart"}]), "item lacks"),
    "unknown thing": (draft(items=[HEART | {"thing": "<img src=x>"}]), "unknown thing '<img src=x>'; choose from"),
    "thing is a list": (draft(items=[HEART | {"thing": ["heart"]}]), "unknown thing"),
    "unknown colour": (draft(items=[HEART | {"colour": "octarine"}]), "unknown colour"),
    "nan": (draft(items=[HEART | {"x": math.nan}]), "x must be a finite number"),
    "infinite size": (draft(items=[HEART | {"size_px": math.inf}]), "size_px must be a finite number"),
    "huge number": (draft(items=[HEART | {"y": 10**4000}]), "y must be a finite number"),
    "true": (draft(items=[HEART | {"x": True}]), "x must be a finite number"),
    "text as number": (draft(items=[HEART | {"x": "12"}]), "x must be a finite number"),
    "huge text": (draft(tag={"text": "A" * 10**6, "x": 9, "y": 9}), "tag text must be 1-4 characters"),
    "empty text": (draft(tag={"text": " ", "x": 9, "y": 9}), "tag text must be 1-4 characters"),
    "other script": (draft(tag={"text": "٤٠٧", "x": 9, "y": 9}), "tag text must be 1-4 characters"),
    "markup": (draft(tag={"text": "<b>", "x": 9, "y": 9}), "tag text must be 1-4 characters"),
    "card without place": (draft(tag={"text": "407"}), "tag lacks x, y"),
    "card of nan height": (draft(tag={"text": "407", "x": 9, "y": 9, "height": math.nan}), "height must be a finite"),
    "unknown pattern": (draft(background={"pattern": "tartan"}), "unknown pattern"),
    "hue": (draft(background={"hue": 7}), "hue must be between 0 and 1"),
    "negative texture": (draft(background={"seed": -1}), "seed must be an integer"),
}


@pytest.mark.parametrize("hostile, words", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bad_draft_says_what_is_wrong(hostile, words):
    with pytest.raises(ValueError, match=words) as caught:
        composer.tidy(hostile)
    assert len(str(caught.value)) <= 200
    reply = composer.paint(hostile)
    assert list(reply) == ["error"] and reply["error"].endswith((".", "…."))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 9000, "NaN", "null", "x" * 10**6, None, '{"items": [], "size": 1e999}']
)
def test_a_bad_text_of_a_scene_says_what_is_wrong(text):
    with pytest.raises(ValueError, match="scene"):
        composer.from_text(text)


def test_paint_gives_the_picture_of_the_world_and_the_box_of_the_card():
    scene = Scene((Item(**HEART),), Tag("407", 200, 200))
    reply = composer.paint(scene.to_dict())
    assert reply["picture"] == pictures.data_url(scene.image)
    assert Scene.from_dict(reply["scene"]) == scene
    assert reply["card"] == scene.tag.box
    assert reply["note"] == ""


@pytest.mark.parametrize(
    "scene, words",
    [
        (Scene((Item(**HEART | {"size_px": 30}), Item(**HEART | {"size_px": 120}))), "covered"),
        (Scene((), Tag("QX", 99, 99)), "any other text"),
        (Scene((), Tag("A4", 99, 99)), "any other text"),
        (Scene((), Tag("7", 99, 99)), "numbers from 10 to 999"),
        (Scene((), Tag("1000", 99, 99)), "numbers from 10 to 999"),
        (Scene((), Tag("ZOO", 99, 99, 16)), "text of 24 to 30 px"),
        (Scene((Item(**HEART | {"size_px": 30}),)), "objects of 36 to 84 px"),
        (Scene((), Tag("ZOO", 99, 99)), ""),
        (Scene((), Tag("10", 99, 99)), ""),
    ],
)
def test_a_note_says_what_the_visitor_may_not_expect(scene, words):
    note = composer.paint(scene.to_dict())["note"]
    assert words in note and bool(words) == bool(note)


def test_what_the_notes_say_was_taught_is_what_is_drawn():
    scenes = [world.sample(seed, split="train") for seed in range(400)]
    sizes = [item.size_px for scene in scenes for item in scene.items]
    tags = [scene.tag for scene in scenes if scene.tag]
    assert (min(sizes), max(sizes)) == composer.TAUGHT_ITEM
    assert (min(t.height for t in tags), max(t.height for t in tags)) == composer.TAUGHT_TEXT
    low, high = composer.TAUGHT_NUMBER
    assert all(low <= int(t.text) <= high if t.text.isdigit() else t.text.lower() in world.WORDS for t in tags)


def test_the_tab_refuses_a_hostile_draft_in_words():
    tab = ui.tabs.compare.Compare(None, 576, True)
    for value in (None, [], {"scene": None}, {"scene": draft(items=[HEART | {"thing": "<img src=x>"}])}):
        told = [update for update in tab.compose(value) if update != gr.skip()]
        assert len(told) == 1 and "vtc-problem" in told[0] and "<img src=x" not in told[0]


def test_the_endpoint_refuses_a_hostile_draft_in_words(url):
    config = httpx.get(f"{url}/config").json()
    dialog = next(c["id"] for c in config["components"] if "vtc.composer(" in str(c["props"].get("js_on_load")))
    for data, words in (("NaN", "named fields"), ('{"items": [{}]}', "Item lacks"), ('{"items": 1e999}', "a list")):
        body = f'{{"data": {data}, "component_id": {dialog}, "session_hash": "x", "fn_name": "paint"}}'
        reply = httpx.post(
            f"{url}/gradio_api/component_server", content=body, headers={"Content-Type": "application/json"}
        )
        assert words in reply.json()["error"]


def test_the_sheet_of_sprites_stays_light():
    kit = composer.kit({})
    assert list(kit["patterns"]) == list(world.PATTERNS)
    assert len(json.dumps(kit)) < 200_000


# -- in a browser ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def url():
    with served() as address:
        yield address


@pytest.fixture
def visit(url, chromium):
    """A function that opens the page with the composer."""
    with ExitStack() as pages:

        def visit(width=1480, height=900, **device):
            page = pages.enter_context(watched(chromium, url, width, height, **device))
            page.goto(url)
            page.wait_for_selector(".vtc-mask")
            page.locator("#vtc-compose").click()
            page.wait_for_selector(SETTLED)
            return page

        yield visit


SETTLED = "dialog[open] .settled"
CHOSEN = ".cmp-piece[aria-pressed=true]"
PIECES = ".cmp-piece"
FIRST = len(world.sample(SCENES[0]).items) + 1  # of the page's first scene, with its card


def press(page, action):
    page.locator(f"dialog [data-do={action}]").last.click()


def centre(page, selector=CHOSEN):
    """Middle of a piece in px of the scene."""
    stage, box = page.locator(".cmp-stage").bounding_box(), page.locator(selector).bounding_box()
    scale = 336 / stage["width"]
    return tuple((box[a] + box[s] / 2 - stage[a]) * scale for a, s in (("x", "width"), ("y", "height")))


def on_screen(page, x, y):
    stage = page.locator(".cmp-stage").bounding_box()
    return stage["x"] + x / 336 * stage["width"], stage["y"] + y / 336 * stage["height"]


def drag(page, start, end):
    page.mouse.move(*on_screen(page, *start))
    page.mouse.down()
    page.mouse.move(*on_screen(page, *end), steps=4)
    page.mouse.up()


def test_a_composed_scene_is_asked_about_with_its_truth(visit):
    page = visit()
    press(page, "clear")
    page.get_by_label("Add: heart").click()
    drag(page, centre(page), (250, 90))
    page.wait_for_selector(SETTLED)
    assert centre(page) == pytest.approx((250, 90), abs=1.5)
    page.locator("[data-colour=purple]").click()
    page.get_by_label("Text on the card").fill("407")
    page.wait_for_selector(SETTLED)
    expect(page.get_by_label("purple heart, big")).to_have_count(1)
    press(page, "use")
    expect(page.locator("dialog")).to_be_hidden()
    expect(page.locator("#vtc-question textarea")).to_have_value("What number is written?")
    expect(page.locator(".vtc-answer")).to_contain_text(["407"] * 4)  # as the answer or as the truth
    expect(page.locator(".vtc-evidence")).to_have_count(4)
    page.locator(".chips button.more").click()
    page.locator(".chips button", has_text="What colour is the heart?").click()
    expect(page.locator(".vtc-answer")).to_contain_text(["purple"] * 4)


def test_the_picture_at_rest_and_the_one_used_are_the_worlds(visit):
    page = visit()
    page.locator("[data-pattern=checks]").click()
    page.get_by_label("Add: moon").click()
    page.wait_for_selector(SETTLED)
    with page.expect_request(lambda r: "component_server" in r.url) as asked:
        press(page, "copy")
    page.wait_for_selector(SETTLED)
    scene = composer.tidy(asked.value.post_data_json["data"])
    assert [i.thing for i in scene.items[-2:]] == ["moon", "moon"]
    url = pictures.data_url(scene.image)
    expect(page.locator(".cmp-picture")).to_have_attribute("src", url)
    press(page, "use")
    expect(page.locator("#vtc-preview img")).to_have_attribute("src", url)


def test_keyboard_alone_is_enough(visit):
    page = visit()
    key = page.keyboard.press
    expect(page.get_by_label("Add: circle")).to_be_focused()
    expect(page.locator(PIECES)).to_have_count(FIRST)
    key("Enter")
    expect(page.locator(CHOSEN)).to_be_focused()
    x, y = centre(page)
    for name in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        key(name)
    assert centre(page) == pytest.approx((x + 13, y + 7), abs=0.7)
    for name in ("+", "+", "-"):
        key(name)
    expect(page.locator(".cmp-edit output")).to_have_text("big, 68 px")
    key("Control+z")
    expect(page.locator(".cmp-edit output")).to_have_text("big, 72 px")
    key("Delete")
    expect(page.locator(PIECES)).to_have_count(FIRST)
    expect(page.locator(CHOSEN)).to_be_focused()  # the next one
    key("Shift+Tab")
    first = page.evaluate("document.activeElement.className")
    assert first == "cmp-piece"
    page.get_by_label("Text on the card").focus()
    key("Control+a")
    page.keyboard.type("9z-q")
    expect(page.get_by_label("Text on the card")).to_have_value("9ZQ")
    page.wait_for_selector(SETTLED)
    expect(page.get_by_label("card 9ZQ")).to_have_count(1)
    expect(page.locator(".cmp-note")).to_contain_text("any other text is new")
    key("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(page.locator("#vtc-compose")).to_be_focused()


def test_the_draft_outlives_cancel_and_start_over_undo_and_limits_work(visit):
    page = visit()
    for _ in range(6):
        page.get_by_label("Add: star").click()
    expect(page.locator(".cmp-status")).to_have_text("A picture holds at most 12 objects. Delete one to add another.")
    expect(page.locator(PIECES)).to_have_count(13)
    press(page, "cancel")
    page.locator("#vtc-compose").click()
    page.wait_for_selector(SETTLED)
    expect(page.locator(PIECES)).to_have_count(13)
    press(page, "undo")
    expect(page.locator(PIECES)).to_have_count(12)
    press(page, "reset")
    expect(page.locator(PIECES)).to_have_count(FIRST)
    press(page, "clear")
    expect(page.locator(PIECES)).to_have_count(0)
    press(page, "undo")
    expect(page.locator(PIECES)).to_have_count(FIRST)


def test_pulled_from_the_palette_sized_by_the_corner_and_kept_inside(visit):
    page = visit()
    press(page, "clear")
    box = page.get_by_label("Add: key").bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.mouse.down()
    page.mouse.move(*on_screen(page, 330, 300), steps=6)
    page.mouse.move(*on_screen(page, 90, 200), steps=6)
    page.mouse.up()
    expect(page.locator(PIECES)).to_have_count(1)
    assert centre(page) == pytest.approx((90, 200), abs=1.5)
    drag(page, (90 + 32, 200 + 32), (90 + 16, 200 + 16))
    expect(page.locator(".cmp-edit output")).to_have_text("small, 32 px")
    drag(page, (90, 200), (-80, 900))
    page.wait_for_selector(SETTLED)
    assert centre(page) == pytest.approx((16, 320), abs=1)


def test_duplicates_stand_apart(visit):
    page = visit()
    press(page, "clear")
    page.get_by_label("Add: star").click()
    for _ in range(7):
        press(page, "copy")
    page.wait_for_selector(SETTLED)
    boxes = [p.bounding_box() for p in page.locator(PIECES).all()]
    overlaps = [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if all(abs(a[x] - b[x]) < (a[w] + b[w]) / 2 - 1 for x, w in (("x", "width"), ("y", "height")))
    ]
    assert len(boxes) == 8 and not overlaps


def test_on_a_phone_a_finger_drags_and_nothing_scrolls_sideways(visit):
    page = visit(390, 844, has_touch=True, is_mobile=True)
    width = "Math.max(document.documentElement.scrollWidth, document.querySelector('dialog').scrollWidth)"
    assert page.evaluate(width) <= 390
    press(page, "clear")
    page.get_by_label("Add: car").tap()
    page.wait_for_selector(SETTLED)
    touch = page.context.new_cdp_session(page)
    (x0, y0), (x1, y1) = on_screen(page, *centre(page)), on_screen(page, 60, 260)
    points = [(x0 + (x1 - x0) * i / 5, y0 + (y1 - y0) * i / 5) for i in range(6)]
    for i, (x, y) in enumerate(points):
        kind = "touchMove" if i else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_selector(SETTLED)
    assert centre(page) == pytest.approx((60, 260), abs=2)
    expect(page.locator("dialog [data-do=use]")).to_be_in_viewport()
    assert page.evaluate(width) <= 390


def test_an_uploaded_picture_gives_an_empty_canvas(visit, tmp_path):
    page = visit()
    press(page, "cancel")
    world.sample(3).image.save(tmp_path / "own.png")
    page.locator("input[type=file]:not([multiple])").first.set_input_files(tmp_path / "own.png")
    page.locator(".vtc-note").wait_for()
    page.locator("#vtc-compose").click()
    page.wait_for_selector(SETTLED)
    expect(page.locator(PIECES)).to_have_count(0)
