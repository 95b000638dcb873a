"""Analytic cost: a case worked out by hand, published tables, and laws that every count obeys."""

import dataclasses

import pytest
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PaliGemmaConfig,
    SiglipVisionConfig,
)

from vtc_demo import cost, models

LLAVA, NEXT, QWEN = (cost.SPECS[name] for name in ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b"))

TINY = cost.ModelSpec(
    "tiny",
    patches=4,
    extra=1,
    patch_size=2,
    vision_layers=1,
    vision_width=6,
    vision_heads=2,
    vision_mlp=10,
    projector=(6, 8, 8),
    visual_tokens=4,
    hidden=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=2,
    intermediate=12,
    vocab=20,
)


def stages(*pairs):
    """[(tokens, layers), ...] -> schedule."""
    return [tokens for tokens, layers in pairs for _ in range(layers)]


def test_by_hand():
    """Multiply-adds counted on paper for TINY: schedule [4, 1], 2 text tokens, 3 answer tokens."""
    out = cost.run_flops(TINY, [4, 1], 2, 3, overhead=7)
    patch_embedding = 4 * 12 * 6  # 4 patches, 2 x 2 x 3 values each, to 6
    encoder = 5 * (4 * 36 + 2 * 60) + 2 * 25 * 6  # 5 tokens: q k v o, two MLP matrices; 25 pairs twice
    assert out["vision"] == 2 * (patch_embedding + encoder) == 3816
    assert out["projector"] == 2 * 4 * (48 + 64) == 896
    token = 64 + 32 + 32 + 64 + 3 * 96  # q, k, v, o, gated MLP
    first, second = 6 * token + 2 * 21 * 8, 3 * token + 2 * 6 * 8  # 21 and 6 causal pairs of width 8
    assert out["prefill"] == 2 * (first + second) == 9504
    assert out["lm_head"] == 2 * 3 * 160 == 960
    # two passes; layer 0 sees 7 and 8 entries, layer 1 sees 4 and 5
    assert out["decode"] == 2 * (4 * token + 2 * 8 * (7 + 8 + 4 + 5)) == 4608
    assert out["compression"] == 7
    assert out["total"] == 3816 + 896 + 9504 + 960 + 4608 + 7
    # K and V, 2 heads of 2, bf16, 6 + 3 entries, and two of the three answer tokens in each layer
    assert cost.kv_bytes_per_layer(TINY, [4, 1], 2, 3) == [16 * 8, 16 * 5]
    assert cost.kv_bytes(TINY, [4, 1], 2) == 16 * 9


@pytest.mark.parametrize(
    ("convention", "spec", "schedule", "text", "published", "unit"),
    [
        ("fastv", LLAVA, [576] * 32, 36, "99.3", 1e9),
        ("divprune", LLAVA, [576] * 32, 36, "3.2", 1e12),
        ("pyramiddrop", LLAVA, [576] * 32, 0, "3.82", 1e12),
        ("pyramiddrop", LLAVA, stages((576, 2), (288, 30)), 0, "2.01", 1e12),  # FastV, K = 2, half
        ("pyramiddrop", LLAVA, stages((576, 8), (288, 8), (144, 8), (72, 8)), 0, "1.78", 1e12),
        ("sparsevlm", LLAVA, [576] * 32, 118, "4.62", 1e12),
        ("vica", LLAVA, [576] * 32, 0, "7.63", 1e12),
        ("vica", NEXT, [2880] * 32, 0, "41.7", 1e12),  # GlobalCom2's table counts as ViCA does
        ("vica", NEXT, [288] * 32, 0, "3.8", 1e12),
        ("llm-viewer", LLAVA, [576] * 32, 64, "8.50", 1e12),
        ("llm-viewer", NEXT, [2880] * 32, 64, "42.7", 1e12),  # FiCoCo's table
        ("gqa", QWEN, [576] * 28, 39, "8.18", 1e12),
    ],
)
def test_published_tables(convention, spec, schedule, text, published, unit):
    digits = len(published.split(".")[1])
    assert f"{cost.flops(spec, schedule, text, convention) / unit:.{digits}f}" == published


def test_published_ratios_of_fastv():
    """K = 3, half the tokens: 57 % of the FLOPs. LLaVA-1.5-13B, K = 2: 45 % fewer."""

    def ratio(spec, k):
        cut = stages((576, k), (288, spec.layers - k))
        return cost.flops(spec, cut, 36, "fastv") / cost.flops(spec, spec.full_schedule, 36, "fastv")

    assert round(100 * ratio(LLAVA, 3)) == 57
    assert round(100 * (1 - ratio(cost.SPECS["llava-1.5-13b"], 2))) == 45


def test_conventions_say_what_they_are():
    for name, how in cost.CONVENTIONS.items():
        assert how.unit in ("MACs", "FLOPs"), name
        assert how.description, name
        assert how.counts, name
        with_text, without = (cost.flops(LLAVA, LLAVA.full_schedule, t, name) for t in (40, 0))
        assert (with_text > without) == how.text, name
    assert "visual only" in cost.CONVENTIONS["vica"].counts
    # MACs and FLOPs of the same products are a factor of two apart; on an MHA model gqa agrees with llm-viewer
    n = LLAVA.full_schedule
    assert cost.flops(LLAVA, n, 64, "llm-viewer") == 2 * cost.flops(LLAVA, n, 64, "sparsevlm")
    assert cost.flops(LLAVA, n, 64, "gqa") == cost.flops(LLAVA, n, 64, "llm-viewer")
    assert cost.flops(LLAVA, n, 64) == cost.run_flops(LLAVA, n, 64)["total"]


def test_spec_of_the_default_llava_config_is_llava_7b():
    assert dataclasses.replace(models.spec_of(LlavaConfig()), name="llava-1.5-7b") == LLAVA
    text = LlamaConfig(vocab_size=32000, intermediate_size=11008)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaNextConfig(vision_config=vision, text_config=text)
    assert dataclasses.replace(models.spec_of(config), name="llava-next-7b") == NEXT


def test_weights_have_the_published_sizes():
    """Published parameter counts, less what is no matrix of a pass: embedding table, norms, biases."""
    values = {name: cost.weight_bytes(spec, bytes_per_value=1) for name, spec in cost.SPECS.items()}
    for name, published in (("llava-1.5-7b", 6_738_415_616), ("llava-1.5-13b", 13_015_864_320)):  # Llama 7B, 13B
        spec = cost.SPECS[name]
        norms, table = (2 * spec.layers + 1) * spec.hidden, spec.vocab * spec.hidden
        assert values[name]["prefill"] + values[name]["lm_head"] == published - norms - table
    assert values["llava-1.5-7b"]["projector"] == 20_979_712 - 2 * 4096  # biases
    assert values["qwen2.5-vl-7b"]["projector"] == 44_574_464 - 5120 - 3584 - 1280  # biases and norm


@pytest.mark.parametrize("spec", [TINY, *cost.SPECS.values()], ids=lambda s: s.name)
def test_laws(spec):
    n, half = spec.full_schedule, [v // 2 for v in spec.full_schedule]
    full = cost.run_flops(spec, n, 30, 5, overhead=11)
    assert full["total"] == sum(v for k, v in full.items() if k != "total")
    assert all(type(v) is int for v in full.values())
    # fewer tokens in one layer, one text token less, one answer token less: each is cheaper
    fewer = [*n[:-1], n[-1] - 1]
    for cheaper in (
        cost.run_flops(spec, fewer, 30, 5, overhead=11),
        cost.run_flops(spec, n, 29, 5, overhead=11),
        cost.run_flops(spec, n, 30, 4, overhead=11),
    ):
        assert cheaper["total"] < full["total"]
    # the cost of a layer does not depend on its place, and a schedule is the sum of its layers
    mixed = [*half[:1], *n[1:]]
    assert cost.run_flops(spec, mixed, 30, 5) == cost.run_flops(spec, mixed[::-1], 30, 5)
    prefill = {k: cost.run_flops(spec, v, 30)["prefill"] for k, v in {"n": n, "half": half, "mixed": mixed}.items()}
    assert spec.layers * (prefill["n"] - prefill["mixed"]) == prefill["n"] - prefill["half"]
    # answering in two goes costs as much as in one: the first answer is prompt text of the second
    first, second = cost.run_flops(spec, n, 30, 3)["decode"], cost.run_flops(spec, n, 32, 4)["decode"]
    assert first + second == cost.run_flops(spec, n, 30, 6)["decode"]
    # no decode pass for one token
    assert cost.run_flops(spec, n, 30, 1)["decode"] == 0


def test_grouped_query_and_causal_attention_are_cheaper():
    mha = dataclasses.replace(QWEN, kv_heads=QWEN.heads)
    n = QWEN.full_schedule
    assert cost.run_flops(QWEN, n, 30)["prefill"] < cost.run_flops(mha, n, 30)["prefill"]
    assert cost.flops(QWEN, n, 30, "gqa") < cost.flops(mha, n, 30, "gqa")
    assert cost.kv_bytes(mha, n, 30) == 7 * cost.kv_bytes(QWEN, n, 30)
    for rows in range(1, 40):
        causal, whole = (cost.attention_flops(p, 4, 8) for p in (cost.causal_pairs(rows), rows * rows))
        assert causal <= whole
        assert causal == sum(cost.attention_flops(i + 1, 4, 8) for i in range(rows))


def test_crops_windows_and_scaled_images():
    one = dataclasses.replace(NEXT, crops=1)
    tower = lambda spec, **kw: cost.run_flops(spec, spec.full_schedule, 0, **kw)["vision"]  # noqa: E731
    assert tower(NEXT) == 5 * tower(one)
    assert tower(QWEN) < tower(dataclasses.replace(QWEN, window=0))
    assert tower(LLAVA, patches=144, encoder_schedule=[145] * 23) < tower(LLAVA, encoder_schedule=[145] * 23)


def test_roofline_and_expected_speedup():
    assert cost.roofline(2e12, 1e9, 1e12, 1e9) == 2.0
    assert cost.roofline(1e12, 3e9, 1e12, 1e9) == 3.0
    n, cut = LLAVA.full_schedule, [64] * 32
    ratio = cost.run_flops(LLAVA, n, 64)["prefill"] / cost.run_flops(LLAVA, cut, 64)["prefill"]
    speedup = lambda **kw: cost.expected_speedup(LLAVA, cut, n, 64, **kw)  # noqa: E731
    # bandwidth without limit: the FLOPs ratio but for the LM head; compute without limit: the weights decide
    assert speedup(peak_flops=1e12, bandwidth=1e18) == pytest.approx(ratio, rel=0.01)
    assert speedup(peak_flops=1e18, bandwidth=1e12) == pytest.approx(1.0, abs=0.05)
    real = dict(peak_flops=990e12, bandwidth=4.8e12)
    assert 1 < speedup(**real) < ratio
    assert speedup(**real) < speedup(**real, batch=32) <= ratio
    assert speedup(**real, overhead=10**13) < 1
    assert cost.expected_speedup(LLAVA, n, n, 64, **real) == 1.0


def test_bad_input_names_what_to_do():
    run = lambda **kw: cost.run_flops(TINY, **{"schedule": [4, 4], "text_tokens": 2, **kw})  # noqa: E731
    for arguments, message in [
        ({"schedule": [4]}, "one per LLM layer: 2"),
        ({"schedule": [4, -1]}, "must not be negative"),
        ({"schedule": [4, 2.5]}, "whole numbers"),
        ({"text_tokens": -1}, "text_tokens must not be negative"),
        ({"new_tokens": -1}, "new_tokens"),
        ({"overhead": -1}, "overhead"),
        ({"encoder_schedule": [5, 5]}, "one per encoder layer run: 1"),
        ({"projector_tokens": -4}, "projector_tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**arguments)
    with pytest.raises(ValueError, match=r"unknown convention 'fastvv'; choose one of true, fastv.*mean 'fastv'"):
        cost.flops(TINY, [4, 4], 2, "fastvv")
    with pytest.raises(ValueError, match="one per LLM layer"):
        cost.kv_bytes(TINY, [4], 2)
    with pytest.raises(ValueError, match="must be positive"):
        cost.roofline(1, 1, 0, 1)
    with pytest.raises(ValueError, match="kv_heads"):
        dataclasses.replace(TINY, kv_heads=3)
    with pytest.raises(ValueError, match="batch"):
        cost.expected_speedup(TINY, [1, 1], [4, 4], 2, 1e12, 1e12, batch=0)


def test_a_spec_needs_a_family_and_a_configuration_that_run():
    with pytest.raises(ValueError, match=r"its family is 'paligemma'. Families that run: .*LLaVA"):
        models.spec_of(PaliGemmaConfig())
    with pytest.raises(ValueError, match="its vision tower is siglip_vision_model"):
        models.spec_of(LlavaConfig(vision_config=SiglipVisionConfig()))
    with pytest.raises(ValueError, match="its decoder is gemma"):
        models.spec_of(LlavaConfig(text_config=GemmaConfig()))
