"""Several questions about the same pictures, one after another."""

from __future__ import annotations

import torch

from vtc_demo import cost, registry
from vtc_demo.core.clock import Stopwatch
from vtc_demo.core.images import Pictures
from vtc_demo.core.run import Run
from vtc_demo.models import VLM

from .answer import check_length, decode, first_turn
from .effects import spared_by_sparse
from .forward import ForwardPass
from .language import Prefilled, step


class Chat:
    """A conversation. Later turns go on from the cache of the earlier ones: what the method dropped in the first turn,
    for the first question, stays dropped.

    image, method, seed, tiles and hyper-parameters as in `vtc_demo.run`. Raises ValueError for bad input.
    """

    def __init__(self, vlm: VLM, image, method="full", *, seed: int = 0, tiles: str = "global", **hyper):
        self.pictures = Pictures.open(image)
        self.vlm, self.work = vlm, ForwardPass(vlm, registry.resolve(method, **hyper), seed, tiles)

    def ask(self, question: str, max_new_tokens: int = 16) -> Run:
        """The answer to the next question. Timings and FLOPs of a later turn are its own; nothing is reduced anew."""
        question, length = self.vlm.check_question(question), check_length(max_new_tokens)
        with torch.inference_mode():
            if (prefilled := self.work.prefilled) is None:
                *_, last = first_turn(self.work, self.pictures, question, length)
                return last.data
            return self._go_on(prefilled, question, length)

    def _go_on(self, prefilled: Prefilled, question: str, length: int) -> Run:
        work, vlm = self.work, self.vlm
        work.watch = work.hooks.watch = Stopwatch(vlm.device)
        work.watch.enter("preprocess")
        words, last = vlm.next_turn(question), work.said[-1]
        words = words[1:] if last in vlm.eos_ids and words[:1] == [last] else words
        tokens = torch.tensor([last, *words], device=vlm.device)  # the last of an answer was never fed
        before = [layer.keys.shape[-2] for layer in prefilled.cache.layers]
        work.watch.enter("prefill")
        overhead = work.hooks.overhead
        for _ in decode(work, prefilled, step(work, prefilled, tokens), length):
            pass
        turn = cost.turn_flops(vlm.spec, before, len(tokens), len(work.said))
        turn["compression"] = work.hooks.overhead - overhead  # of effects, which go on
        turn["prefill"] -= spared_by_sparse(work, prefilled, len(tokens))
        turn["decode"] -= spared_by_sparse(work, prefilled, len(work.said) - 1)
        turn["total"] = sum(value for stage, value in turn.items() if stage != "total")
        flops = work.with_connector(turn, len(tokens), len(work.said))
        return work.run(prefilled, work.said, work.watch.seconds, flops, shared=True)
