"""Several methods on one image and question: side by side, as a result or as events, also at equal cost."""

from .events import Comparison, Event, compare, compare_events, run

__all__ = ["Comparison", "Event", "compare", "compare_events", "run"]
