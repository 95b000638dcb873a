"""Parts of a Markdown page that commands fill in: the lines between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

from __future__ import annotations

from pathlib import Path


def check(path: Path, name: str) -> None:
    """Raise ValueError if there is no such page or no such part of it."""
    _split(path, name)


def read(path: Path, name: str) -> str:
    """The part of that name. Raises ValueError without one."""
    return _split(path, name)[1]


def fill(path: Path, name: str, text: str) -> None:
    """Put text in place of the part of that name. Raises ValueError without one."""
    before, _, after = _split(path, name)
    path.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def _split(path: Path, name: str) -> tuple[str, str, str]:
    """The page up to the part and its mark, the part, and the rest from the mark at its end."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if not path.is_file():
        raise ValueError(f"there is no page {path}; name a Markdown file with the lines {begin} and {end}")
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    part, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path} lacks the lines {begin} and {end}")
    return before + begin, part.strip("\n"), end + after
