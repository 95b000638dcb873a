"""A pass that only counts: the method is asked at its sites on stand-ins, no layer of the model runs.

How many tokens most methods leave follows from their hyper-parameters and the number of tokens that came, whatever the
values. So the stand-ins have the right shapes and arbitrary values, and the counts and FLOPs are those of a real pass.
Methods that are `adaptive` count otherwise: where they act before the language model, the reductions of a real pass can
take the place of their answers (see `replay`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from vtc_demo import cost
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.models import VLM
from vtc_demo.models.attention import DecoderProbe, EncoderProbe
from vtc_demo.models.layout import VISUAL, Layout, Prompt

from . import Pass

BEFORE_LLM = ("vision_layer", "projector", "llm_input")


@dataclass(frozen=True)
class Cost:
    """schedule [layers]: visual tokens entering each LLM layer. flops: of the pass up to the first token of the answer,
    the method's own work included."""

    schedule: tuple[int, ...]
    flops: int

    @classmethod
    def of(cls, run: Run) -> Cost:
        """What a run has cost until its first token; what follows depends on the length of the answer."""
        return cls(tuple(run.trace.schedule), run.ttft_flops)


def countable(vlm: VLM, method: Method, layout: Layout) -> bool:
    """Whether a dry pass counts as the model does: one view, whose tower tokens reach the LLM one by one, by way of the
    model's own projector."""
    plain = layout.plain and vlm.adapter.probe is EncoderProbe and not vlm.adapter.taps(vlm.config)
    return plain and method.connector is None


def dry(vlm: VLM, method: Method, layout: Layout, prompt: Prompt, seed: int = 0, replay: Trace | None = None) -> Cost:
    """The cost of a method on a picture and prompt of this layout, which must be `countable`.

    replay: the trace of a real pass, whose reductions before the language model are taken over. Raises ValueError for a
    method that does not suit the model, or whose trained connector would have to run.
    """
    if method.connector is not None:
        raise ValueError(f"{method.card.name}: a trained connector is not counted without running it")
    return DryPass(vlm, method, layout, prompt, seed, replay).cost()


