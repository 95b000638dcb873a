"""What a method is: a frozen dataclass of hyper-parameters, a card, and one hook.

A method names the sites it uses (`sites`) and answers at each of them with a Reduction or None (`reduce`). It sees the
state through a HookContext and never touches the model.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from .card import Card
from .effects import Effect
from .parameters import check, param
from .shape import ModelShape
from .tokens import Reduction, Site


@dataclass(frozen=True)
class Tile:
    """One view of a picture among those that the tower encodes.

    part [p]: which of the tokens at the site are its own, in their order. grid: its rows and columns. box: left, top,
    right, bottom as shares of the picture. image: which picture of the prompt. thumbnail: the whole picture, beside
    tiles of it.
    """

    part: Tensor
    grid: tuple[int, int]
    box: tuple[float, float, float, float]
    image: int
    thumbnail: bool


class HookContext(Protocol):
    """The state at one site, as the engine shows it to a method. Batch dimension removed.

    site: where we are. hidden [n, C]: the visual tokens there. At `vision_layer` and `projector` they begin with
    `extra` encoder tokens that are no patch (CLS); elsewhere extra = 0.
    question: from the projector on, see `engine.question.Question`: its text, the embeddings of the chat's words and
    which of them follow the picture, features of a text tower where the model was loaded with one.
    tiles: the views of the pictures, tiles and thumbnail.
    base: what a ratio is taken of: visual tokens that entered the LLM (llm sites), patches of the image (before).
    sequence [S, C], visual [n], text [t]: at llm_layer sites the whole sequence, the indices of the visual tokens in
    it and those of the text tokens (prompt before and after the image).
    anchors [n]: the patch (in the order of the grid, -1 for CLS) at which each token stands.
    sizes [n]: patches merged into each.
    seed: int, for methods that draw at random.
    memory: empty at the start of a pass and shared by all sites of it; methods themselves keep no state.
    """

    site: Site
    shape: ModelShape
    hidden: Tensor
    extra: int
    base: int
    sequence: Tensor | None
    visual: Tensor | None
    text: Tensor | None
    seed: int
    memory: dict[str, Any]
    question: Any

    @property
    def anchors(self) -> Tensor: ...

    @property
    def sizes(self) -> Tensor: ...

    @property
    def tiles(self) -> tuple[Tile, ...]: ...

    def attention(
        self, rows: Any = "last", *, of: Literal["previous", "next"] = "previous", heads: Literal["all", "mean"] = "all"
    ) -> Tensor:
        """Post-softmax attention [heads, rows, keys], float32, computed from one layer's own q and k.

        rows: "cls", "last", "text", "after" (text after the image), "visual", "all" or an index tensor. Keys: every
        token of the layer (CLS + patches in the encoder, the whole sequence in the LLM, causal mask and RoPE included).
        At `llm_input` the rows are of the encoder's feature layer, and the keys are the tokens that stand here.
        of="previous": the layer that has just run (at `projector`: the feature layer; at llm_layer(k): layer k-1).
        For a method that acts inside its layers, the layer it stands in.
        of="next": the parameters of the layer about to run, applied to the current hidden states.
        heads="mean": averaged over the heads, [rows, keys]; many rows stay within memory.
        Raises ValueError where there is no such layer or no CLS token.
        """
        ...

    def logits(self, rows: Any = "last", *, of: Literal["previous", "next"] = "previous") -> Tensor:
        """As `attention(heads="mean")` before mask and softmax: head mean of q k^T / sqrt(d), [rows, keys] float32."""
        ...

    def received(self, *, of: Literal["previous", "next"] = "previous") -> Tensor:
        """The attention that each key receives, averaged over all heads and rows, [keys] float32; in chunks of rows."""
        ...

    def keys(self) -> Tensor:
        """k_proj output (bias included, unscaled) of the encoder layer that has just run, [heads, n, d].

        At sites up to `llm_input`.
        """
        ...

    def values(self) -> Tensor:
        """v_proj output of the same layer, [heads, n, d]."""
        ...

    def cls_attention(self, layer: int) -> Tensor:
        """What the tokens here get from CLS in an encoder layer named by `Method.cls_layers`, [heads, n] float32.

        Without a CLS token: the attention that each receives, averaged over heads and rows, [1, n]. From the projector
        on.
        """
        ...


Outcome = Reduction | Effect | tuple[Reduction | Effect, ...] | None  # of a hook


def parts(outcome: Outcome) -> tuple[Reduction | Effect, ...]:
    """What an outcome is made of, in its order."""
    return outcome if isinstance(outcome, tuple) else () if outcome is None else (outcome,)


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods. Subclasses are frozen dataclasses; their card follows the class, so that the maths leads."""

    card: ClassVar[Card]
    positions: ClassVar[Literal["keep", "renumber"]] = "keep"  # RoPE positions after a drop inside the LLM
    inside: ClassVar[bool] = False  # layer sites act between attention and MLP of their layer instead of before it
    gridded: ClassVar[bool] = False  # needs the grid of one view: with several views it is asked view by view
    connector: ClassVar[Any] = None  # a trained module in the place of the projector, see `vtc_demo.connectors`
    withdraws: ClassVar[bool] = False  # may leave no visual token at all
    adaptive: ClassVar[bool] = False  # how many tokens are left depends on the image: the host waits for the count

    retention: float = param(0.25, "share of the visual tokens that is kept", low=0.01, high=1.0, step=0.01)

    @classmethod
    def available(cls) -> bool:
        """Whether what it needs besides code is here; else it is not listed."""
        return True

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, check(self.card.name, f, getattr(self, f.name)))

    @abstractmethod
    def sites(self, shape: ModelShape) -> tuple[Site, ...]:
        """The sites at which `reduce` is called, in the order of the pass. Raises ValueError if the model lacks one."""

    @abstractmethod
    def reduce(self, context: HookContext) -> Outcome:
        """The outcome at `context.site`: a Reduction, an Effect, several of these, or None to leave all as it is."""

    def image_side(self, shape: ModelShape) -> int | None:
        """Side in pixels to which the input image is scaled before the vision tower; None leaves it alone."""
        return None

    def cls_layers(self, shape: ModelShape) -> Iterable[int]:
        """Encoder layers (0-based) whose CLS row `context.cls_attention` shall give; each costs one row, not a map."""
        return ()

    def trim_from(self, shape: ModelShape) -> int | None:
        """First decoder layer whose cache, at `kv_cache`, also loses what later layers dropped; None: no layer."""
        return None

    def overhead_flops(self, context: HookContext) -> int:
        """FLOPs (2 per multiply-add) of what `reduce` computes with this context, from shapes and settings alone.

        The engine books the rest: attention, logits and keys that the context was asked for, and the weighted sum of a
        merge. The contract runs `reduce` under `core.flop_counting.FlopCounter` and refuses a declaration below its
        count; a few operations per token, such as scaling or averaging scores, need none.
        """
        return 0

    def keep(self, n: int) -> int:
        """How many of n tokens the retention asks for: rounded half to even, at least one."""
        return max(1, round(self.retention * n))

    def spec(self) -> dict:
        """Name and hyper-parameters, JSON-ready; `resolve` reads it back."""
        return {"method": self.card.name, **dataclasses.asdict(self)}
