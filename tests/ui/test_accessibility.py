"""axe-core over every tab, light and dark, and over what opens on top of the page."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import served, watched
from playwright.sync_api import expect

expect.set_options(timeout=60_000)

GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def url():
    with served() as address:
        yield address


def findings(page):
    """What axe-core finds grave: rule, help and the first places."""
    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in GRAVE]
    return [(v["id"], v["help"], [node["html"][:160] for node in v["nodes"][:3]]) for v in found]


def start(page, url):
    page.goto(url)
    page.wait_for_selector(".vtc-mask")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_grave_finding_on_any_tab(chromium, url, scheme):
    with watched(chromium, url, scheme=scheme) as page:
        page.emulate_media(reduced_motion="reduce")
        start(page, url)
        tabs = page.get_by_role("tab").all_inner_texts()
        assert "Compare" in tabs and "About" in tabs
        for name in tabs:
            page.get_by_role("tab", name=name, exact=True).click()
            page.get_by_role("tabpanel").locator("visible=true").first.wait_for()
            page.wait_for_timeout(600)  # figures and code are drawn after the panel is there
            expect(page.locator("[aria-label='Empty value']:visible")).to_have_count(0)
            assert findings(page) == [], f"{name}, {scheme}"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_grave_finding_in_settings_tips_and_dialogs(chromium, url, scheme):
    with watched(chromium, url, scheme=scheme) as page:
        page.emulate_media(reduced_motion="reduce")
        start(page, url)
        page.get_by_label("Method of column 2").select_option("mustdrop")
        page.locator(".vtc-strip[data-link*=mustdrop]").wait_for()
        page.get_by_label("Settings of column 2").click()
        page.locator(".vtc-col-2 .vtc-mask").focus()
        page.keyboard.press("ArrowDown")
        page.locator(".vtc-tip.on").first.wait_for()
        assert findings(page) == []
        page.locator("[data-want=python]").click()
        page.locator(".vtc-offer").wait_for()
        assert findings(page) == []
        page.keyboard.press("Escape")
        page.locator("#vtc-question textarea").fill("Where is the zeppelin?")
        page.locator("#vtc-compare").click()
        page.locator(".vtc-said .vtc-problem").wait_for()
        assert findings(page) == []


def test_the_page_can_be_walked_by_keyboard(chromium, url):
    """Tab reaches the picture, the question, the budget, Compare, each column's method and mask, and the exports."""
    with watched(chromium, url) as page:
        start(page, url)
        seen = []
        for _ in range(90):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "(e => e?.id || e?.getAttribute('aria-label') || e?.innerText || '')(document.activeElement)"
                )
            )
        walked = "\n".join(seen)
        wanted = ["scene 1", "vtc-compare", "Visual tokens kept", "Method of column 2", "Settings of column 2"]
        wanted += ["Place in the pass", "The arrow keys move over the patches", "evidence", "JSON", "Python"]
        assert [w for w in wanted if w not in walked] == []
