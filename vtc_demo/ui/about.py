"""The tab About: what the page shows, how it measures, where its limits are."""

from __future__ import annotations

import gradio as gr

TEXT = """
## What you see

A vision-language model cuts the picture into patches and turns each into a **visual token**. There are several hundred
of them beside a short question, so most of the model's work goes into the picture. **Visual token compression** keeps
fewer: it drops tokens or merges them, before or inside the language model. Each card runs one method on the same
weights, the same picture and the same question. Nothing on the cards is prepared: the first view too was computed when
the server started.

- **Masks.** *Kept* patches have a token of their own. *Merged* ones live on in the token of another patch. *Dropped*
  ones are gone: removed from the pass and the cache, not hidden by a mask. Move the slider under a picture to follow
  the pass from the patch grid to the last layer; point at a patch to read its fate.
- **Evidence.** In a generated scene it is known which patches carry the answer; they have a dashed outline. The share
  that is kept or merged stands on the card. For a picture of your own neither truth nor evidence is known; the answer
  is then compared with the full model's.
- **Tokens.** The number at the last layer of the language model, and the average over its layers where it varies.

## How it is measured

- **Time.** Preprocessing, vision tower, projector, the method's own work, prefill, then decoding. The time to the first
  token is the sum up to the prefill. A card shows **one pass** after a warm-up, not a mean: on an idle machine
  figures move by a tenth or more from click to click, on a busy one they may double, and so may the speed-ups made of
  them. Where the vision pass is shared between cards its one measured time counts on each. For medians of repeated
  passes, the methods taking turns, run `python -m vtc_demo bench`.
- **Expected.** The speed-up that the FLOPs alone would give. Measured figures fall short where time goes into memory
  traffic, launching kernels, or stages that the method does not touch.
- **FLOPs.** Two per multiply-add, computed from the tokens that enter each layer; vision tower, projector, causal
  attention, gated MLP, LM head and the method's own work are included.
- **KV cache.** The bytes that the cache holds when the answer is complete; point at the figure for each layer. Where a
  method trims the cache after prefill, the paler part of a layer's bar is what left it again.

## Limits

- The embedded model is small and knows only its generated world: shapes and things, colours, sizes, counts, positions,
  numbers and short words. It has the token geometry of LLaVA-1.5 (576 tokens), not its knowledge. Ranks between methods
  need not carry over to large models.
- One question is an example, not a benchmark.
- A method's settings say how faithful it is: *matches released code* (tested), *from the paper*, or *in the style of*.

## From a program

`/compare` and `/methods` are open to `gradio_client`:

```python
from gradio_client import Client

client = Client("http://127.0.0.1:7860")  # the address of this page
methods = ["full", "fastervlm@0.11"]
question = "How many objects are there?"
found = client.predict(question=question, methods=methods, scene=0, api_name="/compare")
print([run["answer"] for run in found["runs"]])
```
"""


def build() -> None:
    gr.Markdown(TEXT, elem_classes="vtc-prose")
