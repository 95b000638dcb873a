"""The one inference loop: encode -> project -> prefill -> decode, asking the method at each of its sites.

Nothing is patched and no state is kept between runs: tokens that a method drops are gone from the hidden states and
from the caches of all later layers. Batch 1, greedy decoding, fused attention (SDPA) without a mask, which means causal
in the prefill and everything in a decode step. One image per prompt, so the visual tokens are one span of the sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from . import cost
from .attention import DecoderHalves, DecoderProbe, EncoderHalves, EncoderProbe
from .images import load_rgb
from .measure import Stopwatch, timings_ms
from .methods import resolve
from .methods.base import Method
from .models import VLM
from .rearrange import in_order, shrink, splice
from .results import Run
from .tokens import Reduction, Site, Trace
from .view import SiteView

MAX_NEW_TOKENS = 1024


class Event(NamedTuple):
    """kind: "stage" (data: its name), "token" (data: the answer so far) or "run" (data: Run)."""

    kind: str
    data: Any


@dataclass(frozen=True)
class Encoded:
    """The vision pass of one image. features, entered [n, C]: output and input of the feature layer."""

    features: Tensor
    entered: Tensor
    extra: int  # leading tokens that are no patch
    grid: tuple[int, int]
    schedule: tuple[int, ...]  # tokens entering each encoder layer that ran
    fed: tuple[int, ...]  # tokens through the MLP of each
    seconds: dict[str, float]  # preprocess and vision


def run(vlm: VLM, image, question: str, method: Method, **options) -> Run:
    """The last event of `stream`."""
    for event in stream(vlm, image, question, method, **options):
        last = event.data
    return last


def picture_key(image: Image.Image) -> str:
    """The same for images of the same pixels."""
    return f"{image.size}{hashlib.sha256(image.tobytes()).hexdigest()}"


@torch.inference_mode()  # entered at each step of the generator and left at each yield
def stream(
    vlm: VLM,
    image,
    question: str,
    method: Method,
    *,
    max_new_tokens: int = 16,
    seed: int = 0,
    ignore_eos: bool = False,
    key: str | None = None,
) -> Iterator[Event]:
    """Answer a question, as a stream of events that ends with the Run. Closing the generator stops the work.

    image: anything `load_rgb` takes. seed: for methods that draw at random. ignore_eos: answers of a fixed length, for
    timing. key: `picture_key` of the image if it is at hand. The vision pass of the last image is kept on the VLM and
    shared by methods that act neither on the image nor inside the tower. Raises ValueError for bad input and for a
    method that the model or the image does not suit.
    """
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be between 1 and {MAX_NEW_TOKENS}")
    image = load_rgb(image)
    work = Pass(vlm, method, seed)
    watch = work.watch
    yield from watch.pause(Event("stage", "preprocess"))
    watch.enter("preprocess")
    before, after = vlm.prompt_ids(question)
    watch.enter(None)

    encoded = work.recall(key := key or picture_key(image))
    shared = encoded is not None
    if not shared:
        watch.enter("preprocess")
        pixels = vlm.pixels(image, work.side)
        yield from watch.pause(Event("stage", "vision"))
        watch.enter("vision")
        encoded = work.encode(pixels)
        watch.enter(None)
        encoded = work.remember(key, encoded)

    yield from watch.pause(Event("stage", "projector"))
    watch.enter("projector")
    visual = work.project(encoded)  # [1, n, D]

    yield from watch.pause(Event("stage", "prefill"))
    watch.enter("prefill")
    prefilled = work.prefill(before, visual, after)
    token = prefilled.token
    ids = token.tolist()
    yield from watch.pause(Event("token", _text(vlm, ids)))

    yield from watch.pause(Event("stage", "decode"))
    while len(ids) < max_new_tokens and (ignore_eos or ids[-1] not in vlm.eos_ids):
        watch.enter("decode")
        token = work.step(prefilled, token, len(ids) - 1)
        ids += token.tolist()  # the one wait for the device in a step
        yield from watch.pause(Event("token", _text(vlm, ids)))
    watch.enter(None)
    yield Event("run", work.result(encoded, prefilled, ids, shared))


@torch.inference_mode()
def warm_up(vlm: VLM) -> None:
    """One short pass, once per VLM, so that the first run does not pay for what is made once (memory, kernels)."""
    if vlm.warm:
        return
    vlm.warm = True
    work = Pass(vlm, resolve("full"), seed=0)
    side = vlm.shape.grid[0] * vlm.shape.patch_size
    text = torch.zeros((1, 8), dtype=torch.long, device=vlm.device)
    pixels = torch.zeros((1, 3, side, side), device=vlm.device, dtype=vlm.dtype)
    prefilled = work.prefill(text, work.project(work.encode(pixels)), text)
    work.step(prefilled, prefilled.token, 0)


def _text(vlm: VLM, ids: list[int]) -> str:
    return vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()


@dataclass
class Prefilled:
    """What decoding goes on from. positions [layers]: the position that the first decoded token takes in each layer."""

    cache: DynamicCache
    positions: list[int]
    token: Tensor  # [1], the first of the answer
    text_tokens: int
    fed: list[int]  # visual tokens through each layer's MLP
    cached: list[int]  # visual tokens in each layer's cache


class Pass:
    """One forward pass of one method: its sites, its trace, its clock."""

    def __init__(self, vlm: VLM, method: Method, seed: int):
        self.vlm, self.method, self.seed = vlm, method, seed
        self.model, self.adapter, self.shape = vlm.model, vlm.adapter, vlm.shape
        self.sites = frozenset(method.sites(self.shape))
        for site in self.sites:
            self._check_site(site)
        self.side = self._check_side(method.image_side(self.shape))
        self.trace = Trace(self.shape.grid, int(self.shape.has_cls), self.shape.llm_layers)
        self.watch = Stopwatch(vlm.device)
        self.tokens0 = self.shape.patches
        self.projected = 0  # tokens through the projector
        self.overhead = 0  # FLOPs of the method
        self.memory: dict[str, Any] = {}  # of the method, from site to site

    def _check_site(self, site: Site) -> None:
        name = self.method.card.name
        if site.kind == "input_image":
            raise ValueError(f"{name}: an image is scaled through image_side, not at a site")
        layers = {"vision_layer": self.shape.feature_layer + 1, "llm_layer": self.shape.llm_layers}.get(site.kind)
        if layers is not None and not 0 <= site.layer < layers:
            raise ValueError(f"{name}: {site} does not exist; this model has {site.kind} 0 to {layers - 1}")

    def _check_side(self, side: int | None) -> int | None:
        patch = self.shape.patch_size
        if side is None or side == self.shape.grid[0] * patch:
            return None
        if side % patch or not patch <= side <= self.shape.grid[0] * patch:
            raise ValueError(
                f"{self.method.card.name}: an image side of {side} pixels does not fit; use a multiple of {patch} "
                f"up to {self.shape.grid[0] * patch}"
            )
        return side

    # -- asking the method ----------------------------------------------------------------------------------------
    def ask(self, site: Site, hidden: Tensor, ordered: bool = False, **state) -> Reduction | None:
        """The method's reduction of the tokens hidden [n, C] at a site, recorded and its cost booked.

        ordered: the tokens stand in a sequence, so rows are put in the order of their anchors.
        """
        if site not in self.sites:
            return None
        stage = self.watch.enter("compression")
        state |= {"tokens0": self.tokens0, "seed": self.seed, "trace": self.trace, "memory": self.memory}
        view = SiteView(site, self.shape, hidden, **state)
        reduction = self.method.reduce(view)
        n, width = hidden.shape
        self.overhead += view.spent + self.method.overhead_flops(site, n, width, self.shape)
        if reduction is not None:
            if not isinstance(reduction, Reduction) or reduction.n != n:
                raise ValueError(
                    f"{self.method.card.name}: at {site} a Reduction of {n} tokens was due, got {reduction!r}"
                )
            reduction = reduction.to(hidden.device)
            reduction = in_order(reduction) if ordered else reduction
            self.trace.add(site, reduction, self.method.inside and site.layer is not None)
        self.watch.enter(stage)
        return reduction

    # -- vision ---------------------------------------------------------------------------------------------------
    def recall(self, key: str) -> Encoded | None:
        """The kept vision pass, if it is of this image and this method may share it."""
        recent = self.vlm.recent
        return recent[1] if self._shares() and recent is not None and recent[0] == key else None

    def remember(self, key: str, encoded: Encoded) -> Encoded:
        encoded = replace(encoded, seconds=dict(self.watch.seconds))
        if self._shares():
            self.vlm.recent = (key, encoded)
        return encoded

    def _shares(self) -> bool:
        return self.side is None and not any(site.kind == "vision_layer" for site in self.sites)

    def encode(self, pixels: Tensor) -> Encoded:
        """pixels [1, 3, H, W] through the tower up to the feature layer; later layers are not run."""
        grid = (pixels.shape[-2] // self.shape.patch_size, pixels.shape[-1] // self.shape.patch_size)
        if grid != self.shape.grid:
            self.trace.add(Site("input_image"), shrink(self.shape.grid, grid, self.trace.extra))
            self.shape = replace(self.shape, grid=grid)
        self.tokens0 = self.shape.patches
        h = self.adapter.embed_image(self.model, pixels, self.side is not None)  # [1, extra + patches, C]
        layers = self.adapter.encoder_layers(self.model)[: self.shape.feature_layer + 1]
        extra, entered, schedule, fed = self.trace.extra, None, [], []

        def reduce(h, i, **probes):
            nonlocal extra
            reduction = self.ask(Site("vision_layer", i), h[0], extra=extra, **probes)
            if reduction is None:
                return h
            extra = int(extra and reduction.anchor[0].item() == 0)  # CLS stays first or is gone
            return reduction.apply(h)

        for i, layer in enumerate(layers):
            inside = self.method.inside and Site("vision_layer", i) in self.sites
            if not inside:
                previous = EncoderProbe(layers[i - 1], entered) if i else None
                h = reduce(h, i, previous=previous, next=EncoderProbe(layer, h[0]))
            schedule.append(h.shape[1])
            entered = h[0]
            if inside:
                h = reduce(EncoderHalves.attend(layer, h), i, previous=EncoderProbe(layer, entered))
            fed.append(h.shape[1])
            h = EncoderHalves.feed(layer, h) if inside else layer(h, attention_mask=None)
        return Encoded(h[0], entered, extra, grid, tuple(schedule), tuple(fed), {})

    def project(self, encoded: Encoded) -> Tensor:
        """From the feature layer's output to the visual tokens of the LLM, [1, n, D]."""
        features, site = encoded.features, Site("projector")
        layers, last = self.adapter.encoder_layers(self.model), self.shape.feature_layer
        state = {"extra": encoded.extra, "previous": EncoderProbe(layers[last], encoded.entered)}
        if last + 1 < len(layers):  # a layer that does not run, but whose attention over the features can be asked for
            state["next"] = EncoderProbe(layers[last + 1], features)
        reduction = self.ask(site, features, **state)
        if reduction is None and encoded.extra and not self.adapter.keeps_cls(self.vlm.config):
            n = features.shape[0]
            reduction = Reduction.select(torch.arange(encoded.extra, n, device=features.device), n)
            self.trace.add(site, reduction)
        if reduction is not None:
            features = reduction.apply(features)
        self.projected = features.shape[0]
        visual = self.adapter.project(self.model, features[None])  # [1, n, D]
        reduction = self.ask(Site("llm_input"), visual[0], extra=0)
        return visual if reduction is None else reduction.apply(visual)

    # -- language -------------------------------------------------------------------------------------------------
    def prefill(self, before: Tensor, visual: Tensor, after: Tensor) -> Prefilled:
        """Prompt ids before and after the image [1, b], [1, a] and visual [1, n, D] through the decoder.

        Dropped tokens leave the sequence at the layer that the method names. Their positions stay vacant, or are
        closed up if the method renumbers (then every later layer goes on from its own length).
        """
        lm = self.adapter.decoder(self.model)
        start, n = before.shape[1], visual.shape[1]  # the visual tokens are [start, start + n)
        h = torch.cat([lm.embed_tokens(before), visual.to(self.vlm.dtype), lm.embed_tokens(after)], 1)  # [1, S, D]
        self.tokens0, length = n, h.shape[1]
        text = length - n
        contiguous = rope = lm.rotary_emb(h, torch.arange(length, device=h.device)[None])  # cos, sin [1, S, d]
        cache, positions, held, alive, fed = DynamicCache(), [], [], torch.arange(n, device=h.device), []
        previous = None

        def reduce(h, k, **probes):
            nonlocal length, rope, alive, n
            state = {"extra": 0, "sequence": h[0], "start": start, **probes}
            reduction = self.ask(Site("llm_layer", k), h[0, start : start + n], ordered=True, **state)
            if reduction is None:
                return h
            h = splice(h, start, n, reduction.apply(h[:, start : start + n]))
            if self.method.positions == "renumber":
                length = h.shape[1]
                rope = tuple(part[:, :length] for part in contiguous)
            else:
                rope = tuple(splice(part, start, n, part[:, start + reduction.anchor]) for part in rope)
            alive, n = alive[reduction.anchor], reduction.m
            return h

        for k, layer in enumerate(lm.layers):
            inside = self.method.inside and Site("llm_layer", k) in self.sites
            if not inside:
                h = reduce(h, k, previous=previous, next=DecoderProbe(layer, h[0], _first(rope)))
            positions.append(length)
            held.append(alive)
            entered, turns = h[0], _first(rope)
            how = {"attention_mask": None, "position_embeddings": rope, "past_key_values": cache, "use_cache": True}
            h = DecoderHalves.attend(layer, h, **how) if inside else layer(h, **how)
            previous = DecoderProbe(layer, entered, turns, cache.layers[k].keys[0])
            if inside:
                h = DecoderHalves.feed(layer, reduce(h, k, previous=previous))
            fed.append(n)
        token = self._next_token(lm, h)
        state = {"extra": 0, "sequence": h[0], "start": start, "previous": previous}
        reduction = self.ask(Site("kv_cache"), h[0, start : start + n], ordered=True, **state)
        if reduction is not None:
            self._evict(cache, start, held, alive, reduction)
            if self.method.positions == "renumber":
                positions = [layer.keys.shape[-2] for layer in cache.layers]
        cached = [layer.keys.shape[-2] - text for layer in cache.layers]
        return Prefilled(cache, positions, token, text, fed, cached)

    def _evict(self, cache: DynamicCache, start: int, held: list[Tensor], alive: Tensor, reduction: Reduction) -> None:
        """Remove the dropped visual tokens from every layer's cache. held [layers] of [n]: those that each holds.

        Tokens that prefill dropped after a layer stay in its cache, unless the method trims that layer.
        """
        if not reduction.is_selection:
            raise ValueError(f"{self.method.card.name}: cache entries can be selected, not merged")
        gone = alive[torch.ones_like(alive, dtype=torch.bool).index_fill_(0, reduction.anchor, False)]
        trim = self.method.trim_from(self.shape)
        for k, (layer, tokens) in enumerate(zip(cache.layers, held)):
            n = len(tokens)
            trimmed = trim is not None and k >= trim
            stays = torch.isin(tokens, alive[reduction.anchor]) if trimmed else ~torch.isin(tokens, gone)
            places = start + stays.nonzero().flatten()
            layer.keys = splice(layer.keys, start, n, layer.keys[:, :, places])
            layer.values = splice(layer.values, start, n, layer.values[:, :, places])

    def step(self, prefilled: Prefilled, token: Tensor, done: int) -> Tensor:
        """Feed one token [1] back; `done` tokens were fed back before. Returns the next one, [1]."""
        lm, cache = self.adapter.decoder(self.model), prefilled.cache
        h = lm.embed_tokens(token[None])  # [1, 1, D]
        ropes = {p: lm.rotary_emb(h, torch.full((1, 1), p + done, device=h.device)) for p in set(prefilled.positions)}
        for layer, position in zip(lm.layers, prefilled.positions):
            h = layer(
                h, attention_mask=None, position_embeddings=ropes[position], past_key_values=cache, use_cache=True
            )
        return self._next_token(lm, h)

    def _next_token(self, lm, h: Tensor) -> Tensor:
        """h [1, S, D] -> the likeliest token after the last position, [1]."""
        logits = self.adapter.lm_head(self.model)(lm.norm(h[:, -1]))  # [1, vocabulary]
        return logits.argmax(-1)

    # -- result ---------------------------------------------------------------------------------------------------
    def result(self, encoded: Encoded, prefilled: Prefilled, ids: list[int], shared: bool) -> Run:
        seconds = dict(self.watch.seconds)
        if shared:  # the pass that was made earlier, as if made now
            for stage, value in encoded.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
        layers = prefilled.cache.layers
        return Run(
            method=self.method,
            answer=_text(self.vlm, ids),
            token_ids=ids,
            trace=self.trace,
            timings=timings_ms(seconds, len(ids) - 1),
            flops=cost.run_flops(
                self.vlm.spec,
                self.trace.schedule,
                prefilled.text_tokens,
                len(ids),
                encoder_schedule=encoded.schedule,
                projector_tokens=self.projected,
                overhead=self.overhead,
                patches=encoded.grid[0] * encoded.grid[1],
                cache_schedule=prefilled.cached,
                mlp_schedule=prefilled.fed,
                encoder_mlp_schedule=encoded.fed,
            ),
            kv_bytes=sum(part.numel() * part.element_size() for layer in layers for part in (layer.keys, layer.values)),
            kv_lengths=[layer.keys.shape[-2] for layer in layers],
            vision_shared=shared,
        )


def _first(rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """[1, S, d] each -> [S, d] each."""
    return rope[0][0], rope[1][0]
