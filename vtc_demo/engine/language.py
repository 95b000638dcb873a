"""The second half of a pass: the prompt through the decoder (`prefill`), then word by word (`step`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vtc_demo.connectors.base import LayerMemory
from vtc_demo.core.effects import Effect, Redistribute, SizeBias, SparseMLP
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.models.layout import Prompt

from .effects import CachedTokens, affected_step, biased, causal, edit_cache, pick, run_layer
from .hooks import Answer
from .question import Question
from .state import Sequence
from .vision import Projected

if TYPE_CHECKING:
    from .forward import ForwardPass


@dataclass
class Prefilled:
    """What decoding goes on from. All lists are [layers].

    positions: the position that the first decoded token takes. entered, fed: visual tokens through the attention and
    the MLP; held: what the cache holds of the prompt; bias: of its keys, where a method weighs them. effects: by layer,
    what steps must do too. spared: bytes that a quantised cache does not take.
    """

    memory: LayerMemory  # what a connector's layers hold of the picture
    cache: DynamicCache
    positions: list[int]
    token: Tensor  # [1], the first of the answer
    text_tokens: int
    entered: list[int]
    fed: list[int]
    held: list[CachedTokens]
    bias: list[Tensor | None]
    effects: dict[int, list[Effect]]
    spared: int = 0
    done: int = 0  # tokens fed after the prompt

    @property
    def cached(self) -> list[int]:
        """Visual tokens in each layer's cache."""
        return [len(held.tokens) for held in self.held]

    @property
    def kv_bytes(self) -> int:
        """Of the cache, and of what is held of the picture in its place."""
        held = [part for parts in self.memory.values() for part in parts]
        cached = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return sum(part.numel() * part.element_size() for part in held + cached) - self.spared


