"""Finding what a package holds without a list of it: one file, one thing."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


def files(folder: Path, skip: frozenset[str]) -> Iterator[Path]:
    """The .py files below a folder in the order of their paths, without those whose name, or whose folder's, is in
    `skip` or begins with an underscore."""
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        if not any(part.startswith("_") or part in skip for part in parts):
            yield file


def load(file: Path, package: ModuleType) -> ModuleType:
    """The module of a file below a package, by its own name."""
    inside = file.relative_to(Path(package.__path__[0])).with_suffix("").parts
    return importlib.import_module(".".join((package.__name__, *inside)))


def classes(package: ModuleType, skip: frozenset[str]) -> dict[str, Path]:
    """The public classes that the files below a package define, without importing them: name -> file."""
    found: dict[str, Path] = {}
    for file in files(Path(package.__path__[0]), skip):
        found |= dict.fromkeys(re.findall(r"^class ([A-Z]\w*)\(", file.read_text(encoding="utf-8"), re.M), file)
    return found


def find_class(name: str, package: ModuleType, skip: frozenset[str]) -> type:
    """The class of that name. Raises AttributeError if no file below the package defines it."""
    file = classes(package, skip).get(name) if name[:1].isupper() else None
    if file is None:
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
    return getattr(load(file, package), name)
