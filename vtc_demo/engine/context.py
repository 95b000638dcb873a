"""What a method sees at a site: the View of `methods.base`, over the engine's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Site, Trace
from vtc_demo.models.attention import DecoderProbe, EncoderProbe
from vtc_demo.models.layout import Crop

Probe = EncoderProbe | DecoderProbe


@dataclass
class SiteContext:
    """See `HookContext`. sequence, visual, text, after (how many of the text follow the image): LLM sites only.

    part, crop: the tokens of one view among all, and that view, if the method is asked view by view.
    """

    site: Site
    shape: ModelShape
    hidden: Tensor  # [n, C]
    extra: int
    base: int
    seed: int
    trace: Trace
    previous: Probe | None = None
    next: Probe | None = None
    sequence: Tensor | None = None  # [S, C]
    visual: Tensor | None = None
    text: Tensor | None = None
    after: int = 0
    part: Tensor | None = None
    crop: Crop | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def anchors(self) -> Tensor:
        anchors = (self.trace.product().anchor - self.trace.extra).clamp(min=-1)
        if self.part is not None:  # as places on the grid of this view
            places = torch.full((self.trace.patches + 1,), -1)  # the last is CLS
            places[self.crop.units] = torch.arange(len(self.crop.units))
            anchors = places[anchors[self.part]]
        return anchors.to(self.hidden.device)

    @property
    def sizes(self) -> Tensor:
        sizes = self.trace.sizes()
        return (sizes if self.part is None else sizes[self.part]).to(self.hidden.device)

    def attention(self, rows: Any = "last", *, of: str = "previous", heads: str = "all") -> Tensor:
        if heads not in ("all", "mean"):
            raise ValueError(f"attention heads={heads!r}; choose 'all' or 'mean'")
        probe = self._probe(of)
        return probe.attention(self._rows(rows, probe.tokens), heads == "mean")

    def logits(self, rows: Any = "last", *, of: str = "previous") -> Tensor:
        probe = self._probe(of)
        return probe.logits(self._rows(rows, probe.tokens))

    def _probe(self, of: str) -> Probe:
        if of not in ("previous", "next"):
            raise ValueError(f"attention of={of!r}; choose 'previous' or 'next'")
        probe = self.previous if of == "previous" else self.next
        if probe is None:
            raise ValueError(f"at {self.site} there is no {of} layer with attention")
        return probe

    def keys(self) -> Tensor:
        if not isinstance(self.previous, EncoderProbe):
            raise ValueError(f"at {self.site} no encoder layer has just run; keys are for encoder sites")
        return self.previous.keys()

    def _rows(self, rows: Any, tokens: int) -> Tensor:
        """Row names as places among the layer's tokens, [r] int64."""
        if isinstance(rows, Tensor):
            return rows.to(self.hidden.device).long()
        places = torch.arange(tokens, device=self.hidden.device)
        in_llm = self.sequence is not None
        if rows == "all":
            return places
        if rows == "cls" and not in_llm:
            if not self.extra:
                raise ValueError(f"at {self.site} there is no CLS token; ask for 'all' rows")
            return places[: self.extra]
        if rows == "visual":
            return self.visual if in_llm else places[self.extra :]
        if rows in ("last", "text", "after") and in_llm:
            after = self.text[len(self.text) - self.after :]
            return {"last": places[-1:], "text": self.text, "after": after}[rows]
        names = "last, text, after, visual, all" if in_llm else "cls, visual, all"
        raise ValueError(f"at {self.site} there are no rows {rows!r}; choose {names} or give an index tensor")

    @property
    def spent(self) -> int:
        """FLOPs of the attention asked for."""
        return sum(probe.flops for probe in (self.previous, self.next) if probe is not None)
