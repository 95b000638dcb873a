"""A whole pass, and what it has cost."""

from __future__ import annotations

from dataclasses import replace

from vtc_demo import cost
from vtc_demo.core.clock import timings_ms
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run
from vtc_demo.models import VLM

from .language import Language, Prefilled
from .vision import Encoded, Vision


class Pass(Vision, Language):
    """One forward pass of one method. Arguments as of `stream`."""

    def __init__(self, vlm: VLM, method: Method, seed: int, budget: str = "global"):
        super().__init__(vlm, method, seed, budget)
        self.prefilled: Prefilled | None = None  # once there is an answer: its cache, to go on from
        self.said: list[int] = []  # and its ids

    def result(self, encoded: Encoded, prefilled: Prefilled, ids: list[int], shared: bool) -> Run:
        seconds = dict(self.watch.seconds)
        if shared:  # the pass that was made earlier, as if made now
            for stage, value in encoded.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
        layers = prefilled.cache.layers
        return Run(
            method=self.method,
            answer=self.vlm.answer_text(ids),
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
            flops["projector"] = self.connector.flops(self.shape.patches, m) + self.connector.layer_memory_flops(m)
        return self.with_connector(flops, prefilled.text_tokens, new_tokens)

    def with_connector(self, flops: dict[str, int], fed: int, new_tokens: int) -> dict[str, int]:
        """FLOPs by stage with what a connector adds to the layers, for `fed` words and the answer after them."""
        if self.connector is None:
            return flops
        m = self.trace.steps[0].reduction.m
        flops["prefill"] += self.connector.layer_flops(fed, m)
        flops["decode"] += (new_tokens - 1) * self.connector.layer_flops(1, m)
        return flops | {"total": sum(value for stage, value in flops.items() if stage != "total")}
