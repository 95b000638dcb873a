"""What a method sees at a site: `core.method.HookContext` over the engine's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc_demo.core.method import Tile
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Site, Trace
from vtc_demo.models.attention import DecoderProbe, EncoderProbe
from vtc_demo.models.layout import Crop, Layout

from .question import Question

Probe = EncoderProbe | DecoderProbe


@dataclass
class SiteContext:
    """See `HookContext`. sequence, visual, text, after (how many of the text follow the image): LLM sites only.

    part, crop: the tokens of one view among all, and that view, if the method is asked view by view. columns: which of
    the probe's tokens stand here, where the probe is of the encoder and the tokens are beyond it; lead: how many of the
    probe's tokens are no patch there. recorded: by layer, what the tokens of the probe get from CLS.
    """

    site: Site
    shape: ModelShape
    hidden: Tensor  # [n, C]
    extra: int
    base: int
    seed: int
    trace: Trace
    layout: Layout
    previous: Probe | None = None
    next: Probe | None = None
    sequence: Tensor | None = None  # [S, C]
    visual: Tensor | None = None
    text: Tensor | None = None
    after: int = 0
    part: Tensor | None = None
    crop: Crop | None = None
    columns: Tensor | None = None
    lead: int = 0
    question: Question | None = None
    recorded: dict[int, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

    # -- where the tokens stand ---------------------------------------------------------------------------------------
    @property
    def anchors(self) -> Tensor:
        anchors = (self.trace.product().anchor - self.trace.extra).clamp(min=-1)
        if self.part is not None and self.crop is not None:  # as places on the grid of this view
            places = torch.full((self.trace.patches + 1,), -1)  # the last is CLS
            places[self.crop.units] = torch.arange(len(self.crop.units))
            anchors = places[anchors[self.part]]
        return anchors.to(self.hidden.device)

    @property
    def sizes(self) -> Tensor:
        sizes = self.trace.sizes()
        return (sizes if self.part is None else sizes[self.part]).to(self.hidden.device)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The views of the pictures; asked view by view, that view alone."""
        if self.crop is not None:
            return (self._tile(self.crop, torch.arange(self.extra, len(self.hidden))),)
        patch = (self.trace.product().anchor - self.trace.extra).clamp(min=-1)
        owner = torch.full((self.layout.units + 1,), -1)  # the last is CLS
        for i, crop in enumerate(self.layout.crops):
            owner[crop.units] = i
        return tuple(
            self._tile(crop, (owner[patch] == i).nonzero().flatten()) for i, crop in enumerate(self.layout.crops)
        )

    def _tile(self, crop: Crop, part: Tensor) -> Tile:
        thumbnail = self.layout.thumbnail(crop)
        return Tile(part.to(self.hidden.device), crop.grid, crop.box, crop.image, thumbnail)

    # -- attention on demand ------------------------------------------------------------------------------------------
    def attention(self, rows: Any = "last", *, of: str = "previous", heads: str = "all") -> Tensor:
        if heads not in ("all", "mean"):
            raise ValueError(f"attention heads={heads!r}; choose 'all' or 'mean'")
        probe = self._probe(of)
        return self._here(probe.attention(self._rows(rows, probe), heads == "mean"))

    def logits(self, rows: Any = "last", *, of: str = "previous") -> Tensor:
        probe = self._probe(of)
        return self._here(probe.logits(self._rows(rows, probe)))

    def received(self, *, of: str = "previous") -> Tensor:
        return self._here(self._probe(of).received())

    def keys(self) -> Tensor:
        return self._of_tokens("keys")

    def values(self) -> Tensor:
        return self._of_tokens("values")

    def _of_tokens(self, which: str) -> Tensor:
        """[heads, n, d] of the encoder layer that has just run."""
        if not isinstance(self.previous, EncoderProbe):
            raise ValueError(f"at {self.site} no encoder layer has just run; {which} are for sites up to llm_input")
        found = getattr(self.previous, which)()
        return found if self.columns is None else found[:, self.columns]

    def cls_attention(self, layer: int) -> Tensor:
        if layer not in self.recorded:
            known = ", ".join(map(str, self.recorded)) or "none"
            raise ValueError(
                f"CLS attention of encoder layer {layer} was not asked for in cls_layers(); it has {known}"
            )
        return self._here(self.recorded[layer])

    def _probe(self, of: str) -> Probe:
        if of not in ("previous", "next"):
            raise ValueError(f"attention of={of!r}; choose 'previous' or 'next'")
        probe = self.previous if of == "previous" else self.next
        if probe is None:
            raise ValueError(f"at {self.site} there is no {of} layer with attention")
        return probe

    def _here(self, weights: Tensor) -> Tensor:
        """Weights [..., keys of the probe] for the tokens that stand here."""
        return weights if self.columns is None else weights[..., self.columns]

    def _rows(self, rows: Any, probe: Probe) -> Tensor:
        """Row names as places among the probe's tokens, [r] int64."""
        if isinstance(rows, Tensor):
            return rows.to(self.hidden.device).long()
        places = torch.arange(probe.tokens, device=self.hidden.device)
        if isinstance(probe, EncoderProbe):
            return self._encoder_rows(rows, places)
        assert self.text is not None  # inside the decoder
        after = self.text[len(self.text) - self.after :]
        named: dict[Any, Any] = {
            "last": places[-1:],
            "text": self.text,
            "after": after,
            "visual": self.visual,
            "all": places,
        }
        if rows not in named:
            raise ValueError(f"at {self.site} there are no rows {rows!r}; choose {', '.join(named)} or an index tensor")
        return named[rows]

    def _encoder_rows(self, rows: Any, places: Tensor) -> Tensor:
        lead = self.extra if self.columns is None else self.lead
        if rows == "cls" and not lead:
            raise ValueError(f"at {self.site} there is no CLS token; ask for 'all' rows")
        patches = places[lead:] if self.columns is None else self.columns
        named = {"cls": places[:lead], "visual": patches, "all": places}
        if rows not in named:
            raise ValueError(f"at {self.site} there are no rows {rows!r}; choose {', '.join(named)} or an index tensor")
        return named[rows]

    @property
    def spent(self) -> int:
        """FLOPs of the attention asked for."""
        return sum(probe.flops for probe in (self.previous, self.next) if probe is not None)
