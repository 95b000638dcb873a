"""What passes over one model leave for the next: the last picture's input and vision pass, and that it has run."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

T = TypeVar("T")


class Workspace:
    """One slot per purpose. A slot's content is replaced whole and never altered, so threads may share a workspace."""

    def __init__(self) -> None:
        self._slots: dict[str, tuple[Hashable, object]] = {}
        self.warm = False  # a first pass has paid for what is made once (memory, kernels)

    def get(self, purpose: str, key: Hashable):
        """What was put there under that key, or None."""
        held = self._slots.get(purpose)
        return held[1] if held is not None and held[0] == key else None

    def put(self, purpose: str, key: Hashable, value: T) -> T:
        self._slots[purpose] = (key, value)
        return value

    def forget(self) -> None:
        """Empty every slot."""
        self._slots = {}
