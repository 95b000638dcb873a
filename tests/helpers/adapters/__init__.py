"""Our pure functions, wrapped to take the inputs and give the outputs of a recorded run of the released code.

One file per method, found by itself: METHOD is its name, ADAPTERS maps the names of recordings to functions of (inputs,
hp) that give outputs under the names of the recording, both without the prefix `inputs.`/`outputs.`.
"""

from importlib import import_module
from pkgutil import iter_modules

FILES = [import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__) if not m.name.startswith("_")]
ADAPTERS = {recording: adapter for file in FILES for recording, adapter in file.ADAPTERS.items()}
RECORDED = {file.METHOD for file in FILES}
