"""The method at its sites: when it is asked, what it is shown, what its answers are and cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from vtc_demo.core.clock import Stopwatch
from vtc_demo.core.method import Method
from vtc_demo.core.rearrange import concatenate_blocks, in_order, shrink
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.models.attention import EncoderProbe
from vtc_demo.models.layout import Layout

from .context import SiteContext

TILES = ("global", "crop")


class Hooks:
    """One method during one pass. `begin` is called once, then `ask` at every site.

    tiles: with several views, "global" asks for all of them together, "crop" view by view, so that each keeps its
    share. Raises ValueError for another value, and for sites that the model does not have.
    """

    def __init__(self, method: Method, shape: ModelShape, watch: Stopwatch, seed: int = 0, tiles: str = "global"):
        if tiles not in TILES:
            raise ValueError(f"tiles={tiles!r}; choose {' or '.join(map(repr, TILES))}")
        self.method, self.shape, self.watch, self.seed, self.tiles = method, shape, watch, seed, tiles
        self.sites = frozenset(method.sites(shape))
        for site in self.sites:
            self._check(site)
        self.overhead = 0  # FLOPs of the method's own arithmetic
        self.memory: dict[Any, dict[str, Any]] = defaultdict(dict)  # the method's, from site to site, by view
        self.entered: Tensor | None = None  # tokens at the projector at whose places those stand that entered the LLM

    def _check(self, site: Site) -> None:
        name = self.method.card.name
        if site.kind == "input_image":
            raise ValueError(f"{name}: an image is scaled through image_side, not at a site")
        layers = {"vision_layer": self.shape.feature_layer + 1, "llm_layer": self.shape.llm_layers}.get(site.kind)
        if layers is not None and site.layer is not None and not 0 <= site.layer < layers:
            raise ValueError(f"{name}: {site} does not exist; this model has {site.kind} 0 to {layers - 1}")

    def inside(self, site: Site) -> bool:
        """Whether the method acts there between attention and MLP of the site's layer."""
        return site in self.sites and self.method.inside

    def begin(self, layout: Layout, scaled: bool, outside: bool) -> None:
        """Learn how the pictures are laid out. scaled: the picture was made smaller for the method; outside: its tokens
        stay out of the decoder's sequence. Raises ValueError where the method cannot act on such pictures."""
        if layout.blend is not None:
            self._check_scaled()
        self.layout, grid = layout, layout.crops[0].grid if len(layout.crops) == 1 else (1, layout.units)
        drawn = self.shape.grid if scaled else layout.sheet[0]
        self.trace = Trace(drawn, layout.extra, self.shape.llm_layers, cells=layout.cells, outside=outside)
        if scaled:
            self.trace.add(Site("input_image"), shrink(drawn, grid, layout.extra))
        self.shape = replace(self.shape, grid=grid)
        self.base = layout.units

    def enter_llm(self, anchor: Tensor) -> None:
        """From here on ratios are of the tokens that enter the language model."""
        self.base, self.entered = len(anchor), anchor

    def _check_scaled(self) -> None:
        """Of a picture whose tiles are scaled to another grid after the projector: nothing may be missing there."""
        acts = {site.kind for site in self.sites}
        ends = {"projector": "where this method acts", "vision_layer": "and this method acts before it"}
        where = next((end for kind, end in ends.items() if kind in acts), None)
        if where is not None:
            raise ValueError(
                f"{self.method.card.name}: this picture has so many tiles that the model scales them down after the "
                f"projector, {where}; use a smaller picture or a method that acts later"
            )

    # -- asking -------------------------------------------------------------------------------------------------------
    def ask(
        self, site: Site, hidden: Tensor, anchor: Tensor, ordered: bool = False, inside: bool = False, **state: Any
    ) -> Reduction | None:
        """The method's reduction of the tokens hidden [n, C] at a site, recorded and its cost booked.

        anchor [n]: the token at the projector at whose place each stands. ordered: the tokens stand in a sequence, so
        rows are put in the order of their anchors.
        """
        if site not in self.sites or (site.layer is not None and self.method.inside != inside):
            return None
        stage = self.watch.enter("compression")
        reduction = self.answers(site, hidden, anchor, **state)
        if reduction is not None:
            self.overhead += reduction.flops(hidden.shape[1])
            reduction = in_order(reduction) if ordered else reduction
            self.trace.add(site, reduction, inside)
        self.watch.enter(stage)
        return reduction

    def answers(self, site: Site, hidden: Tensor, anchor: Tensor, **state) -> Reduction | None:
        """What the method makes of all views together or of each by itself; its cost is booked."""
        if self._by_view(site):
            return self._each_view(site, hidden, anchor, **state)
        return self._answer(site, hidden, self.shape, None, **state)

    def _by_view(self, site: Site) -> bool:
        """Inside the tower views do not see each other, so each is asked by itself."""
        several = len(self.layout.crops) > 1
        return several and (self.tiles == "crop" or self.method.gridded or site.kind == "vision_layer")

    def _answer(self, site: Site, hidden: Tensor, shape: ModelShape, view: int | None, **state) -> Reduction | None:
        state = {"base": self.base, "seed": self.seed, "trace": self.trace, "layout": self.layout} | state
        context = SiteContext(site, shape, hidden, memory=self.memory[view], **state)
        reduction = self.method.reduce(context)
        n = len(hidden)
        self.overhead += context.spent + self.method.overhead_flops(context)
        self.overhead += context.question.book() if context.question is not None else 0
        if reduction is None:
            return None
        if not isinstance(reduction, Reduction) or reduction.n != n:
            raise ValueError(f"{self.method.card.name}: at {site} a Reduction of {n} tokens was due, got {reduction!r}")
        return reduction.to(hidden.device)

    def views(self, anchor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(number, which of the tokens [p] on the CPU) of every view that has some."""
        owner = self.layout.owner[anchor.cpu()]
        for i in range(len(self.layout.crops)):
            places = (owner == i).nonzero().flatten()
            if len(places):
                yield i, places

    def _each_view(
        self, site: Site, hidden: Tensor, anchor: Tensor, extra: int, visual=None, columns=None, **state
    ) -> Reduction | None:
        """One reduction, put together from those of each view."""
        found, indices = [], {"visual": visual, "columns": columns}
        entered = None if self.entered is None else self.layout.owner[self.entered.cpu()]
        for i, places in self.views(anchor):
            crop, part = self.layout.crops[i], places.to(hidden.device)
            own = {"extra": int((places < extra).sum()), "part": places, "crop": crop, "seed": self.seed + i}
            own |= {"base": len(crop.units) if entered is None else int((entered == i).sum())}
            own |= {name: None if value is None else value[part] for name, value in indices.items()}
            for name in ("previous", "next"):
                if isinstance(probe := state.get(name), EncoderProbe):
                    own[name] = probe.only(part)
            one = self._answer(site, hidden[part], replace(self.shape, grid=crop.grid), i, **(state | own))
            found.append((part, one))
        if all(one is None for _, one in found):
            return None
        return in_order(concatenate_blocks(found, len(hidden)))
