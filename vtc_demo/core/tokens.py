"""The algebra of token reduction: Reduction, Site, Trace.

A reduction is a sparse matrix R [m, n]: new tokens = R @ old tokens. Pruning keeps rows of the identity, merging
writes weighted rows, a cross-attention connector writes soft rows. The product of the reductions of a pass is the
provenance of every surviving token. Pure tensors; this file imports nothing else of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .effects import Effect

SiteKind = Literal["input_image", "vision_layer", "projector", "llm_input", "llm_layer", "kv_cache"]
SITE_ORDER = {kind: i for i, kind in enumerate(get_args(SiteKind))}


@dataclass(frozen=True, order=False)
class Site:
    """A place where tokens may be reduced. `layer` (0-based) is set for vision_layer and llm_layer only.

    `vision_layer(i)` and `llm_layer(k)` act on the tokens that enter that layer.
    """

    kind: SiteKind
    layer: int | None = None

    def __post_init__(self):
        if self.kind not in SITE_ORDER:
            raise ValueError(f"unknown site '{self.kind}'; sites are {', '.join(SITE_ORDER)}")
        if (self.layer is not None) != (self.kind in ("vision_layer", "llm_layer")):
            raise ValueError(f"site {self.kind} {'needs' if self.layer is None else 'takes no'} layer")

    @property
    def key(self) -> tuple[int, int]:
        """Sort key: order of the pass."""
        return SITE_ORDER[self.kind], self.layer or 0

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}({self.layer})"


@dataclass(frozen=True)
class Reduction:
    """Sparse matrix R [m, n] in coordinate form, with one anchor per new token.

    new, old: [nnz] int64 row and column of each entry; weight: [nnz] float, or None when every weight is 1.
    anchor: [m] int64, the old token at whose place the new one stands (its position id, its place in a picture).
    soft: rows are cross-attention weights, not a partition of the old tokens. scores [n]: what the old tokens were
    ranked by, higher is kept first, for whoever asks why; None: nothing was ranked.
    """

    new: Tensor
    old: Tensor
    weight: Tensor | None
    m: int
    n: int
    anchor: Tensor
    soft: bool = False
    scores: Tensor | None = field(default=None, compare=False, repr=False)

    # -- constructors ---------------------------------------------------------------------------------------------
    @staticmethod
    def identity(n: int, device=None) -> Reduction:
        return Reduction.select(torch.arange(n, device=device), n)

    @staticmethod
    def select(keep: Tensor, n: int, scores: Tensor | None = None) -> Reduction:
        """Keep the old tokens `keep` [m] in that order; none at all is a withdrawal. scores [n]: what they were ranked
        by. Indices must lie in [0, n) (not checked: no host sync)."""
        m = keep.shape[0]
        if m > n:
            raise ValueError(f"cannot keep {m} of {n} tokens; keep at most {n}")
        keep = keep.long()
        return Reduction(torch.arange(m, device=keep.device), keep, None, m, n, keep, scores=scores)

    @staticmethod
    def merge(anchor: Tensor, source: Tensor, target: Tensor, n: int, *, source_weight: Tensor, anchor_weight: Tensor):
        """new[t] = anchor_weight[t] * old[anchor[t]] + sum over target[i] = t of source_weight[i] * old[source[i]].

        anchor [m] old indices of the survivors; source [k] old indices merged away; target [k] in [0, m).
        """
        m = anchor.shape[0]
        rows = torch.arange(m, device=anchor.device)
        return Reduction(
            torch.cat([rows, target.long()]),
            torch.cat([anchor.long(), source.long()]),
            torch.cat([anchor_weight, source_weight]),
            m,
            n,
            anchor.long(),
        )

    @staticmethod
    def from_dense(matrix: Tensor, anchor: Tensor | None = None, soft: bool = False) -> Reduction:
        """From R [m, n]; the anchor defaults to each row's largest entry."""
        m, n = matrix.shape
        new, old = matrix.nonzero(as_tuple=True)
        anchor = matrix.argmax(1) if anchor is None else anchor.long()
        return Reduction(new, old, matrix[new, old], m, n, anchor, soft)

    # -- use ------------------------------------------------------------------------------------------------------
    @property
    def is_selection(self) -> bool:
        return self.weight is None

    def flops(self, width: int) -> int:
        """Of `apply` to tokens of that width: a multiply-add per entry and channel, nothing for a selection."""
        return 0 if self.is_selection else 2 * self.new.shape[0] * width

    def apply(self, tokens: Tensor) -> Tensor:
        """tokens [..., n, C] -> [..., m, C] in the dtype of `tokens` (merging accumulates in float32)."""
        if tokens.shape[-2] != self.n:
            raise ValueError(f"reduction takes {self.n} tokens, got {tokens.shape[-2]}")
        if self.weight is None:
            return tokens.index_select(-2, self.old)
        rows = tokens.index_select(-2, self.old).float() * self.weight.float()[:, None]
        out = rows.new_zeros(*tokens.shape[:-2], self.m, tokens.shape[-1])
        return out.index_add_(-2, self.new, rows).to(tokens.dtype)

    def dense(self) -> Tensor:
        """R as a float32 tensor [m, n]."""
        out = torch.zeros(self.m, self.n, dtype=torch.float32, device=self.old.device)
        weight = torch.ones_like(self.old, dtype=torch.float32) if self.weight is None else self.weight.float()
        return out.index_put_((self.new, self.old), weight, accumulate=True)

    def after(self, earlier: Reduction) -> Reduction:
        """The product self @ earlier: `earlier` acts first."""
        if earlier.m != self.n:
            raise ValueError(f"cannot chain: the earlier reduction yields {earlier.m} tokens, this one takes {self.n}")
        anchor = earlier.anchor[self.anchor]
        if self.is_selection and earlier.is_selection:
            keep = earlier.old[self.old]
            return Reduction(self.new, keep, None, self.m, earlier.n, anchor)
        few = self.new.shape[0] < 8 * self.m  # rows of few entries: gather them instead of a dense product
        product = self.apply(earlier.dense()) if few else self.dense() @ earlier.dense()
        return Reduction.from_dense(product, anchor, self.soft or earlier.soft)

    def to(self, device) -> Reduction:
        names = ("new", "old", "anchor", "weight", "scores")
        moved: dict[str, Any] = {k: None if (v := getattr(self, k)) is None else v.to(device) for k in names}
        return replace(self, **moved)


