"""The closed-form count equals torch's own counter, module by module, on small random models of the real classes.

The counter sees shapes, not masks: it books all S x S pairs of causal attention. The masked pairs are enumerated here,
independently of the package, and taken off.
"""

import pytest
import torch
from counting import counter
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from vtc_demo import cost, models
from vtc_demo.models.spec import build_spec

HEADS, HEAD_DIM, IMAGE_TOKEN = 6, 10, 90  # 6 x 10 is not the hidden size 48


def module_totals(mode: FlopCounterMode) -> dict[str, int]:
    return {name: sum(ops.values()) for name, ops in mode.get_flop_counts().items()}


def masked_pairs_flops(rows: int) -> int:
    """What the counter books for the pairs that a causal mask hides, in one layer."""
    hidden = sum(1 for i in range(rows) for j in range(rows) if j > i)
    return hidden * HEADS * (2 * HEAD_DIM + 2 * HEAD_DIM)


def llava(kv_heads: int, tower: str = "clip", feature_layer=-2) -> LlavaForConditionalGeneration:
    vision_class = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower]
    vision = vision_class(
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=40,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        vocab_size=97,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def spec_of(config) -> cost.ModelSpec:
    """By the adapter; by hand for what no adapter runs but transformers does: a SigLIP tower without tiles, features
    of several layers."""
    feature, clip = config.vision_feature_layer, config.vision_config.model_type == "clip_vision_model"
    if clip and isinstance(feature, int):
        return models.spec_of(config)
    taken = feature if isinstance(feature, list) else [config.vision_config.num_hidden_layers]
    return build_spec(
        config,
        patches=25,
        extra=int(clip),
        vision_layers=max(taken),
        projector=(32 * len(taken), 48, 48),
        visual_tokens=25,
    )


@pytest.mark.parametrize(
    ("kv_heads", "tower", "feature_layer"), [(6, "clip", -2), (2, "clip", -2), (3, "siglip", -1), (1, "clip", [1, 3])]
)
def test_every_module_of_a_llava_model(kv_heads, tower, feature_layer):
    model = llava(kv_heads, tower, feature_layer)
    spec, text = spec_of(model.config), 9
    ids = torch.full((1, spec.visual_tokens + text), IMAGE_TOKEN)
    ids[0, :4], ids[0, -(text - 4) :] = 3, 5
    with torch.inference_mode(), counter() as mode:
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 40, 40), logits_to_keep=1)
    seen = module_totals(mode)
    ours = cost.run_flops(spec, spec.full_schedule, text)
    root = "LlavaForConditionalGeneration"

    # transformers runs the whole tower; we stop after the feature layer.
    tower_root = f"{root}.model.vision_tower"
    ran = [seen[f"{tower_root}.encoder.layers.{i}"] for i in range(spec.vision_layers)]
    assert ours["vision"] == seen[f"{tower_root}.embeddings"] + sum(ran)
    assert ours["projector"] == seen[f"{root}.model.multi_modal_projector"]
    assert ours["lm_head"] == seen[f"{root}.lm_head"]
    layers = [seen[f"{root}.model.language_model.layers.{i}"] for i in range(spec.layers)]
    hidden = masked_pairs_flops(spec.visual_tokens + text)
    assert hidden > 0
    assert ours["prefill"] == sum(n - hidden for n in layers)
    assert ours["total"] == sum(ours[k] for k in ("vision", "projector", "prefill", "lm_head"))


@pytest.mark.parametrize("kv_heads", [6, 2])
def test_reduced_prefill_and_ragged_decode(kv_heads):
    model = llava(kv_heads)
    spec = models.spec_of(model.config)
    schedule, text, answer = [25, 11, 4], 7, 4
    lm, cache = model.model.language_model, DynamicCache()
    h = torch.randn(1, schedule[0] + text, spec.hidden)
    rope = lm.rotary_emb(h, torch.arange(h.shape[1])[None])
    with torch.inference_mode(), counter() as mode:
        for visual, layer in zip(schedule, lm.layers, strict=True):
            n = visual + text
            h, rope = h[:, -n:], tuple(t[:, -n:] for t in rope)
            h = layer(h, position_embeddings=rope, past_key_values=cache, use_cache=True)
    ours = cost.run_flops(spec, schedule, text, answer)
    assert ours["prefill"] == mode.get_total_flops() - sum(masked_pairs_flops(n + text) for n in schedule)

    rope = tuple(t[:, -1:] for t in rope)
    with torch.inference_mode(), counter() as mode:
        for _ in range(answer - 1):
            h = torch.randn(1, 1, spec.hidden)
            for layer in lm.layers:
                h = layer(h, position_embeddings=rope, past_key_values=cache, use_cache=True)
    assert ours["decode"] == mode.get_total_flops()
    stored = [2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.layers]
    assert cost.kv_bytes_per_layer(spec, schedule, text, answer, bytes_per_value=4) == stored


