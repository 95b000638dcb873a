"""The baseline of the engine: the same work by `model.generate`, greedy."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager

from vtc_demo.core.images import load_rgb
from vtc_demo.models import VLM

from .pairs import Times


def generate(vlm: VLM, image, question: str, new_tokens: int) -> tuple[Times, list[int]]:
    """Its times and the answer's ids. Run it inside `without_eos`."""
    clock = TokenClock()
    layout = vlm.inputs([load_rgb(image)]).layout
    start = time.perf_counter()
    inputs = vlm.generate_inputs([load_rgb(image)], question, layout)
    prepared = time.perf_counter()
    out = vlm.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, streamer=clock)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    vlm.tokenizer.decode(ids, skip_special_tokens=True)
    end = time.perf_counter()
    first, last = clock.times[1], clock.times[-1]
    seconds = {
        "preprocess": prepared - start,
        "ttft": first - start,
        "decode_per_token": (last - first) / (new_tokens - 1),
        "wall": end - start,
    }
    return {name: 1000 * value for name, value in seconds.items()}, ids


class TokenClock:
    """A streamer for `generate`: when each token came. The first call brings the prompt."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


@contextmanager
def without_eos(vlm: VLM):
    """Inside, `generate` runs to its full length; the model's settings are put back afterwards."""
    settings = vlm.model.generation_config
    vlm.model.generation_config = copy.deepcopy(settings)
    vlm.model.generation_config.eos_token_id = None
    try:
        yield
    finally:
        vlm.model.generation_config = settings
