"""The Latency lab: what compression gains at the shapes of real models, on the machine at hand, without their weights.

One layer of each kind is made in its true size with random values and timed; a pass is the sum over its layers. How
many tokens a method leaves at each layer comes from a pass of the engine through a model of the same depth, a few
values wide. A method's own work is counted where it can be, but not timed: `python -m vtc_demo bench` measures that.
Methods that need trained weights are left out.
"""

from __future__ import annotations

from .experiment import LabEvent, run, stream
from .plan import check, offered
from .report import reasons, table
from .settings import Settings
from .shapes import catalogue, default_tokens, pick

__all__ = [
    "LabEvent", "Settings", "catalogue", "check", "default_tokens", "offered", "pick", "reasons", "run", "stream",
    "table",
]  # fmt: skip
