"""Colours, type and spacing. Gradio's own parts get them from the theme, ours from `page.css` and the
`*.css` of the tabs; all use the same names.

System fonts only: the page makes no request to another host.
"""

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import Font

STATIC = Path(__file__).parent / "static"
FIRST = "page"  # the others build on page.css and page.js
CSS, JS = (sorted(STATIC.glob(f"*.{kind}"), key=lambda f: (f.stem != FIRST, f)) for kind in ("css", "js"))

CJK = ("PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei")  # after all others
FONT = ("Inter", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "Liberation Sans", *CJK, "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def _make() -> gr.themes.Base:
    """Every colour is a variable of page.css, which sets it for light and dark."""
    theme = gr.themes.Base(
        primary_hue="sky",
        neutral_hue="slate",
        radius_size="md",
        font=[Font(f) for f in FONT],
        font_mono=[Font(f) for f in MONO],
    )
    both = {
        "body_background_fill": "var(--bg)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--panel)",
        "background_fill_secondary": "var(--bg)",
        "block_background_fill": "transparent",
        "block_border_color": "var(--line)",
        "border_color_primary": "var(--line)",
        "input_background_fill": "var(--well)",
        "input_background_fill_focus": "var(--well)",
        "input_border_color": "var(--line)",
        "input_border_color_focus": "var(--accent)",
        "input_placeholder_color": "var(--soft)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent-strong)",
        "button_primary_text_color": "var(--on-accent)",
        "button_primary_border_color": "transparent",
        "button_secondary_background_fill": "var(--raised)",
        "button_secondary_background_fill_hover": "var(--line)",
        "button_secondary_text_color": "var(--ink)",
        "button_secondary_border_color": "var(--line)",
        "link_text_color": "var(--accent-ink)",
    }
    return theme.set(**both, **{f"{name}_dark": value for name, value in both.items()}, block_border_width="0px")


THEME = _make()
