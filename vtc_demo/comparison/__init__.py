"""Several methods on one image and question: side by side, as a result or as events, also at equal cost."""

from .events import Comparison, Event, compare, compare_events, run, stream
from .request import Request, Settings

__all__ = ["Comparison", "Event", "Request", "Settings", "compare", "compare_events", "run", "stream"]
