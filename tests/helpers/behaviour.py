"""What the engine does, written down: hundreds of runs with their answers, traces, FLOPs and cache lengths.

`PYTHONPATH=. python tests/helpers/behaviour.py` writes the record that `test_behaviour.py` holds the code to. All runs
in float64, in which two near scores do not change places between processors.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import families
import numpy as np
import tiny
import torch
from PIL import Image

import vtc_demo as vtc

RECORD = Path(__file__).parents[1] / "data" / "behaviour.jsonl.gz"
TRAINED = "embedded"
PHOTO = Image.radial_gradient("L").resize((311, 207)).convert("RGB")  # an upload: not square, no generated scene


# -- the cases --------------------------------------------------------------------------------------------------------
def cases() -> Iterator[dict]:
    """Each a JSON-ready description that `play` can repeat."""
    for card in vtc.list_methods():
        for hyper in settings(card.name):
            yield {"model": TRAINED, "image": 0, "question": 0, "method": card.name, **hyper}
        yield {"model": TRAINED, "image": "photo", "question": 0, "method": card.name}
        yield {"model": TRAINED, "image": 7, "question": 1, "method": card.name, "retention": 0.11}
        yield {"model": TRAINED, "image": 3, "question": 0, "method": card.name, "chat": [1, 2]}
        for match, target in (("final tokens", 64), ("equivalent tokens", 128), ("flops", 100)):
            yield {"model": TRAINED, "image": 5, "question": 0, "method": card.name, "match": match, "tokens": target}
    free = [card.name for card in vtc.list_methods() if card.training_free]
    for family in families.BUILDERS:
        for name in free:
            yield {"model": family, "image": "wide", "method": name}
            yield {"model": family, "image": "square", "method": name, "retention": 0.6, "seed": 3}
            yield {"model": family, "image": "two", "method": name, "retention": 0.4, "budget": "crop"}
            yield {"model": family, "image": "wide", "method": name, "retention": 0.5, "chat": [0, 0]}
            yield {"model": family, "image": "square", "method": name, "match": "flops", "tokens": 3}


def settings(name: str) -> Iterator[dict]:
    """Retentions, then every other hyper-parameter changed once."""
    yield {}
    for p in vtc.registry.parameters(name):
        low, high, default = p.get("low"), p.get("high"), p["default"]
        if p["name"] == "retention":
            yield from ({"retention": r} for r in (0.05, 0.33, 0.75, 1.0) if low <= r <= high)
        elif p.get("choices") or isinstance(default, bool):
            yield from ({p["name"]: c} for c in p.get("choices") or (True, False) if c != default)
        elif isinstance(default, int):
            yield {p["name"]: max(low, min(default + 1, high))}
        elif isinstance(default, float):
            yield {p["name"]: round(default + (high - default) / 3, 4)}
        elif default == "2, 6, 10, 14":
            yield {p["name"]: "6, 14, 22"}


# -- playing one ------------------------------------------------------------------------------------------------------
@cache
def model(name: str):
    vlm = vtc.load_vlm(name) if name == TRAINED else families.vlm(name)
    vlm.model.double()
    return vlm


@cache
def scene(seed: int):
    return vtc.world.sample(seed=seed)


def picture(name):
    if isinstance(name, int):
        return scene(name).image
    wide, square = tiny.image(2, side=56).crop((0, 0, 56, 36)), tiny.image(3, side=48)
    return {"photo": PHOTO, "wide": wide, "square": square, "two": [wide, square]}[name]


def question(case: dict, index: int) -> str:
    if case["model"] != TRAINED:
        return tiny.QUESTION
    return scene(case["image"] if isinstance(case["image"], int) else 0).questions[index].text


KNOWN = ("model", "image", "question", "method", "chat", "match", "tokens", "seed", "budget")


def play(case: dict) -> list[dict]:
    """The runs of a case, each as what must not change. A refusal is a run with its reason alone."""
    vlm, image = model(case["model"]), picture(case["image"])
    options = {"seed": case.get("seed", 0)}
    hyper = {k: v for k, v in case.items() if k not in KNOWN}
    if case.get("budget") in ("global", "crop"):  # "budget" of a run is called tiles now, the hyper-parameter is not
        options["tiles"] = case["budget"]
    elif "budget" in case:
        hyper["budget"] = case["budget"]
    first = question(case, case.get("question", 0))
    try:
        if "chat" in case:
            chat = vtc.Chat(vlm, image, case["method"], **options, **hyper)
            further = [question(case, index) for index in case["chat"]]
            return [told(chat.ask(text, max_new_tokens=5)) for text in (first, *further)]
        if "match" in case:
            cost = {"match": case["match"], "tokens": case["tokens"]}
            runs = vtc.compare(vlm, image, first, ["full", case["method"]], max_new_tokens=3, **cost, **options).runs
            return [told(run) for run in runs[1:]]
        return [told(vtc.run(vlm, image, first, case["method"], max_new_tokens=6, **options, **hyper))]
    except ValueError as error:
        return [{"error": str(error)}]


def told(run) -> dict:
    if run.error:
        return {"error": run.error}
    out = {
        "answer": run.answer,
        "ids": run.token_ids,
        "schedule": run.trace.schedule,
        "flops": run.flops,
        "kv": [run.kv_bytes, *run.kv_lengths],
        "trace": [step(s) for s in run.trace.steps],
    }
    if run.matched:
        out["matched"] = [run.matched.retention, run.matched.reached, run.matched.note]
    return out


def step(s) -> list:
    """Site, sizes, the kept places as a bitmap, a check sum of all indices, the sum of the weights."""
    r = s.reduction.to("cpu")
    bits = np.zeros(r.n, dtype=bool)
    bits[r.anchor.numpy()] = True
    pairs = torch.stack([r.new, r.old]).long().numpy()
    pairs = pairs[:, np.lexsort(pairs)]
    sums = zlib.crc32(np.ascontiguousarray(pairs).astype("<i8").tobytes() + r.anchor.numpy().astype("<i8").tobytes())
    weight = None if r.weight is None else float(f"{r.weight.double().sum().item():.4g}")
    return [str(s.site), r.m, r.n, np.packbits(bits).tobytes().hex(), sums, weight]


# -- the record -------------------------------------------------------------------------------------------------------
def write(path: Path = RECORD) -> None:
    lines = []
    for case in cases():
        lines.append(json.dumps([case, play(case)], separators=(",", ":")))
        print(f"\r{len(lines)}", end="", file=sys.stderr)
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def read(path: Path = RECORD) -> list[tuple[dict, list[dict]]]:
    return [tuple(json.loads(line)) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def differences(case: dict, before: list[dict], after: list[dict]) -> list[str]:
    """What is not as recorded, in words."""
    if len(before) != len(after):
        return [f"{len(after)} runs instead of {len(before)}"]
    out = []
    for turn, (old, new) in enumerate(zip(before, json.loads(json.dumps(after)), strict=True)):
        out += [
            f"turn {turn}: {key} {old.get(key)} -> {new.get(key)}" for key in old | new if old.get(key) != new.get(key)
        ]
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORD)
