"""Visual token compression for vision-language models: compare methods side by side.

import vtc_demo as vtc
vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=0)
run = vtc.run(vlm, scene.image, scene.questions[0].text, method="fastv", retention=0.25)
"""

from __future__ import annotations

import importlib
import os

# Read by OpenMP when torch is first imported: idle threads sleep instead of spinning. Where other work shares the
# cores, spinning makes a pass many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# torch and transformers take seconds to import, so every name is fetched when it is first used.
_FUNCTIONS = {
    "list_methods": "registry",
    "load_vlm": "models",
    "compile_vlm": "engine.compiled",
    "load_rgb": "core.images",
    "run": "comparison",
    "compare": "comparison",
    "compare_events": "comparison",
    "Chat": "engine.chat",
}
_ROOMS = ("connectors", "core", "cost", "engine", "evaluation", "methods", "models", "registry", "world")
__all__ = [*_FUNCTIONS, *_ROOMS]


def __getattr__(name: str):
    if name in _FUNCTIONS:
        value = getattr(importlib.import_module(f".{_FUNCTIONS[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS, *_ROOMS})
