"""MustDrop: merge look-alike neighbours, filter by dual attention, trim the cache (arXiv 2411.10803).

Layers count from 0. "End of layer l" in the paper's code is the site llm_layer(l + 1) here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import check_grid, top
from vtc_demo.core.parameters import param
from vtc_demo.core.rearrange import in_order
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site

DEPTH = 32  # layers of the model that the published pruning layers belong to


# -- stage 1: the encoder -------------------------------------------------------------------------------------------
def windows(grid: tuple[int, int], side: int, device=None) -> Tensor:
    """Patches of the whole side x side windows in raster order, [windows, side * side] int64.

    Rows and columns that fill no window are left out. ValueError if not even one window fits.
    """
    rows, columns = (size // side for size in grid)
    if not rows or not columns:
        raise ValueError(f"mustdrop: window={side} is larger than the grid of {grid[0]} x {grid[1]} patches")
    places = torch.arange(grid[0] * grid[1], device=device).view(grid)[: rows * side, : columns * side]
    return places.reshape(rows, side, columns, side).transpose(1, 2).reshape(-1, side * side)


def likeness(patches: Tensor, places: Tensor) -> Tensor:
    """Mean cosine similarity within each window, a token with itself left out, [windows] float32.

    patches [n, C]; places [windows, m].
    """
    m = places.shape[1]
    unit = torch.nn.functional.normalize(patches[places].float(), dim=-1)  # [windows, m, C]
    pairs = (unit @ unit.transpose(1, 2)).sum((1, 2)) - unit.square().sum((1, 2))  # ordered pairs a != b
    return pairs / (m * (m - 1))


def merge_windows(hidden: Tensor, extra: int, places: Tensor, tau: float) -> Reduction | None:
    """Each window whose likeness is at least tau becomes the mean of its tokens; None if there is none.

    hidden [extra + patches, C]. Rows: the extra tokens, merged windows by falling likeness, other patches in raster
    order. A merged token stands at the last patch of its window.
    """
    n, m = hidden.shape[0], places.shape[1]
    score = likeness(hidden[extra:], places)
    count = int((score >= tau).sum().item())  # the one number that the host waits for
    if count == 0:
        return None
    chosen = extra + places[score.argsort(descending=True, stable=True)[:count]]  # [count, m]
    alone = torch.ones(n, dtype=torch.bool, device=hidden.device).index_fill_(0, chosen.flatten(), False)
    alone[:extra] = False
    lead, rest = torch.arange(extra, device=hidden.device), alone.nonzero().flatten()
    new = torch.arange(extra + count + len(rest), device=hidden.device)
    return Reduction(
        new=torch.cat([new[:extra], new[extra : extra + count].repeat_interleave(m), new[extra + count :]]),
        old=torch.cat([lead, chosen.flatten(), rest]),
        weight=torch.cat([torch.ones(extra), torch.full((count * m,), 1 / m), torch.ones(len(rest))]).to(hidden.device),
        m=len(new),
        n=n,
        anchor=torch.cat([lead, chosen[:, -1], rest]),
    )


def key_set(scores: Tensor, share: float) -> Tensor:
    """The ceil(share * n) patches with the highest scores [n], best first, int64."""
    count = -(-Fraction(str(share)) * scores.shape[0] // 1)  # exact, or 0.08 * 25 would be one too many
    return scores.argsort(descending=True, stable=True)[: int(count)]


# -- stage 2: prefill -------------------------------------------------------------------------------------------------
def dual_attention(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [text, n], head mean of the attention of text to visual tokens -> (global, individual), [n] each.

    Global: sum over the text rows, as a share of its sum over the visual tokens. Individual: the largest over the rows.
    """
    total = rows.sum(0)
    return total / total.sum(), rows.amax(0)


def passes(rows: Tensor, key: Tensor, gamma: float, alpha: float) -> Tensor:
    """Tokens that stay by the thresholds, ascending int64: not (global < gamma and individual < alpha), or in `key`.

    At least one: the token nearest to its thresholds.
    """
    share, individual = dual_attention(rows)
    stays = (share >= gamma) | (individual >= alpha)
    stays = stays.index_fill(0, key, True)
    return stays.nonzero().flatten() if stays.any() else top(strength(rows, gamma, alpha), 1)


def strength(rows: Tensor, gamma: float, alpha: float) -> Tensor:
    """By which factor both thresholds could rise before a token falls under both, [n]."""
    share, individual = dual_attention(rows)
    return torch.maximum(share / gamma, individual / alpha)


def strongest(rows: Tensor, key: Tensor, keep: int, gamma: float, alpha: float) -> Tensor:
    """The `keep` tokens that stay when both thresholds are scaled by one factor, ascending.

    Key tokens come first; if there are more than `keep` of them, the best of them (`key` is in falling order).
    """
    rank = strength(rows, gamma, alpha).argsort(descending=True, stable=True).argsort()  # 0 is the strongest
    rank = rank.index_copy(0, key, torch.arange(-len(key), 0, device=rank.device))
    return top(-rank, keep)


