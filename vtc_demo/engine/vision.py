"""The first half of a pass: pictures through the tower (`encode`), features through the projector (`project`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vtc_demo.connectors.base import Trained
from vtc_demo.core.effects import SizeBias
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.models.layout import Inputs, Layout

from .effects import biased_tower, pick
from .question import Question
from .state import Tower

if TYPE_CHECKING:
    from .forward import ForwardPass


class LayerSpans(NamedTuple):
    """Of one encoder layer that ran: tokens that entered it, tokens through its MLP, and what says who saw whom."""

    entered: int
    fed: int
    segments: tuple[int, ...]
    details: Any


class ClsRows(NamedTuple):
    """What each token of a layer gets from CLS, or without CLS from all tokens on average; and its FLOPs.

    anchor [t]: the token at the projector at whose place each stands.
    """

    attention: Tensor  # [heads, t] float32
    flops: int
    anchor: Tensor


@dataclass(frozen=True)
class Encoded:
    """The vision pass of one prompt's pictures. features: the tower after its feature layer; entered: before it.

    layers: of the layers that ran. cls: by layer, for methods that look at several. seconds: preprocess and vision.
    """

    features: Tower
    entered: Tower
    layout: Layout
    layers: tuple[LayerSpans, ...]
    cls: dict[int, ClsRows]
    seconds: dict[str, float] = field(default_factory=dict)


class Projected(NamedTuple):
    """Visual tokens on their way into the LLM. tokens [1, n, D]; anchor [n]: the token at the projector at whose place
    each stands; deepstack: for each of the first decoder layers what is added to the visual tokens after it, [1, n, D];
    outside [1, m, D]: tokens that layers read without their standing in the sequence."""

    tokens: Tensor
    anchor: Tensor
    deepstack: list[Tensor]
    outside: Tensor | None = None


def encode(work: ForwardPass, inputs: Inputs) -> Encoded:
    """The pictures through the tower up to the feature layer; later layers are not run."""
    work.begin(inputs.layout)
    backend, hooks = work.backend, work.hooks
    tower = backend.embed(inputs, work.side is not None)
    entered, layers, cls = tower, [], {}
    for i in range(hooks.shape.feature_layer + 1):
        work.cancel.look()
        site = Site("vision_layer", i)
        inside = hooks.inside(site)
        if site in hooks.sites and not inside:
            previous = backend.tower_probe(i - 1, entered) if i else None
            tower = _reduced(work, site, tower, previous=previous, next=backend.tower_probe(i, tower))
        entered = tower
        if i in work.cls_layers:
            cls[i] = cls_rows(work, i, entered)
        if inside:
            tower = replace(tower, hidden=backend.tower_attend(i, tower))
            tower = _reduced(work, site, tower, inside=True, previous=backend.tower_probe(i, entered))
            hidden = backend.tower_feed(i, tower)
        else:
            hidden = backend.tower_layer(i, tower)
        layers.append(LayerSpans(len(entered.hidden), len(tower.hidden), entered.segments, entered.details))
        deepstack = (*tower.deepstack, hidden) if i in backend.deepstack_layers else tower.deepstack
        tower = replace(tower, hidden=hidden, deepstack=deepstack)
    features = replace(tower, hidden=backend.finish(tower.hidden))
    return Encoded(features, entered, inputs.layout, tuple(layers), cls)


def _reduced(work: ForwardPass, site: Site, tower: Tower, inside: bool = False, **probes) -> Tower:
    seen = tower.pick(tower.hidden)  # [t, g * C]
    copies = 1 + len(tower.deepstack)
    reduction, effects = work.hooks.ask(
        site, seen, tower.anchor, inside=inside, copies=copies, extra=tower.extra, **probes
    )
    if reduction is not None:
        tower = tower.reduce(reduction, work.hooks.layout.extra, work.backend.kept)
    size = pick(effects, SizeBias)
    return tower if size is None else biased_tower(tower, size)


def cls_rows(work: ForwardPass, i: int, entered: Tower) -> ClsRows:
    probe = work.backend.tower_probe(i, entered)
    assert probe is not None  # layer i has run
    if entered.extra == 0:
        return ClsRows(probe.received()[None], probe.flops, entered.anchor)
    rows = probe.attention(torch.arange(entered.extra, device=entered.hidden.device))  # [heads, extra, t]
    # views do not see each other: the row of each is 0 on the others
    return ClsRows(rows.sum(1), probe.flops, entered.anchor)


def project(work: ForwardPass, encoded: Encoded, question: Question | None = None) -> Projected:
    """From the feature layer's output to the visual tokens of the LLM."""
    tower = encoded.features
    features = tower.pick(tower.hidden)  # [extra + n, g * C]
    if work.backend.connector is not None:
        return _connect(work, features)
    hooks, layout = work.hooks, encoded.layout
    state: dict[str, Any] = {"copies": 1 + len(tower.deepstack), "question": question}
    state |= {"recorded": _booked_cls(work, encoded)}
    anchor, deepstack = tower.anchor, [tower.pick(feature) for feature in tower.deepstack]
    reduction, _ = hooks.ask(
        Site("projector"), features, anchor, extra=tower.extra, **state, **_probes(work, encoded, Site("projector"))
    )
    if reduction is None and tower.extra and not layout.keeps_extra:
        n = len(features)
        reduction = Reduction.select(torch.arange(tower.extra, n, device=features.device), n)
        hooks.trace.add(Site("projector"), reduction)
    columns = torch.arange(len(features), device=features.device)
    if reduction is not None:
        features, anchor, columns = reduction.apply(features), anchor[reduction.anchor], columns[reduction.anchor]
        deepstack = [reduction.apply(d) for d in deepstack]
    work.projected = len(features) * (1 + len(deepstack))
    visual = work.backend.project(features, layout)  # [1, n, D]
    deepstack = [work.backend.project_deepstack(i, d) for i, d in enumerate(deepstack)]
    if layout.blend is not None:  # tokens of the scaled grid are mixes: no attention of the tower is theirs
        anchor, columns = torch.arange(layout.units, device=visual.device), None  # type: ignore[assignment]
        state |= {"recorded": {}}
    else:
        state |= _probes(work, encoded, Site("llm_input"))
    state |= {"columns": columns, "standing": tower.anchor, "lead": tower.extra}
    reduction, _ = hooks.ask(Site("llm_input"), visual[0], anchor, extra=0, **state)
    if reduction is not None:
        visual, anchor = reduction.apply(visual), anchor[reduction.anchor]
        deepstack = [reduction.apply(d) for d in deepstack]
    return Projected(visual, anchor, deepstack)


