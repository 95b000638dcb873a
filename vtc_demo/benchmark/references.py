"""The same methods computed the way their released codes do it, as a yardstick for attention on demand.

Released codes read attention weights off the layers: these run without a fused kernel, every layer makes its whole map
(all heads, all rows), and the maps are kept until the pass ends. Here the engine's own loop runs with such layers, and
a method's questions are answered from the maps. Everything else is the same code, so a difference in time or memory is
that of the attention. Only the half of the model that a method reads, tower or decoder, is run this way.

These are ours, written for the comparison; no line is from the released codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama

from vtc_demo import engine
from vtc_demo.core.images import Pictures
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.engine.backend import Backend
from vtc_demo.models import VLM
from vtc_demo.models.attention import DecoderProbe, EncoderProbe

NAMES = ("fastv", "visionzip", "ficoco-v", "mustdrop")  # whose released codes work so
EAGER = "vtc_all_maps"
HALVES = {"vision_config": ("vision_layer", "projector"), "text_config": ("llm_layer",)}  # configuration -> its sites


class Kept(NamedTuple):
    """Of one layer. map [heads, n, n]: attention after the softmax; keys [heads, n, d]: as they entered the product."""

    map: Tensor
    keys: Tensor


_kept: dict[nn.Module, Kept] = {}  # of the pass that runs, by attention module; see `all_maps`


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options):
    """Attention of transformers' own unfused kind; the maps of a whole sequence are kept."""
    rows, n = query.shape[2], key.shape[2]
    decoder = hasattr(module, "num_key_value_groups")
    if decoder and rows > 1 and mask is None:
        future = torch.ones(rows, n, dtype=torch.bool, device=query.device).triu(n - rows + 1)
        mask = torch.zeros(rows, n, device=query.device, dtype=query.dtype).masked_fill(future, float("-inf"))
    unfused = (modeling_llama if decoder else modeling_clip).eager_attention_forward
    out, weights = unfused(module, query, key, value, mask, **options)
    if rows > 1:
        _kept[module] = Kept(weights[0], key[0])
    return out, weights


AttentionInterface.register(EAGER, attend)


@contextmanager
def all_maps(vlm: VLM, method: Method) -> Iterator[None]:
    """Inside, the layers that the method reads make whole maps. For one thread: the model's settings change."""
    kinds = {site.kind for site in method.sites(vlm.shape)}
    chosen = {half: EAGER for half, sites in HALVES.items() if kinds & set(sites)}
    vlm.model.set_attn_implementation(chosen)
    try:
        yield
    finally:
        vlm.model.set_attn_implementation(dict.fromkeys(chosen, "sdpa"))
        _kept.clear()


class TowerMaps(EncoderProbe):
    """Answers from the map that an encoder layer left behind."""

    def attention(self, rows, mean=False):
        weights = self._of_layer().map[:, rows].float()
        return weights.mean(0) if mean else weights

    def keys(self):
        return self._of_layer().keys

    def _of_layer(self) -> Kept:
        if self.block not in _kept:  # a layer behind the features: the codes run the tower to its end
            self.layer(self.entered[None], attention_mask=None)
        return _kept[self.block]


class DecoderMaps(DecoderProbe):
    """Answers from the map that a decoder layer left behind."""

    def attention(self, rows, mean=False):
        weights = _kept[self.layer.self_attn].map[:, rows].float()
        return weights.mean(0) if mean else weights


class Maps(Backend):
    """The engine's backend; attention is read off the layers."""

    def tower_probe(self, i, tower):
        return TowerMaps(self.tower_layers[i], tower.hidden) if 0 <= i < len(self.tower_layers) else None

    def probe(self, k, entered, cached=None):
        rope = (entered.rope[0][0], entered.rope[1][0])
        return DecoderMaps(self.decoder.layers[k], entered.hidden[0], rope, cached)


@torch.inference_mode()
def run(vlm: VLM, image, question: str, method: Method, *, max_new_tokens: int = 16, ignore_eos: bool = False) -> Run:
    """`engine.run` by way of whole maps. Raises ValueError for a method without such a reference, or for a model other
    than a LLaVA, whose layers are laid out as these need them.
    """
    name = method.card.name
    if name not in NAMES:
        raise ValueError(f"{name} has no reference; these have: {', '.join(NAMES)}")
    if vlm.config.model_type != "llava":
        raise ValueError(f"references run on LLaVA models only; {vlm.name} is of the family {vlm.config.model_type}")
    engine.check_length(max_new_tokens)
    with all_maps(vlm, method):
        vlm.workspace.forget()  # the vision pass is not shared
        work = engine.ForwardPass(vlm, method, backend=Maps(vlm, method))
        asked = Pictures.open(image), vlm.check_question(question), max_new_tokens, ignore_eos
        for event in engine.first_turn(work, *asked):
            last = event.data
        vlm.workspace.forget()
    return last