def cuts(layers: str, depth: int) -> tuple[int, ...]:
    """First layer that runs on fewer tokens, per cut: "2, 6, 10, 14" of 32 -> 3, 7, 11, 15; of 8 -> 1, 2, 3, 4.

    ValueError for anything but layers of a 32-layer model, or a depth without a layer to cut at.
    """
    parts = [part.strip() for part in layers.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) < DEPTH - 1 for part in parts):
        raise ValueError(
            f"mustdrop: layers={layers!r} must be whole numbers from 0 to {DEPTH - 2}, separated by commas: layers of "
            f"a {DEPTH}-layer model, scaled to the depth of the model at hand"
        )
    if depth < 2:
        raise ValueError("mustdrop: a cut needs a layer before it; this model has fewer than 2 decoder layers")
    return tuple(sorted({min(depth - 1, max(1, round((int(p) + 1) * depth / DEPTH))) for p in parts}))


def counts(n: int, wanted: int, at: tuple[int, ...], depth: int, floor: int, average: bool) -> list[int]:
    """Tokens after each cut, falling by one factor from cut to cut, so that the mean over the layers (or what is left
    at the end) comes nearest to `wanted`. Never below `floor`, the lowest that is reached where `wanted` is too low.
    """

    def schedule(q):
        return [min(n, max(floor, n * q ** (i + 1))) for i in range(len(at))]

    def result(q):
        spans = [b - a for a, b in zip((0, *at), (*at, depth))]
        return sum(c * s for c, s in zip((n, *schedule(q)), spans)) / depth if average else schedule(q)[-1]

    low, high = 0.0, 1.0
    for _ in range(60):  # result rises with q
        middle = (low + high) / 2
        low, high = (middle, high) if result(middle) < wanted else (low, middle)
    return [round(c) for c in schedule(high)]


@dataclass(frozen=True)
class MustDrop(Method):
    """Three stages, each with its switch: encoder, prefill, cache."""

    adaptive = True

    retention: float = param(
        0.25, "share of the patches that is kept; in mode=threshold without effect", low=0.01, high=1.0, step=0.01
    )
    mode: str = param("budget", "retention decides, or the published thresholds", choices=("budget", "threshold"))
    budget: str = param(
        "average", "retention is the mean over the layers, or what is left at the end", choices=("average", "final")
    )
    merge: bool = param(True, "stage 1: merge look-alike neighbours in the image encoder")
    prefill: bool = param(True, "stage 2: drop in the language model")
    cache: bool = param(True, "stage 3: remove from the cache what stage 2 dropped in later layers")
    window: int = param(3, "side of the merged windows, in patches", low=2, high=24, step=1)
    tau: float = param(0.8, "mean cosine similarity from which a window is merged", low=-1.0, high=1.0, step=0.01)
    raster: bool = param(False, "merged tokens keep their place in the image instead of moving to the front")
    key_share: float = param(0.08, "share of the tokens that stage 2 must keep", low=0.0, high=1.0, step=0.01)
    layers: str = param("2, 6, 10, 14", "stage 2 cuts after these layers of a 32-layer model; scaled to other depths")
    gamma: float = param(0.001, "threshold on a token's share of all attention", low=1e-6, high=1.0, step=0.0001)
    alpha: float = param(0.001, "threshold on the attention from one text token", low=1e-6, high=1.0, step=0.0001)
    released_positions: bool = param(False, "number positions anew at each cut, as the released code does")

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.layers, str):
            raise ValueError(f'mustdrop: layers={self.layers!r} must be text such as "2, 6, 10, 14"')
        cuts(self.layers, DEPTH)

    @property
    def positions(self):
        return "renumber" if self.released_positions else "keep"

    def sites(self, shape: ModelShape):
        out = []
        if self.merge:
            windows(shape.grid, self.window)
            if shape.feature_layer < 1:
                raise ValueError(
                    "mustdrop: merging acts after encoder layer 0, but this model reads that layer's output"
                )
            out.append(Site("vision_layer", 1))
        if self.prefill:
            out += [Site("projector")] if self.key_share else []
            out += [Site("llm_layer", layer) for layer in cuts(self.layers, shape.llm_layers)]
            out += [Site("kv_cache")] if self.cache else []
        return tuple(out)

    def trim_from(self, shape):
        return cuts(self.layers, shape.llm_layers)[0] - 1  # the layer after which the first tokens went

    def reduce(self, context):
        stage = {"vision_layer": self._merge, "projector": self._note_key_set, "llm_layer": self._filter}
        return stage.get(
            context.site.kind, lambda context: Reduction.identity(len(context.hidden), context.hidden.device)
        )(context)

    def _merge(self, context):
        check_grid("mustdrop", context.shape.grid, context.hidden.shape[0] - context.extra)
        places = windows(context.shape.grid, self.window, context.hidden.device)
        reduction = merge_windows(context.hidden, context.extra, places, self.tau)
        return in_order(reduction) if reduction is not None and self.raster else reduction

    def _note_key_set(self, context):
        """Nothing leaves here; the key set is for later."""
        of = "next" if context.shape.feature_layer + 1 < context.shape.vision_layers else "previous"
        cls = context.extra > 0
        looks = context.attention("cls", of=of, heads="mean").mean(0) if cls else context.received(of=of)  # [n]
        best = context.extra + key_set(looks[context.extra :], self.key_share)
        context.memory["units"] = context.anchors[best]  # where the tokens stand

    def _filter(self, context):
        n, device = len(context.hidden), context.hidden.device
        if "units" in context.memory:  # first cut: the same patches among the tokens of the language model
            same = context.memory.pop("units")[:, None] == context.anchors  # [key tokens, n]
            context.memory["key"] = same.int().argmax(1)[same.any(1)]
        key = context.memory.get("key", torch.arange(0, device=device))
        rows = context.attention("after", heads="mean")[:, context.visual]  # [text after the image, n]
        if self.mode == "threshold":
            kept = passes(rows, key, self.gamma, self.alpha)
        else:
            kept = strongest(rows, key, self._count(context, key), self.gamma, self.alpha)
        place = torch.full((n,), -1, device=device).index_copy_(0, kept, torch.arange(len(kept), device=device))
        context.memory["key"] = place[key[: len(kept)]]  # protected tokens all stay; trimmed from the end
        return Reduction.select(kept, n)

    def _count(self, context, key: Tensor) -> int:
        wanted, shape = self.keep(context.shape.patches), context.shape
        if "counts" not in context.memory:
            at, floor = cuts(self.layers, shape.llm_layers), min(wanted, max(1, len(key)))
            done = counts(context.base, wanted, at, shape.llm_layers, floor, self.budget == "average")
            context.memory["counts"] = dict(zip(at, done))
        return min(len(context.hidden), context.memory["counts"][context.site.layer])

    def overhead_flops(self, context):
        """Windows: unit length, similarities and their sums. In the language model: sums over the words."""
        kind, (n, dim) = context.site.kind, context.hidden.shape
        if kind == "vision_layer":
            places, m = windows(context.shape.grid, self.window).shape
            return places * m * (5 * dim + 2 * m * dim + m)
        looked = 1 + (self.mode == "threshold")  # anew where no token passes
        return looked * len(context.text) * n if kind == "llm_layer" else 0


