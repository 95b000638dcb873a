"""The method at its sites: when it is asked, what it is shown, what its answers are and cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc_demo.core.clock import Stopwatch
from vtc_demo.core.effects import Effect, SizeBias
from vtc_demo.core.method import Method, parts
from vtc_demo.core.rearrange import concatenate_blocks, in_order, shrink
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction, Site, Trace
from vtc_demo.models.attention import EncoderProbe
from vtc_demo.models.layout import Layout

from .context import SiteContext

TILES = ("global", "crop")


class Answer(NamedTuple):
    """What a method made of the tokens at a site."""

    reduction: Reduction | None
    effects: list[Effect]


NOTHING = Answer(None, [])


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
        self,
        site: Site,
        hidden: Tensor,
        anchor: Tensor,
        ordered: bool = False,
        inside: bool = False,
        copies: int = 1,
        **state: Any,
    ) -> Answer:
        """What the method makes of the tokens hidden [n, C] at a site, recorded and its cost booked.

        anchor [n]: the token at the projector at whose place each stands. ordered: the tokens stand in a sequence, so
        rows are put in the order of their anchors. copies: how often a reduction is applied, once more for each of the
        deepstack features. Where no token is left nothing is asked.
        """
        elsewhere = site not in self.sites or (site.layer is not None and self.method.inside != inside)
        if elsewhere or not len(hidden):
            return NOTHING
        stage = self.watch.enter("compression")
        reduction, effects = self.answers(site, hidden, anchor, **state)
        if reduction is not None:
            self.overhead += copies * reduction.flops(hidden.shape[1])
            if ordered:
                order = reduction.anchor.argsort(stable=True)
                reduction, effects = in_order(reduction), [effect.reordered(order) for effect in effects]
            self.trace.add(site, reduction, inside)
        self.trace.effects += [(site, effect) for effect in effects]
        self.watch.enter(stage)
        return Answer(reduction, effects)

    def answers(self, site: Site, hidden: Tensor, anchor: Tensor, **state) -> Answer:
        """Of all views together or of each by itself; the cost of answering is booked."""
        if self._by_view(site):
            return self._each_view(site, hidden, anchor, **state)
        state.pop("standing", None)
        return self._answer(site, hidden, self.shape, None, **state)

    def _by_view(self, site: Site) -> bool:
        """Inside the tower views do not see each other, so each is asked by itself."""
        several = len(self.layout.crops) > 1
        return several and (self.tiles == "crop" or self.method.gridded or site.kind == "vision_layer")

    def _answer(self, site: Site, hidden: Tensor, shape: ModelShape, view: int | None, **state) -> Answer:
        known: dict[str, Any] = {"base": self.base, "seed": self.seed, "trace": self.trace, "layout": self.layout}
        context = SiteContext(site, shape, hidden, memory=self.memory[view], **(known | state))
        outcome = self.method.reduce(context)
        self.overhead += context.spent + self.method.overhead_flops(context)
        self.overhead += context.question.book() if context.question is not None else 0
        given = parts(outcome)
        reductions = [part.to(hidden.device) for part in given if isinstance(part, Reduction)]
        effects = [part.to(hidden.device) for part in given if isinstance(part, Effect)]
        self._check_outcome(site, len(hidden), given, reductions, effects)
        return Answer(reductions[0] if reductions else None, effects)

    def _check_outcome(self, site: Site, n: int, given: tuple, reductions: list, effects: list) -> None:
        name = self.method.card.name
        if len(reductions) + len(effects) != len(given) or len(reductions) > 1 or any(r.n != n for r in reductions):
            raise ValueError(f"{name}: at {site} a Reduction of {n} tokens was due, got {given}")
        left = reductions[0].m if reductions else n
        for effect in effects:
            if site.kind not in effect.sites or (self.method.inside and site.layer is not None):
                raise ValueError(f"{name}: {type(effect).__name__} cannot be asked for at {site}")
            if isinstance(effect, SizeBias) and len(effect.size) != left:
                raise ValueError(f"{name}: at {site} a SizeBias of {left} tokens was due, got {len(effect.size)} sizes")

    def views(self, anchor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(number, which of the tokens [p] on the CPU) of every view that has some."""
        owner = self.layout.owner[anchor.cpu()]
        for i in range(len(self.layout.crops)):
            places = (owner == i).nonzero().flatten()
            if len(places):
                yield i, places

    def _each_view(
        self, site: Site, hidden: Tensor, anchor: Tensor, extra: int, visual=None, columns=None, standing=None, **state
    ) -> Answer:
        """One answer, put together from those of each view.

        standing: the tokens at the projector at whose places those of an encoder's layer stand, where the tokens
        themselves are beyond it and `columns` says which of the layer's they are.
        """
        found = []
        entered = None if self.entered is None else self.layout.owner[self.entered.cpu()]
        for i, places in self.views(anchor):
            crop, part = self.layout.crops[i], places.to(hidden.device)
            own = {"extra": int((places < extra).sum()), "part": places, "crop": crop, "seed": self.seed + i}
            own |= {"base": len(crop.units) if entered is None else int((entered == i).sum())}
            own |= {"visual": None if visual is None else visual[part]}
            keys = part  # of the view among the keys of an encoder's layer
            if columns is not None:
                keys = (self.layout.owner[standing.cpu()] == i).nonzero().flatten().to(hidden.device)
                own |= {"columns": torch.searchsorted(keys, columns[part]), "lead": int((keys < state["lead"]).sum())}
            own |= {"recorded": {layer: rows[:, keys] for layer, rows in state.get("recorded", {}).items()}}
            for name in ("previous", "next"):
                if isinstance(probe := state.get(name), EncoderProbe):
                    own[name] = probe.only(keys)
            one = self._answer(site, hidden[part], replace(self.shape, grid=crop.grid), i, **(state | own))
            found.append((part, one))
        return self._joined(found, len(hidden))

    def _joined(self, found: list[tuple[Tensor, Answer]], n: int) -> Answer:
        """The answers of all views as one about n tokens, rows in the order of their anchors."""
        effects = [effect for _, one in found for effect in one.effects]
        sizes = [effect for effect in effects if isinstance(effect, SizeBias)]
        if all(one.reduction is None for _, one in found):
            reduction = None
            rows = torch.cat([part for part, _ in found])
        else:
            reduction = concatenate_blocks([(part, one.reduction) for part, one in found], n)
            rows = reduction.anchor
        order = rows.argsort(stable=True)
        reduction = None if reduction is None else in_order(reduction)
        if not effects:
            return Answer(reduction, [])
        if len(sizes) != len(found) or len(effects) != len(sizes):
            raise ValueError(
                f"{self.method.card.name}: asked view by view, a method can give one SizeBias for every view, no other "
                f"effect; got {', '.join(type(effect).__name__ for effect in effects)} for {len(found)} views"
            )
        return Answer(reduction, [SizeBias(torch.cat([effect.size for effect in sizes])[order])])
