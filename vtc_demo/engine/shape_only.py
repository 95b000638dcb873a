"""Counting without running: the same loop on shapes alone.

`ShapeOnly` takes the model's place. Indices and counts are real; hidden states are tensors of the right shape and
arbitrary values that take no memory, and layers hand them on. How many tokens most methods leave follows from their
hyper-parameters and the number of tokens that came, whatever the values: for these the counts and FLOPs are those of a
real pass. Methods that are `adaptive` count otherwise. Where they act before the language model, the reductions of a
real pass can take the place of their answers (`replay`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vtc_demo import cost
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.core.tokens import Trace
from vtc_demo.models import VLM
from vtc_demo.models.attention import DecoderProbe, EncoderProbe
from vtc_demo.models.layout import VISUAL, Inputs, Layout, Prompt

from .forward import ForwardPass
from .hooks import Answer, Hooks
from .language import prefill
from .state import Sequence, Tower
from .vision import encode, project

BEFORE_LLM = ("vision_layer", "projector", "llm_input")


@dataclass(frozen=True)
class Cost:
    """schedule [layers]: visual tokens entering each LLM layer. flops: of the pass up to the first token of the answer,
    the method's own work included. overhead: that work alone."""

    schedule: tuple[int, ...]
    flops: int
    overhead: int = 0

    @classmethod
    def of(cls, run: Run) -> Cost:
        """What a run has cost until its first token; what follows depends on the length of the answer."""
        return cls(tuple(run.schedule), run.ttft_flops, run.flops["compression"])


def countable(vlm: VLM, method: Method) -> bool:
    """Whether shapes say what a pass costs: not where a trained connector would have to run, nor where the tower's own
    spans depend on more than its tokens."""
    return vlm.adapter.countable and method.connector is None


