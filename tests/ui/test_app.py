"""The page with a small model of random weights: its endpoints, and its behaviour in a browser."""

import time

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import served, watched
from PIL import Image
from playwright.sync_api import expect

from vtc_demo import registry, ui

expect.set_options(timeout=60_000)
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def url():
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


# -- endpoints ------------------------------------------------------------------------------------------------------
def test_compare_endpoint(client):
    chosen = ["full", "fastervlm@0.11", {"method": "fastv", "retention": 0.25, "layer": 1}]
    found = client.predict("How many objects are there?", chosen, 3, None, api_name="/compare")
    full, faster, fastv = found["runs"]
    assert (full["visual_tokens"], faster["visual_tokens"], fastv["visual_tokens"]) == (576, 63, 144)
    assert fastv["schedule"] == [576, 144, 144, 144]
    assert faster["flops"]["total"] < fastv["flops"]["total"] < full["flops"]["total"]


def test_compare_endpoint_matches_the_cost(client):
    asked = dict(question="How many objects are there?", methods=["full", "fastv", "random"], scene=3, image=None)
    full, fastv, drawn = client.predict(**asked, match="equivalent tokens", tokens=300, api_name="/compare")["runs"]
    assert abs(fastv["equivalent_tokens"] - 300) < 1 and abs(drawn["equivalent_tokens"] - 300) < 1
    assert full["visual_tokens"] == 576 and fastv["matched"]["target"] == 300
    with pytest.raises(AppError, match="match"):
        client.predict(**asked, match="luck", tokens=64, api_name="/compare")


def test_compare_endpoint_takes_an_image(client, tmp_path):
    Image.new("RGBA", (500, 300), (200, 30, 30, 120)).save(tmp_path / "own.png")
    found = client.predict(
        "Is there a red circle?", ["full"], 0, handle_file(tmp_path / "own.png"), api_name="/compare"
    )
    assert found["runs"][0]["tokens0"] == 576


def test_methods_endpoint(client):
    found = client.predict(api_name="/methods")
    assert [m["name"] for m in found] == [card.name for card in registry.list_methods()]
    assert all("parameters" in m for m in found)


@pytest.mark.parametrize(
    "question, chosen, scene, words",
    [
        ("How many objects are there?", ["fastvv"], 0, "did you mean fastv"),
        ("How many objects are there?", ["fastv@7"], 0, "between 0.01 and 1.0"),
        ("How many objects are there?", ["full"] * 5, 0, "compare 1 to 4"),
        ("How many objects are there?", [], 0, "compare 1 to 4"),
        ("How many objects are there?", ["full"], -1, "seed must be"),
        ("   ", ["full"], 0, "empty"),
        ("x" * 900, ["full"], 0, "characters"),
        ("Where is the zeppelin?", ["full"], 0, "zeppelin"),
    ],
)
def test_bad_requests_say_what_is_wrong(client, question, chosen, scene, words):
    with pytest.raises(AppError, match=words):
        client.predict(question, chosen, scene, None, api_name="/compare")


