"""A user's own method: the contract run over a folder, and the tab that shows what was loaded."""

import shutil
from pathlib import Path

import pytest
from pages import served, watched
from playwright.sync_api import expect

from vtc_demo import registry
from vtc_demo.methods import contract
from vtc_demo.methods.rehearsal import rehearse

expect.set_options(timeout=60_000)
TEMPLATE = Path(contract.__file__).with_name("template.py")
GOOD = TEMPLATE.read_text(encoding="utf-8")
REDUCE = "return Reduction.select(top(norms(context.hidden, self.power), self.keep(n)), n)"


def changed(old, new, text=GOOD):
    assert old in text, old
    return text.replace(old, new)


LAST = "return 2 * n * dim"  # of the class

# Each breaks one rule of a method that keeps them all otherwise.
BROKEN = {
    "syntax": ("def f(:\n", "load", "not valid Python"),
    "imports": ("import no_such_package\n", "load", "not installed: No module named 'no_such_package'"),
    "exits": ("raise SystemExit(3)\n", "load", "ends the program"),
    "stops": ("1 / 0\n", "load", "stops with ZeroDivisionError"),
    "taken": (changed('name="mine"', 'name="fastv"'), "load", "is taken by"),
    "summary": (changed("signal are kept.", "signal are kept"), "card", "full stop"),
    "places": (changed('sites=("llm_input",)', 'sites=("projector",)'), "card", "sites() gives llm_input"),
    "unfounded": (changed('"in the style of"', '"matches released code"'), "card", "paper, reported, code"),
    "helpless": (changed('"order of the norm"', '""'), "card", "power has no help"),
    "namesake": (changed("Mine", "FastV"), "load", "class is called FastV too"),
    "deep": (changed('Site("llm_input")', 'Site("llm_layer", shape.oops)'), "card", "sites() refuses a model of 4"),
    "typo": (changed("self.power), ", "self.powr), "), "reductions", "typo.py, line"),
    "list": (changed(REDUCE, "return [0, 1]"), "reductions", "must return a Reduction, Effects or None, not list"),
    "wrong": (changed(REDUCE, "return Reduction.identity(3)"), "reductions", "is one of 3 tokens, but 48 are here"),
    "twice": (
        changed(REDUCE, "return Reduction.select(top(norms(context.hidden, 2), self.keep(n)).flip(0), n)"),
        "reductions",
        "must ascend",
    ),
    "chance": (
        changed(REDUCE, REDUCE.replace("norms(context.hidden, self.power)", "context.hidden.new_empty(n).uniform_()")),
        "repeatable",
        "two outcomes",
    ),
    "writes": (changed(REDUCE, "context.hidden.add_(1)\n        " + REDUCE), "context", "changed context.hidden"),
    "waits": (
        changed(REDUCE, "if context.hidden.sum() > 0:\n            pass\n        " + REDUCE),
        "device",
        "makes a GPU wait",
    ),
    "mask": (
        changed(REDUCE, "context.hidden[context.hidden.sum(1) > 0]\n        " + REDUCE),
        "device",
        "boolean mask",
    ),
    "unbounded": (
        changed("    power: float", '    retention: float = param(0.25, "kept", low=0.01)\n    power: float'),
        "retention",
        "is accepted",
    ),
    "half": (changed(LAST, "return n * dim / 2"), "overhead", "must be a whole number"),
    "forgotten": (changed(LAST, "return 0"), "overhead", "declares 0 FLOPs, but the hook computes"),
}  # fmt: skip


def shipped():
    """The registry without what other tests loaded from folders."""
    return {name: cls for name, cls in registry._classes.items() if cls.__module__.startswith("vtc_demo.")}


@pytest.fixture
def forgetful(monkeypatch):
    """Methods loaded in a test are forgotten after it."""
    monkeypatch.setattr(registry, "_classes", shipped())
    monkeypatch.setattr(registry, "problems", {})


# -- the contract over a folder -------------------------------------------------------------------------------------
def test_the_template_keeps_the_contract(tmp_path, forgetful):
    shutil.copy(TEMPLATE, tmp_path / "mine.py")
    assert registry.check_folder(tmp_path) == {"mine": []}
    assert list(registry.extra_methods().items()) == [("mine", tmp_path / "mine.py")]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_method_is_told_its_rule(kind, tmp_path, forgetful):
    text, check, words = BROKEN[kind]
    (tmp_path / f"{kind}.py").write_text(text, encoding="utf-8")
    ((_, findings),) = registry.check_folder(tmp_path).items()
    found = [finding for finding in findings if finding.check == check]
    assert any(words in finding.message for finding in found), findings
    assert "Traceback" not in str(findings) and "\n" not in "".join(f.message for f in findings)


