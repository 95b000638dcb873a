"""Settings that every test runs under, and the browser."""

import os
import shutil

# Before torch is imported: on a small machine OpenMP's spinning threads make a pass many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples in every run, however slow the machine, and no folder of them left behind.
hypothesis.settings.register_profile("suite", max_examples=50, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` picks
def pytest_collection_modifyitems(items):
    """A test that asks for the browser carries its marker."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


def _no_browser(reason: str):
    if os.environ.get("VTC_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason} (VTC_REQUIRE_BROWSER=1)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium():
    """A headless browser of Playwright's sync API; make a page with `chromium.new_page()` and close it.

    While it lives, this thread counts as running an event loop: `asyncio.run` fails in it.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        _no_browser(f"no installed browser found ({', '.join(BROWSERS)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _no_browser("playwright is not installed; pip install -r requirements-dev.txt")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()