def test_bad_image_says_what_is_wrong_and_the_next_request_works(client, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(AppError, match="not an image"):
        client.predict("What number is written?", ["full"], 0, handle_file(tmp_path / "text.png"), api_name="/compare")
    assert client.predict("What number is written?", ["full"], 0, None, api_name="/compare")["runs"]


# -- in a browser ---------------------------------------------------------------------------------------------------
@pytest.fixture
def page(url, chromium):
    """An open page; at the end there must have been no console error and no request to another host."""
    with watched(chromium, url) as page:
        page.goto(url)
        page.wait_for_selector(".vtc-mask")
        yield page


ANSWERED = ".vtc-said .time:has-text('FLOPs')"


def tokens(page, column):
    """The figure "kept/all" of a column, to be polled with `expect`."""
    return page.locator(f".vtc-col-{column} .vtc-figures dd").first


def test_first_view_is_filled(page):
    assert page.locator(".vtc-mask").count() == 4
    assert "576" in page.locator(".vtc-said .what").inner_text()
    assert page.locator(".vtc-answer").count() == 4
    assert page.locator("#vtc-question textarea").input_value()
    assert "Embedded VLM" in page.locator(".vtc-top").inner_text()


def test_a_suggested_question_runs(page):
    chip = page.locator(".chips button").nth(1)
    text = chip.inner_text()
    chip.click()
    page.locator(f'.vtc-strip[data-question="{text}"] {ANSWERED}').wait_for()
    expect(page.locator(".vtc-col-1 .vtc-player output")).to_have_text("LLM layer 3 · 64")
    assert page.locator("#vtc-question textarea").input_value() == text


def test_scene_budget_and_column_change_the_results(page):
    before = page.locator("#vtc-preview img").get_attribute("src")
    page.get_by_label("scene 3").click()
    expect(page.locator("#vtc-preview img")).not_to_have_attribute("src", before)
    expect(page.locator(".vtc-col-0 .vtc-mask image")).not_to_have_attribute("href", before)
    page.locator(".marks button", has_text="128").click()
    expect(tokens(page, 1)).to_have_text("128/576")
    page.get_by_label("Method of column 2").select_option("pool")
    expect(page.locator(".vtc-col-1 .vtc-merged:not([d=''])")).not_to_have_count(0)
    page.get_by_label("Remove column 4").click()
    expect(page.locator(".vtc-col:visible")).to_have_count(3)
    page.get_by_text("Add a column").click()
    expect(page.locator(".vtc-mask:visible")).to_have_count(4)


def test_settings_of_a_column_are_its_hyper_parameters(page):
    page.get_by_label("Method of column 3").select_option("fastv")
    page.get_by_label("Settings of column 3").click()
    settings = page.locator(".vtc-col-2 .settings")
    names = [n.strip() for n in settings.locator("label > span").all_inner_texts()]
    assert names == [p["name"].replace("_", " ") for p in registry.parameters("fastv") if p["name"] != "retention"]
    settings.get_by_text("own number of tokens").click()
    settings.get_by_label("Visual tokens kept in this column").fill("200")
    expect(tokens(page, 2)).to_have_text("200/576")
    expect(tokens(page, 1)).to_have_text("64/576")


@pytest.fixture
def slow(monkeypatch):
    """Every comparison counts as slow, and steps take their time: cards show that they wait, and Stop is there."""
    monkeypatch.setattr(ui.tabs.compare, "QUICK", -1.0)
    updates = ui.tabs.compare.Compare._updates

    def lingering(*args):
        for update in updates(*args):
            time.sleep(0.2)
            yield update

    monkeypatch.setattr(ui.tabs.compare.Compare, "_updates", lingering)


def test_a_slow_comparison_shows_progress_and_stops(page, slow):
    page.locator("#vtc-compare").click()
    expect(page.locator(".is-running").first).to_be_visible()
    page.locator(".marks button").first.click()  # waits behind the running one; Stop is meant for both
    page.wait_for_timeout(500)  # at a person's pace: a press at the same instant stops the running one only
    page.locator("#vtc-stop").click()
    page.get_by_text("Stopped.").wait_for()
    page.wait_for_timeout(3000)
    assert page.get_by_text("Stopped.").count() == 1 and page.locator(ANSWERED).count() == 0
    expect(page.locator("#vtc-stop")).to_be_hidden()
    page.locator("#vtc-compare").click()  # the next one runs to its end
    page.locator(ANSWERED).wait_for()
    expect(tokens(page, 1)).to_have_text("32/576")


def test_a_quick_comparison_keeps_its_cards_until_the_new_ones_are_there(page, monkeypatch):
    monkeypatch.setattr(ui.tabs.compare, "QUICK", 1000.0)
    page.evaluate("""() => {
        window.empty = 0;
        new MutationObserver(() => { window.empty += document.querySelectorAll('.is-running').length; })
            .observe(document.body, { subtree: true, childList: true });
    }""")
    page.locator(".marks button").first.click()
    expect(tokens(page, 3)).to_have_text("32/576")
    assert page.evaluate("window.empty") == 0


def test_site_slider_by_keyboard_and_patch_by_pointer(page):
    card = page.locator(".vtc-col-1 .vtc-body")
    slider, svg = card.get_by_label("Place in the pass"), card.locator(".vtc-mask")
    slider.focus()
    page.keyboard.press("Home")
    assert card.locator("output").inner_text() == "patch grid · 576"
    assert card.locator(".vtc-layer.on").count() == 0
    page.keyboard.press("End")
    assert card.locator(".vtc-layer.on").count() == 1
    status = svg.evaluate("s => JSON.parse(s.dataset.mask).sites.at(-1).status")
    patch, box = status.index("0"), svg.bounding_box()
    x, y = (patch % 24 + 0.5) / 24 * box["width"], (patch // 24 + 0.5) / 24 * box["height"]
    svg.hover(position={"x": x, "y": y})
    assert "dropped at" in card.locator(".vtc-tip").inner_text()


def test_a_patch_tells_its_fate_by_keyboard_on_every_card(page):
    page.get_by_label("Method of column 2").select_option("visionzip")
    expect(page.locator(".vtc-col-1 .vtc-counts")).to_contain_text("merged")
    svg, columns = page.locator(".vtc-col-1 .vtc-mask"), 24
    site = svg.evaluate("s => JSON.parse(s.dataset.mask).sites.at(-1)")
    patch, (home, weight) = next((int(p), v) for p, v in site["merged"].items() if int(p) % columns > 0)
    page.locator(".vtc-col-0 .vtc-site").focus()
    svg.focus()
    for key in ["Home", "PageUp"] + ["ArrowDown"] * (patch // columns) + ["ArrowRight"] * (patch % columns):
        page.keyboard.press(key)
    told = f"{weight:.2f} into patch ({home // columns}, {home % columns})"
    assert told in page.locator(".vtc-col-1 .vtc-live").inner_text()
    assert page.locator(".vtc-col-1 .vtc-links line.mine").count() == 1
    assert "kept to the cache" in page.locator(".vtc-col-0 .vtc-tip").inner_text()
    assert page.locator(".vtc-col-0 .vtc-live").inner_text() == ""  # one voice only
    page.keyboard.press("Escape")
    assert page.locator(".vtc-tip.on").count() == 0


def test_evidence_follows_the_slider_and_can_be_hidden(page):
    card = page.locator(".vtc-col-3 .vtc-body")
    site = card.locator(".vtc-mask").evaluate("s => JSON.parse(s.dataset.mask).sites.at(-1)")
    share = card.locator(".vtc-share")
    assert share.inner_text() == f"{int(100 * site['evidence'] + 0.5)}%" != "100%"
    card.get_by_label("Place in the pass").focus()
    page.keyboard.press("Home")
    assert share.inner_text() == "100%"
    toggle = page.get_by_role("button", name="evidence")
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    expect(page.locator(".vtc-evidence").first).to_be_hidden()
    page.locator(".marks button").first.click()
    expect(tokens(page, 3)).to_have_text("32/576")
    expect(page.locator(".vtc-evidence").first).to_be_hidden()  # new results heed the choice
    assert toggle.get_attribute("aria-pressed") == "false"
    toggle.click()
    expect(page.locator(".vtc-evidence").first).to_be_visible()


def test_hostile_text_is_shown_as_text(page):
    page.on("dialog", lambda d: pytest.fail("script ran"))
    page.locator("#vtc-question textarea").fill(EVIL)
    page.locator("#vtc-compare").click()
    alert = page.locator(".vtc-said .vtc-problem")
    alert.wait_for()
    assert "onerror" in alert.inner_text() or "word" in alert.inner_text()
    assert page.locator("img[src=x]").count() == 0
    page.locator(".chips button").first.click()
    page.locator(ANSWERED).wait_for()


def test_hostile_model_output_and_refusals_are_shown_as_text(page, monkeypatch):
    page.on("dialog", lambda d: pytest.fail("script ran"))
    add = ui.tabs.compare.Results.add

    def hostile(board, kind, index, data):
        if kind == "run" and index == 1:
            data = data | {"answer": EVIL, "title": EVIL}
        add(board, *(("error", index, EVIL) if kind == "run" and index == 2 else (kind, index, data)))

    monkeypatch.setattr(ui.tabs.compare.Results, "add", hostile)
    page.locator("#vtc-compare").click()
    expect(page.locator(".vtc-col-1 .vtc-answer .text")).to_have_text(EVIL)
    expect(page.locator(".vtc-col-2 .vtc-problem")).to_have_text(EVIL)
    expect(page.locator(".vtc-said .what")).to_contain_text(EVIL)
    assert page.locator("img[src=x]").count() == 0


def test_a_hostile_file_name_is_shown_as_text(page, tmp_path):
    page.on("dialog", lambda d: pytest.fail("script ran"))
    file = {"name": f"{EVIL}.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.locator("input[type=file]:not([multiple])").first.set_input_files(file)
    page.locator(".vtc-said .vtc-problem").wait_for()
    assert page.locator("img[src=x]").count() == 0


def test_more_questions_wait_behind_a_button(page):
    page.locator("[data-seed='5']").click()
    more = page.locator(".chips .more")
    more.wait_for()
    assert page.locator(".chips button:not(.more)").count() == 4
    rest = int(more.inner_text().split()[0])
    more.click()
    expect(page.locator(".chips button")).to_have_count(4 + rest)
    assert page.evaluate("document.activeElement.parentElement.className") == "chips"


def test_columns_come_and_go_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_label("Remove column 4").click()
    page.get_by_label("Remove column 3").click()
    expect(page.locator(".vtc-col:visible")).to_have_count(2)
    expect(page.locator(".vtc-col .close:visible")).to_have_count(0)  # two are the least
    page.get_by_text("Add a column").click()
    expect(page.locator(".vtc-mask:visible")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_upload_runs_without_truth_and_a_bad_file_is_refused(page, tmp_path):
    Image.radial_gradient("L").resize((640, 400)).save(tmp_path / "own.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    chooser = page.locator("input[type=file]:not([multiple])").first
    chooser.set_input_files(tmp_path / "own.png")
    page.locator(".vtc-note").wait_for()
    expect(page.locator(".vtc-evidence")).to_have_count(0)
    page.locator(ANSWERED).wait_for()
    assert page.locator(".vtc-answer.right, .vtc-answer.wrong").count() == 0
    chooser.set_input_files(tmp_path / "bad.png")
    page.locator(".vtc-said .vtc-problem").wait_for()
    page.locator("#vtc-compare").click()
    page.locator(ANSWERED).wait_for()


def test_light_and_dark(page):
    colour = "() => getComputedStyle(document.querySelector('.vtc-col')).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_label("Light or dark").click()
    assert page.evaluate(colour) != dark
    page.reload()
    page.wait_for_selector(".vtc-mask")
    assert page.evaluate(colour) != dark


def test_phone_has_no_sideways_scroll(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#vtc-tabs .overflow-menu > button").click()  # the tabs that have no room
    page.locator("#vtc-tabs .overflow-dropdown").get_by_text("About").click()
    page.wait_for_selector(".vtc-prose h2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
