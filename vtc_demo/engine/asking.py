"""One pass of one method: at which sites it is asked, what it is shown there, what its answers cost."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from torch import Tensor

from vtc_demo.connectors import store
from vtc_demo.connectors.base import Connector
from vtc_demo.core.clock import Stopwatch
from vtc_demo.core.method import Method
from vtc_demo.core.rearrange import concatenate_blocks, in_order, shrink
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.models import VLM
from vtc_demo.models.attention import EncoderProbe
from vtc_demo.models.layout import Layout

from .context import SiteContext


class Asking:
    """The sites of a pass, its trace, its clock, the method's own work and memory."""

    def __init__(self, vlm: VLM, method: Method, seed: int, budget: str = "global"):
        if budget not in ("global", "crop"):
            raise ValueError(f"budget={budget!r}; choose 'global' or 'crop'")
        self.vlm, self.method, self.seed, self.budget = vlm, method, seed, budget
        self.model, self.adapter, self.shape = vlm.model, vlm.adapter, vlm.shape
        self.connector: Connector | None = None
        if method.connector is not None:  # with a decoder of its own, on the same tower
            self.connector, self.model = store.fit(vlm, method)
        self.sites = frozenset(method.sites(self.shape))
        for site in self.sites:
            self._check_site(site)
        self.side = self._check_side(method.image_side(self.shape))
        self.watch = Stopwatch(vlm.device)
        self.entry: Tensor | None = None  # tokens at the projector for which those stand that entered the LLM
        self.projected = 0  # tokens through the projector
        self.overhead = 0  # FLOPs of the method
        self.memory: dict[Any, dict[str, Any]] = defaultdict(dict)  # of the method, from site to site, by view

    def lay(self, layout: Layout) -> None:
        """Learn how the pictures are laid out; from here on there are a trace and the final shape."""
        site = min((s for s in self.sites if s.kind == "vision_layer"), key=lambda s: s.layer, default=None)
        if not layout.plain and site is not None:
            raise ValueError(
                f"{self.method.card.name}: {site} cannot be used with this model or picture: tokens can leave inside a "
                "tower only where it encodes one view, whose tokens reach the language model one by one"
            )
        if layout.blend is not None and Site("projector") in self.sites:
            raise ValueError(
                f"{self.method.card.name}: this picture has so many tiles that the model scales them down after the "
                "projector, where this method acts; use a smaller picture or a method that acts later"
            )
        if self.connector is not None and not layout.plain:
            raise ValueError(f"{self.method.card.name} was trained with one picture per question; give a single image")
        self.layout, extra, layers = layout, layout.extra, self.shape.llm_layers
        grid = layout.crops[0].grid if len(layout.crops) == 1 else (1, layout.units)
        drawn = self.shape.grid if self.side else layout.sheet[0]
        beside = self.connector is not None and self.connector.outside
        self.trace = Trace(drawn, extra, layers, cells=layout.cells, outside=beside)
        if self.side:
            self.trace.add(Site("input_image"), shrink(drawn, grid, extra))
        self.shape = replace(self.shape, grid=grid)
        self.base = layout.units

    def _check_site(self, site: Site) -> None:
        name = self.method.card.name
        if site.kind == "input_image":
            raise ValueError(f"{name}: an image is scaled through image_side, not at a site")
        layers = {"vision_layer": self.shape.feature_layer + 1, "llm_layer": self.shape.llm_layers}.get(site.kind)
        if layers is not None and not 0 <= site.layer < layers:
            raise ValueError(f"{name}: {site} does not exist; this model has {site.kind} 0 to {layers - 1}")

    def _check_side(self, side: int | None) -> int | None:
        patch = self.shape.patch_size
        if side is not None and not self.adapter.resizable:
            raise ValueError(f"{self.method.card.name}: models of this family set the size of the picture themselves")
        if side is None or side == self.shape.grid[0] * patch:
            return None
        if side % patch or not patch <= side <= self.shape.grid[0] * patch:
            raise ValueError(
                f"{self.method.card.name}: an image side of {side} pixels does not fit; use a multiple of {patch} "
                f"up to {self.shape.grid[0] * patch}"
            )
        return side

    def ask(self, site: Site, hidden: Tensor, stand: Tensor, ordered: bool = False, **state) -> Reduction | None:
        """The method's reduction of the tokens hidden [n, C] at a site, recorded and its cost booked.

        stand [n]: the token at the projector at which each stands. ordered: the tokens stand in a sequence, so rows
        are put in the order of their anchors.
        """
        if site not in self.sites:
            return None
        stage = self.watch.enter("compression")
        several = len(self.layout.crops) > 1
        if several and (self.budget == "crop" or self.method.gridded):
            reduction = self._by_crop(site, hidden, stand, **state)
        else:
            reduction = self._ask(site, hidden, self.shape, None, **state)
        if reduction is not None:
            self.overhead += reduction.flops(hidden.shape[1])
            reduction = in_order(reduction) if ordered else reduction
            self.trace.add(site, reduction, self.method.inside and site.layer is not None)
        self.watch.enter(stage)
        return reduction

    def _ask(self, site: Site, hidden: Tensor, shape: ModelShape, index: int | None, **state) -> Reduction | None:
        state = {"base": self.base, "seed": self.seed, "trace": self.trace} | state
        view = SiteContext(site, shape, hidden, memory=self.memory[index], **state)
        reduction = self.method.reduce(view)
        n = hidden.shape[0]
        self.overhead += view.spent + self.method.overhead_flops(view)
        if reduction is None:
            return None
        if not isinstance(reduction, Reduction) or reduction.n != n:
            raise ValueError(f"{self.method.card.name}: at {site} a Reduction of {n} tokens was due, got {reduction!r}")
        return reduction.to(hidden.device)

    def _by_crop(self, site: Site, hidden: Tensor, stand: Tensor, extra: int, visual=None, **state) -> Reduction | None:
        """One reduction, put together from those of each view."""
        owner, found = self.layout.owner[stand.cpu()], []
        for i, crop in enumerate(self.layout.crops):
            places = (owner == i).nonzero().flatten()  # on the CPU, as the trace is
            if not len(places):
                continue
            part = places.to(hidden.device)
            own = {"extra": int((places < extra).sum()), "part": places, "crop": crop, "seed": self.seed + i}
            entered = len(crop.units) if self.entry is None else int((self.layout.owner[self.entry.cpu()] == i).sum())
            own |= {"base": entered, "visual": None if visual is None else visual[part]}
            for name in ("previous", "next"):
                if isinstance(probe := state.get(name), EncoderProbe):
                    own[name] = probe.only(part)
            one = self._ask(site, hidden[part], replace(self.shape, grid=crop.grid), i, **(state | own))
            found.append((part, one))
        if all(one is None for _, one in found):
            return None
        return in_order(concatenate_blocks(found, len(hidden)))
