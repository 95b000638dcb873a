"""The tab About: what the page shows, how it measures, where its limits are, and how programs use it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import gradio as gr

from vtc_demo import cost
from vtc_demo.core.assets import ASSETS, MEASUREMENTS
from vtc_demo.figures.render import render
from vtc_demo.figures.zoo import ALT

RECORDS = MEASUREMENTS
COURSE = ASSETS / "zoo_training.svg"
MODEL, TEXT_TOKENS, KEPT = "llava-1.5-7b", 64, 64  # of the table of conventions

SHOWN = """
## What you see

A vision-language model cuts the picture into patches and turns each into a **visual token**. There are several hundred
of them beside a short question, so most of the model's work goes into the picture. **Visual token compression** keeps
fewer: it drops tokens or merges them, before or inside the language model. Each card runs one method on the same
weights, the same picture and the same question. Nothing on the cards is prepared: the first view too was computed when
the server started.

- **Masks.** *Kept* patches have a token of their own. *Merged* ones live on in the token of another patch. *Dropped*
  ones are gone: removed from the pass and the cache, not hidden by a mask.
- **Evidence.** In a generated scene it is known which patches carry the answer. For a picture of your own neither truth
  nor evidence is known; the answer is then compared with the full model's.
- **Tokens.** The number at the last layer of the language model, and the average over its layers where it varies.

## How it is measured

- **Time.** Preprocessing, vision tower, projector, the method's own work, prefill, then decoding. The time to the first
  token is the sum up to the prefill. A card shows **one pass** after a warm-up, not a mean: on an idle machine
  figures move by a tenth or more from click to click, on a busy one they may double, and so may the speed-ups made of
  them. Where the vision pass is shared between cards its one measured time counts on each. For medians of repeated
  passes, the methods taking turns, run `python -m vtc_demo bench`.
- **Expected.** The speed-up that the FLOPs alone would give. Measured figures fall short where time goes into memory
  traffic, launching kernels, or stages that the method does not touch.
- **KV cache.** The bytes that the cache holds when the answer is complete. Where a method trims the cache after
  prefill, the paler part of a layer's bar is what left it again.
- **Accuracy.** Exact match on held-out scenes, with the number of questions and a 95 % interval.
"""

FLOPS = """
## FLOPs, and whose

FLOPs on this page are two per multiply-add, computed from the tokens that enter each layer: vision tower, projector,
causal attention, gated MLP, LM head and the method's own work. Papers count in other ways. The same cut of one model,
counted in each:
"""

LIMITS = """
None of them is wrong, but a figure of one says nothing beside a figure of another.
`vtc_demo.cost.flops(..., convention=NAME)` gives each.

## Limits

- The embedded model is small and knows only its generated world: shapes and things, colours, sizes, counts, positions,
  numbers and short words. It has the token geometry of LLaVA-1.5 (576 tokens), not its knowledge. Ranks between methods
  need not carry over to large models.
- One question is an example, not a benchmark.
- A method's card says how faithful it is: *matches released code* (tested), *from the paper*, or *in the style of*.
- In the Atlas, what a paper reports of itself is repeated, not checked.
"""

ZOO = """
## The trained zoo

Connectors and reworks of the attention need weights of their own. Those here are trained under one recipe on the
embedded model's vision tower, so that only the connector differs. Their few hundred steps stand beside methods without
training that run on weights trained far longer: the accuracies on their cards are no verdict on a design.
`docs/zoo.md` has the tables. The curves below: answers that are right in training, in percent, by kind of question.
"""

SNIPPET = """
from gradio_client import Client

client = Client("http://127.0.0.1:7860")  # the address of this page
methods = ["full", "fastervlm@0.11"]
question = "How many objects are there?"
found = client.predict(question=question, methods=methods, scene=0, image=None, api_name="/compare")
print([run["answer"] for run in found["runs"]])
"""

API = f"""
## From a program

Two endpoints are open to `gradio_client`; both answer with plain data and say in words what is wrong with a request.

