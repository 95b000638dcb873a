"""The methods that need no training: one file each, in folders by where they act. `methods.FastV` is a class."""

from __future__ import annotations

import sys

from vtc_demo.core.discovery import classes, find_class

NOT_METHODS = frozenset({"maths", "contract", "rehearsal", "faults", "template"})  # they hold none


def __getattr__(name: str) -> type:
    return find_class(name, sys.modules[__name__], NOT_METHODS)


def __dir__() -> list[str]:
    return sorted({*globals(), *classes(sys.modules[__name__], NOT_METHODS)})
