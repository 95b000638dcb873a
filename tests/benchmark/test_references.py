"""The references with whole attention maps: the same tokens and answers as attention on demand, by another way."""

import pytest
import tiny
import torch
from torch.nn.functional import scaled_dot_product_attention

import vtc_demo as vtc
from vtc_demo import engine, registry
from vtc_demo.benchmark import bench, measurements, references, tables


@pytest.fixture(scope="module")
def vlm():
    return vtc.load_vlm("embedded", device="cpu", dtype="float32")


@pytest.mark.parametrize("retention", [1 / 3, 1 / 9])
@pytest.mark.parametrize("name", references.NAMES)
def test_the_same_tokens_and_answers_as_on_demand(vlm, name, retention):
    method = registry.resolve(name, retention=retention)
    for seed in range(2):
        scene = vtc.world.sample(seed=seed)
        for question in scene.questions[:2]:
            ours = engine.run(vlm, scene.image, question.text, method)
            theirs = references.run(vlm, scene.image, question.text, method)
            assert measurements.survivors(ours) == measurements.survivors(theirs), question.text
            assert ours.token_ids == theirs.token_ids, question.text


@pytest.mark.parametrize("name", references.NAMES)
def test_every_map_is_made_whole_and_given_back(vlm, name, monkeypatch):
    """All heads and rows of the half that is read, at as many layers as ran; afterwards nothing is left behind."""
    made, plain = [], references.attend

    def watch(module, query, key, value, mask, **options):
        out, weights = plain(module, query, key, value, mask, **options)
        if query.shape[2] > 1:
            made.append((hasattr(module, "num_key_value_groups"), tuple(weights.shape)))
        return out, weights

    monkeypatch.setitem(references.AttentionInterface._global_mapping, references.EAGER, watch)
    scene = vtc.world.sample(seed=0)
    references.run(vlm, scene.image, scene.questions[0].text, registry.resolve(name, retention=1 / 9))
    layers = {True: vlm.spec.layers, False: vlm.spec.vision_layers}
    tower = layers[False] + (name == "mustdrop")  # its key set reads the layer behind the features
    expected = {"fastv": {True}, "visionzip": {False}, "ficoco-v": {False}, "mustdrop": {True, False}}[name]
    assert {decoder for decoder, _ in made} == expected
    assert sum(not decoder for decoder, _ in made) == (tower if False in expected else 0)
    assert sum(decoder for decoder, _ in made) == (layers[True] if True in expected else 0)
    for decoder, (one, heads, rows, keys) in made:
        assert (one, heads) == (1, vlm.spec.heads if decoder else vlm.spec.vision_heads) and rows == keys
    assert not references._kept
    for part in (vlm.config, vlm.config.vision_config, vlm.config.text_config):
        assert part._attn_implementation == "sdpa"


def test_settings_are_put_back_after_a_failure(vlm):
    with pytest.raises(ValueError, match="question is empty"):
        references.run(vlm, vtc.world.sample(seed=0).image, " ", registry.resolve("mustdrop"))
    assert vlm.config.text_config._attn_implementation == "sdpa" and not references._kept


def test_unfused_attention_is_causal_in_the_decoder_alone():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 7, 8) for heads in (4, 2, 2))

    class Module(torch.nn.Module): ...

    tower, decoder = Module(), Module()
    decoder.num_key_value_groups = 2
    options = {"scaling": 8**-0.5, "dropout": 0.0}
    try:
        out, weights = references.attend(decoder, q, k, v, None, **options)
        expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(out.transpose(1, 2), expected)
        assert torch.equal(weights.triu(1), torch.zeros_like(weights)) and weights.shape == (1, 4, 7, 7)
        out, _ = references.attend(tower, q[:, :2], k, v, None, **options)
        torch.testing.assert_close(out.transpose(1, 2), scaled_dot_product_attention(q[:, :2], k, v))
        last, _ = references.attend(decoder, q[:, :, -1:], k, v, None, **options)  # a decode step sees all of the cache
        torch.testing.assert_close(last.transpose(1, 2), expected[:, :, -1:])
    finally:
        references._kept.clear()


def test_what_has_no_reference_is_refused(vlm):
    scene = vtc.world.sample(seed=0)
    with pytest.raises(ValueError, match="divprune has no reference; these have: fastv, visionzip"):
        references.run(vlm, scene.image, scene.questions[0].text, registry.resolve("divprune"))


def test_benchmark_beside_the_references():
    vlm = tiny.vlm()
    options = {"new_tokens": 3, "warmups": 0, "repeats": 1}
    found = bench.bench(
        vlm, tiny.image(), tiny.QUESTION, ["random", "fastv", "visionzip"], (9,), with_references=True, **options
    )
    assert [row["method"]["method"] for row in found["references"]] == ["fastv", "visionzip"]
    for row in found["references"]:
        assert row["same_answer"] and row["same_tokens"]
        assert set(row["ratios"]) == {"vision", "prefill", "ttft", "wall"} and row["ratios"]["ttft"]["n"] == 1
        assert row["reference_peak_bytes"] > row["peak_bytes"] > 0
    text = tables.table(found)
    assert "all maps / on demand" in text and text.count("FastV @ 9") >= 3
