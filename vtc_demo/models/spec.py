"""What the ModelSpecs of all families have in common."""

from __future__ import annotations

from typing import Any

from vtc_demo.cost import ModelSpec


def build_spec(config, *, patches: int, projector: tuple[int, ...], visual_tokens: int, **facts) -> ModelSpec:
    """The decoder as in text_config, the tower by the names that vision_configs share.

    patches: of one crop; projector: widths of its linear layers; visual_tokens: handed to the decoder. facts: fields of
    ModelSpec that vision_config does not tell, or tells wrongly. Raises ValueError if the dimensions do not fit.
    """
    vision, text = config.vision_config, config.text_config
    heads = text.num_attention_heads
    return ModelSpec(
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
        **(_tower(vision) | facts),
    )


def _tower(vision) -> dict[str, Any]:
    """Fields of ModelSpec, whichever name the family's vision_config gives them."""

    def first(*names: str) -> int | None:
        return next((value for name in names if (value := getattr(vision, name, None)) is not None), None)

    patch = vision.patch_size  # a pair in InternVL
    return {
        "extra": 0,
        "patch_size": patch if isinstance(patch, int) else patch[0],
        "vision_layers": first("depth", "num_hidden_layers"),
        "vision_width": first("embed_dim", "hidden_size"),
        "vision_heads": first("num_heads", "num_attention_heads"),
        "vision_mlp": first("intermediate_size"),
        "channels": first("in_channels", "num_channels"),
    }
