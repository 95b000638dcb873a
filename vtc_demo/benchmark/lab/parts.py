"""One layer of each kind, of a shape's true size, with random weights: what is timed.

Every layer of a stack has the same shape, so one is made and its time is multiplied. The classes, the fused attention
and the calls are those that the engine uses on a whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor
from transformers import DynamicCache

from vtc_demo import cost
from vtc_demo.models import memory

from .shapes import Shape

BLOCK = 1 << 20  # random values that are repeated to fill a matrix; drawing all of them takes longer than a run
Kind = Literal["embed", "tower", "tower full", "projector", "prefill", "decode", "lm_head"]


@dataclass(frozen=True)
class Point:
    """One thing to time.

    tokens: entering, per crop or per prompt; decode: entries in the cache of each answer, the new one too. batch:
    prompts or answers at once, all of one length. side: pixels of a scaled picture, for the embedding.
    """

    kind: Kind
    tokens: int
    batch: int = 1
    side: int | None = None


def work(spec: cost.ModelSpec, point: Point, bytes_per_value: int) -> cost.Work:
    """FLOPs and bytes of a point."""
    n, batch, layers = point.tokens, point.batch, cost.layers
    return {
        "embed": lambda: layers.tower_embedding(spec, n - spec.extra, bytes_per_value),
        "tower": lambda: layers.tower_layer(spec, n, False, bytes_per_value),
        "tower full": lambda: layers.tower_layer(spec, n, True, bytes_per_value),
        "projector": lambda: layers.projector(spec, n, bytes_per_value),
        "prefill": lambda: layers.layer_prefill(spec, n, batch, bytes_per_value),
        "decode": lambda: layers.layer_decode(spec, n, batch, bytes_per_value),
        "lm_head": lambda: layers.lm_head(spec, batch, bytes_per_value),
    }[point.kind]()


def prefill_values(spec: cost.ModelSpec) -> int:
    """Values that a decoder layer holds for each token of a prefill when it holds most, in its MLP.

    The hidden state, what the residual connection keeps and what the norm gave; the two halves of the gated MLP and
    their product; keys and values.
    """
    return 3 * spec.hidden + 3 * spec.intermediate + 2 * spec.kv_heads * spec.head_dim


class FullCache:
    """The cache of one layer in a decode step: allocated beforehand, the new entry goes to the last place."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values  # [batch, kv_heads, tokens, d]

    def update(self, keys: Tensor, values: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        self.keys[:, :, -1:], self.values[:, :, -1:] = keys, values
        return self.keys, self.values


class Parts:
    """The parts of a shape on a device. Raises memory.TooLarge if they do not fit."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype):
        self.shape, self.device, self.dtype, self.adapter = shape, device, dtype, shape.adapter
        with init_empty_weights(include_buffers=False):
            self.model = self.adapter.model_class._from_config(shape.config, attn_implementation="sdpa", dtype=dtype)
        self.model.eval()
        self.lm, self.head = self.adapter.decoder(self.model), self.adapter.lm_head(self.model)
        spec = shape.spec
        self.encoder = {"tower": next(i for i in range(spec.vision_layers) if i not in spec.full_layers)}
        if spec.window:
            self.encoder["tower full"] = spec.full_layers[0]
        self._block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device, dtype)
        self._caches = torch.empty(2, 0, device=device, dtype=dtype)  # keys and values of the largest decode step
        self._fill()

    def _fill(self) -> None:
        """Random weights for one layer of each kind and for all that is no stack of layers."""
        layers = self.adapter.encoder_layers(self.model)
        stacks = [layers, self.lm.layers, self.lm.embed_tokens]  # the table of words is not read
        chosen = [*(layers[i] for i in self.encoder.values()), self.lm.layers[0]]
        ids = lambda modules: {id(p) for module in modules for p in module.parameters()}  # noqa: E731
        skip = ids(stacks) - ids(chosen)
        wanted = {name: p.shape for name, p in self.model.named_parameters() if id(p) not in skip}
        self._check(sum(shape.numel() for shape in wanted.values()), f"one layer of each kind of {self.shape.title}")
        for name, size in wanted.items():
            set_module_tensor_to_device(self.model, name, self.device, value=self._filled(*size))
        for name, buffer in list(self.model.named_buffers()):
            set_module_tensor_to_device(self.model, name, self.device, value=buffer)

    def _filled(self, *size: int) -> Tensor:
        value = torch.empty(size, device=self.device, dtype=self.dtype)
        for part in value.view(-1).split(BLOCK):
            part.copy_(self._block[: len(part)])
        return value

    def _check(self, values: int, what: str) -> None:
        need, have = values * self.dtype.itemsize * memory.ROOM, memory.free(self.device)
        if have is not None and need > have:
            raise memory.TooLarge(
                f"{what} needs {need / memory.GIGA:.1f} GB on {self.device}, which has {have / memory.GIGA:.1f} GB "
                "free. Close other programs, or choose a smaller shape, fewer tokens, a smaller batch, bfloat16 or "
                "another device."
            )

    # -- calls ----------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def job(self, point: Point) -> Callable:
        """A call that does the work of a point once. Raises memory.TooLarge if what it works on does not fit."""
        make = {
            "embed": self._embed,
            "tower": self._tower,
            "tower full": self._tower,
            "projector": self._projector,
            "prefill": self._prefill,
            "decode": self._decode,
            "lm_head": self._lm_head,
        }
        return torch.inference_mode()(make[point.kind](point))

    def _random(self, *size: int) -> Tensor:
        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def _embed(self, point: Point) -> Callable:
        inputs = self.shape.inputs(point.side)
        inputs = inputs._replace(pixels=inputs.pixels.to(self.device, self.dtype))
        return lambda: self.adapter.embed(self.model, inputs, point.side is not None)

    def _tower(self, point: Point) -> Callable:
        h, details = self._embed(Point("embed", point.tokens))()  # [N, C]
        views = len(self.shape.inputs().layout.segments)
        h = h.unflatten(0, (views, -1))[:, : point.tokens].flatten(0, 1)
        i, segments = self.encoder[point.kind], (h.shape[0] // views,) * views
        layer = self.adapter.encoder_layers(self.model)[i]
        return lambda: self.adapter.run_layer(layer, i, h, segments, details)

    def _projector(self, point: Point) -> Callable:
        features = self._random(1, point.tokens, self.shape.spec.projector[0])
        return lambda: self.adapter.project(self.model, features)

    def _rope(self, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        axes = self.adapter.axes
        return self.lm.rotary_emb(h, positions[None] if axes == 1 else positions.expand(axes, 1, -1))

    def _prefill(self, point: Point) -> Callable:
        layer, spec = self.lm.layers[0], self.shape.spec
        values = point.batch * point.tokens * prefill_values(spec)
        self._check(values, f"one layer's prefill of {point.batch} x {point.tokens} tokens")
        h = self._random(point.batch, point.tokens, spec.hidden)
        rope = self._rope(h, torch.arange(point.tokens, device=self.device))
        how = {"attention_mask": None, "position_embeddings": rope, "use_cache": True}
        return lambda: layer(h, past_key_values=DynamicCache(), **how)

    def _decode(self, point: Point) -> Callable:
        layer, spec = self.lm.layers[0], self.shape.spec
        size = (point.batch, spec.kv_heads, point.tokens, spec.head_dim)
        values = point.batch * spec.kv_heads * point.tokens * spec.head_dim
        if values > self._caches.shape[1]:
            self._check(2 * values, f"one layer's cache of {point.batch} answers with {point.tokens} entries each")
            self._caches = self._filled(2, values)
        h = self._random(point.batch, 1, spec.hidden)
        rope = self._rope(h, torch.arange(point.tokens - 1, point.tokens, device=self.device))
        how = {"attention_mask": None, "position_embeddings": rope, "use_cache": True}
        return lambda: layer(h, past_key_values=FullCache(*(c[:values].view(size) for c in self._caches)), **how)

    def _lm_head(self, point: Point) -> Callable:
        h = self._random(point.batch, self.shape.spec.hidden)
        return lambda: self.head(self.lm.norm(h)).argmax(-1)