def assemble(work: ForwardPass, prompt: Prompt, projected: Projected) -> Sequence:
    """The prompt with its visual tokens.

    Visual tokens stand in the order of their anchors, or in the method's own order if they form one span whose
    positions are counted through. Positions are counted anew, except on several axes, where each token keeps its.
    """
    backend, layout = work.backend, work.hooks.layout
    anchor = projected.anchor.to(prompt.ids.device)
    positions, length = backend.positions(prompt, layout)
    rank = layout.rank.to(anchor.device)[anchor]
    places = prompt.visual[(rank + 1) // 2]
    order = 2 * places - rank % 2
    if positions is None and prompt.in_one_span:
        order = (2 * prompt.visual[0]).expand(len(anchor))
    order = torch.cat([2 * prompt.others, order]).argsort(stable=True)
    words = backend.words(prompt)  # [1, o, D]
    hidden = torch.cat([words, projected.tokens.to(words)], 1)[:, order]  # [1, S, D]
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    if positions is None:
        ids, length = torch.arange(hidden.shape[1], device=hidden.device)[None], hidden.shape[1]
    else:
        ids = positions[..., torch.cat([prompt.others, places])[order]]
    rope = backend.rope(hidden, ids)
    return Sequence(
        hidden,
        visual=place[len(prompt.others) :],
        others=place[: len(prompt.others)],
        alive=torch.arange(len(anchor), device=hidden.device),
        anchor=anchor,
        rope=rope,
        whole=rope,
        length=length,
        deepstack=projected.deepstack,
    )


def prefill(work: ForwardPass, prompt: Prompt, projected: Projected, question: Question | None = None) -> Prefilled:
    """The prompt through the decoder.

    Dropped tokens leave the sequence at the layer that the method names. Their positions stay vacant, or are closed up
    if the method renumbers (then every later layer goes on from its own length); positions on several axes are never
    closed up.
    """
    backend, hooks = work.backend, work.hooks
    seq = assemble(work, prompt, projected)
    hooks.enter_llm(seq.anchor)
    asking = _Asking(work, prompt, question)
    memory, sees = _outside(work, prompt, projected, seq.length)
    out = Prefilled(memory, backend.cache(), [], torch.empty(0), len(seq.others), [], [], [], [], {})
    cache, entered = out.cache, seq
    for k in backend.layers:
        work.cancel.look()
        site, seq = Site("llm_layer", k), seq.to(seq.hidden.device)
        inside = hooks.inside(site)
        effects: list[Effect] = []
        if site in hooks.sites and not inside:
            whole = k and len(entered.visual) == len(seq.visual)  # not after a layer that some tokens skipped
            previous = backend.probe(k - 1, entered, cache.layers[k - 1].keys[0]) if whole else None
            seq, effects = asking.reduced(site, seq, previous=previous, next=backend.probe(k, seq))
        out.positions.append(seq.length)
        if inside:
            how = {"attention_mask": None, "position_embeddings": seq.rope, "past_key_values": cache}
            entered = seq
            seq = replace(seq, hidden=backend.attend(k, seq.hidden, use_cache=True, **how))
            previous = backend.probe(k, entered, cache.layers[k].keys[0])
            seq, _ = asking.reduced(site, seq, inside=True, previous=previous)
            seq, fed = replace(seq, hidden=backend.feed(k, seq.hidden)), len(seq.visual)
        else:
            seq, entered, fed = run_layer(work, k, seq, memory, sees, effects, cache)
        if seq.deepstack:
            added, *later = seq.deepstack
            seq = replace(seq, hidden=seq.hidden.index_add(1, seq.visual, added.to(seq.hidden)), deepstack=later)
        out.entered.append(len(entered.visual))
        out.fed.append(fed)
        out.held.append(CachedTokens(entered.alive, entered.visual, entered.others))
        out.bias.append(entered.bias)
        out.effects[k] = effects
    out.token = backend.next_token(seq.hidden)
    whole = Site("kv_cache") in hooks.sites and len(entered.visual) == len(seq.visual)
    last = backend.probe(k, entered, cache.layers[k].keys[0]) if whole else None
    reduction, effects = asking.ask(Site("kv_cache"), seq, previous=last)
    if effects:
        left = seq.alive if reduction is None else seq.alive[reduction.anchor]
        out.spared = edit_cache(cache, out.held, left, effects)
    if reduction is not None:
        evict(work, out, seq.alive, reduction)
        if asking.renumber(seq):
            out.positions = [layer.keys.shape[-2] for layer in cache.layers]
    return out


@dataclass
class _Asking:
    """The method asked about the visual tokens of a sequence."""

    work: ForwardPass
    prompt: Prompt
    question: Question | None

    def renumber(self, seq: Sequence) -> bool:
        return self.work.method.positions == "renumber" and self.work.adapter.axes == 1

    def ask(self, site: Site, seq: Sequence, inside: bool = False, **probes: Any) -> Answer:
        text = seq.others[self.prompt.text.to(seq.others.device)]
        state: dict[str, Any] = {"extra": 0, "sequence": seq.hidden[0], "visual": seq.visual, "text": text}
        state |= {"after": self.prompt.after, "question": self.question, "copies": 1 + len(seq.deepstack)}
        return self.work.hooks.ask(site, seq.tokens, seq.anchor, ordered=True, inside=inside, **state, **probes)

    def reduced(self, site: Site, seq: Sequence, inside: bool = False, **probes: Any) -> tuple[Sequence, list[Effect]]:
        reduction, effects = self.ask(site, seq, inside, **probes)
        seq = seq if reduction is None else seq.reduce(reduction, self.renumber(seq))
        size = pick(effects, SizeBias)
        return (seq if size is None else biased(seq, size)), effects


def _outside(work: ForwardPass, prompt: Prompt, projected: Projected, length: int) -> tuple[LayerMemory, Tensor | None]:
    """(what layers hold of tokens outside the sequence, which words [S] come after the picture)."""
    if projected.outside is None:
        return {}, None
    place = int(prompt.visual[0])  # of the first word after the picture, which has none of its own
    memory = work.backend.layer_memory(projected.outside, place)
    return memory, torch.arange(length, device=projected.outside.device) >= place


def evict(work: ForwardPass, prefilled: Prefilled, alive: Tensor, reduction: Reduction) -> None:
    """Remove the dropped visual tokens from every layer's cache.

    Tokens that prefill dropped after a layer stay in its cache, unless the method trims that layer.
    """
    if not reduction.is_selection:
        raise ValueError(f"{work.method.card.name}: cache entries can be selected, not merged")
    gone = alive[torch.ones_like(alive, dtype=torch.bool).index_fill_(0, reduction.anchor, False)]
    trim = work.method.trim_from(work.hooks.shape)
    for k, (layer, held) in enumerate(zip(prefilled.cache.layers, prefilled.held, strict=True)):
        trimmed = trim is not None and k >= trim
        left = torch.isin(held.tokens, (alive[reduction.anchor] if trimmed else gone).to(held.tokens.device))
        stays = left if trimmed else ~left
        places = torch.cat([held.others, held.visual[stays]])
        order = places.argsort()
        kept = places[order]
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        words = len(held.others)
        prefilled.held[k] = CachedTokens(held.tokens[stays], rank[words:], rank[:words])
        bias = prefilled.bias[k]
        prefilled.bias[k] = None if bias is None else bias[kept]


def step(work: ForwardPass, prefilled: Prefilled, tokens: Tensor) -> Tensor:
    """Feed tokens [q] after all others: one of the answer, or a further turn. Returns the next one, [1]."""
    backend, cache, q = work.backend, prefilled.cache, len(tokens)
    hidden = backend.embed_tokens(tokens)  # [1, q, D]
    ahead = torch.arange(q, device=hidden.device)[None] + prefilled.done
    ahead = ahead if work.adapter.axes == 1 else ahead.expand(work.adapter.axes, 1, q)
    ropes = {p: backend.rope(hidden, ahead + p) for p in set(prefilled.positions)}
    for k, (layer, position) in enumerate(zip(cache.layers, prefilled.positions, strict=True)):
        past, bias, mask = layer.keys.shape[-2], prefilled.bias[k], None
        if bias is not None:  # answer tokens stand for themselves
            bias = torch.cat([bias, bias.new_zeros(past + q - len(bias))])
            mask = causal(bias, q, hidden.dtype)
        elif q > 1:  # without a mask, several tokens over a cache would each see all of them
            mask = torch.ones(q, past + q, dtype=torch.bool, device=hidden.device).tril(past)[None, None]
        how = {"attention_mask": mask, "position_embeddings": ropes[position], "past_key_values": cache}
        if any(isinstance(effect, Redistribute | SparseMLP) for effect in prefilled.effects[k]):
            hidden = affected_step(work, k, hidden, prefilled, bias, how)
        else:
            hidden = backend.layer(k, hidden, prefilled.memory, None, use_cache=True, **how)
    prefilled.done += q
    return backend.next_token(hidden)
