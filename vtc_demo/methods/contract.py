"""The contract that every method keeps, as checks whose findings can be read: `python -m vtc_demo check FOLDER`.

No model takes part. A method is rehearsed: each of its hooks is called with a context of seeded random numbers, as
the engine would shape them, and what comes back is held to the rules. The tests run the same checks over every method.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtc_demo.core.effects import Effect
from vtc_demo.core.flop_counting import FlopCounter
from vtc_demo.core.method import Method, Outcome, parts
from vtc_demo.core.parameters import build, declared
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction

from .faults import faults
from .rehearsal import HEADS, SHAPE, TEXT, Broken, rehearse, sites_of, told

RETENTIONS = (0.01, 0.25, 0.6, 1.0)
WORKLOADS = (((6, 8), 16), ((10, 12), 32))  # grids and head sizes at which overhead is counted
BAD_RETENTIONS = (0, -0.1, 1.01, float("nan"), float("inf"), "0.5", None, True, 10**400)
SLACK = 16  # FLOPs per token of the sequence that need no declaration: scaling and averaging of scores, weights


@dataclass(frozen=True)
class Finding:
    """One rule that a method breaks. check: a key of CHECKS, or "load" for a file that could not be used."""

    method: str
    check: str
    message: str


# -- the rules: each yields its findings, or raises Broken with one --------------------------------------------------
def card_is_complete(cls: type[Method]) -> Iterator[str]:
    """The card says what a visitor reads, and names the sites that the method uses."""
    card, method = cls.card, cls()
    if not card.summary.endswith("."):
        yield "the card's summary must be a sentence with a full stop"
    kinds, named = {site.kind for site in sites_of(method, SHAPE)}, set(card.sites) - {"input_image"}
    if kinds != named:
        yield f"the card names the sites {_list(named)}, but sites() gives {_list(kinds)}"
    if ("input_image" in card.sites) != (method.image_side(SHAPE) is not None):
        yield "a method names input_image on its card exactly if image_side() gives a size"
    if card.faithfulness in ("matches released code", "from the paper"):
        wanted = ["paper", "reported", "deviations"] + ["code"] * (card.faithfulness == "matches released code")
        lacking = [name for name in wanted if not getattr(card, name)]
        if lacking:
            yield f"a card that says {card.faithfulness!r} must also give {', '.join(lacking)}"
    for parameter in declared(cls):
        if not parameter.get("help"):
            yield f"the hyper-parameter {parameter['name']} has no help; declare it with param(default, help)"


def reductions_are_valid(cls: type[Method]) -> None:
    """Every hook answers None, a Reduction of its tokens, Effects or both, at every retention, with and without CLS."""
    for has_cls in (True,) if "cls" in cls.card.needs else (True, False):
        shape = dataclasses.replace(SHAPE, has_cls=has_cls)
        for retention in _retentions(cls):
            method = cls(retention=retention)

            def held(hook, context, method=method, shape=shape):
                outcome = hook(context)
                for fault in faults(outcome, context, method):
                    raise Broken(fault)
                return outcome

            rehearse(method, shape, held)


def same_input_same_outcome(cls: type[Method]) -> Iterator[str]:
    """The same input gives the same outcome: no hidden state, and no chance but context.seed."""
    first, second = rehearse(cls()), rehearse(cls())
    if len(first) != len(second) or not all(_same(a, b) for a, b in zip(first, second)):
        yield "the same input gave two outcomes; draw at random only from context.seed and keep no state"


def the_context_is_left_alone(cls: type[Method]) -> None:
    """A hook leaves everything that the context shows as it is."""

    def watched(hook, context):
        before = {k: t.clone() for k, t in context.tensors.items()}
        reduction = hook(context)
        changed = [k for k, t in context.tensors.items() if not torch.equal(t, before[k])]
        if changed:
            raise Broken(f"the hook changed context.{' and context.'.join(changed)}; work on a copy")
        return reduction

    rehearse(cls(), around=watched)


def spec_round_trips(cls: type[Method]) -> Iterator[str]:
    """The settings survive JSON, because links, records and the page depend on it."""
    for retention in {_retentions(cls)[0], cls().retention}:
        method = cls(retention=retention)
        spec = json.loads(json.dumps(method.spec()))
        if spec.pop("method") != cls.card.name or build(cls, spec) != method:
            yield f"{method!r} does not come back from its own spec()"


def bad_retention_is_refused(cls: type[Method]) -> Iterator[str]:
    """A retention out of range is refused, with the range in the message."""
    bounds = dataclasses.fields(cls)[0].metadata
    for bad in BAD_RETENTIONS:
        try:
            build(cls, {"retention": bad})
        except ValueError as error:
            if not all(str(word) in str(error) for word in ("retention", bounds["low"], bounds["high"])):
                yield f"retention={bad!r} is refused without naming the range: {error}"
        else:
            yield f"retention={bad!r} is accepted"


def overhead_is_declared(cls: type[Method]) -> None:
    """overhead_flops gives a whole number that is no lower than what a counter sees in the hook, at every setting."""
    for method, shape, size in _workloads(cls):

        def counted(hook, context, method=method):
            with FlopCounter() as counter:
                reduction = hook(context)
            tokens = context.n + (sum(TEXT) if context.in_llm else 0)
            fault = undeclared(method.overhead_flops(context), counter, SLACK * tokens)
            if fault:
                raise Broken(f"{fault} (tokens of width {context.hidden.shape[1]}, {method.spec()})")
            return reduction

        rehearse(method, shape, counted, size)


def undeclared(declared: int, counter: FlopCounter, slack: int) -> str:
    """What is wrong with a declaration; "" if nothing."""
    if not isinstance(declared, int) or isinstance(declared, bool) or declared < 0:
        return f"overhead_flops gives {declared!r}; it must be a whole number, 0 or more"
    if counter.flops <= declared + slack:
        return ""
    seen = ", ".join(f"{name} {flops:,}" for name, flops in counter.by_operator.most_common(4))
    return (
        f"overhead_flops declares {declared:,} FLOPs, but the hook computes {counter.flops:,} ({seen}); count 2 for "
        "each multiply-add"
    )


def _workloads(cls: type[Method]) -> Iterator[tuple[Method, ModelShape, int]]:
    """Methods with shapes and head sizes: every retention, and every choice and switch that the method has."""
    methods = [cls(retention=retention) for retention in _retentions(cls)] + list(_switched(cls))
    for has_cls in (True,) if "cls" in cls.card.needs else (True, False):
        for grid, size in WORKLOADS:
            shape = dataclasses.replace(SHAPE, grid=grid, has_cls=has_cls, vision_heads=HEADS)
            for method in methods:
                try:
                    method.sites(shape)
                except ValueError:  # a setting that does not suit this shape; `reductions_are_valid` has the defaults
                    continue
                yield method, shape, size


def _switched(cls: type[Method]) -> Iterator[Method]:
    """The method with one choice or switch changed."""
    for f in dataclasses.fields(cls):
        choices = (True, False) if isinstance(f.default, bool) else f.metadata.get("choices") or ()
        yield from (cls(**{f.name: choice}) for choice in choices if choice != f.default)


def selection_never_waits(cls: type[Method]) -> None:
    """Nothing is read back from the device, so that a GPU never waits. Adaptive methods may: their count is data."""

    def watched(hook, context):
        _ = context.tensors, context.attention("all")  # made outside
        with NoSync():
            return hook(context)

    if not cls.adaptive:
        rehearse(cls(), around=watched)


SYNCS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}


class NoSync(TorchDispatchMode):
    """Raises Broken on operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        masked = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in SYNCS or masked:
            what = "indexing with a boolean mask" if masked else f"{name.removeprefix('aten::')}"
            raise Broken(
                f"{what} makes a GPU wait; avoid .item(), .tolist(), `if tensor` and boolean masks, "
                "or declare the method adaptive"
            )
        return func(*args, **(kwargs or {}))


