"""ModelSpec: the dimensions of a vision-language model that its cost depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import import_module
from operator import index

LLAVA = ("llava", "llava_next")
TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # model type -> leading tokens that are no patch
GATED_LLMS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3_vl_text",
)  # decoders with a gated MLP (three matrices)


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

    @classmethod
    def from_config(cls, config) -> ModelSpec:
        """From a transformers config, here for a LLaVA model with a CLIP or SigLIP tower.

        A negative vision_feature_layer counts from the last layer's output: -2 of 24 layers runs 23. The select
        strategy "default" drops the tower's first token. For LLaVA-NeXT the crops are those of a square image at twice
        the tower's side (a base view and four tiles), without the newline tokens.
        Other families are those that `vtc_demo.models` has an adapter for; it gives the spec.
        Raises ValueError for any other, with the families that work.
        """
        if config.model_type not in LLAVA:
            adapters = import_module("vtc_demo.models").FAMILIES  # late: the adapters need this module
            _known("model type", config.model_type, adapters)
            return adapters[config.model_type].spec(config)
        vision, text = config.vision_config, config.text_config
        _known("vision tower", vision.model_type, TOWERS)
        _known("language model", text.model_type, GATED_LLMS)
        features = config.vision_feature_layer
        features = [features] if isinstance(features, int) else list(features)
        runs = [f if f >= 0 else vision.num_hidden_layers + 1 + f for f in features]
        patches = (vision.image_size // vision.patch_size) ** 2
        extra = TOWERS[vision.model_type]
        crops = 5 if config.model_type == "llava_next" else 1
        heads = text.num_attention_heads
        return cls(
            name=getattr(config, "name_or_path", "") or config.model_type,
            patches=patches,
            extra=extra,
            patch_size=vision.patch_size,
            vision_layers=max(runs),
            vision_width=vision.hidden_size,
            vision_heads=vision.num_attention_heads,
            vision_mlp=vision.intermediate_size,
            projector=(vision.hidden_size * len(runs), text.hidden_size, text.hidden_size),
            visual_tokens=crops * (patches + extra - (config.vision_feature_select_strategy == "default")),
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate=text.intermediate_size,
            vocab=text.vocab_size,
            channels=vision.num_channels,
            crops=crops,
        )

    @classmethod
    def from_parts(cls, config, *, patches: int, projector: tuple[int, ...], visual_tokens: int, **facts) -> ModelSpec:
        """From the config of any family: the decoder as in its text_config, the tower from the names that its
        vision_config has in common with others. facts: fields that this cannot know or would get wrong.
        """
        vision, text = config.vision_config, config.text_config
        _known("language model", text.model_type, GATED_LLMS)
        first = lambda names: next((v for n in names if (v := getattr(vision, n, None)) is not None), None)  # noqa: E731
        heads = text.num_attention_heads
        width = first(("embed_dim", "hidden_size"))
        patch = vision.patch_size
        found = {
            "extra": 0,
            "patch_size": patch if isinstance(patch, int) else patch[0],
            "vision_layers": first(("depth", "num_hidden_layers")),
            "vision_width": width,
            "vision_heads": first(("num_heads", "num_attention_heads")),
            "vision_mlp": first(("intermediate_size",)),
            "channels": first(("in_channels", "num_channels")),
        }
        return cls(
            name=getattr(config, "name_or_path", "") or config.model_type,
            patches=patches,
            projector=projector,
            visual_tokens=visual_tokens,
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate=text.intermediate_size,
            vocab=text.vocab_size,
            **(found | facts),
        )

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


def _known(what: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"no cost model for the {what} '{value}'; write a ModelSpec by hand, or use {', '.join(choices)}"
        )


_CLIP_L_336 = dict(patches=576, extra=1, patch_size=14, vision_width=1024, vision_heads=16, vision_mlp=4096)
_VICUNA_7B = dict(hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, intermediate=11008, vocab=32000)
_VICUNA_13B = dict(hidden=5120, layers=40, heads=40, kv_heads=40, head_dim=128, intermediate=13824, vocab=32000)
_LLAVA_TOWER = dict(
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
