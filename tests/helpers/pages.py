"""A page of a small model with random weights, and a browser page on it that watches for trouble."""

from contextlib import contextmanager

import torch
from transformers import LlavaForConditionalGeneration

from vtc_demo import ui
from vtc_demo.models import VLM
from vtc_demo.models.families.llava import LlavaAdapter
from vtc_demo.training import build


@contextmanager
def served():
    """The address of a running page; at the end it is closed."""
    torch.manual_seed(0)
    processor = build.build_processor()
    config = build.build_config(len(processor.tokenizer), width=32, tower_layers=3, llm_layers=4)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = 2
    page = ui.build(VLM(model, processor, LlavaAdapter(), "embedded"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **ui.LAUNCH)
    yield address.rstrip("/")
    page.close()


@contextmanager
def watched(chromium, url, width=1480, height=900, scheme="dark", **device):
    """A browser page, not yet at any address; at the end: no console error, no request to another host."""
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **device)
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else problems.append(r.url))
    page.set_default_timeout(60_000)
    yield page
    context.close()
    assert not problems
