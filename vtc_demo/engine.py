"""The one inference loop: encode -> project -> prefill -> decode, asking the method at each of its sites.

Nothing is patched and no state is kept between runs: tokens that a method drops are gone from the hidden states and
from the caches of all later layers. Batch 1, greedy decoding, fused attention (SDPA) without a mask, which means causal
in the prefill and everything in a decode step. Where the visual tokens stand in the prompt is the layout's affair: one
span, rows with line breaks between them, tiles of one picture, or several pictures.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from . import compiled, cost
from .attention import DecoderHalves, DecoderProbe, EncoderHalves, EncoderProbe
from .connectors import store
from .connectors.base import Connector, Held
from .images import load_rgb
from .measure import Stopwatch, timings_ms
from .methods import resolve
from .methods.base import Method, ModelShape
from .models import VLM
from .models.layout import Inputs, Layout, Prompt
from .rearrange import in_order, joined, shrink
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
    """The vision pass of one prompt's pictures. features, entered [N, C]: output and input of the feature layer."""

    features: Tensor
    entered: Tensor
    layout: Layout
    state: Any  # the adapter's, see `Adapter.embed`
    taps: tuple[Tensor, ...]  # outputs of earlier layers that the decoder is given, too
    extra: int  # leading tokens that are no patch
    schedule: tuple[int, ...]  # tokens entering each encoder layer that ran (all crops together)
    fed: tuple[int, ...]  # tokens through the MLP of each
    seconds: dict[str, float]  # preprocess and vision


class Projected(NamedTuple):
    """Visual tokens on their way into the LLM. tokens [1, n, D]; stand [n]: the token at the projector at which each
    stands; deep: for each of the first decoder layers what is added to the visual tokens after it, [1, n, D]; beside
    [1, m, D]: tokens that layers read without their standing in the sequence."""

    tokens: Tensor
    stand: Tensor
    deep: list[Tensor]
    beside: Tensor | None = None


def run(vlm: VLM, image, question: str, method: Method, **options) -> Run:
    """The last event of `stream`."""
    for event in stream(vlm, image, question, method, **options):
        last = event.data
    return last


def pictures(source) -> list[Image.Image]:
    """One picture or several (a list of them), each anything that `load_rgb` takes. Raises ValueError for none."""
    if not isinstance(source, list | tuple):
        return [load_rgb(source)]
    if not source:
        raise ValueError("the list of images is empty; give at least one")
    return [load_rgb(one) for one in source]


def picture_key(image: Image.Image | list[Image.Image]) -> str:
    """The same for images of the same pixels."""
    if isinstance(image, list):
        return "".join(map(picture_key, image))
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
    budget: str = "global",
) -> Iterator[Event]:
    """Answer a question, as a stream of events that ends with the Run. Closing the generator stops the work.

    image: anything `load_rgb` takes, or a list of such for several pictures. seed: for methods that draw at random.
    ignore_eos: answers of a fixed length, for timing. key: `picture_key` of the image if it is at hand. budget: where
    pictures are encoded as several views, "global" ranks the tokens of all views together, "crop" asks the method view
    by view, so that each keeps its share. The vision pass of the last image is kept on the VLM and shared by methods
    that act neither on the image nor inside the tower. Raises ValueError for bad input and for a method that the model
    or the image does not suit.
    """
    check_length(max_new_tokens)
    images = pictures(image)
    work = Pass(vlm, method, seed, budget)
    yield from first_turn(work, images, vlm.check_question(question), max_new_tokens, ignore_eos, key)


