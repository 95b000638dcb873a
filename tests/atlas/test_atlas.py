"""The atlas: its data and what is derived from it; the tab in a browser."""

import dataclasses
import json
import re

import pytest
from pages import served, watched
from playwright.sync_api import expect

from vtc_demo import registry
from vtc_demo.atlas import papers as atlas
from vtc_demo.core.card import Card
from vtc_demo.ui.tabs import atlas as tab

expect.set_options(timeout=60_000)
BOOK = atlas.load()
PAPERS = {p.key: p for p in BOOK.papers}
HERE = atlas.runnable(BOOK.papers, registry.list_methods())


# -- the data -------------------------------------------------------------------------------------------------------
def test_every_paper_is_there():
    assert len(BOOK.papers) == 96
    fastv = PAPERS["fastv"]
    assert (fastv.arxiv, fastv.first_posted, fastv.sites) == ("2403.06764", "2024-03", ("llm_layer",))
    assert (fastv.code, fastv.training_free, fastv.family) == ("pkunlp-icler/FastV", True, "pruning by text attention")
    assert PAPERS["mustdrop"].sites == ("vision_layer", "llm_layer", "kv_cache")
    assert PAPERS["q-former"].training_free is False and PAPERS["q-former"].sites == ("projector",)
    assert PAPERS["llmc-plus"].sites == () and PAPERS["llmc-plus"].training_free is None