@torch.inference_mode()
def count(
    vlm: VLM,
    method: Method,
    layout: Layout,
    prompt: Prompt,
    seed: int = 0,
    tiles: str = "global",
    replay: Trace | None = None,
) -> Cost:
    """The cost of a method on a picture and prompt of this layout, which must be `countable`.

    layout: of the picture as it comes; a method that scales the picture is counted on the smaller one. replay: the
    trace of a real pass, whose reductions before the language model are taken over. Raises ValueError for a method that
    does not suit the model or the picture, or is not countable.
    """
    if not countable(vlm, method):
        raise ValueError(f"{method.card.name} is not counted without running it on {vlm.name}")
    hooks = partial(CountingHooks, replay=replay)
    backend: Any = ShapeOnly(vlm)  # has the functions of Backend
    work = ForwardPass(vlm, method, seed, tiles, backend=backend, hooks=hooks)
    layout = scaled(layout, work.side // vlm.shape.patch_size) if work.side else layout
    prompt = prompt.to("cpu")
    encoded = encode(work, Inputs(torch.empty(0), layout))
    asked = work.question("", prompt)
    prefilled = prefill(work, prompt, project(work, encoded, asked), asked)
    flops = work.flops(encoded, prefilled, 1)
    return Cost(tuple(work.hooks.trace.schedule), flops["total"], flops["compression"])


def scaled(layout: Layout, cells: int) -> Layout:
    """The layout of the same picture, scaled to cells x cells patches."""
    crop, n = layout.crops[0], cells * cells
    return replace(
        layout,
        crops=(replace(crop, units=torch.arange(n), grid=(cells, cells)),),
        pieces=([VISUAL] * (n + layout.keeps_extra * layout.extra),),
        segments=(n + layout.extra,),
    )


class CountingHooks(Hooks):
    """Shows methods tensors in one piece, as real ones are. replay: a trace whose steps before the language model are
    the answers there."""

    def __init__(self, *args, replay: Trace | None = None):
        super().__init__(*args)
        self.replay = None if replay is None else {step.site: step.reduction.to("cpu") for step in replay.steps}

    def ask(self, site, hidden, anchor, ordered=False, inside=False, copies=1, **state):
        elsewhere = site.layer is not None and inside != self.method.inside
        if self.replay is None or site.kind not in BEFORE_LLM or elsewhere:
            return super().ask(site, hidden, anchor, ordered, inside, copies, **state)
        if site in self.sites:  # asked all the same: for what it notes and what it costs
            self.answers(site, hidden, anchor, **state)
        reduction = self.replay.get(site)
        if reduction is not None:
            self.overhead += copies * reduction.flops(hidden.shape[1])
            self.trace.add(site, reduction, inside)
        return Answer(reduction, [])

    def _answer(self, site, hidden, shape, view, **state):
        return super()._answer(site, hidden.contiguous(), shape, view, **state)


class ShapeOnly:
    """See `backend.Backend`: the same functions without a model. Everything is on the CPU."""

    connector = None
    deepstack_layers: tuple[int, ...] = ()

    def __init__(self, vlm: VLM):
        self.spec, self.shape, self.adapter = vlm.spec, vlm.shape, vlm.adapter
        self.layers = range(vlm.shape.llm_layers)

    # -- tower --------------------------------------------------------------------------------------------------------
    def embed(self, inputs: Inputs, resized: bool) -> Tower:
        layout = inputs.layout
        members = None if layout.sources is None else layout.sources.cpu()
        hidden = arbitrary(sum(layout.segments), self.spec.vision_width)
        return Tower(hidden, layout.segments, members, layout.extra, torch.arange(layout.extra + layout.units))

    def tower_layer(self, i: int, tower: Tower) -> Tensor:
        return tower.hidden

    tower_attend = tower_feed = tower_layer

    def tower_probe(self, i: int, tower: Tower) -> EncoderProbe | None:
        if not 0 <= i < self.shape.vision_layers:
            return None
        return EncoderRows(self.spec.vision_heads, tower)

    def kept(self, details, places):
        return details

    def finish(self, hidden: Tensor) -> Tensor:
        return hidden

    # -- projector and decoder ----------------------------------------------------------------------------------------
    def project(self, features: Tensor, layout: Layout) -> Tensor:
        n = len(features) if layout.blend is None else layout.units
        return arbitrary(n, self.spec.hidden)[None]

    def words(self, prompt: Prompt) -> Tensor:
        return arbitrary(len(prompt.others), self.spec.hidden)[None]

    def positions(self, prompt: Prompt, layout: Layout) -> tuple[None, int]:
        return None, 0

    def rope(self, hidden: Tensor, positions: Tensor) -> None:
        return None

    def cache(self) -> DynamicCache:
        return DynamicCache()

    def layer(self, k: int, hidden: Tensor, memory, sees, past_key_values: DynamicCache, **how) -> Tensor:
        entry = torch.zeros(1, 1, hidden.shape[1], 1)  # only the number of entries matters
        past_key_values.update(entry, entry, k)
        return hidden

    def attend(self, k: int, hidden: Tensor, **how) -> Tensor:
        return self.layer(k, hidden, None, None, **how)

    def feed(self, k: int, hidden: Tensor) -> Tensor:
        return hidden

    def attention_output(self, k: int, weights: Tensor, values: Tensor) -> Tensor:
        return arbitrary(weights.shape[1], self.spec.hidden)

    def probe(self, k: int, entered: Sequence, cached: Tensor | None = None) -> DecoderProbe:
        return DecoderRows(self.spec, entered.hidden.shape[1], cached is not None)

    def next_token(self, hidden: Tensor) -> Tensor:
        return torch.zeros(1, dtype=torch.long)


class EncoderRows(EncoderProbe):
    """Books the attention of an encoder layer and returns shapes for it."""

    def __init__(self, heads: int, tower: Tower):
        block = SimpleNamespace(num_heads=heads)
        super().__init__(SimpleNamespace(self_attn=block), tower.hidden, tower.members, tower.segments)

    def norm(self, x):
        return x

    def project(self, x, which):
        return x

    def attention(self, rows, mean=False):
        self._projected()
        if self.sources is None:
            self._queries(rows)
        else:
            members, limits = self.sources[rows], torch.tensor(self.segments).cumsum(0)
            counts = (
                torch.bucketize(members[:, 0].contiguous(), limits, right=True).bincount(minlength=len(limits)).tolist()
            )
            for length, count in zip(self.segments, counts, strict=True):
                if count:
                    self._queries(torch.zeros(count * members.shape[1], dtype=torch.long), length)
        return scores(() if mean else (self.heads,), len(rows), self.tokens)

    def logits(self, rows):
        self._projected()
        if self.sources is None:
            self._queries(rows)
        else:
            self._queries(self.sources[rows].flatten(), 0)
            self.flops += cost.linear_flops(len(rows), self.entered.shape[1], self.tokens)
        return scores((), len(rows), self.tokens)


class DecoderRows(DecoderProbe):
    """The same for a decoder layer over a sequence of n tokens. ran: its keys are in the cache."""

    def __init__(self, spec: cost.ModelSpec, n: int, ran: bool):
        shapes = SimpleNamespace(head_dim=spec.head_dim, config=SimpleNamespace(num_attention_heads=spec.heads))
        for which, heads in (("q", spec.heads), ("k", spec.kv_heads)):
            setattr(shapes, f"{which}_proj", lambda x, width=heads * spec.head_dim: arbitrary(len(x), width))
        layer = SimpleNamespace(self_attn=shapes, input_layernorm=lambda x: x)
        cached = scores((spec.kv_heads,), n, spec.head_dim) if ran else None
        no_rope: Any = None  # arbitrary values are not rotated
        super().__init__(layer, arbitrary(n, spec.hidden), no_rope, cached)

    def _rotated(self, projected, rows, which):
        return projected.view(projected.shape[0], -1, self.layer.self_attn.head_dim).transpose(0, 1)

    def attention(self, rows, mean=False):
        self._queries(rows)
        return scores(() if mean else (self.heads,), len(rows), self.tokens)

    def logits(self, rows):
        return self.attention(rows, mean=True)


def arbitrary(n: int, width: int) -> Tensor:
    """[n, width] without memory of its own for each value."""
    return torch.linspace(0.1, 1.0, n)[:, None].expand(n, width)


def scores(lead: tuple[int, ...], rows: int, keys: int) -> Tensor:
    """Positive values, [*lead, rows, keys], the same in every row."""
    return torch.linspace(0.1, 1.0, keys).expand(*lead, rows, keys)
