"""ModelSpec: the dimensions of a vision-language model that its cost depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import index
from typing import Any


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a vision tower, a projector and a decoder. Raises ValueError if they do not fit together.

    vision_layers counts the encoder layers that are really run: up to the feature layer, not the depth of the
    checkpoint. patches and extra (CLS) are per crop; crops are encoded one by one and do not see each other.
    projector: widths of its linear layers, first to last; it acts on visual_tokens rows, the tokens handed to the LLM.
    window: tokens of one attention window in the tower (0: every layer attends to everything) outside full_layers.
    """

    name: str
    patches: int
    extra: int
    patch_size: int
    vision_layers: int
    vision_width: int
    vision_heads: int
    vision_mlp: int
    projector: tuple[int, ...]
    visual_tokens: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    vision_mlp_gated: bool = False
    mlp_gated: bool = True
    channels: int = 3
    frames: int = 1  # temporal depth of a patch (Qwen-VL embeds two frames; a still image is shown twice)
    crops: int = 1
    window: int = 0
    full_layers: tuple[int, ...] = ()

    def __post_init__(self):
        may_be_zero = ("extra", "window", "vision_layers")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "int" and value < (f.name not in may_be_zero):
                raise ValueError(f"ModelSpec {self.name}: {f.name}={value} is too small")
        if self.heads % self.kv_heads:
            raise ValueError(f"ModelSpec {self.name}: {self.heads} heads do not divide over {self.kv_heads} kv_heads")
        if self.vision_width % self.vision_heads:
            raise ValueError(f"ModelSpec {self.name}: vision_width must be a multiple of vision_heads")
        if self.projector[-1] != self.hidden:
            raise ValueError(f"ModelSpec {self.name}: the projector must end at the LLM's width {self.hidden}")

    @property
    def full_schedule(self) -> list[int]:
        """The schedule without compression, [layers]."""
        return [self.visual_tokens] * self.layers

    @property
    def full_encoder_schedule(self) -> list[int]:
        """Tokens of one crop entering each encoder layer without compression, [vision_layers]."""
        return [self.patches + self.extra] * self.vision_layers

    def check_schedule(self, schedule: Iterable[int]) -> list[int]:
        """Visual tokens entering each LLM layer, as a list of ints. Raises ValueError for a wrong length or count."""
        return counts("schedule", schedule, self.layers, "LLM layer")


def counts(name: str, values: Iterable[int], length: int, per: str) -> list[int]:
    """A schedule as a list of whole, non-negative numbers of the given length, or ValueError."""
    out = [count(name, v) for v in values]
    if len(out) != length:
        raise ValueError(f"{name} has {len(out)} entries; give one per {per}: {length}")
    return out


def count(name: str, value) -> int:
    """A whole, non-negative number, or ValueError."""
    try:
        value = index(value)
    except TypeError:
        raise ValueError(f"{name} must hold whole numbers, got {value!r}") from None
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


_CLIP_L_336: dict[str, Any] = dict(
    patches=576, extra=1, patch_size=14, vision_width=1024, vision_heads=16, vision_mlp=4096
)
_VICUNA_7B: dict[str, Any] = dict(
    hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, intermediate=11008, vocab=32000
)
_VICUNA_13B: dict[str, Any] = dict(
    hidden=5120, layers=40, heads=40, kv_heads=40, head_dim=128, intermediate=13824, vocab=32000
)
_LLAVA_TOWER: dict[str, Any] = dict(
    **_CLIP_L_336, vision_layers=23
)  # 24 in the checkpoint; features are taken after layer 22 (0-based)

SPECS = {
    spec.name: spec
    for spec in (
        # Vocabularies are Vicuna's; ports that add padded rows to the LM head (32064) differ there by 0.2 %.
        ModelSpec("llava-1.5-7b", **_LLAVA_TOWER, projector=(1024, 4096, 4096), visual_tokens=576, **_VICUNA_7B),
        ModelSpec("llava-1.5-13b", **_LLAVA_TOWER, projector=(1024, 5120, 5120), visual_tokens=576, **_VICUNA_13B),
        # LLaVA-NeXT with Vicuna: base view and four tiles. Its newline tokens (one per row) are not in the 2,880.
        ModelSpec(
            "llava-next-7b", **_LLAVA_TOWER, projector=(1024, 4096, 4096), visual_tokens=2880, **_VICUNA_7B, crops=5
        ),
        # Dynamic resolution; here a 672 x 672 image: 48 x 48 patches, merged 2 x 2 to 576 tokens. Windows of 8 x 8
        # patches, four layers with full attention. The count is exact where the grid is a multiple of the window
        # (as here), an upper bound elsewhere.
        ModelSpec(
            "qwen2.5-vl-7b",
            patches=2304,
            extra=0,
            patch_size=14,
            vision_layers=32,
            vision_width=1280,
            vision_heads=16,
            vision_mlp=3420,
            vision_mlp_gated=True,
            frames=2,
            window=64,
            full_layers=(7, 15, 23, 31),
            projector=(5120, 5120, 3584),
            visual_tokens=576,
            hidden=3584,
            layers=28,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18944,
            vocab=152064,
        ),
    )
}
