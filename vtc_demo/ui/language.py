"""Languages of the page: `locales/zh.json` is Chinese, with any `zh-*.json`. See docs/translation.md.

English is what the sources say; `language.js` puts the other languages in its place, in the browser alone.
"""

from __future__ import annotations

import json
from pathlib import Path

LOCALES = Path(__file__).parent / "locales"
TABLES = ("texts", "patterns", "parts")


def languages() -> dict[str, dict]:
    """Code -> {"name", "lang", "texts", "patterns", "parts"}, the last three from English to that language."""
    found = {}
    for file in sorted(LOCALES.glob("??.json")):
        extra = [_read(more) for more in sorted(LOCALES.glob(f"{file.stem}-*.json"))]
        tables = [_read(file), *extra]
        merged = {name: {k: v for table in tables for k, v in table.get(name, {}).items()} for name in TABLES}
        found[file.stem] = tables[0] | merged
    return found


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def head() -> str:
    """The language files as inert scripts for the page's head: parsed only when a visitor asks for that language."""
    return "".join(
        f'<script type="application/json" class="vtc-language-file" data-language="{code}">{_inert(file)}</script>'
        for code, file in languages().items()
    )


def _inert(file: dict) -> str:
    return json.dumps(file, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def first() -> dict:
    """The language that the button in the header leads to; the button is named in it."""
    return next(iter(languages().values()))
