"""The first half of a pass: pictures through the tower, features through the projector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.models.attention import EncoderHalves, EncoderProbe
from vtc_demo.models.layout import Inputs, Layout

from .asking import Asking


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


class Vision(Asking):
    """From pixels to the visual tokens of the language model."""

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
        deep = [adapter.project_deepstack(model, i, d[None]) for i, d in enumerate(deep)]
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
        if self.connector.outside:
            none = features.new_zeros(1, 0, self.vlm.spec.hidden)
            return Projected(none, reduction.anchor[:0], [], made.tokens)
        return Projected(made.tokens, reduction.anchor, [])