class DryPass(Pass):
    """The engine's pass with stand-ins in place of hidden states. Batch 1, one view."""

    def __init__(self, vlm, method, layout, prompt, seed, replay):
        super().__init__(vlm, method, seed)
        self.lay(resized(layout, self.side // self.shape.patch_size) if self.side else layout)
        self.prompt, self.extra = prompt, layout.extra
        self.replay = replay and {step.site: step.reduction.to("cpu") for step in replay.steps}

    def cost(self) -> Cost:
        with torch.inference_mode():
            n, encoder, encoder_fed = self._tower(self.layout.segments[0])
            n = self._between(n, encoder[-1])
            fed = self._decoder(n)
        spec, schedule = self.vlm.spec, self.trace.schedule
        flops = cost.run_flops(
            replace(spec, crops=1),
            schedule,
            len(self.prompt.others),
            encoder_schedule=encoder,
            projector_tokens=self.projected,
            overhead=self.overhead,
            patches=self.layout.segments[0] - spec.extra,
            mlp_schedule=fed,
            encoder_mlp_schedule=encoder_fed,
        )
        return Cost(tuple(schedule), flops["total"])

    def ask(self, site: Site, hidden: Tensor, *args, **state) -> Reduction | None:
        if self.replay is None or site.kind not in BEFORE_LLM:
            return super().ask(site, hidden, *args, **state)
        if site in self.sites:
            self._ask(site, hidden, self.shape, None, **state)  # for what it notes and what it costs
        reduction = self.replay.get(site)
        if reduction is not None:
            self.overhead += reduction.flops(hidden.shape[1])
            self.trace.add(site, reduction, self.method.inside and site.layer is not None)
        return reduction

    def _left(self, site: Site, n: int, width: int, **state) -> int:
        """Tokens after a site that n tokens of that width reach."""
        reduction = self.ask(site, stand_in(n, width), None, extra=self.extra, **state)
        if reduction is not None and site.kind == "vision_layer":
            self.extra = int(self.extra and reduction.anchor[0].item() == 0)
        return n if reduction is None else reduction.m

    # -- the stages, as in the engine ---------------------------------------------------------------------------------
    def _tower(self, n: int) -> tuple[int, list[int], list[int]]:
        """(tokens at its end, tokens entering each layer, tokens through the MLP of each)."""
        schedule, fed, width = [], [], self.vlm.spec.vision_width
        for i in range(self.shape.feature_layer + 1):
            site = Site("vision_layer", i)
            acts = site in self.sites
            if acts and not self.method.inside:
                previous = self._encoder_rows(schedule[-1]) if i else None
                n = self._left(site, n, width, previous=previous, next=self._encoder_rows(n))
            schedule.append(n)
            if acts and self.method.inside:
                n = self._left(site, n, width, previous=self._encoder_rows(n))
            fed.append(n)
        return n, schedule, fed

    def _between(self, n: int, entered: int) -> int:
        """Visual tokens that enter the language model, of n at the end of the tower."""
        site, spec = Site("projector"), self.vlm.spec
        later = self.shape.feature_layer + 1 < self.shape.vision_layers
        probes = {"previous": self._encoder_rows(entered), "next": self._encoder_rows(n) if later else None}
        left = self._left(site, n, spec.vision_width, **probes)
        if self.trace.sites[-1:] != [site] and self.extra and not self.layout.keeps_extra:
            left = n - self.extra
            self.trace.add(site, Reduction.select(torch.arange(self.extra, n), n))
        self.projected, self.extra = left, 0
        return self._left(Site("llm_input"), left, spec.hidden)

    def _decoder(self, n: int) -> list[int]:
        """Tokens through the MLP of each layer."""
        fed, previous, hidden = [], None, self.vlm.spec.hidden
        self.base = n
        for k in range(self.shape.llm_layers):
            site = Site("llm_layer", k)
            acts = site in self.sites
            if acts and not self.method.inside:
                n = self._left(site, n, hidden, previous=previous, next=self._decoder_rows(n), **self._places(n))
            previous = self._decoder_rows(n, ran=True)
            if acts and self.method.inside:
                n = self._left(site, n, hidden, previous=previous, **self._places(n))
            fed.append(n)
        self._left(Site("kv_cache"), n, hidden, previous=previous, **self._places(n))
        return fed

    # -- stand-ins ----------------------------------------------------------------------------------------------------
    def _encoder_rows(self, n: int) -> EncoderRows:
        return EncoderRows(self.vlm.spec, n)

    def _decoder_rows(self, n: int, ran: bool = False) -> DecoderRows:
        return DecoderRows(self.vlm.spec, n + len(self.prompt.others), ran)

    def _places(self, n: int) -> dict:
        """Where n visual tokens stand in the sequence, and all the others."""
        others, first = len(self.prompt.others), int(self.prompt.visual[0])
        places = torch.arange(others)
        places = torch.where(places < first, places, places + n)
        return {
            "sequence": stand_in(n + others, self.vlm.spec.hidden),
            "visual": first + torch.arange(n),
            "text": places[self.prompt.text.cpu()],
            "after": self.prompt.after,
            "ordered": True,
        }


class EncoderRows(EncoderProbe):
    """Books the attention of an encoder layer over n tokens and returns stand-ins for it."""

    def __init__(self, spec: cost.ModelSpec, n: int):
        super().__init__(None, stand_in(n, spec.vision_width))
        self.heads = spec.vision_heads

    @property
    def block(self):
        return SimpleNamespace(num_heads=self.heads)

    def norm(self, x):
        return x

    def project(self, x, which):
        return x

    def attention(self, rows, mean=False):
        self._projected(), self._queries(rows)
        return scores(() if mean else (self.heads,), len(rows), self.tokens)

    def logits(self, rows):
        return self.attention(rows, mean=True)


class DecoderRows(DecoderProbe):
    """The same for a decoder layer over a sequence of n tokens. ran: its keys are in the cache."""

    def __init__(self, spec: cost.ModelSpec, n: int, ran: bool):
        shapes = SimpleNamespace(head_dim=spec.head_dim)
        for which, heads in (("q", spec.heads), ("k", spec.kv_heads)):
            setattr(shapes, f"{which}_proj", lambda x, width=heads * spec.head_dim: stand_in(len(x), width))
        layer = SimpleNamespace(self_attn=shapes, input_layernorm=lambda x: x)
        cached = scores((spec.kv_heads,), n, spec.head_dim) if ran else None
        super().__init__(layer, stand_in(n, spec.hidden), None, cached)
        self.heads = spec.heads

    def _turned(self, projected, rows, which):
        return projected.view(projected.shape[0], -1, self.layer.self_attn.head_dim).transpose(0, 1)

    def attention(self, rows, mean=False):
        self._queries(rows)
        return scores(() if mean else (self.heads,), len(rows), self.tokens)

    def logits(self, rows):
        return self.attention(rows, mean=True)


def stand_in(n: int, width: int) -> Tensor:
    """[n, width] without memory of its own for each value."""
    return torch.linspace(0.1, 1.0, n)[:, None].expand(n, width)


def scores(lead: tuple[int, ...], rows: int, keys: int) -> Tensor:
    """Positive values, [*lead, rows, keys], the same in every row."""
    return torch.linspace(0.1, 1.0, keys).expand(*lead, rows, keys)


def resized(layout: Layout, cells: int) -> Layout:
    """The layout of the same picture, scaled to cells x cells patches."""
    crop, n = layout.crops[0], cells * cells
    return replace(
        layout,
        crops=(replace(crop, units=torch.arange(n), grid=(cells, cells)),),
        pieces=([VISUAL] * (n + layout.keeps_extra * layout.extra),),
        segments=(n + layout.extra,),
    )
