"""Trained connectors and attention reworks, one file each; each is a method of the embedded VLM.

`python -m vtc_demo train zoo` trains them. `vtc_demo.connectors.QFormer` is a class.
"""

from __future__ import annotations

import sys

from vtc_demo.core.discovery import classes, find_class

NOT_METHODS = frozenset({"base", "decoder", "layers", "store", "files"})  # files and folders here that hold none


def __getattr__(name: str) -> type:
    return find_class(name, sys.modules[__name__], NOT_METHODS)


def __dir__() -> list[str]:
    return sorted({*globals(), *classes(sys.modules[__name__], NOT_METHODS)})