CHECKS: dict[str, Callable[[type[Method]], Iterator[str] | None]] = {
    "card": card_is_complete,
    "reductions": reductions_are_valid,
    "repeatable": same_input_same_outcome,
    "context": the_context_is_left_alone,
    "spec": spec_round_trips,
    "retention": bad_retention_is_refused,
    "overhead": overhead_is_declared,
    "device": selection_never_waits,
}


def _retentions(cls: type[Method]) -> list[float]:
    """The retentions of the rehearsal, within the method's own range."""
    bounds = dataclasses.fields(cls)[0].metadata
    return sorted({min(max(r, bounds["low"]), bounds["high"]) for r in RETENTIONS})


def _same(a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes agree in kinds, tensors and settings; functions are not compared."""
    if [type(part) for part in parts(a)] != [type(part) for part in parts(b)]:
        return False
    return all(_alike(one, other) for one, other in zip(parts(a), parts(b), strict=True))


def _alike(one: Reduction | Effect, other: Reduction | Effect) -> bool:
    if isinstance(one, Reduction) and isinstance(other, Reduction):
        return torch.equal(one.dense(), other.dense()) and torch.equal(one.anchor, other.anchor)
    for f in dataclasses.fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if not torch.equal(a, b):
                return False
        elif not callable(a) and a != b:
            return False
    return True


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


# -- running them ---------------------------------------------------------------------------------------------------
def check(cls: type[Method]) -> list[Finding]:
    """The findings over one registered method class; empty if it keeps the contract. Never raises for a bad method."""
    found: dict[str, Finding] = {}  # by message: one fault may break several rules
    for name, rule in CHECKS.items():
        try:
            for message in rule(cls) or ():
                found.setdefault(message, Finding(cls.card.name, name, message))
        except Exception as error:
            message = told(error, cls)
            found.setdefault(message, Finding(cls.card.name, name, message))
    return list(found.values())


def report(results: dict[str, list[Finding]]) -> str:
    """The findings of `check_folder` as lines of text."""
    lines = []
    for name, findings in results.items():
        count = f"{len(findings)} finding{'s' * (len(findings) != 1)}"
        lines.append(f"{name}: {count if findings else f'keeps the contract ({len(CHECKS)} checks)'}")
        lines += [f"  {finding.check}: {finding.message}" for finding in findings]
    return "\n".join(lines)
