"""What is asked, checked and prepared once at the edge, for page, API, shell, link and Python alike.

The settings are a pydantic model, so that they can be read from anywhere; what is wrong with them is told in one
sentence. The pictures are opened here; from here on they are passed on open, with a key that is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from vtc_demo import registry
from vtc_demo.core.images import Pictures
from vtc_demo.core.method import Method
from vtc_demo.engine import MAX_NEW_TOKENS
from vtc_demo.engine.hooks import TILES
from vtc_demo.models import VLM

UNITS = {"final tokens": "tokens", "equivalent tokens": "tokens on average", "flops": "GFLOPs"}
MATCHES = tuple(UNITS)
NAMES = ", ".join(f'"{name}"' for name in MATCHES)


class Settings(BaseModel):
    """How to compare: `vtc_demo.compare`'s keyword arguments. `parse` reads them with errors in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = 16
    seed: int = 0
    tiles: str = "global"
    match: str | None = None
    tokens: int | None = None
    target: float | None = None

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Settings:
        """Raises ValueError with the first thing that is wrong."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise ValueError(f"there is no option {first['loc'][0]!r}; options are {known}") from None
            raise ValueError(str(first.get("ctx", {}).get("error", first["msg"]))) from None

    @field_validator("max_new_tokens", "seed", mode="before")
    @classmethod
    def _whole(cls, value, info):
        low, high, words = {
            "max_new_tokens": (1, MAX_NEW_TOKENS, str(MAX_NEW_TOKENS)),
            "seed": (0, 2**63 - 1, "2^63 - 1"),
        }[info.field_name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{info.field_name} must be a whole number from {low} to {words}, got {shown(value)}")
        return value

    @field_validator("tiles", mode="before")
    @classmethod
    def _tiles(cls, value):
        if value not in TILES:
            raise ValueError(f"tiles={shown(value)}; choose {' or '.join(map(repr, TILES))}")
        return value

    @field_validator("match", mode="before")
    @classmethod
    def _match(cls, value):
        if value is not None and value not in MATCHES:
            raise ValueError(f"match={shown(value)} is no measure of cost; choose {NAMES}")
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens(cls, value):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"tokens must be a whole number of visual tokens, got {shown(value)}")
        return value

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value, info):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            unit = "FLOPs" if info.data.get("match") == "flops" else "tokens"
            raise ValueError(f"target must be a number above 0, in {unit}; got {shown(value)}")
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Settings:
        if self.match is None and (self.tokens is not None or self.target is not None):
            raise ValueError(f"a budget needs a measure to match by; choose {NAMES}")
        if self.match is not None and (self.tokens is None) == (self.target is None):
            raise ValueError(f"match={self.match!r} needs a budget: give either tokens or target")
        return self


@dataclass(frozen=True)
class Request:
    """Several methods on the same pictures and question, checked for one model. Plain data: it can be pickled."""

    pictures: Pictures
    question: str
    methods: tuple[Method, ...]
    settings: Settings

    @classmethod
    def parse(cls, vlm: VLM, image, question: str, methods: Iterable, **settings) -> Request:
        """methods: anything that `registry.resolve` takes, or several of these. Raises ValueError for bad input."""
        chosen = resolved(methods)
        checked = Settings.parse(settings)
        return cls(Pictures.open(image), vlm.check_question(question), chosen, checked)


def resolved(methods: Iterable) -> tuple[Method, ...]:
    """The methods by whatever names them. Raises ValueError for unknown ones, and for none at all."""
    several = [methods] if isinstance(methods, str | dict | Method) else methods
    chosen = tuple(registry.resolve(method) for method in several)
    if not chosen:
        raise ValueError("no method to compare; name at least one")
    return chosen


def shown(value, longest: int = 60) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