def first_turn(
    work: Pass, images: list[Image.Image], question: str, max_new_tokens: int, ignore_eos: bool, key: str | None = None
) -> Iterator[Event]:
    """The events of `stream`."""
    vlm, watch = work.vlm, work.watch
    yield from watch.pause(Event("stage", "preprocess"))
    encoded = work.recall(key := key or picture_key(images))
    shared = encoded is not None
    if not shared:
        watch.enter("preprocess")
        inputs = vlm.inputs(images, work.side)
        yield from watch.pause(Event("stage", "vision"))
        watch.enter("vision")
        encoded = work.encode(inputs)
        watch.enter(None)
        encoded = work.remember(key, encoded)
    else:
        work.lay(encoded.layout)
    watch.enter("preprocess")
    prompt = vlm.prompt(question, encoded.layout)

    yield from watch.pause(Event("stage", "projector"))
    watch.enter("projector")
    visual = work.project(encoded)

    yield from watch.pause(Event("stage", "prefill"))
    watch.enter("prefill")
    prefilled = work.prefill(prompt, visual)
    ids = yield from decode(work, prefilled, prefilled.token, max_new_tokens, ignore_eos)
    yield Event("run", work.result(encoded, prefilled, ids, shared))


def decode(
    work: Pass, prefilled: Prefilled, token: Tensor, max_new_tokens: int, ignore_eos: bool = False
) -> Iterator[Event]:
    """One event per token from `token` [1] on, then (as the generator's value) the ids of the answer."""
    vlm, watch = work.vlm, work.watch
    ids = token.tolist()
    yield from watch.pause(Event("token", answer_text(vlm, ids)))

    yield from watch.pause(Event("stage", "decode"))
    while len(ids) < max_new_tokens and (ignore_eos or ids[-1] not in vlm.eos_ids):
        watch.enter("decode")
        token = work.step(prefilled, token)
        ids += token.tolist()  # the one wait for the device in a step
        yield from watch.pause(Event("token", answer_text(vlm, ids)))
    watch.enter(None)
    work.prefilled, work.said = prefilled, ids
    return ids


@torch.inference_mode()
def warm_up(vlm: VLM) -> None:
    """One short pass, once per VLM, so that the first run does not pay for what is made once (memory, kernels)."""
    if vlm.warm:
        return
    vlm.warm = True
    work = Pass(vlm, resolve("full"), seed=0)
    inputs = vlm.inputs([Image.new("RGB", (64, 64))])
    placeholder = vlm.config.image_token_id
    prompt = Prompt.build([0] * 8 + [placeholder] + [0] * 8, placeholder, inputs.layout, vlm.device)
    prefilled = work.prefill(prompt, work.project(work.encode(inputs)))
    work.step(prefilled, prefilled.token)


def check_length(max_new_tokens: int) -> int:
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be between 1 and {MAX_NEW_TOKENS}")
    return max_new_tokens


def answer_text(vlm: VLM, ids: list[int]) -> str:
    return vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()


@dataclass
class Prefilled:
    """What decoding goes on from. positions [layers]: the position that the first decoded token takes in each layer."""

    held: Held  # what a connector keeps of the picture for the layers
    cache: DynamicCache
    positions: list[int]
    token: Tensor  # [1], the first of the answer
    text_tokens: int
    fed: list[int]  # visual tokens through each layer's MLP
    cached: list[int]  # visual tokens in each layer's cache
    done: int = 0  # tokens fed after the prompt

    @property
    def kv_bytes(self) -> int:
        """Of the cache, and of what is held of the picture in its place."""
        held = [part for parts in self.held.values() for part in parts]
        cached = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return sum(part.numel() * part.element_size() for part in held + cached)