def test_reduced_encoder():
    model = llava(6)
    spec = models.spec_of(model.config)
    encoder_schedule = [26, 10, 10]
    with torch.inference_mode(), counter() as mode:
        h = model.model.vision_tower.embeddings(torch.randn(1, 3, 40, 40))
        for n, layer in zip(encoder_schedule, model.model.vision_tower.encoder.layers, strict=False):
            h = layer(h[:, :n], attention_mask=None)
        model.model.multi_modal_projector(h[:, 1:])
    ours = cost.run_flops(spec, [9, 9, 9], 5, encoder_schedule=encoder_schedule, projector_tokens=9)
    assert ours["vision"] + ours["projector"] == mode.get_total_flops()


@pytest.mark.parametrize("project_keys", [True, False])
def test_attention_rows(project_keys):
    spec = models.spec_of(llava(2).config)
    attention = llava(2).model.language_model.layers[0].self_attn
    rows, keys = 3, 20
    h = torch.randn(1, keys, spec.hidden)
    cached = attention.k_proj(h).view(keys, 2, HEAD_DIM)
    with torch.inference_mode(), counter() as mode:
        q = attention.q_proj(h[:, :rows]).view(rows, HEADS, HEAD_DIM)
        k = attention.k_proj(h).view(keys, 2, HEAD_DIM) if project_keys else cached
        k = k.repeat_interleave(HEADS // 2, dim=1)
        torch.matmul(q.transpose(0, 1), k.permute(1, 2, 0))  # [heads, rows, keys]
    booked = cost.rows_attention_flops(rows, keys, HEADS, HEAD_DIM, spec.hidden, 2, project_keys)
    assert booked == mode.get_total_flops()


def test_windowed_tower_of_qwen():
    config = Qwen2_5_VLVisionConfig(
        depth=3,
        hidden_size=32,
        intermediate_size=44,
        num_heads=2,
        out_hidden_size=40,
        patch_size=4,
        window_size=16,
        fullatt_block_indexes=[1],
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa").eval()
    patches = 8 * 12  # six windows of 4 x 4 patches
    spec = cost.ModelSpec(
        "qwen-like",
        patches=patches,
        extra=0,
        patch_size=4,
        frames=2,
        vision_layers=3,
        vision_width=32,
        vision_heads=2,
        vision_mlp=44,
        vision_mlp_gated=True,
        window=16,
        full_layers=(1,),
        projector=(128, 128, 40),
        visual_tokens=patches // 4,
        hidden=40,
        layers=1,
        heads=5,
        kv_heads=1,
        head_dim=8,
        intermediate=8,
        vocab=8,
    )
    with torch.inference_mode(), counter() as mode:
        tower(torch.randn(patches, 3 * 2 * 4 * 4), grid_thw=torch.tensor([[1, 8, 12]]))
    ours = cost.run_flops(spec, spec.full_schedule, 0)
    seen = module_totals(mode)
    root = "Qwen2_5_VisionTransformerPretrainedModel"
    assert ours["vision"] == seen[f"{root}.patch_embed"] + sum(seen[f"{root}.blocks.{i}"] for i in range(3))
    assert ours["projector"] == seen[f"{root}.merger"]


def test_weight_bytes_are_those_of_the_modules():
    model = llava(2)
    spec = models.spec_of(model.config)

    def bytes_of(*modules):
        """Linear and convolution weights; the embedding tables are not read as matrices."""
        inner = [m for module in modules for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
        return sum(m.weight.numel() * m.weight.element_size() for m in inner)

    inner = model.model
    tower = inner.vision_tower
    expected = {
        "vision": bytes_of(tower.embeddings, *tower.encoder.layers[: spec.vision_layers]),
        "projector": bytes_of(inner.multi_modal_projector),
        "prefill": bytes_of(inner.language_model),
        "lm_head": bytes_of(model.lm_head),
    }
    assert cost.weight_bytes(spec, 4) == expected | {"total": sum(expected.values())}
