"""Compiled decoder layers: the same answers from the same model, one compiled function for all layers and lengths."""

import dataclasses

import compiler
import families
import pytest
import tiny
import torch
from torch.utils._pytree import tree_map

import vtc_demo as vtc
from vtc_demo import engine, registry
from vtc_demo.benchmark import bench, measurements, tables
from vtc_demo.core.workspace import Workspace
from vtc_demo.engine import compiled

pytestmark = pytest.mark.slow  # compiling takes its time
METHODS = ["full", "fastervlm@0.1111", "fastv@0.1111", "pyramiddrop@0.2", "mustdrop", "ficoco-l@0.3"]


@pytest.fixture(scope="module", params=["traced", "compiled"])
def pair(request):
    """The embedded model as it is, and with layers that are traced alone (needs no compiler) or compiled, too."""
    vlm = vtc.load_vlm("embedded", device="cpu", dtype="float32")
    if request.param == "traced":
        traced = torch.compile(compiled.block, backend="aot_eager", dynamic=True, isolate_recompiles=True)
        return vlm, dataclasses.replace(vlm, compiled=traced, workspace=Workspace())
    compiler.demand()
    return vlm, vtc.compile_vlm(vlm)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_tokens_answers_and_cache(pair, name):
    method, scene = registry.resolve(name), vtc.world.sample(seed=0)
    for question in scene.questions[:2]:
        options = {"max_new_tokens": 6, "ignore_eos": True}
        plain, fused = (engine.run(vlm, scene.image, question.text, method, **options) for vlm in pair)
        assert measurements.survivors(plain) == measurements.survivors(fused)
        assert plain.token_ids == fused.token_ids and plain.kv_lengths == fused.kv_lengths
        assert plain.kv_bytes == fused.kv_bytes and plain.flops == fused.flops


def test_one_function_serves_every_layer_and_length():
    """Counted at the compiler's door: no version for a layer or a length of its own."""
    vlm, graphs = vtc.load_vlm("embedded", device="cpu", dtype="float32"), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    counted = torch.compile(compiled.block, backend=backend, dynamic=True, isolate_recompiles=True)
    twin = dataclasses.replace(vlm, compiled=counted, workspace=Workspace())
    scene = vtc.world.sample(seed=1)
    chosen = [f"uniform@{share}" for share in (1.0, 0.5, 0.3, 0.2)]
    for name in (
        *chosen,
        "pyramiddrop@0.2",
        "fastv@0.3",
        "visionzip@0.2",
        "downsample@0.25",
        "mustdrop",
        "ficoco-l@0.4",
    ):
        method = registry.resolve(name)
        engine.run(twin, scene.image, scene.questions[0].text, method, max_new_tokens=4, ignore_eos=True)
    assert len(graphs) == 2  # a prefill and a decode step


@pytest.mark.parametrize("family", families.BUILDERS)
def test_layers_of_every_family_can_be_traced(family):
    vlm = families.vlm(family)
    traced = torch.compile(compiled.block, backend="aot_eager", dynamic=True, fullgraph=True, isolate_recompiles=True)
    twin = dataclasses.replace(vlm, compiled=traced, workspace=Workspace())
    method, options = registry.resolve("random", retention=0.5), {"max_new_tokens": 4, "ignore_eos": True}
    plain, fused = (engine.run(one, tiny.image(2, side=56), tiny.QUESTION, method, **options) for one in (vlm, twin))
    assert plain.token_ids == fused.token_ids and plain.kv_lengths == fused.kv_lengths


def test_weights_are_shared_and_the_model_stays_as_it_was(pair):
    vlm, twin = pair
    assert twin.model is vlm.model and vlm.compiled is None and twin.compiled is not None


def test_block_leaves_given_keys_alone():
    vlm = tiny.vlm()
    lm = vlm.adapter.decoder(vlm.model)
    h = torch.randn(1, 5, lm.config.hidden_size)
    rope = lm.rotary_emb(h, torch.arange(5)[None])
    with torch.inference_mode():
        whole, keys, _ = compiled.block(lm.layers[0], h, None, None, attention_mask=None, position_embeddings=rope)
        early = tree_map(lambda x: x[:, :4], rope), tree_map(lambda x: x[:, 4:], rope)
        _, k, v = compiled.block(lm.layers[0], h[:, :4], None, None, attention_mask=None, position_embeddings=early[0])
        held = k.clone()
        last, longer, _ = compiled.block(
            lm.layers[0], h[:, 4:], k, v, attention_mask=None, position_embeddings=early[1]
        )
    assert torch.equal(k, held) and longer.shape == keys.shape
    torch.testing.assert_close(last, whole[:, 4:])
    torch.testing.assert_close(longer, keys)


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(
        ValueError, match=r"cannot compile on cpu: InvalidCxxCompiler.*install it or leave compiling out"
    ):
        vtc.compile_vlm(tiny.vlm())


def test_benchmark_beside_compiled_layers(monkeypatch):
    monkeypatch.setattr(compiled, "compile_vlm", lambda vlm: dataclasses.replace(vlm, compiled=compiled.block))
    options = {"new_tokens": 3, "warmups": 0, "repeats": 1, "with_compiled": True}
    found = bench.bench(tiny.vlm(), tiny.image(), tiny.QUESTION, ["random", "fastv"], (9,), **options)
    assert [row["method"]["method"] for row in found["compiled"]] == ["full", "random", "fastv"]
    for row in found["compiled"]:
        assert row["same_answer"] and row["first_seconds"] > 0
        assert set(row["ratios"]) == set(measurements.COMPILED) and row["ratios"]["prefill"]["n"] == 1
    assert "as is / compiled" in tables.table(found)