class Pass:
    """One forward pass of one method: its sites, its trace, its clock."""

    decoder_probe = DecoderProbe  # how attention rows of a decoder layer are had

    def __init__(self, vlm: VLM, method: Method, seed: int, budget: str = "global"):
        if budget not in ("global", "crop"):
            raise ValueError(f"budget={budget!r}; choose 'global' or 'crop'")
        self.vlm, self.method, self.seed, self.budget = vlm, method, seed, budget
        self.model, self.adapter, self.shape = vlm.model, vlm.adapter, vlm.shape
        self.connector: Connector | None = None
        if method.connector is not None:  # with a decoder of its own, on the same tower
            self.connector, self.model = store.fit(vlm, method)
        self.sites = frozenset(method.sites(self.shape))
        for site in self.sites:
            self._check_site(site)
        self.side = self._check_side(method.image_side(self.shape))
        self.watch = Stopwatch(vlm.device)
        self.prefilled: Prefilled | None = None  # once there is an answer: its cache, to go on from
        self.said: list[int] = []  # and its ids
        self.entry: Tensor | None = None  # tokens at the projector for which those stand that entered the LLM
        self.projected = 0  # tokens through the projector
        self.overhead = 0  # FLOPs of the method
        self.memory: dict[Any, dict[str, Any]] = defaultdict(dict)  # of the method, from site to site, by view

    def lay(self, layout: Layout) -> None:
        """Learn how the pictures are laid out; from here on there are a trace and the final shape."""
        if not layout.plain and (site := next((s for s in self.sites if s.kind == "vision_layer"), None)):
            raise ValueError(
                f"{self.method.card.name}: {site} cannot be used with this model or picture: tokens can leave inside a "
                "tower only where it encodes one view, whose tokens reach the language model one by one"
            )
        if layout.blend is not None and Site("projector") in self.sites:
            raise ValueError(
                f"{self.method.card.name}: this picture has so many tiles that the model scales them down after the "
                "projector, where this method acts; use a smaller picture or a method that acts later"
            )
        if self.connector is not None and not layout.plain:
            raise ValueError(f"{self.method.card.name} was trained with one picture per question; give a single image")
        self.layout, extra, layers = layout, layout.extra, self.shape.llm_layers
        grid = layout.crops[0].grid if len(layout.crops) == 1 else (1, layout.units)
        drawn = self.shape.grid if self.side else layout.sheet[0]
        beside = self.connector is not None and self.connector.beside
        self.trace = Trace(drawn, extra, layers, cells=layout.cells, beside=beside)
        if self.side:
            self.trace.add(Site("input_image"), shrink(drawn, grid, extra))
        self.shape = replace(self.shape, grid=grid)
        self.tokens0 = layout.units

    def _check_site(self, site: Site) -> None:
        name = self.method.card.name
        if site.kind == "input_image":
            raise ValueError(f"{name}: an image is scaled through image_side, not at a site")
        layers = {"vision_layer": self.shape.feature_layer + 1, "llm_layer": self.shape.llm_layers}.get(site.kind)
        if layers is not None and not 0 <= site.layer < layers:
            raise ValueError(f"{name}: {site} does not exist; this model has {site.kind} 0 to {layers - 1}")

    def _check_side(self, side: int | None) -> int | None:
        patch = self.shape.patch_size
        if side is not None and not self.adapter.resizable:
            raise ValueError(f"{self.method.card.name}: models of this family set the size of the picture themselves")
        if side is None or side == self.shape.grid[0] * patch:
            return None
        if side % patch or not patch <= side <= self.shape.grid[0] * patch:
            raise ValueError(
                f"{self.method.card.name}: an image side of {side} pixels does not fit; use a multiple of {patch} "
                f"up to {self.shape.grid[0] * patch}"
            )
        return side

    # -- asking the method ----------------------------------------------------------------------------------------
    def ask(self, site: Site, hidden: Tensor, stand: Tensor, ordered: bool = False, **state) -> Reduction | None:
        """The method's reduction of the tokens hidden [n, C] at a site, recorded and its cost booked.

        stand [n]: the token at the projector at which each stands. ordered: the tokens stand in a sequence, so rows
        are put in the order of their anchors.
        """
        if site not in self.sites:
            return None
        stage = self.watch.enter("compression")
        several = len(self.layout.crops) > 1
        if several and (self.budget == "crop" or self.method.gridded):
            reduction = self._by_crop(site, hidden, stand, **state)
        else:
            reduction = self._ask(site, hidden, self.shape, None, **state)
        if reduction is not None:
            reduction = in_order(reduction) if ordered else reduction
            self.trace.add(site, reduction, self.method.inside and site.layer is not None)
        self.watch.enter(stage)
        return reduction

    def _ask(self, site: Site, hidden: Tensor, shape: ModelShape, index: int | None, **state) -> Reduction | None:
        state = {"tokens0": self.tokens0, "seed": self.seed, "trace": self.trace} | state
        view = SiteView(site, shape, hidden, memory=self.memory[index], **state)
        reduction = self.method.reduce(view)
        n, width = hidden.shape
        self.overhead += view.spent + self.method.overhead_flops(site, n, width, shape)
        if reduction is None:
            return None
        if not isinstance(reduction, Reduction) or reduction.n != n:
            raise ValueError(f"{self.method.card.name}: at {site} a Reduction of {n} tokens was due, got {reduction!r}")
        return reduction.to(hidden.device)

    def _by_crop(self, site: Site, hidden: Tensor, stand: Tensor, extra: int, visual=None, **state) -> Reduction | None:
        """One reduction, put together from those of each view."""
        owner, found = self.layout.owner[stand.cpu()], []
        for i, crop in enumerate(self.layout.crops):
            places = (owner == i).nonzero().flatten()  # on the CPU, as the trace is
            if not len(places):
                continue
            part = places.to(hidden.device)
            own = {"extra": int((places < extra).sum()), "part": places, "crop": crop, "seed": self.seed + i}
            entered = len(crop.units) if self.entry is None else int((self.layout.owner[self.entry.cpu()] == i).sum())
            own |= {"tokens0": entered, "visual": None if visual is None else visual[part]}
            for name in ("previous", "next"):
                if isinstance(probe := state.get(name), EncoderProbe):
                    own[name] = probe.only(part)
            one = self._ask(site, hidden[part], replace(self.shape, grid=crop.grid), i, **(state | own))
            found.append((part, one))
        if all(one is None for _, one in found):
            return None
        return in_order(joined(found, len(hidden)))

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

    def encode(self, inputs: Inputs) -> Encoded:
        """The pictures through the tower up to the feature layer; later layers are not run."""
        layout = inputs.layout
        self.lay(layout)
        h, state = self.adapter.embed(self.model, inputs, self.side is not None)  # [crops, s, C]
        layers = self.adapter.encoder_layers(self.model)[: self.shape.feature_layer + 1]
        extra, entered, schedule, fed, taps = layout.extra, None, [], [], []

        def probe(i, entered):
            return self._probe(layers[i], i, entered, state)

        def reduce(h, i, **probes):
            nonlocal extra
            reduction = self.ask(Site("vision_layer", i), h[0], None, extra=extra, **probes)
            if reduction is None:
                return h
            extra = int(extra and reduction.anchor[0].item() == 0)  # CLS stays first or is gone
            return reduction.apply(h)

        for i, layer in enumerate(layers):
            inside = self.method.inside and Site("vision_layer", i) in self.sites
            if Site("vision_layer", i) in self.sites and not inside:
                h = reduce(h, i, previous=probe(i - 1, entered) if i else None, next=probe(i, h))
            schedule.append(h.shape[0] * h.shape[1])
            entered = h
            if inside:
                h = reduce(EncoderHalves.attend(layer, h), i, previous=probe(i, entered))
            fed.append(h.shape[0] * h.shape[1])
            h = EncoderHalves.feed(layer, h) if inside else self.adapter.run_layer(layer, i, h, state)
            if i in self.adapter.taps(self.vlm.config):
                taps.append(h.flatten(0, 1))
        features = self.adapter.finish(self.model, h).flatten(0, 1)  # [N, C]
        return Encoded(
            features, entered.flatten(0, 1), layout, state, tuple(taps), extra, tuple(schedule), tuple(fed), {}
        )

    def _probe(self, layer, i: int, entered: Tensor, state) -> EncoderProbe:
        sources, how = self.layout.sources, self.adapter.attends(i, self.layout, state)
        return self.adapter.probe(layer, entered.reshape(-1, entered.shape[-1]), sources, **how)

    def project(self, encoded: Encoded) -> Projected:
        """From the feature layer's output to the visual tokens of the LLM."""
        if self.connector is not None:
            return self._connect(encoded.features)
        adapter, model, site, layout = self.adapter, self.model, Site("projector"), encoded.layout
        sources = layout.sources
        pick = (lambda x: x) if sources is None else (lambda x: x[sources].flatten(1))
        features = pick(encoded.features)  # [extra + n, g * C]
        deep = [pick(tap) for tap in encoded.taps]
        layers, last = adapter.encoder_layers(model), self.shape.feature_layer
        state = {"extra": encoded.extra, "previous": self._probe(layers[last], last, encoded.entered, encoded.state)}
        if last + 1 < len(layers):  # a layer that does not run, but whose attention over the features can be asked for
            state["next"] = self._probe(layers[last + 1], last + 1, encoded.features, encoded.state)
        stand = torch.arange(len(features), device=features.device)
        reduction = self.ask(site, features, stand, **state)
        if reduction is None and encoded.extra and not layout.keeps_extra:
            n = features.shape[0]
            reduction = Reduction.select(torch.arange(encoded.extra, n, device=features.device), n)
            self.trace.add(site, reduction)
        if reduction is not None:
            features, stand = reduction.apply(features), stand[reduction.anchor]
            deep = [reduction.apply(d) for d in deep]
        self.projected = features.shape[0]
        visual = adapter.pack(model, adapter.project(model, features[None]), layout)  # [1, n, D]
        if layout.blend is not None:
            stand = torch.arange(layout.units, device=visual.device)
        deep = [adapter.project_deep(model, i, d[None]) for i, d in enumerate(deep)]
        reduction = self.ask(Site("llm_input"), visual[0], stand, extra=0)
        if reduction is not None:
            visual, stand = reduction.apply(visual), stand[reduction.anchor]
            deep = [reduction.apply(d) for d in deep]
        return Projected(visual, stand, deep)

    def _connect(self, features: Tensor) -> Projected:
        """The same by a trained connector; features [1 + n, C]."""
        method, patches = self.method, self.shape.patches
        made = self.connector(features[None], self.shape.grid, method.keep(patches), **method.options())
        reduction = made.reduction(len(features))
        self.trace.add(Site("projector"), reduction)
        if self.connector.beside:
            none = features.new_zeros(1, 0, self.vlm.spec.hidden)
            return Projected(none, reduction.anchor[:0], [], made.tokens)
        return Projected(made.tokens, reduction.anchor, [])

    # -- language -------------------------------------------------------------------------------------------------
    def assemble(self, lm, prompt: Prompt, visual: Tensor, stand: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """The prompt with its visual tokens [1, n, D]: (sequence [1, S, D], position ids, places of the visual tokens
        [n], places of all others [o], next position).

        Visual tokens stand in the order of their anchors, or in the method's own order if they form one span whose
        positions are counted through. Positions are counted anew, except on several axes, where each token keeps its.
        """
        positions, after = self.adapter.positions(self.model, prompt, self.layout)
        rank = self.layout.rank.to(stand.device)[stand]
        places = prompt.visual[(rank + 1) // 2]
        order = 2 * places - rank % 2
        if positions is None and prompt.in_one_span:
            order = (2 * prompt.visual[0]).expand(len(stand))
        order = torch.cat([2 * prompt.others, order]).argsort(stable=True)
        words = lm.embed_tokens(prompt.ids[prompt.others].clamp(min=0)[None])  # [1, o, D]
        if len(prompt.newlines):
            words[:, prompt.newlines] = self.adapter.newline(self.model).to(words)
        h = torch.cat([words, visual.to(words)], 1)[:, order]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        others, at = place[: len(prompt.others)], place[len(prompt.others) :]
        if positions is None:
            return h, torch.arange(h.shape[1], device=h.device)[None], at, others, h.shape[1]
        return h, positions[..., torch.cat([prompt.others, places])[order]], at, others, after

    def prefill(self, prompt: Prompt, projected: Projected) -> Prefilled:
        """The prompt through the decoder.

        Dropped tokens leave the sequence at the layer that the method names. Their positions stay vacant, or are
        closed up if the method renumbers (then every later layer goes on from its own length); positions on several
        axes are never closed up.
        """
        lm = self.adapter.decoder(self.model)
        visual, stand, deep, beside = projected
        stand = stand.to(prompt.ids.device)
        h, ids, at, others, length = self.assemble(lm, prompt, visual, stand)
        n, text = len(stand), len(others)
        self.tokens0, self.entry = n, stand
        renumber = self.method.positions == "renumber" and ids.dim() == 2
        contiguous = rope = lm.rotary_emb(h, ids)  # cos, sin [1, S, d]
        cache, positions, held, alive, fed = DynamicCache(), [], [], torch.arange(n, device=h.device), []
        previous, held_beside, sees = None, {}, None
        if beside is not None:
            place = int(prompt.visual[0])  # of the first word after the picture, which has none of its own
            held_beside = self.connector.remember(lm, beside, place)
            sees = torch.arange(length, device=h.device) >= place

        def view(h, **probes):
            return {
                "extra": 0,
                "sequence": h[0],
                "visual": at,
                "text": others[prompt.text.to(others.device)],
                "after": prompt.after,
            } | probes

        def reduce(h, k, **probes):
            nonlocal length, rope, alive, at, others, deep
            reduction = self.ask(Site("llm_layer", k), h[0, at], stand[alive], ordered=True, **view(h, **probes))
            if reduction is None:
                return h
            new = at[reduction.anchor]
            order = torch.cat([others, new]).argsort(stable=True)
            kept = torch.cat([others, new])[order]
            if reduction.is_selection:
                h = h[:, kept]
            else:
                h = torch.cat([h[:, others], reduction.apply(h[:, at])], 1)[:, order]
            if renumber:
                length = h.shape[1]
                rope = tuple(part[:, :length] for part in contiguous)
            else:
                rope = tuple(part[:, kept] for part in rope)
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order), device=order.device)
            others, at = place[: len(others)], place[len(others) :]
            alive, deep = alive[reduction.anchor], [reduction.apply(d.to(h.device)) for d in deep]
            return h

        for k, layer in enumerate(lm.layers):
            if (where := next(layer.parameters()).device) != h.device:  # a device_map: go where the layer is
                h, at, others, alive, stand = (x.to(where) for x in (h, at, others, alive, stand))
                rope, contiguous = (tuple(part.to(where) for part in turns) for turns in (rope, contiguous))
            inside = self.method.inside and Site("llm_layer", k) in self.sites
            if Site("llm_layer", k) in self.sites and not inside:
                h = reduce(h, k, previous=previous, next=self.decoder_probe(layer, h[0], _first(rope)))
            positions.append(length)
            held.append((alive, at, others))
            entered, turns = h[0], _first(rope)
            how = {"attention_mask": None, "position_embeddings": rope, "past_key_values": cache, "use_cache": True}
            h = DecoderHalves.attend(layer, h, **how) if inside else self._layer(k, layer, h, held_beside, sees, **how)
            previous = self.decoder_probe(layer, entered, turns, cache.layers[k].keys[0])
            if inside:
                h = DecoderHalves.feed(layer, reduce(h, k, previous=previous))
            if k < len(deep):
                h = h.index_add(1, at, deep[k].to(h))
            fed.append(len(at))
        token = self._next_token(lm, h)
        site = Site("kv_cache")
        reduction = self.ask(site, h[0, at], stand[alive], ordered=True, **view(h, previous=previous))
        if reduction is not None:
            self._evict(cache, held, alive, reduction)
            if renumber:
                positions = [layer.keys.shape[-2] for layer in cache.layers]
        cached = [layer.keys.shape[-2] - text for layer in cache.layers]
        return Prefilled(held_beside, cache, positions, token, text, fed, cached)

    def _layer(self, k: int, layer, h: Tensor, held: Held, sees: Tensor | None, **how) -> Tensor:
        """Decoder layer k: by way of the connector if there is one, or compiled if the model is."""
        if self.connector is not None:
            return self.connector.run(k, layer, h, held, sees, **how)
        if self.vlm.compiled is not None:
            return compiled.run(self.vlm.compiled, k, layer, h, **how)
        return layer(h, **how)

    def _evict(self, cache: DynamicCache, held: list[tuple], alive: Tensor, reduction: Reduction) -> None:
        """Remove the dropped visual tokens from every layer's cache. held [layers]: the visual tokens that each holds,
        their places in it and those of all others.

        Tokens that prefill dropped after a layer stay in its cache, unless the method trims that layer.
        """
        if not reduction.is_selection:
            raise ValueError(f"{self.method.card.name}: cache entries can be selected, not merged")
        gone = alive[torch.ones_like(alive, dtype=torch.bool).index_fill_(0, reduction.anchor, False)]
        trim = self.method.trim_from(self.shape)
        for k, (layer, (tokens, at, others)) in enumerate(zip(cache.layers, held)):
            trimmed = trim is not None and k >= trim
            left = torch.isin(tokens, (alive[reduction.anchor] if trimmed else gone).to(tokens.device))
            stays = left if trimmed else ~left
            kept = torch.cat([others, at[stays]]).sort().values
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]

    def step(self, prefilled: Prefilled, tokens: Tensor) -> Tensor:
        """Feed tokens [q] after all others: one of the answer, or a further turn. Returns the next one, [1]."""
        lm, cache, q = self.adapter.decoder(self.model), prefilled.cache, len(tokens)
        h = lm.embed_tokens(tokens[None])  # [1, q, D]
        ahead = torch.arange(q, device=h.device)[None] + prefilled.done
        ahead = ahead if self.adapter.axes == 1 else ahead.expand(self.adapter.axes, 1, q)
        ropes = {p: lm.rotary_emb(h, ahead + p) for p in set(prefilled.positions)}
        for k, (layer, held, position) in enumerate(zip(lm.layers, cache.layers, prefilled.positions)):
            mask = None
            if q > 1:  # without a mask, several tokens over a cache would each see all of them
                past = held.keys.shape[-2]
                mask = torch.ones(q, past + q, dtype=torch.bool, device=h.device).tril(past)[None, None]
            how = {"attention_mask": mask, "position_embeddings": ropes[position], "past_key_values": cache}
            h = self._layer(k, layer, h, prefilled.held, None, use_cache=True, **how)
        prefilled.done += q
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
            answer=answer_text(self.vlm, ids),
            token_ids=ids,
            trace=self.trace,
            timings=timings_ms(seconds, len(ids) - 1),
            flops=self._flops(encoded, prefilled, len(ids)),
            kv_bytes=prefilled.kv_bytes,
            kv_lengths=[layer.keys.shape[-2] for layer in layers],
            vision_shared=shared,
        )

    def _flops(self, encoded: Encoded, prefilled: Prefilled, new_tokens: int) -> dict[str, int]:
        layout, spec, pairs = encoded.layout, self.vlm.spec, None
        if not layout.plain:
            spans = [self.adapter.attends(i, layout, encoded.state)["segments"] for i in range(len(encoded.schedule))]
            pairs = [sum(n * n for n in lengths) for lengths in spans]
        flops = cost.run_flops(
            replace(spec, crops=1),
            self.trace.schedule,
            prefilled.text_tokens,
            new_tokens,
            encoder_schedule=encoded.schedule,
            projector_tokens=self.projected * (1 + len(encoded.taps)),
            overhead=self.overhead,
            patches=sum(n - spec.extra for n in layout.segments),
            cache_schedule=prefilled.cached,
            mlp_schedule=prefilled.fed,
            encoder_mlp_schedule=encoded.fed,
            encoder_pairs=pairs,
        )
        if self.connector is not None:
            m = self.trace.steps[0].reduction.m
            flops["projector"] = self.connector.flops(self.shape.patches, m) + self.connector.remember_flops(m)
        return self.with_connector(flops, prefilled.text_tokens, new_tokens)

    def with_connector(self, flops: dict[str, int], fed: int, new_tokens: int) -> dict[str, int]:
        """FLOPs by stage with what a connector adds to the layers, for `fed` words and the answer after them."""
        if self.connector is None:
            return flops
        m = self.trace.steps[0].reduction.m
        flops["prefill"] += self.connector.layer_flops(fed, m)
        flops["decode"] += (new_tokens - 1) * self.connector.layer_flops(1, m)
        return flops | {"total": sum(value for stage, value in flops.items() if stage != "total")}


def _first(rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """[1, S, d] each -> [S, d] each."""
    return rope[0][0], rope[1][0]
