"""Events of the page: those that do not run the model, and how Stop reaches one that does."""

from __future__ import annotations

from dataclasses import dataclass

QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # events that do not run the model


@dataclass
class Cancel:
    """Between the Stop button and the requests of one visitor: how often it was pressed, and at which request.

    A request looks at it between two steps. Cancelling the event instead can lose the visitor's next click: the browser
    then waits for the end of an event that is gone.
    """

    presses: int = 0
    request: float | None = None

    def press(self, request: float) -> None:
        self.presses, self.request = self.presses + 1, request
