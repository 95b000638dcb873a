"""Several questions about the same pictures, one after another."""

from __future__ import annotations

import torch

from vtc_demo import cost, registry
from vtc_demo.core.clock import Stopwatch, timings_ms
from vtc_demo.core.run import Run
from vtc_demo.models import VLM

from . import Pass, check_length, decode, first_turn, pictures


class Chat:
    """A conversation. Later turns go on from the cache of the earlier ones: what the method dropped in the first turn,
    for the first question, stays dropped.

    image, method, seed, budget and hyper-parameters as in `vtc_demo.run`. Raises ValueError for bad input.
    """

    def __init__(self, vlm: VLM, image, method="full", *, seed: int = 0, budget: str = "global", **hyper):
        self.images = pictures(image)
        self.vlm, self.work = vlm, Pass(vlm, registry.resolve(method, **hyper), seed, budget)

    def ask(self, question: str, max_new_tokens: int = 16) -> Run:
        """The answer to the next question. Timings and FLOPs of a later turn are its own; nothing is reduced anew."""
        question, length = self.vlm.check_question(question), check_length(max_new_tokens)
        with torch.inference_mode():
            if self.work.prefilled is None:
                *_, last = first_turn(self.work, self.images, question, length, ignore_eos=False)
                return last.data
            return self._go_on(question, length)

    def _go_on(self, question: str, length: int) -> Run:
        work, vlm = self.work, self.vlm
        work.watch = Stopwatch(vlm.device)
        work.watch.enter("preprocess")
        words, last = vlm.next_turn(question), work.said[-1]
        words = words[1:] if last in vlm.eos_ids and words[:1] == [last] else words
        tokens = torch.tensor([last, *words], device=vlm.device)  # the last of an answer was never fed
        before = [layer.keys.shape[-2] for layer in work.prefilled.cache.layers]
        work.watch.enter("prefill")
        events = decode(work, work.prefilled, work.step(work.prefilled, tokens), length)
        for _ in events:
            pass
        layers, ids = work.prefilled.cache.layers, work.said
        return Run(
            method=work.method,
            answer=vlm.answer_text(ids),
            token_ids=ids,
            trace=work.trace,
            timings=timings_ms(work.watch.seconds, len(ids) - 1),
            flops=work.with_connector(cost.turn_flops(vlm.spec, before, len(tokens), len(ids)), len(tokens), len(ids)),
            kv_bytes=work.prefilled.kv_bytes,
            kv_lengths=[layer.keys.shape[-2] for layer in layers],
            vision_shared=True,
        )
