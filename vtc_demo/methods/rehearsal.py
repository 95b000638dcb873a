"""A rehearsal without a model: the hooks of a method on contexts of seeded random numbers, shaped as in the engine."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtc_demo.core.flop_counting import uncounted
from vtc_demo.core.method import Method, Outcome, Tile, parts
from vtc_demo.core.operations import others
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site

SHAPE = ModelShape(grid=(6, 8), patch_size=14, vision_layers=4, feature_layer=2, llm_layers=8, has_cls=True)
HEADS, SIZE, TEXT = 2, 4, (3, 5)  # heads, head size, text tokens before and after the image


class Broken(Exception):
    """A hook broke off, or did what no hook may do. The message is a finding."""


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
    for site in sites_of(method, shape):
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


def sites_of(method: Method, shape: ModelShape) -> tuple[Site, ...]:
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
