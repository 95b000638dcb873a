"""The page in other languages: language files that fit the sources, and pages without English left over."""

import ast
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import served, watched
from playwright.sync_api import expect

from vtc_demo import registry
from vtc_demo.atlas import papers as atlas
from vtc_demo.ui import language

expect.set_options(timeout=60_000)

ROOT = Path(__file__).parents[2]
SLOT = re.compile(r"\{([#~]?)(\w+)\}")
TAG = re.compile(r"</?\d+/?>")
# Texts of Gradio and Plotly, not of these sources.
FOREIGN = {"copy", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes", "Download plot as a PNG"}
# Texts that the sources put together from two.
JOINED = {
    "Download CSV",
    "Choose at least one number of visual tokens.",
    "Choose at least one kind of question.",
    "Works on a frozen model, so it could run here; its method file is not written yet.",
    "Works inside a frozen vision encoder, so it could run here; its method file is not written yet.",
}
LANGUAGES = language.languages()


@pytest.fixture(scope="module")
def url():
    with served() as address:
        yield address


# -- the files ------------------------------------------------------------------------------------------------------
ENTRIES = [
    (table, key, to) for file in LANGUAGES.values() for table in language.TABLES for key, to in file[table].items()
]


def slots(key):
    return [name for _, name in SLOT.findall(key)]


# What holds of every entry: what is wrong with it otherwise -> whether it holds of (table, key, translation).
RULES = {
    "a slot stands twice in the key": lambda table, key, to: len(slots(key)) == len(set(slots(key))),
    "a slot of the translation is none of the key": lambda table, key, to: (
        set(re.findall(r"\{(\w+)\}", to)) <= set(slots(key))
    ),
    "more than plain {slots} stands in the translation": lambda table, key, to: "{" not in re.sub(r"\{\w+\}", "", to),
    "the numbered elements are not those of the key": lambda table, key, to: (
        sorted(TAG.findall(to)) == sorted(TAG.findall(key))
    ),
    "the key has more than single spaces": lambda table, key, to: key == " ".join(key.split()),
    "a text with slots is a pattern": lambda table, key, to: table != "texts" or not slots(key),
    "the translation is empty": lambda table, key, to: bool(to.strip()),
}


def test_there_is_a_chinese_file():
    assert LANGUAGES["zh"]["lang"] == "zh-CN" and len(ENTRIES) > 500


@pytest.mark.parametrize("wrong", RULES)
def test_every_entry_fits_its_key(wrong):
    assert [key for table, key, to in ENTRIES if not RULES[wrong](table, key, to)] == []


def words_of(path):
    """The texts of a source; what is computed or marked up stands between them as a NUL."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".js":
        return re.sub(r"\$\{[^}]*\}", "\0", text)
    if path.suffix == ".html":
        return re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "\0", text, flags=re.S)
    if path.suffix == ".json":
        return text
    out = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
            out.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            out.append(node.value)
    return "\0".join(out)


def plain(text):
    text = re.sub(r"</?[a-zA-Z]+>|\*+|`", "\0", text)
    return re.sub(r"\s+", " ", text).casefold()


def pieces(clause, sources):
    """How many stretches of the sources make up the clause, the longest taken first; infinite for an unknown word."""
    words, count = clause.split(), 0
    while words:
        most = next((n for n in range(len(words), 0, -1) if " ".join(words[:n]) in sources), None)
        if most is None:
            return float("inf")
        words, count = words[most:], count + 1
    return count


def test_every_key_is_still_in_the_sources():
    """Each clause of a text stands in a source as it is; those of a pattern may be put together there."""
    code = ROOT / "vtc_demo"
    files = [*code.rglob("*.py"), *code.rglob("*.js"), *code.rglob("*.html"), ROOT / "assets/atlas.json"]
    sources = plain("\0".join(map(words_of, files)))
    stale = []
    for file in LANGUAGES.values():
        for kind, key in ((table, key) for table in language.TABLES for key in file[table]):
            clauses = re.split(r"[.,;:()%×·\0]", TAG.sub("\0", SLOT.sub("\0", key)))
            clauses = [plain(c).strip() for c in clauses if re.search("[a-z]{2}", c)]
            most = 1 if kind == "texts" and key not in JOINED else 4
            if key not in FOREIGN and any(pieces(c, sources) > most for c in clauses):
                stale.append(key)
    assert stale == []


def test_the_ideas_of_all_papers_are_translated():
    assert [p.key for p in atlas.load().papers if p.idea not in LANGUAGES["zh"]["texts"]] == []


# -- the page -------------------------------------------------------------------------------------------------------
LEFT = """(titles) => {
  const names = ["title", "aria-label", "placeholder", "alt", "label"], found = new Set();
  const shut = (e) => e.closest("[translate=no], [lang]:not(html), script, style, code, pre, textarea, .vtc-records");
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    if (!element.checkVisibility() || shut(element)) continue;
    if (element !== node) found.add(node.nodeValue);
    else for (const name of names) found.add(element.getAttribute(name) ?? "");
  }
  return [...found];
}"""
# What is said in Latin letters in Chinese texts of the field too.
TERMS = """
tokens? VLM LLM FLOPs FLOP GFLOP MACs KV GPU CPU cpu JSON CSV PNG Python CLS IQR ms px kB MB GB TB LM GQA MLP Wilson
bootstrap roofline arXiv torch transformers? bfloat16 float32 AMD EPYC Intel None Reduction tokenizer Apache License
seed flops overhead context English API ViT zoo true fastv divprune pyramiddrop sparsevlm vica llm-viewer gqa
"""
TERMS = [*TERMS.split(), r"vtc_demo/\S+", r"[\w-]+\.(?:json|py|jsonl)", r"\d*(?:ndm|nd\^2)", "d_kv"]
TERMS += ["What number is written", "How many stars are there", "Is there a key"]


def fallen_back():
    """Texts of cards that have no translation yet: they are shown in English."""
    texts = LANGUAGES["zh"]["texts"]
    for card in registry.list_methods():
        told = [card.summary, card.family, *(p.get("help") or "" for p in registry.parameters(card.name))]
        yield from (text for part in told for text in (part, part[:1].upper() + part[1:]) if text and part not in texts)


def english(page):
    """Texts and labels in sight with Latin words that are neither names nor terms."""
    names = [p.name for p in atlas.load().papers] + [c.title for c in registry.list_methods()]
    names += ["LLaVA-1.5-7B", "LLaVA-1.5-13B", "LLaVA-NeXT-7B", "Qwen2.5-VL-7B", "LLaVA-1.5", "LLaVA", "FiCoCo"]
    cards = registry.list_methods()  # what has no entry stays English
    told = [(c.family, c.summary, *(p["help"] for p in registry.parameters(c.name))) for c in cards]
    told = {text for texts in told for text in texts} - set(LANGUAGES["zh"]["texts"])
    names += [form for text in told for form in (text, text[:1].upper() + text[1:])]
    things = re.findall(r"[a-z]+", " ".join(k for k, v in LANGUAGES["zh"]["texts"].items() if v.endswith(f" {k}")))
    known = sorted({*map(re.escape, [*names, *fallen_back()]), *TERMS, *things}, key=len, reverse=True)
    known = re.compile(r"(?<![A-Za-z])(?:" + "|".join(known) + r")(?![A-Za-z])")
    return sorted(t.strip() for t in page.evaluate(LEFT) if re.search("[A-Za-z]{2,}", known.sub("", t)))


PAPERS = ("DivPrune", "ToMe", "Honeybee", "FastVGGT")  # runs here, could run here, needs training, needs frames


def every_tab(page):
    """Opens one tab after the other, with all that is folded away in it, and some papers; yields what it opened."""
    for place in range(page.get_by_role("tab").count()):
        page.get_by_role("tab").nth(place).click()
        page.get_by_role("tabpanel").locator("visible=true").first.wait_for()
        unfold(page)
        page.wait_for_timeout(800)  # figures and code are drawn after the panel is there
        expect(page.locator("[aria-label='Empty value']:visible")).to_have_count(0)
        yield place
        for name in PAPERS if page.locator(".vtc-atlas-grid").is_visible() else ():
            page.locator(".vtc-atlas-grid").get_by_role("button", name=name, exact=True).click()
            unfold(page)
            page.wait_for_timeout(100)
            yield name


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


def start(page, url, query=""):
    page.goto(url + query)
    page.wait_for_selector(".vtc-mask")
    page.locator(".vtc-language").wait_for()


def test_no_english_is_left_on_any_tab(chromium, url):
    with watched(chromium, url) as page:
        start(page, url, "/?lang=zh")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        for number in (2, 3, 4):
            page.locator(f".vtc-col-{number - 1} .gear").click()
        page.locator(".vtc-col-1 .vtc-mask").focus()
        page.keyboard.press("ArrowDown")
        page.emulate_media(reduced_motion="reduce")
        left, grave = {}, {}
        for place in every_tab(page):
            left[place] = english(page)
            found = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
            grave[place] = [(v["id"], v["nodes"][0]["html"][:160]) for v in found]
        assert {place: texts for place, texts in left.items() if texts} == {}
        assert {place: places for place, places in grave.items() if places} == {}


def test_no_english_is_left_in_dialogs(chromium, url):
    with watched(chromium, url) as page:
        start(page, url, "/?lang=zh")
        page.locator("#vtc-compose").click()
        page.locator("[data-thing=key]").click()
        page.locator(".cmp-stage.settled").wait_for()
        assert english(page) == []
        page.keyboard.press("Escape")
        for opener in (".vtc-link", "[data-want=python]"):
            page.locator(opener).click()
            page.locator(".vtc-offer").wait_for()
            assert english(page) == []
            page.keyboard.press("Escape")


SNAPSHOT = """() => [document.title, document.documentElement.lang, ...[...document.querySelectorAll("body *")]
  .filter((e) => !e.closest("script, style, .vtc-language")).flatMap((e) => [
    ...["title", "aria-label", "placeholder", "alt", "label"].map((name) => e.getAttribute(name) ?? ""),
    ...[...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.nodeValue)])]"""


def test_switching_there_and_back_restores_every_string(chromium, url):
    with watched(chromium, url) as page:
        start(page, url)
        list(every_tab(page))
        before, requests = page.evaluate(SNAPSHOT), []
        page.on("request", lambda r: requests.append(r.url))
        page.locator(".vtc-language").click()
        assert page.evaluate("document.title") != before[0]
        expect(page.locator(".vtc-language")).to_have_text("English")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        page.locator(".vtc-language").click()
        after = page.evaluate(SNAPSHOT)
        assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == []
        assert requests == []


def test_the_choice_is_remembered_and_the_address_wins(chromium, url):
    with watched(chromium, url) as page:
        start(page, url)
        page.locator(".vtc-language").click()
        start(page, url)
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        start(page, url, "/?lang=en")
        assert page.evaluate("document.documentElement.lang") == "en"
        page.locator(".vtc-language").click()
        assert "lang" not in page.evaluate("location.search")


def test_a_shared_comparison_opens_in_chinese_and_stays_so(chromium, url):
    """What is drawn later is translated too; question and answers are not."""
    with watched(chromium, url) as page:
        start(page, url, "/?scene=5&ask=What number is written?&tokens=128&column=fastv&lang=zh")
        page.locator(".vtc-strip[data-link*='tokens=128']").wait_for()
        expect(page.locator(".vtc-strip .what")).to_contain_text("128 / 576")
        expect(page.locator("#vtc-question textarea")).to_have_value("What number is written?")
        expect(page.locator(".chips button").first).to_have_text(re.compile("^[ -~]+$"))
        page.locator(".vtc-marks button, .marks button[data-tokens='64']").first.click()
        page.locator(".vtc-strip[data-link*='tokens=64']").wait_for()
        expect(page.locator(".vtc-strip .what")).to_contain_text("64 / 576")
        page.locator(".vtc-col-1 .vtc-site").focus()
        page.keyboard.press("Home")
        expect(page.locator(".vtc-col-1 .vtc-player output")).to_have_text("图块网格 · 576")
        assert english(page) == []


def test_nothing_overflows_on_a_phone(chromium, url):
    with watched(chromium, url, width=390, height=844) as page:
        start(page, url, "/?lang=zh")
        for _ in every_tab(page):
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
