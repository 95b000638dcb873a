"""The second half of a pass: the prompt with its visual tokens through the decoder, then word by word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from vtc_demo.connectors.base import LayerMemory
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.models.attention import DecoderHalves, DecoderProbe
from vtc_demo.models.layout import Prompt

from . import compiled
from .asking import Asking
from .vision import Projected


@dataclass
class Prefilled:
    """What decoding goes on from. positions [layers]: the position that the first decoded token takes in each layer."""

    held: LayerMemory  # what a connector keeps of the picture for the layers
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


class Language(Asking):
    """Prefill and decode steps."""

    decoder_probe = DecoderProbe  # how attention rows of a decoder layer are had

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
        self.base, self.entry = n, stand
        renumber = self.method.positions == "renumber" and ids.dim() == 2
        contiguous = rope = lm.rotary_emb(h, ids)  # cos, sin [1, S, d]
        cache, positions, held, alive, fed = DynamicCache(), [], [], torch.arange(n, device=h.device), []
        previous, held_beside, sees = None, {}, None
        if beside is not None:
            place = int(prompt.visual[0])  # of the first word after the picture, which has none of its own
            held_beside = self.connector.layer_memory(lm, beside, place)
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
                rope = tuple(part[0, :length][None] for part in contiguous)  # strides as of a whole one, see compiled
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

    def _layer(self, k: int, layer, h: Tensor, held: LayerMemory, sees: Tensor | None, **how) -> Tensor:
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


def _first(rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """[1, S, d] each -> [S, d] each."""
    return rope[0][0], rope[1][0]
