"""One pass of one method: what it runs on, whom it asks, what it has cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vtc_demo import cost
from vtc_demo.core.clock import Stopwatch, timings_ms
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM
from vtc_demo.models.layout import Layout, Prompt

from .backend import Backend
from .cancel import Cancel
from .effects import spared_by_sparse
from .hooks import Hooks
from .language import Prefilled
from .question import Question
from .vision import Encoded


class ForwardPass:
    """The parts of a pass. `vision` and `language` have the functions that lead through it: encode, project, prefill,
    step. Arguments as of `stream`; backend: what it runs on, default the model itself; hooks: who asks
    the method.
    """

    def __init__(
        self,
        vlm: VLM,
        method: Method,
        seed: int = 0,
        tiles: str = "global",
        cancel: Cancel | None = None,
        backend: Backend | None = None,
        hooks: Callable[..., Hooks] = Hooks,
    ):
        self.vlm, self.method, self.adapter = vlm, method, vlm.adapter
        self.cancel = cancel or Cancel()
        self.watch = Stopwatch(vlm.device)
        self.backend = Backend(vlm, method) if backend is None else backend
        self.hooks = hooks(method, vlm.shape, self.watch, seed, tiles)
        self.side = self._check_side(method.image_side(vlm.shape))
        self.cls_layers = frozenset(method.cls_layers(vlm.shape))
        self.projected = 0  # tokens through the projector
        self.prefilled: Prefilled | None = None  # once there is an answer: its cache, to go on from
        self.said: list[int] = []  # and its ids

    def _check_side(self, side: int | None) -> int | None:
        """The side in pixels to which the picture is scaled, None if it is the model's own."""
        name, (patch, whole) = self.method.card.name, (self.vlm.shape.patch_size, self.vlm.shape.grid[0])
        if side is not None and not self.adapter.resizable:
            raise ValueError(f"{name}: models of this family set the size of the picture themselves")
        if side is None or side == whole * patch:
            return None
        if side % patch or not patch <= side <= whole * patch:
            raise ValueError(
                f"{name}: an image side of {side} pixels does not fit; use a multiple of {patch} up to {whole * patch}"
            )
        return side

    def begin(self, layout: Layout) -> None:
        """Learn how the pictures are laid out. Raises ValueError where the method cannot act on such pictures."""
        connector = self.backend.connector
        if connector is not None and not layout.plain:
            raise ValueError(f"{self.method.card.name} was trained with one picture per question; give a single image")
        self.hooks.begin(layout, self.side is not None, connector is not None and connector.outside)

    def question(self, text: str, prompt: Prompt) -> Question:
        """What methods see of the question from the projector on."""

        def words():
            return self.backend.words(prompt)[0, prompt.text]

        return Question(text, prompt.after, prompt.question, words, self.vlm.text_tower)

    # -- the vision pass, which methods may share ---------------------------------------------------------------------
    @property
    def shares(self) -> bool:
        """Whether the vision pass is that of any other method: neither picture nor tower are touched."""
        return self.side is None and not any(site.kind == "vision_layer" for site in self.hooks.sites)

    def recall(self, key: str) -> Encoded | None:
        """The kept vision pass, if it is of this picture and has what this method needs."""
        found = self.vlm.workspace.get("encoded", key) if self.shares else None
        return found if found is not None and self.cls_layers <= found.cls.keys() else None

    def remember(self, key: str, encoded: Encoded) -> Encoded:
        encoded = replace(encoded, seconds=dict(self.watch.seconds))
        return self.vlm.workspace.put("encoded", key, encoded) if self.shares else encoded

    # -- what it has cost ---------------------------------------------------------------------------------------------
    def result(self, encoded: Encoded, prefilled: Prefilled, ids: list[int], shared: bool) -> Run:
        """shared: the vision pass was made earlier; it is in the timings as if made now."""
        seconds = dict(self.watch.seconds)
        for stage, value in encoded.seconds.items() if shared else ():
            seconds[stage] = seconds.get(stage, 0.0) + value
        return self.run(prefilled, ids, seconds, self.flops(encoded, prefilled, len(ids)), shared)

    def run(self, prefilled: Prefilled, ids: list[int], seconds: dict, flops: dict[str, int], shared: bool) -> Run:
        return Run(
            method=self.method,
            answer=self.vlm.answer_text(ids),
            token_ids=ids,
            trace=self.hooks.trace,
            timings=timings_ms(seconds, len(ids) - 1),
            flops=flops,
            kv_bytes=prefilled.kv_bytes,
            kv_lengths=[layer.keys.shape[-2] for layer in prefilled.cache.layers],
            vision_shared=shared,
        )

    def flops(self, encoded: Encoded, prefilled: Prefilled, new_tokens: int) -> dict[str, int]:
        """By stage, from the counts of this pass."""
        spec = self.vlm.spec
        flops = cost.run_flops(
            replace(spec, crops=1),
            prefilled.entered,
            prefilled.text_tokens,
            new_tokens,
            encoder_schedule=[spans.entered for spans in encoded.layers],
            projector_tokens=self.projected,
            overhead=self.hooks.overhead,
            patches=sum(n - spec.extra for n in encoded.layout.segments),
            cache_schedule=prefilled.cached,
            mlp_schedule=prefilled.fed,
            encoder_mlp_schedule=[spans.fed for spans in encoded.layers],
            encoder_pairs=[self._pairs(i, spans) for i, spans in enumerate(encoded.layers)],
        )
        spared = spared_by_sparse(self, prefilled, new_tokens - 1)
        flops |= {"decode": flops["decode"] - spared, "total": flops["total"] - spared}
        connector = self.backend.connector
        if connector is not None:
            m = self.hooks.trace.steps[0].reduction.m
            flops["projector"] = connector.flops(self.hooks.shape.patches, m) + connector.layer_memory_flops(m)
        return self.with_connector(flops, prefilled.text_tokens, new_tokens)

    def _pairs(self, i: int, spans: Any) -> int:
        """(query, key) pairs of an encoder layer."""
        return sum(n * n for n in self.adapter.attends(i, spans.segments, spans.details)["segments"])

    def with_connector(self, flops: dict[str, int], fed: int, new_tokens: int) -> dict[str, int]:
        """FLOPs by stage with what a connector adds to the layers, for `fed` words and the answer after them."""
        connector = self.backend.connector
        if connector is None:
            return flops
        m = self.hooks.trace.steps[0].reduction.m
        flops["prefill"] += connector.layer_flops(fed, m)
        flops["decode"] += (new_tokens - 1) * connector.layer_flops(1, m)
        return flops | {"total": sum(value for stage, value in flops.items() if stage != "total")}