def _probes(work: ForwardPass, encoded: Encoded, site: Site) -> dict[str, Any]:
    """Of the feature layer, and of the one behind it, which does not run but can be asked for its attention."""
    if site not in work.hooks.sites:
        return {}
    last, whole = work.hooks.shape.feature_layer, len(encoded.entered.anchor) == len(encoded.features.anchor)
    return {  # a layer that lost tokens between its attention and its MLP has no map of those that are left
        "previous": work.backend.tower_probe(last, encoded.entered) if whole else None,
        "next": work.backend.tower_probe(last + 1, encoded.features),
    }


def _booked_cls(work: ForwardPass, encoded: Encoded) -> dict[int, Tensor]:
    """The CLS rows that the method asked for, of the tokens that are left behind the tower.

    A layer's keys are projected again for them: the method pays.
    """
    wanted = {i: rows for i, rows in encoded.cls.items() if i in work.cls_layers}
    work.hooks.overhead += sum(rows.flops for rows in wanted.values())
    left = encoded.features.anchor
    return {i: rows.attention[:, places_of(left, rows.anchor)] for i, rows in wanted.items()}


def places_of(some: Tensor, among: Tensor) -> Tensor:
    """Where each of `some` [p] stands among others [n], both without repetition."""
    order = among.argsort()
    return order[torch.searchsorted(among[order], some)]


def _connect(work: ForwardPass, features: Tensor) -> Projected:
    """The same by a trained connector; features [1 + n, C]."""
    method, hooks, connector = work.method, work.hooks, work.backend.connector
    assert isinstance(method, Trained) and connector is not None
    made = connector(features[None], hooks.shape.grid, method.keep(hooks.shape.patches), **method.options())
    reduction = made.reduction(len(features))
    hooks.trace.add(Site("projector"), reduction)
    if connector.outside:
        none = features.new_zeros(1, 0, work.vlm.spec.hidden)
        return Projected(none, reduction.anchor[:0], [], made.tokens)
    return Projected(made.tokens, reduction.anchor, [])