| endpoint | takes | gives |
| --- | --- | --- |
| `/compare` | `question`: text. `methods`: one to four of `"name"`, `"name@retention"` or a dict with `method` and its hyper-parameters. `scene`: number of a built-in scene. `image`: a file in place of the scene, or None. `match`: `"final tokens"`, `"equivalent tokens"` or `"flops"` to compare at the cost of `tokens` visual tokens (64), else `"none"`. | The comparison: a list `runs` with answer, tokens per layer, times, FLOPs, bytes and the fate of every patch, and the environment. |
| `/methods` | nothing | Every method: its card and its hyper-parameters with their ranges. |

```python
{SNIPPET.strip()}
```

The same without a page: `vtc_demo.compare` in Python, `python -m vtc_demo compare` in the shell.

## Records

Measurements that the documentation quotes, each with its date and machine, to download below:
"""  # noqa: E501

CREDITS = """
## Licence, credit, citing

The software is free under the Apache License 2.0. The methods are the work of their authors: each card names paper and
code, the Atlas lists all papers. For a method, cite its paper; for this page:

```bibtex
@software{vtc_demo,
  title  = {vtc_demo: visual token compression, side by side},
  author = {{The vtc_demo authors}},
  year   = {2026}
}
```
"""


def build() -> None:
    with gr.Column(elem_classes="vtc-about"):
        gr.Markdown(SHOWN + FLOPS + conventions() + LIMITS, elem_classes="vtc-prose")
        if COURSE.exists():
            gr.Markdown(ZOO, elem_classes="vtc-prose")
            gr.HTML(course(), apply_default_css=False)
        gr.Markdown(API + records(), elem_classes="vtc-prose")
        gr.File(_files(), label="Download", file_count="multiple", interactive=False, elem_classes="vtc-records")
        gr.Markdown(CREDITS, elem_classes="vtc-prose")


def conventions() -> str:
    """A Markdown table: one model without and with a cut before the language model, in every convention of `cost`."""
    spec = cost.SPECS[MODEL]
    cut = [KEPT] * spec.layers
    lines = [
        f"| name | of a layer with n tokens | {spec.visual_tokens} tokens | {KEPT} tokens | saving |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, how in cost.CONVENTIONS.items():
        full, less = (cost.flops(spec, schedule, TEXT_TOKENS, name) for schedule in (spec.full_schedule, cut))
        lines.append(
            f"| {name} | {how.description}; {how.counts} | {full / 1e12:.2f} T {how.unit} | {less / 1e12:.2f} T "
            f"| {full / less:.1f}× |"
        )
    told = f"LLaVA-1.5-7B, {TEXT_TOKENS} text tokens. `true` is what this page shows; n tokens, d width, m inner width."
    return "\n" + "\n".join(lines) + f"\n\n{told}\n"


def course(file: Path = COURSE) -> str:
    """The picture of the zoo's training; as an image, so that its words are not words of the page."""
    url = f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return render("ui/tabs/course.html", url=url, alt=ALT)


def records() -> str:
    """A Markdown table of the record files: what, when, on what."""
    lines = ["| file | extent | recorded | on |", "| --- | --- | --- | --- |"]
    for file in map(Path, _files()):
        if file.suffix != ".json":
            lines.append(f"| `{file.name}` | {len(file.read_text(encoding='utf-8').splitlines())} entries | | |")
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        where = record.get("environment", {})
        count = record.get("questions")
        extent = f"{count} questions" if isinstance(count, int) else f"{len(record.get('rows', []))} entries"
        on = ", ".join(str(where[k]) for k in ("device", "dtype") if where.get(k))
        lines.append(f"| `{file.name}` | {extent} | {str(where.get('date', ''))[:10]} | {on} |")
    return "\n" + "\n".join(lines) + "\n"


def _files() -> list[str]:
    return [str(file) for file in sorted(RECORDS.glob("*.json*"))]