@dataclass(frozen=True)
class Step:
    """inside: tokens left between attention and MLP of the site's layer; the next layer is the first to see it."""

    site: Site
    reduction: Reduction
    inside: bool = False


@dataclass(frozen=True)
class Fate:
    """What became of every patch at one site. status [patches]: 0 dropped, 1 merged, 2 kept.

    weight [patches]: the patch's largest share in a surviving token (magnitude); home [patches]: the patch itself if
    kept, else the patch at which that token stands (-1 if dropped, or if that token stands at no patch, as CLS does).
    """

    status: Tensor
    weight: Tensor
    home: Tensor

    @property
    def counts(self) -> dict[str, int]:
        c = torch.bincount(self.status, minlength=3).tolist()
        return {"dropped": c[0], "merged": c[1], "kept": c[2]}


@dataclass
class Trace:
    """The ordered reductions of one run.

    grid: (rows, columns) of the patch grid that pictures are drawn on; extra: leading encoder tokens that are no
    patch (1 for CLS). llm_layers: number of decoder layers. steps are in the order of the pass. outside: the tokens are
    held outside the decoder's sequence, so none enters a layer. effects: what else was asked for, and where.
    """

    grid: tuple[int, int]
    extra: int
    llm_layers: int
    steps: list[Step] = field(default_factory=list)
    cells: Tensor | None = field(default=None, compare=False)
    outside: bool = False
    effects: list[tuple[Site, Effect]] = field(default_factory=list)
    _products: list[Reduction] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] if self.cells is None else len(self.cells)

    def on_grid(self, values: Tensor, blank: int = 0) -> Tensor:
        """values [patches] in the raster order of the grid, `blank` in cells that hold no patch."""
        if self.cells is None:
            return values
        return values.new_full((self.grid[0] * self.grid[1],), blank).index_copy(0, self.cells, values)

    def add(self, site: Site, reduction: Reduction, inside: bool = False) -> None:
        self.steps.append(Step(site, reduction, inside))

    @property
    def sites(self) -> list[Site]:
        return [s.site for s in self.steps]

    def product(self, upto: Site | None = None) -> Reduction:
        """Provenance of the tokens that leave site `upto` (default: the last): R [tokens, extra + patches]."""
        steps = self._until(upto)
        for step in self.steps[len(self._products) : len(steps)]:
            total = self._products[-1] if self._products else Reduction.identity(self.extra + self.patches)
            self._products.append(step.reduction.to("cpu").after(total))
        return self._products[len(steps) - 1] if steps else Reduction.identity(self.extra + self.patches)

    def _until(self, upto: Site | None) -> list[Step]:
        return [s for s in self.steps if upto is None or s.site.key <= upto.key]

    def fate(self, upto: Site | None = None) -> Fate:
        """Kept, merged or dropped, per patch, after site `upto`.

        A patch is kept if a surviving token stands at it and draws on it, merged if only tokens elsewhere draw on it.
        """
        total = self.product(upto)
        if total.m == 0:  # withdrawn
            none = torch.zeros(self.patches)
            return Fate(none.long(), none, torch.full_like(none, -1).long())
        share = total.dense()[:, self.extra :].abs()  # [tokens, patches]; a share may be negative in a transform
        place = (total.anchor - self.extra).clamp(min=-1)  # [tokens] patch at which each token stands, -1 for CLS
        weight, token = share.max(0)  # [patches]
        alive = weight > 0
        kept = torch.zeros(self.patches, dtype=torch.bool)
        placed = (place >= 0).nonzero().flatten()
        kept[place[placed[share[placed, place[placed]] > 0]]] = True
        home = torch.where(alive, place[token], -1)
        home = torch.where(kept, torch.arange(self.patches), home)
        return Fate(alive.long() + kept.long(), weight, home)

    def sizes(self) -> Tensor:
        """Number of patches that feed each current token, [tokens]."""
        return self.product().dense()[:, self.extra :].ne(0).sum(1)

    @property
    def schedule(self) -> list[int]:
        """Visual tokens entering each LLM layer, [llm_layers]."""
        if self.outside:
            return [0] * self.llm_layers
        count = self.extra + self.patches
        by_layer = {}
        for step in self.steps:
            if step.site.layer is not None and step.site.kind == "llm_layer":
                by_layer[step.site.layer + step.inside] = step.reduction.m
            elif step.site.kind != "kv_cache":
                count = step.reduction.m
        out = []
        for layer in range(self.llm_layers):
            count = by_layer.get(layer, count)
            out.append(count)
        return out

    @property
    def equivalent_tokens(self) -> float:
        """Mean over LLM layers of the visual tokens entering the layer."""
        return sum(self.schedule) / max(1, self.llm_layers)

    def evidence_kept(self, evidence: Tensor, upto: Site | None = None) -> float:
        """Share of the evidence patches [patches] (bool) that are kept or merged after `upto`; nan without evidence."""
        evidence = torch.as_tensor(evidence).flatten().bool()
        if not evidence.any():
            return float("nan")
        return (self.fate(upto).status[evidence] > 0).float().mean().item()