BROKEN = {
    "an unknown family": ({"family": "magic"}, "family='magic'"),
    "an unknown place": ({"sites": ["moon"]}, "sites="),
    "places out of order": ({"sites": ["kv_cache", "llm_layer"]}, "sites="),
    "a month that is none": ({"first_posted": "2024-13"}, "first_posted="),
    "a number of another year": ({"arxiv": "2303.06764"}, "arxiv="),
    "an address for a repository": ({"code": "https://example.org/x"}, "code="),
    "an unknown plan": ({"plan": "soon"}, "plan="),
    "an idea cut short": ({"idea": "Ranks image tokens"}, "idea="),
    "a number for a name": ({"name": 5}, "wrong type"),
    "a field too many": ({"stars": 5}, "stars"),
    "two of one key": ({"key": "fastervlm"}, "two papers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_is_named(case, tmp_path):
    change, words = BROKEN[case]
    record = json.loads(atlas.ATLAS.read_text(encoding="utf-8"))
    index = next(i for i, p in enumerate(record["papers"]) if p["key"] == "fastv")
    record["papers"][index] |= change
    (tmp_path / "atlas.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=re.escape(words)):
        atlas.load(tmp_path / "atlas.json")


def test_other_broken_files_are_refused(tmp_path):
    record = json.loads(atlas.ATLAS.read_text(encoding="utf-8"))
    for name, content, words in (
        ("reversed", record | {"papers": record["papers"][::-1]}, "order of first_posted"),
        ("unused", record | {"families": record["families"] | {"magic": "None."}}, "no paper of the family magic"),
        ("bare", record["papers"], "cannot read the atlas"),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            atlas.load(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read the atlas"):
        atlas.load(tmp_path / "none.json")


# -- what runs here -------------------------------------------------------------------------------------------------
def test_every_method_of_a_paper_of_the_atlas_stands_at_it_alone():
    known = {paper.arxiv for paper in BOOK.papers}
    cards = [card for card in registry.list_methods() if (card.paper or "").removeprefix("arXiv ") in known]
    assert {"divprune", "fastv", "mustdrop"} <= {card.name for card in cards}
    for card in cards:
        assert sum(card in here for here in HERE.values()) == 1, card.name


def test_methods_find_their_paper():
    names = {key: [card.name for card in cards] for key, cards in HERE.items() if cards}
    assert names["ficoco"] == ["ficoco-v", "ficoco-l", "ficoco-vl"]
    assert names["pooling-downsampling"][0] == "pool"  # followed by the trained one, where its weights are
    assert PAPERS["fastervlm"].arxiv == PAPERS["vispruner"].arxiv  # two versions of one paper
    assert names["fastervlm"] == ["fastervlm"] and "vispruner" not in names


def test_a_new_method_appears_by_itself():
    fields = dict(family="merging", summary="A test.", sites=("vision_layer",), faithfulness="from the paper")
    mine = Card(name="my-tome", title="My ToMe", paper="arXiv 2210.09461v3", **fields)
    other = dataclasses.replace(mine, name="later", title="VisPruner, mine", paper="arXiv 2412.01818")
    found = atlas.runnable(BOOK.papers, [mine, other])
    assert {key: cards for key, cards in found.items() if cards} == {"tome": (mine,), "vispruner": (other,)}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("hiprune", "frozen model"),
        ("tome", "frozen vision encoder"),
        ("q-former", "trained module"),
        ("holitom", "video"),
        ("catp", "several pictures"),
        ("fastvggt", "many views"),
        ("llmc-plus", "study"),
        ("promoe", "generating"),
        ("efficientvla", "robot"),
        ("davit", "backbone"),
        ("ssm-token-pruning", "state-space"),
        ("catanet", "another task"),
    ],
)
def test_what_does_not_run_says_why(key, words):
    assert words in atlas.why_not(PAPERS[key])


def test_a_lesson_is_named_only_where_its_notebook_is(tmp_path):
    assert atlas.lesson_file(PAPERS["fastv"], tmp_path) is None
    (tmp_path / "06_inside_the_llm.ipynb").touch()
    assert atlas.lesson_file(PAPERS["fastv"], tmp_path).name == "06_inside_the_llm.ipynb"
    assert atlas.lesson_file(PAPERS["tome"], tmp_path) is None


def test_families_have_the_colours_of_their_methods():
    hues = tab.hues(BOOK.families)
    assert hues["merging"] == "#b7c94f" and set(hues) == set(BOOK.families)


# -- in a browser ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def url():
    with served() as address:
        yield address


@pytest.fixture
def page(url, chromium):
    with watched(chromium, url) as page:
        page.goto(f"{url}/#atlas")
        page.wait_for_selector(".vtc-atlas .open:visible")
        yield page


def shown(page):
    return page.locator(".vtc-atlas .paper:visible .open")


def counted(**wanted):
    """How many papers have these values, counted here."""
    site = wanted.pop("site", None)
    return sum(
        all(getattr(p, k) == v for k, v in wanted.items()) and (site is None or site in p.sites) for p in BOOK.papers
    )


def test_the_tab_opens_filled_with_what_runs_here_first(page):
    expect(shown(page)).to_have_count(96)
    runs = sum(map(bool, HERE.values()))
    expect(page.locator(".told")).to_have_text(f"96 of 96 papers; running here: {runs}")
    assert page.locator(".vtc-atlas .line .try").count() == runs
    assert page.locator(".vtc-atlas .paper").nth(runs - 1).locator(".line .try").count() == 1
    assert page.locator(".months i").count() == 96


def test_search_is_instant_and_asks_nobody(page):
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    before = -1
    while len(asked) > before:  # until the other tabs have loaded
        before = len(asked)
        page.wait_for_timeout(1500)
    page.get_by_label("Search", exact=True).fill("determinant kernel")
    expect(shown(page)).to_have_text(["CDPruner"], timeout=2000)
    page.get_by_label("Search", exact=True).fill("2403.06764")
    expect(shown(page)).to_have_text(["FastV"], timeout=2000)
    page.get_by_label("Search", exact=True).fill("no such thing")
    expect(page.get_by_text("No paper matches.")).to_be_visible()
    page.get_by_role("button", name="Clear all filters").click()
    expect(shown(page)).to_have_count(96)
    assert [u for u in asked[before:] if "heartbeat" not in u] == []


def test_filters_combine_and_stay_in_the_address(page, url):
    page.locator("[data-filter=family]").select_option("merging")
    expect(shown(page)).to_have_count(counted(family="merging"))
    page.locator("[data-filter=training]").select_option("no")
    expect(shown(page)).to_have_count(counted(family="merging", training_free=False))
    assert "family=merging" in page.url and "training=no" in page.url
    page.goto("about:blank")
    page.goto(f"{url}/#atlas?site=kv_cache&year=2024&paper=mustdrop")
    wanted = sum("kv_cache" in p.sites and p.first_posted.startswith("2024") for p in BOOK.papers)
    expect(shown(page)).to_have_count(wanted)
    expect(page.get_by_text(PAPERS["mustdrop"].idea)).to_be_visible()
    assert page.locator("[data-filter=year]").input_value() == "2024"


def test_the_map_filters_the_table(page):
    cell = page.get_by_role(
        "button", name=f"learned queries, projector: {counted(family='learned queries', site='projector')}"
    )
    cell.click()
    expect(shown(page)).to_have_count(counted(family="learned queries", site="projector"))
    expect(cell).to_have_attribute("aria-pressed", "true")
    cell.click()
    expect(shown(page)).to_have_count(96)
    page.locator("[data-month='2025-05']").click()
    expect(shown(page)).to_have_count(counted(first_posted="2025-05"))
    page.locator("[data-year='2022']").click()
    expect(shown(page)).to_have_count(sum(p.first_posted.startswith("2022") for p in BOOK.papers))
    expect(page.locator(".months i:not(.off)")).to_have_count(96)  # where else there would be something


def test_a_row_tells_all_and_links_leave_in_a_new_tab(page):
    page.get_by_role("button", name="MustDrop", exact=True).click()
    row = page.locator(".paper", has=page.locator("#atlas-mustdrop"))
    for text in (PAPERS["mustdrop"].idea, PAPERS["mustdrop"].claim, "matches released code"):
        expect(row.get_by_text(text)).to_be_visible()
    assert row.locator(".pass.long .on").all_text_contents() == ["encoder: here", "LLM layers: here", "cache: here"]
    links = {a.get_attribute("href"): a for a in row.locator(".links a").all()}
    assert set(links) == {"https://arxiv.org/abs/2411.10803", "https://github.com/liuting20/MustDrop"}
    assert all(a.get_attribute("target") == "_blank" and "noopener" in a.get_attribute("rel") for a in links.values())
    page.get_by_role("button", name="ToMe", exact=True).click()
    expect(page.get_by_text(atlas.why_not(PAPERS["tome"]))).to_be_visible()
    expect(row.get_by_text(PAPERS["mustdrop"].claim)).to_be_hidden()  # one is open at a time


def test_try_it_opens_compare_with_the_method(page, url):
    page.get_by_role("button", name="FiCoCo", exact=True).click()
    more = page.locator("#atlas-ficoco")
    assert [a.get_attribute("href") for a in more.locator(".try").all()] == [
        "?method=ficoco-v",
        "?method=ficoco-l",
        "?method=ficoco-vl",
    ]
    more.locator(".try").nth(1).click()
    page.wait_for_url(f"{url}/?method=ficoco-l**")
    page.wait_for_selector(".vtc-mask")
    expect(page.get_by_label("Method of column 2")).to_have_value("ficoco-l")


def test_keyboard_alone(page):
    assert page.locator(".cross button[tabindex='0']").count() == 1  # one stop for the whole map
    page.locator(".cross button[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    family, site = re.fullmatch(r"(.+), (.+): \d+", name).groups()
    page.keyboard.press("Enter")
    site = next(kind for kind, title in tab.PLACES.items() if title == site)
    expect(shown(page)).to_have_count(counted(family=family, site=site))
    assert page.locator(".cross button[tabindex='0']").count() == 1
    shown(page).first.focus()
    page.keyboard.press("Enter")
    expect(shown(page).first).to_have_attribute("aria-expanded", "true")


def test_columns_sort(page):
    page.locator(".heads").get_by_role("button", name="Paper").click()
    names = shown(page).all_inner_texts()
    assert names == sorted(names, key=str.lower)
    page.locator(".heads").get_by_role("button", name="When").click()
    months = page.locator(".paper .month").all_inner_texts()
    assert months == sorted(months, reverse=True)
    expect(page.locator(".heads [aria-sort=descending]")).to_have_text("When")


@pytest.mark.parametrize("width", [390, 800])
def test_narrow_pages_have_no_sideways_scroll(url, chromium, width):
    with watched(chromium, url, width, 844, "light") as page:
        page.goto(f"{url}/#atlas?paper=mustdrop")
        expect(page.get_by_text(PAPERS["mustdrop"].idea)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