MustDrop.card = Card(
    name="mustdrop",
    title="MustDrop",
    family="multi-stage",
    summary="Look-alike neighbours are averaged in the image encoder, patches that no word of the question looks "
    "at go in steps inside the language model, and what did not survive leaves the cache.",
    sites=("vision_layer", "projector", "llm_layer", "kv_cache"),
    faithfulness="matches released code",
    paper="arXiv 2411.10803",
    code="liuting20/MustDrop",
    deviations=(
        "mode=threshold is the published way: the count varies with image and question. mode=budget scales both "
        "thresholds at each cut by one factor so that the wanted count stays; counts fall geometrically.",
        "Published thresholds (gamma, alpha): 192 tokens on average 0.001, 0.001; 128: 0.0012, 0.001; 64: 0.011, "
        "0.01 (VizWiz: 0.005, 0.001).",
        "An average lower than what the layers before the first cut cost is out of reach; then the key set, or "
        "the wanted count if that is less, is left from the first cut on. At least one token always stays.",
        "Pruning layers 2, 6, 10, 14 belong to 32 layers; other depths scale them. The released code has the last "
        "layer's index 32 fixed.",
        "The figure of the paper has 2 x 2 windows and a key set of 5%; the code, and this, 3 x 3 and 8%.",
        "As released, merged windows move in front of all other patches; raster=True keeps the order of the image.",
        "Positions stay those of the full sequence. The released code numbers them anew at each cut and takes each "
        "layer's cache length for new tokens, which contradicts the keys in the trimmed layers: "
        "released_positions=True.",
        "'Output-aware' cache trimming uses only which tokens survived prefill, as released.",
        "Only the rows that are needed are computed; the released code switches to full attention maps for good.",
        "Grid not a multiple of the window: the last rows or columns are not merged. Encoder without CLS token: "
        "the attention a patch receives ranks the key set. No layer after the feature layer: that layer does.",
    ),
    reported="88.5% fewer FLOPs on LLaVA. LLaVA-1.5-7B at 192 / 128 / 64 tokens on average: GQA 58.2 / 56.9 / "
    "53.1 of 61.9, TextVQA 56.5 / 56.3 / 54.2 of 58.2.",
    finding=(  # assets/measurements/embedded_ablations.json
        "In ablations on 250 questions, asked for 128 tokens: 60.0 as it is, 60.8 without merging, 64.8 without "
        "the cache stage, 70.0 without the key set; all intervals (about 6 points either way) overlap."
    ),
    order=30,
)
