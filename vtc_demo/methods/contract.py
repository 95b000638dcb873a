"""The contract that every method keeps, as checks whose findings can be read: `python -m vtc_demo check FOLDER`.

No model takes part. A method is rehearsed: each of its hooks is called with a context of seeded random numbers, as
the engine would shape them, and what comes back is held to the rules. The tests run the same checks over every method.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtc_demo.core.effects import Effect, Redistribute, SizeBias
from vtc_demo.core.flop_counting import FlopCounter, uncounted
from vtc_demo.core.method import Method, Outcome, Tile, parts
from vtc_demo.core.operations import others
from vtc_demo.core.parameters import build, declared
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site

SHAPE = ModelShape(grid=(6, 8), patch_size=14, vision_layers=4, feature_layer=2, llm_layers=8, has_cls=True)
RETENTIONS = (0.01, 0.25, 0.6, 1.0)
WORKLOADS = (((6, 8), 16), ((10, 12), 32))  # grids and head sizes at which overhead is counted
BAD_RETENTIONS = (0, -0.1, 1.01, float("nan"), float("inf"), "0.5", None, True, 10**400)
HEADS, SIZE, TEXT = 2, 4, (3, 5)  # heads, head size, text tokens before and after the image
SLACK = 16  # FLOPs per token of the sequence that need no declaration: scaling and averaging of scores, weights


class Broken(Exception):
    """A hook broke off, or did what no hook may do. The message is a finding."""


@dataclass(frozen=True)
class Finding:
    """One rule that a method breaks. check: a key of CHECKS, or "load" for a file that could not be used."""

    method: str
    check: str
    message: str


# -- the rehearsal --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SeededQuestion:
    """A question of random words [t, C], with a text tower as wide as they are (see `engine.question.Question`)."""

    words: Tensor
    text: str = "What is in the picture?"
    after: int = TEXT[1]

    @property
    def own(self) -> Tensor:
        return torch.arange(TEXT[0], sum(TEXT))

    @property
    @uncounted()
    def features(self) -> Tensor:
        return torch.nn.functional.normalize(self.words.mean(0), dim=0)

    @property
    @uncounted()
    def token_features(self) -> Tensor:
        return torch.nn.functional.normalize(self.words[self.own], dim=-1)

    @uncounted()
    def aligned(self, features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(features.float(), dim=-1)


@dataclass
class SeededContext:
    """What the engine shows a method (`core.method.HookContext`), from seeded random weights on the CPU, float32.

    n tokens, of which the first `extra` (at most one, CLS) is no patch.
    """

    site: Site
    shape: ModelShape
    base: int
    n: int
    extra: int = 0
    seed: int = 0
    size: int = SIZE
    memory: dict[str, Any] = field(default_factory=dict)
    recorded: tuple[int, ...] = ()  # encoder layers whose CLS rows are at hand

    @cached_property
    @uncounted()
    def tensors(self) -> dict[str, Tensor]:
        """sequence [S, C], weights [previous or next layer, q or k, C, C], visual [n], hidden [n, C], words [t, C]."""
        generator = torch.Generator().manual_seed(7 + self.seed)
        width, length = HEADS * self.size, self.n + (sum(TEXT) if self.in_llm else 0)
        sequence = torch.randn(length, width, generator=generator)
        weights = torch.randn(2, 2, width, width, generator=generator)
        weights *= (SIZE / self.size) ** 0.5  # so that queries and keys are as large at every size
        visual = torch.arange(self.n) + (TEXT[0] if self.in_llm else 0)
        words = torch.randn(sum(TEXT), width, generator=generator)
        return {
            "sequence": sequence,
            "weights": weights,
            "visual": visual,
            "hidden": sequence[visual].clone(),
            "words": words,
        }

    @property
    def in_llm(self) -> bool:
        return self.site.kind in ("llm_layer", "kv_cache")

    @property
    def hidden(self) -> Tensor:
        return self.tensors["hidden"]

    @property
    def sequence(self) -> Tensor | None:
        return self.tensors["sequence"] if self.in_llm else None

    @property
    def visual(self) -> Tensor | None:
        return self.tensors["visual"] if self.in_llm else None

    @property
    def text(self) -> Tensor | None:
        return others(self.tensors["visual"], len(self.tensors["sequence"])) if self.in_llm else None

    @property
    def anchors(self) -> Tensor:
        return torch.arange(self.n) - self.extra

    @property
    def sizes(self) -> Tensor:
        return torch.ones(self.n, dtype=torch.long)

    @uncounted()
    def attention(self, rows="last", *, of="previous", heads="all") -> Tensor:
        found = self._rows(rows, of, softmax=True)
        return found if heads == "all" else found.mean(0)

    @uncounted()
    def received(self, *, of="previous") -> Tensor:
        return self._rows("all", of, softmax=True).mean((0, 1))

    @uncounted()
    def logits(self, rows="last", *, of="previous") -> Tensor:
        return self._rows(rows, of, softmax=False).mean(0)

    def keys(self) -> Tensor:
        return self._of_encoder(0)

    def values(self) -> Tensor:
        return self._of_encoder(1)

    @uncounted()
    def _of_encoder(self, which: int) -> Tensor:
        if self.in_llm:
            raise ValueError("no encoder layer has just run; keys and values are for sites up to llm_input")
        return self._heads(which, 1)

    @uncounted()
    def cls_attention(self, layer: int) -> Tensor:
        if layer not in self.recorded or self.site.kind == "vision_layer":
            raise ValueError(f"CLS attention of encoder layer {layer} was not asked for in cls_layers()")
        generator = torch.Generator().manual_seed(layer)
        return torch.randn(HEADS if self.shape.has_cls else 1, self.n, generator=generator).softmax(-1)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return (Tile(torch.arange(self.extra, self.n), self.shape.grid, (0.0, 0.0, 1.0, 1.0), 0, False),)

    @property
    def question(self) -> SeededQuestion | None:
        return None if self.site.kind == "vision_layer" else SeededQuestion(self.tensors["words"])

    def _heads(self, which: int, part: int) -> Tensor:
        x = self.tensors["sequence"] @ self.tensors["weights"][which, part]
        return x.view(-1, HEADS, self.size).transpose(0, 1)  # [heads, S, d]

    def _rows(self, rows, of: str, softmax: bool) -> Tensor:
        which = ("previous", "next").index(of)
        if isinstance(rows, str) and rows == "cls" and not self.extra:
            if self.site.kind != "llm_input" or not self.shape.has_cls:
                raise ValueError("no CLS token")
            rows = torch.tensor([0])  # the encoder's rows can be had here too; any row stands in for that of CLS
        logits = self._heads(which, 0) @ self._heads(which, 1).transpose(1, 2) / self.size**0.5
        if self.in_llm and softmax:
            logits = logits.masked_fill(torch.ones(logits.shape[1:]).triu(1).bool(), -float("inf"))
        full = torch.softmax(logits, -1) if softmax else logits
        named: dict[str, Any] = {"all": slice(None), "visual": self.tensors["visual"][self.extra :]}
        if self.in_llm:
            named |= {"last": slice(-1, None), "text": self.text, "after": slice(TEXT[0] + self.n, None)}
        else:
            named["cls"] = slice(1)
        if isinstance(rows, str) and rows not in named:
            raise ValueError(f"there are no rows {rows!r}; choose {', '.join(named)} or an index tensor")
        return full[:, named[rows] if isinstance(rows, str) else rows]


def rehearse(
    method: Method, shape: ModelShape = SHAPE, around=lambda hook, context: hook(context), size: int = SIZE
) -> list:
    """What the method answers at each of its sites. Every context has the tokens that are left; where there are none,
    nothing is asked.

    `around(hook, context)` may watch each call. size: of a head. CLS leaves with the encoder, as in the engine.
    Raises Broken with the site, the number of tokens and the line of the file where a hook broke off.
    """
    extra, entered = int(shape.has_cls), None  # entered: visual tokens that came to the language model
    n, out = shape.patches + extra, []
    memory: dict[str, Any] = {}
    recorded = tuple(method.cls_layers(shape))
    for site in _sites(method, shape):
        if site.kind not in ("vision_layer", "projector"):
            n, extra = n - extra, 0
        if site.kind == "llm_layer" and entered is None:
            entered = n
        if n == 0:
            break
        base = shape.patches if entered is None else entered
        context = SeededContext(site, shape, base, n, extra, size=size, memory=memory, recorded=recorded)
        try:
            out.append(around(method.reduce, context))
        except Exception as error:
            raise Broken(
                f"at {site} with {n} tokens, {_settings(method, shape)}: {told(error, type(method))}"
            ) from error
        for reduction in reductions(out[-1]):
            n = reduction.m
            if site.kind == "projector":
                extra = 0  # whatever it kept counts as visual tokens
    return out


def reductions(outcome: Outcome) -> list[Reduction]:
    """Of an outcome; a sound one has at most one."""
    return [part for part in parts(outcome) if isinstance(part, Reduction)]


def _sites(method: Method, shape: ModelShape) -> tuple[Site, ...]:
    try:
        return tuple(method.sites(shape))
    except Exception as error:
        raise Broken(
            f"sites() refuses a model of {shape.vision_layers} encoder and {shape.llm_layers} decoder layers: "
            f"{told(error, type(method))}; choose defaults that suit small models too"
        ) from error


def _settings(method: Method, shape: ModelShape) -> str:
    return f"retention {method.retention:g}{'' if shape.has_cls else ', a tower without CLS'}"


def told(error: Exception, cls: type[Method]) -> str:
    """An error in one line, with the line of the method's own file at which it arose."""
    if isinstance(error, Broken):
        return str(error)
    file = inspect.getfile(cls)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({Path(file).name}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


# -- the rules: each yields its findings, or raises Broken with one --------------------------------------------------
def card_is_complete(cls: type[Method]) -> Iterator[str]:
    """The card says what a visitor reads, and names the sites that the method uses."""
    card, method = cls.card, cls()
    if not card.summary.endswith("."):
        yield "the card's summary must be a sentence with a full stop"
    kinds, named = {site.kind for site in _sites(method, SHAPE)}, set(card.sites) - {"input_image"}
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
    """Every hook answers None, a Reduction of the tokens it was shown, Effects or both, at every retention, with and
    without CLS."""
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


def faults(outcome: Outcome, context: SeededContext, method: Method | type[Method]) -> Iterator[str]:
    """What is wrong with an answer at a site."""
    left = context.n
    for part in parts(outcome):
        if not isinstance(part, Reduction | Effect):
            yield f"reduce() must return a Reduction, Effects or None, not {type(part).__name__}"
            return
    found = reductions(outcome)
    if len(found) > 1:
        yield f"{len(found)} Reductions at one site; give one"
    for reduction in found:
        yield from _faults_of_reduction(reduction, context.n, int(not method.withdraws))
        left = reduction.m
    for part in parts(outcome):
        if isinstance(part, Effect):
            yield from _faults_of_effect(part, context, left, method)


def _faults_of_reduction(reduction: Reduction, n: int, least: int) -> Iterator[str]:
    if reduction.n != n:
        yield f"the Reduction is one of {reduction.n} tokens, but {n} are here"
    if not least <= reduction.m <= reduction.n:
        yield f"{reduction.m} tokens are left; at least {least} and at most {reduction.n} must be"
    if reduction.scores is not None and reduction.scores.shape != (n,):
        yield f"Reduction.scores needs one score for each of the {n} tokens"
    for name, size in (("new", reduction.m), ("old", reduction.n), ("anchor", reduction.n)):
        index = getattr(reduction, name)
        if index.dtype != torch.int64:
            yield f"Reduction.{name} must be int64, not {index.dtype}"
        elif bool(len(index)) != bool(reduction.m) or (len(index) and not 0 <= index.min() <= index.max() < size):
            yield f"Reduction.{name} must hold indices from 0 to {size - 1}"
    if reduction.anchor.shape != (reduction.m,) or reduction.new.shape != reduction.old.shape:
        yield "Reduction.anchor needs one entry per new token, and new and old must be equally long"
    elif reduction.weight is None:
        if not torch.equal(reduction.old, reduction.anchor):
            yield "a kept token stands at its own place: Reduction.anchor must equal Reduction.old"
        elif not torch.equal(reduction.old, reduction.old.unique()):
            yield "kept indices must ascend, none twice (core.operations.top sorts them)"
    elif reduction.weight.shape != reduction.new.shape or not torch.isfinite(reduction.weight).all():
        yield "a merge needs one finite weight per entry"


def _faults_of_effect(
    effect: Effect, context: SeededContext, left: int, method: Method | type[Method]
) -> Iterator[str]:
    """left: visual tokens after the reduction that came with it."""
    name, site = type(effect).__name__, context.site
    if site.kind not in effect.sites:
        yield f"{name} cannot be asked for at {site}; it is for {', '.join(effect.sites)}"
    elif method.inside and site.layer is not None:
        yield f"{name} cannot be asked for between attention and MLP"
    tokens, neurons = getattr(effect, "tokens", None), getattr(effect, "neurons", None)
    if tokens is not None and not _indices(tokens, left):
        yield f"{name}.tokens must be int64 indices from 0 to {left - 1}, of the tokens that are left, none twice"
    if neurons is not None and not _indices(neurons):
        yield f"{name}.neurons must be int64 indices from 0 on, none twice"
    if isinstance(effect, SizeBias) and not (effect.size.shape == (left,) and _positive(effect.size)):
        yield f"SizeBias.size needs one size above 0 for each of the {left} tokens that are left"
    if isinstance(effect, Redistribute):
        yield from _faults_of_edit(effect, context, left)


def _indices(x: Tensor, limit: int | None = None) -> bool:
    """Whether x is a row of int64, each from 0 on and below the limit, none twice."""
    if x.dtype != torch.int64 or x.dim() != 1:
        return False
    low, high = (int(x.min()), int(x.max())) if len(x) else (0, -1)
    return len(x.unique()) == len(x) and low >= 0 and (limit is None or high < limit)


def _positive(x: Tensor) -> bool:
    return bool((torch.isfinite(x) & (x > 0)).all())


def _faults_of_edit(effect: Redistribute, context: SeededContext, left: int) -> Iterator[str]:
    """The edit is tried on one row, as in a decode step, of weights over all tokens that are left."""
    keys = left + sum(TEXT)
    weights = torch.rand(HEADS, 1, keys, generator=torch.Generator().manual_seed(context.seed)).softmax(-1)
    before, made = weights.clone(), effect.edit(weights, TEXT[0] + torch.arange(left))
    if not isinstance(made, Tensor) or made.shape != before.shape or not torch.isfinite(made).all():
        yield f"Redistribute.edit must give finite weights of the shape that it gets, {tuple(before.shape)}"
    if not torch.equal(weights, before):
        yield "Redistribute.edit changed the weights that it got; work on a copy"


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