def test_every_rule_is_broken_by_an_example():
    """So that no check passes whatever it is shown. `spec` cannot break while `Method` writes the spec."""
    assert {check for _, check, _ in BROKEN.values()} == {"load", *contract.CHECKS} - {"spec"}


def test_a_broken_spec(tmp_path, forgetful):
    spec = '\n    def spec(self):\n        return {"method": "mine", "retention": 0.5}\n'
    (tmp_path / "mine.py").write_text(changed(LAST, LAST + spec), encoding="utf-8")
    (finding, *_) = registry.check_folder(tmp_path)["mine"]
    assert finding.check == "spec" and "does not come back" in finding.message


def test_a_method_that_needs_cls_is_not_asked_without(tmp_path, forgetful):
    text = changed('sites=("llm_input",)', 'sites=("projector",), needs=("cls",)')
    text = changed('Site("llm_input")', 'Site("projector")', text)
    use = 'scores = context.attention("cls", heads="mean")[0, 1:]\n        n = n - 1\n        '
    text = changed(REDUCE, use + "return Reduction.select(top(scores, self.keep(n)) + 1, n + 1)", text)
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert registry.check_folder(tmp_path) == {"mine": []}
    (tmp_path / "mine.py").write_text(text.replace(', needs=("cls",)', ""), encoding="utf-8")
    assert "a tower without CLS: ValueError: no CLS token" in registry.check_folder(tmp_path)["mine"][0].message


def test_a_method_at_every_place(tmp_path, forgetful):
    """Tokens left by one hook are what the next is shown; CLS leaves with the encoder."""
    sites = 'Site("vision_layer", 1), Site("projector"), Site("llm_input"), Site("llm_layer", 2), Site("kv_cache")'
    text = changed('(Site("llm_input"),)', f"({sites})")
    text = changed(
        'sites=("llm_input",)', 'sites=("vision_layer", "projector", "llm_input", "llm_layer", "kv_cache")', text
    )
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert registry.check_folder(tmp_path) == {"mine": []}
    done = rehearse(registry.resolve("mine", retention=0.5))
    assert [(r.n, r.m) for r in done] == [(49, 24), (24, 12), (12, 6), (6, 3), (3, 2)]


# -- the tab in a browser -------------------------------------------------------------------------------------------
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A page that was started with a folder: a good method, a broken one with hostile text, one that does not load."""
    folder = tmp_path_factory.mktemp("my_methods")
    patch = pytest.MonkeyPatch()
    patch.setattr(registry, "_classes", shipped())
    patch.setattr(registry, "problems", {})
    shutil.copy(TEMPLATE, folder / "mine.py")
    bad = changed("signal are kept.", "signal are kept", changed('name="mine"', 'name="bad"', changed("Mine", "Bad")))
    (folder / "bad.py").write_text(changed('"My method"', f'"{EVIL}"', bad), encoding="utf-8")
    (folder / "lost.py").write_text(f'raise ValueError("{EVIL}")\n')
    with pytest.warns(UserWarning, match="lost"):
        registry.load_folder(folder)
    with served() as address:
        yield address
    patch.undo()


@pytest.fixture
def page(url, chromium):
    with watched(chromium, url) as page:
        page.on("dialog", lambda d: pytest.fail("script ran"))
        page.goto(url)
        page.get_by_role("tab", name="Your method").click()
        page.wait_for_selector("#vtc-template code")
        yield page


def test_the_tab_shows_template_steps_and_what_was_loaded(page):
    shown = page.locator("#vtc-template code").first.inner_text()
    assert shown.strip() == GOOD.strip()
    assert page.locator("#vtc-template .token.keyword").count() > 5
    expect(page.get_by_text("python -m vtc_demo check my_methods")).to_be_visible()
    good, bad, lost = page.locator("ul.own > li").all()
    if "mine" in bad.inner_text():
        good, bad = bad, good
    assert "keeps the contract" in good.inner_text() and "mine" in good.inner_text()
    assert "1 rule broken" in bad.inner_text() and "full stop" in bad.inner_text() and EVIL in bad.inner_text()
    assert "lost.py" in lost.inner_text() and "left out" in lost.inner_text() and EVIL in lost.inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_the_template_can_be_copied(page, url):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page.locator("#vtc-template button").first.click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == GOOD.strip()


def test_an_own_method_runs_in_compare(page):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Method of column 2").select_option("mine")
    expect(page.locator(".vtc-col-1 .vtc-figures dd").first).to_have_text("64/576")
    expect(page.locator(".vtc-col-1 .vtc-dropped:not([d=''])")).not_to_have_count(0)


def test_phone_has_no_sideways_scroll(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
