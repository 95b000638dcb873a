"""Stopping a pass from outside: a button, a deadline. Looked at between layers and between decode steps."""

from __future__ import annotations

import time


class Stopped(Exception):
    """A pass was stopped. The message says by what."""


class Cancel:
    """Between who asked for a pass and the pass. seconds: time from now on that it may take, None: any."""

    def __init__(self, seconds: float | None = None):
        self.pressed = False
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.seconds = seconds

    def press(self) -> None:
        self.pressed = True

    def look(self) -> None:
        """Raise Stopped if it was pressed or the time is up."""
        if self.pressed:
            raise Stopped("stopped")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Stopped(f"stopped after {self.seconds:g} seconds, the time that one request may take")
