"""Hyper-parameters: how one is declared, checked and put into words."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from numbers import Real


def param(default, help: str, *, low=None, high=None, step=None, choices=None):
    """A hyper-parameter: a dataclass field with a range that API, CLI and app check and show."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "step": step, "choices": choices})


def check(name: str, f: dataclasses.Field, value):
    """`value` in the plain type of field `f`; ValueError with what is allowed if it does not fit."""
    where, low, high, choices = f"{name}: {f.name}", *(f.metadata.get(k) for k in ("low", "high", "choices"))
    if choices is not None or isinstance(f.default, bool):
        choices = choices or (True, False)
        if value not in choices or type(value) is not type(f.default):
            raise ValueError(f"{where}={value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if not isinstance(f.default, int | float):
        return value
    allowed = bounds(low, high)
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise ValueError(f"{where} must be a number, {allowed}; got {value!r}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"{where}={value} is out of range; it must be {allowed}")
    if isinstance(f.default, int) and value % 1 != 0:  # also refuses infinity, whose remainder is nan
        raise ValueError(f"{where} must be a whole number, {allowed}; got {value!r}")
    return type(f.default)(value)  # type: ignore[call-overload]  # a real whole number, which int takes


def bounds(low, high) -> str:
    """The range of a hyper-parameter in words; None is an open end."""
    if low is None or high is None:
        return "of any size" if low is high else f"at least {low}" if high is None else f"at most {high}"
    return f"exactly {low}" if low == high else f"between {low} and {high}"


def declared(cls) -> list[dict]:
    """The hyper-parameters of a method class that can be set: name, default, help, low, high, step, choices."""
    fields = [{"name": f.name, "default": f.default, **f.metadata} for f in dataclasses.fields(cls)]
    return [p for p in fields if p.get("low") is None or p["low"] != p["high"]]


def build(cls, given: dict):
    """A method with hyper-parameters by name. Raises ValueError for unknown names and values out of range."""
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = [str(k) for k in given if k not in names]
    if unknown:
        raise ValueError(f"{cls.card.name} has no hyper-parameter {', '.join(unknown)}; it has {', '.join(names)}")
    return cls(**given)
