"""The page. `build(vlm)` makes it, `LAUNCH` holds the settings it must be launched with. One file per tab."""

from __future__ import annotations

import gradio as gr

from vtc_demo.figures.render import render

from . import api, language, serve, theme
from .tabs import about, atlas, own
from .tabs.compare import Compare
from .tabs.lab import Lab
from .tabs.lab import runner as lab_runner
from .tabs.sweep import Sweep
from .tabs.sweep import runner as sweep_runner

TITLE = "Visual token compression, side by side"

# Upload limit, no directory served, no error details, nothing sent anywhere.
LAUNCH = {
    "theme": theme.THEME,
    "css_paths": theme.CSS,
    "head": language.head() + "".join(f"<script>{file.read_text(encoding='utf-8')}</script>" for file in theme.JS),
    "max_file_size": "10mb",
    "show_error": False,
    "allowed_paths": [],
    "enable_monitoring": False,
    "run_history": False,
    "ssr_mode": False,
    "mcp_server": False,
    "footer_links": [],
    "share": False,
    "pwa": False,
}


def build(vlm, notice: str = "") -> gr.Blocks:
    """The page for one loaded model, its first view already computed. notice: stands on top until it is dismissed."""
    stream = serve.streamer(vlm)
    small_world = len(vlm.tokenizer) < 1000  # a closed vocabulary: trained on generated scenes alone
    tab = Compare(stream, vlm.shape.patches, small_world, vlm.name)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        gr.HTML(_header(vlm), apply_default_css=False, elem_id="vtc-header")
        if notice:
            gr.HTML(render("ui/components/notice.html", text=notice), apply_default_css=False, elem_id="vtc-notice")
        with gr.Tabs(elem_id="vtc-tabs"):
            with gr.Tab("Compare"):
                tab.build(page)
            with gr.Tab("Sweep"):
                Sweep(sweep_runner(vlm), vlm.shape.patches, vlm.name).build()
            with gr.Tab("Latency lab"):
                Lab(lab_runner()).build()
            with gr.Tab("Atlas", elem_id="vtc-tab-atlas"):
                atlas.build(vlm.name)
            with gr.Tab("Your method"):
                own.build()
            with gr.Tab("About"):
                about.build()
        api.build(stream, vlm.name)
    return page.queue(max_size=32, default_concurrency_limit=1)


def _header(vlm) -> str:
    model = "Embedded VLM" if vlm.name == "embedded" else vlm.name.rstrip("/").rsplit("/", 1)[-1]
    device = str(vlm.device).upper().split(":")[0]
    values = {"title": TITLE, "model": model, "device": device, "language": language.first()}
    return render("ui/components/header.html", **values)
