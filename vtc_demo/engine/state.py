"""What a pass carries from layer to layer: tokens inside the tower, then the prompt inside the decoder.

Both are replaced at every change, never altered in place, so an earlier state stays readable (a method may ask for the
attention of the layer before a reduction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtc_demo.core.operations import others
from vtc_demo.core.tokens import Reduction

Rope = tuple[Tensor, Tensor]


def cut(rope: Rope | None, part: Callable[[Tensor], Tensor]) -> Rope | None:
    """`part` of both, where there are any."""
    return None if rope is None else (part(rope[0]), part(rope[1]))


@dataclass(frozen=True)
class Tower:
    """The tokens of all views inside the vision tower, one view after another.

    hidden [N, C]. segments: lengths of the views; tokens see those of their own view only. members [t, g]: the g tokens
    of the tower that are behind each of the t that a method sees, None: it sees them as they are. extra: how many of
    these come first and are no patch (CLS). anchor [t]: the token at the projector at whose place each stands.
    details: the adapter's own, such as rotary embeddings. deepstack: outputs of earlier layers
    for the decoder. bias [N]: what is added to the scores of each key (log of a token's size), None: nothing.
    """

    hidden: Tensor
    segments: tuple[int, ...]
    members: Tensor | None
    extra: int
    anchor: Tensor
    details: Any = None
    deepstack: tuple[Tensor, ...] = ()
    bias: Tensor | None = None

    def pick(self, x: Tensor) -> Tensor:
        """x [N, C] as the method sees it, [t, g * C]."""
        return x if self.members is None else x[self.members].flatten(1)

    def reduce(self, reduction: Reduction, leading: int, details=lambda details, places: details) -> Tower:
        """The tower after a reduction of the t tokens that a method sees; the g behind each go or merge together.

        leading: how many tokens at the projector are no patch. details(details, places [N']): the adapter's details for
        the tokens that are left, by their old places.
        """
        anchor = self.anchor[reduction.anchor]
        # CLS stays first, or a method is not told of it any more
        extra = int((anchor[: self.extra] < leading).long().cumprod(0).sum()) if self.extra else 0
        if self.members is None:
            hidden = reduction.apply(self.hidden)  # [N, C] -> [m, C]
            deepstack = tuple(reduction.apply(feature) for feature in self.deepstack)
            kept = details(self.details, reduction.anchor)
            bias = None if self.bias is None else self.bias[reduction.anchor]
            return Tower(hidden, (reduction.m,) if reduction.m else (), None, extra, anchor, kept, deepstack, bias)
        unseen = others(self.members.flatten(), len(self.hidden))  # tokens of the tower behind none: they stay
        places = torch.cat([self.members[reduction.anchor].flatten(), unseen])  # [N'] by their old places
        order = places.argsort(stable=True)
        rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))

        group = self.members.shape[1]

        def moved(x: Tensor) -> Tensor:  # [N, C] -> [N', C]
            joined = reduction.apply(self.pick(x)).unflatten(1, (group, -1)).flatten(0, 1)
            return torch.cat([joined, x[unseen]])[order]

        members = rank[: len(places) - len(unseen)].view(reduction.m, group)  # [m, g]
        return Tower(
            moved(self.hidden),
            self._lengths(places),
            members,
            extra,
            anchor,
            details(self.details, places[order]),
            tuple(map(moved, self.deepstack)),
            None if self.bias is None else self.bias[places][order],
        )

    def _lengths(self, places: Tensor) -> tuple[int, ...]:
        """How many of these places lie in each view that has any; the host waits for them, as views may differ."""
        limits = torch.tensor(self.segments).cumsum(0)
        return tuple(n for n in torch.bucketize(places.cpu(), limits, right=True).bincount().tolist() if n)


@dataclass(frozen=True)
class Sequence:
    """The prompt inside the decoder.

    hidden [1, S, D]. visual [n], others [o]: places of the visual tokens, in their own order, and of all others.
    alive [n]: which of the visual tokens that entered each is. anchor [n]: the token at the projector at whose place it
    stands. rope: (cos, sin) of the positions, [1, S, d] each; whole: those of the prompt without gaps. length: the next
    position. deepstack: for each of the next layers what is added to the visual tokens after it, [1, n, D].
    bias [S]: what is added to the scores of each key (log of a token's size), None: nothing.
    """

    hidden: Tensor
    visual: Tensor
    others: Tensor
    alive: Tensor
    anchor: Tensor
    rope: Rope | None
    whole: Rope | None
    length: int
    deepstack: list[Tensor] = field(default_factory=list)
    bias: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """The visual tokens, [n, D]."""
        return self.hidden[0, self.visual]

    def to(self, device: torch.device) -> Sequence:
        """With places and positions on the device of the hidden states, where a model is spread over several."""
        if self.visual.device == device:
            return self
        return replace(
            self,
            visual=self.visual.to(device),
            others=self.others.to(device),
            alive=self.alive.to(device),
            anchor=self.anchor.to(device),
            rope=cut(self.rope, lambda part: part.to(device)),
            whole=cut(self.whole, lambda part: part.to(device)),
            deepstack=[d.to(device) for d in self.deepstack],
            bias=None if self.bias is None else self.bias.to(device),
        )

    def reduce(self, reduction: Reduction, renumber: bool) -> Sequence:
        """With the visual tokens reduced. Positions of dropped tokens stay vacant, or with `renumber` close up."""
        places = torch.cat([self.others, self.visual[reduction.anchor]])  # [o + m]
        order = places.argsort(stable=True)
        kept = places[order]
        if reduction.is_selection:
            hidden = self.hidden[:, kept]  # [1, S, D] -> [1, S', D]
        else:
            words, merged = self.hidden[:, self.others], reduction.apply(self.hidden[:, self.visual])
            hidden = torch.cat([words, merged], 1)[:, order]
        length, rope = self.length, self.rope
        if renumber:
            length = len(kept)
            # strides as of a whole one, see compiled
            rope = cut(self.whole, lambda part: part[0, :length][None])
        else:
            rope = cut(rope, lambda part: part[:, kept])
        rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        return replace(
            self,
            hidden=hidden,
            others=rank[: len(self.others)],
            visual=rank[len(self.others) :],
            alive=self.alive[reduction.anchor],
            anchor=self.anchor[reduction.anchor],
            rope=rope,
            length=length,
            deepstack=[reduction.apply(d) for d in self.deepstack],
            bias=None if self.bias is None else self.bias[kept],
        )
