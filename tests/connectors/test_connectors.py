"""Every connector against the transformers class with the same weights, or against its equations in slow loops."""

import copy
from random import Random
from types import SimpleNamespace

import pytest
import torch
from counting import NO_KERNELS
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2QFormerConfig, Idefics3Config, IdeficsConfig, InternVLConfig, LlamaConfig, LlamaModel
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger

from vtc_demo.connectors import (
    focusllava,
    gated_attention,
    hyper_attention,
    llava_mlp,
    patch_merger,
    perceiver,
    pixel_shuffle,
    pooling,
    q_former,
    tokenpacker,
    vlora,
)
from vtc_demo.connectors.base import Connected, Dims, blocks

GRID, N = (12, 12), 144
DIMS = Dims(vision=24, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48, layers=4, patches=N)
BUILDS = {
    "mlp": llava_mlp.MLPConnector,
    "merger": patch_merger.MergerConnector,
    "shuffle": pixel_shuffle.ShuffleConnector,
    "pool": pooling.PoolConnector,
    "q-former": q_former.QFormerConnector,
    "perceiver": perceiver.PerceiverConnector,
    "tokenpacker": tokenpacker.PackerConnector,
    "focus": focusllava.FocusConnector,
    "gated": gated_attention.GatedConnector,
    "hyper-gated": hyper_attention.HyperGatedConnector,
    "hyper-fused": hyper_attention.HyperFusedConnector,
    "vlora": vlora.VLoRAConnector,
}
BUDGET, FEATURES = 36, torch.randn(2, 1 + N, DIMS.vision, generator=torch.Generator().manual_seed(0))
COUNTS = {"mlp": 144, "hyper-gated": 144, "hyper-fused": 144, "vlora": 4}  # the others: the budget
each = pytest.mark.parametrize("name", BUILDS)


@pytest.fixture
def double(monkeypatch):
    """Two ways to one result are compared in float64: what float32 rounds away depends on the processor's kernels and
    grows from layer to layer, so no tolerance would fit every machine."""
    monkeypatch.setitem(globals(), "FEATURES", FEATURES.double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(name):
    """Seeded weights, none of which is zero (gates and constants start there)."""
    torch.manual_seed(1)
    connector = BUILDS[name](DIMS).eval()
    with torch.no_grad():
        for weight in connector.parameters():
            if not weight.any():
                weight.normal_(0, 0.3)
    return connector


def copied(target: nn.Module, weights: dict) -> nn.Module:
    target.load_state_dict(weights)
    return target.eval()


# -- what holds for all ---------------------------------------------------------------------------------------------
@each
@torch.no_grad()
def test_counts_and_provenance(name):
    made = build(name)(FEATURES[:1], GRID, BUDGET)
    m = COUNTS.get(name, made.tokens.shape[1] if name == "focus" else BUDGET)
    assert made.tokens.shape[:2] == (1, m) and torch.isfinite(made.tokens).all()
    reduction = made.reduction(1 + N)
    assert (reduction.m, reduction.n, reduction.soft) == (m, 1 + N, made.soft)
    dense = reduction.dense()
    torch.testing.assert_close(dense.sum(1), torch.ones(m))
    assert (dense >= 0).all() and reduction.anchor.min() >= 1
    if not made.soft:
        assert dense[:, 0].eq(0).all(), "CLS is no part of a token"


@each
@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix(name):
    connector = build(name)
    both = connector(FEATURES, GRID, BUDGET)
    for i in range(2):
        alone = connector(FEATURES[i : i + 1], GRID, BUDGET)
        tokens = both.tokens[i] if both.present is None else both.tokens[i, both.present[i]]
        torch.testing.assert_close(tokens, alone.tokens[0], atol=1e-5, rtol=1e-4)


@each
@torch.no_grad()
def test_flops_are_those_that_the_counter_sees(name):
    connector = build(name).requires_grad_(False)  # the counter follows gradients even where none are kept
    with FlopCounterMode(display=False) as mode:
        made = connector(FEATURES[:1], GRID, BUDGET)
    assert connector.flops(N, made.tokens.shape[1]) == mode.get_total_flops()


@each
def test_every_weight_is_trained_and_steps_differ_in_budget(name):
    connector, lm = build(name), decoder()
    made = connector(FEATURES, GRID, BUDGET)
    h = torch.randn(2, 5, DIMS.hidden)
    for k, layer in enumerate(lm.layers):
        h = connector.run(k, layer, h, connector.layer_memory(lm, made.tokens, 2), None, **plain(lm, h))
    (h.sum() * made.tokens.square().sum() + made.loss).backward()
    assert all(p.grad is not None for p in connector.parameters())
    drawn = {connector.draw(Random(i), N)["budget"] for i in range(20)}
    assert len(drawn) > 1 or name in ("mlp", "merger", "shuffle", "hyper-gated", "hyper-fused", "vlora")
    assert all(1 <= budget <= N for budget in drawn)


@pytest.mark.parametrize("name", ["merger", "shuffle", "focus"])
def test_a_grid_that_does_not_divide_is_refused(name):
    with pytest.raises(ValueError, match=r"do not tile a grid of 3 x 5"):
        build(name)(torch.randn(1, 16, DIMS.vision), (3, 5), 4)


# -- one vector per patch or block ----------------------------------------------------------------------------------
@torch.no_grad()
def test_mlp_equals_llava():
    config = SimpleNamespace(
        vision_config=SimpleNamespace(hidden_size=24), text_config=SimpleNamespace(hidden_size=32),
        projector_hidden_act="gelu", vision_feature_layer=-2, multimodal_projector_bias=True,
    )  # fmt: skip
    ours = build("mlp")
    theirs = copied(LlavaMultiModalProjector(config), ours.state_dict())
    torch.testing.assert_close(ours(FEATURES, GRID, N).tokens, theirs(FEATURES[:, 1:]))


@torch.no_grad()
def test_merger_equals_qwen2_vl_on_patches_in_block_order():
    ours = build("merger")
    theirs = copied(PatchMerger(32, 24), ours.state_dict())
    ordered = FEATURES[0, 1:][blocks(GRID, 2).flatten()]
    tokens = ours(FEATURES[:1], GRID, BUDGET).tokens[0]
    torch.testing.assert_close(tokens, theirs(ordered))
    assert not torch.allclose(tokens, theirs(FEATURES[0, 1:])), "raster order would join strips of 1 x 4"


def test_blocks_by_hand():
    assert blocks((2, 4), 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize("side", [2, 3, 4])
def test_pixel_shuffle_equals_internvl_and_idefics3(side):
    x = FEATURES[:, 1:].unflatten(1, GRID)
    ours = pixel_shuffle.pixel_shuffle(x, side)
    idefics = Idefics3Connector.pixel_shuffle(None, FEATURES[:, 1:], side)
    assert torch.equal(ours.flatten(1, 2), idefics)
    if side != 3:  # their scale is a float, whose product with the grid is cut off at thirds
        assert torch.equal(ours, InternVLModel.pixel_shuffle(None, x, 1 / side))
    first = pixel_shuffle.pixel_shuffle(x, side, version=1)
    assert torch.equal(first, ours.transpose(1, 2)) and not torch.equal(first, ours)


def test_pixel_shuffle_of_a_wide_grid_is_the_gather_of_its_blocks():
    x = torch.arange(4 * 6 * 5.0).view(1, 4, 6, 5)
    gathered = x.flatten(1, 2)[:, blocks((4, 6), 2)].flatten(2)
    assert torch.equal(pixel_shuffle.pixel_shuffle(x, 2).flatten(1, 2), gathered)
    deep = F.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).unflatten(1, (5, 4)).transpose(1, 2)  # (c, block) -> (block, c)
    assert torch.equal(deep.flatten(1, 2).flatten(2).transpose(1, 2), gathered)


@torch.no_grad()
def test_shuffle_connector_equals_internvl():
    config = InternVLConfig(vision_config={"hidden_size": 24}, text_config={"model_type": "llama", "hidden_size": 32})
    ours = build("shuffle")
    theirs = copied(InternVLMultiModalProjector(config), ours.state_dict())
    deep = InternVLModel.pixel_shuffle(None, FEATURES[:, 1:].unflatten(1, GRID), 0.5).flatten(1, 2)
    torch.testing.assert_close(ours(FEATURES, GRID, BUDGET).tokens, theirs(deep))
    assert Idefics3Config().scale_factor == 2  # the same block there


# -- pooling --------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_pooling_at_stride_two_equals_llava_onevision():
    x = FEATURES[:, 1:]
    vision = SimpleNamespace(image_size=12, patch_size=1)
    theirs = LlavaOnevisionModel.apply_pooling(SimpleNamespace(config=SimpleNamespace(vision_config=vision)), x)
    maps = x.transpose(1, 2).unflatten(2, GRID)
    flat = lambda y: y.flatten(2).transpose(1, 2)  # noqa: E731
    torch.testing.assert_close(flat(pooling.pool(maps, (6, 6), "bilinear")), theirs)
    torch.testing.assert_close(pooling.pool(maps, (6, 6), "average"), F.avg_pool2d(maps, 2))
    torch.testing.assert_close(pooling.pool(maps, (6, 6), "max"), F.max_pool2d(maps, 2))


@torch.no_grad()
def test_bilinear_at_stride_three_picks_the_centre():
    weight, anchor = pooling.shares(GRID, (4, 4), "bilinear")
    assert weight.max(1).values.eq(1).all() and torch.equal(weight.argmax(1), anchor)


@pytest.mark.parametrize("mode", pooling.MODES)
@pytest.mark.parametrize("budget", [144, 36, 20, 7])
@torch.no_grad()
def test_shares_of_pooling_are_what_was_pooled(mode, budget):
    connector = build("pool")
    made = connector(FEATURES, GRID, budget, mode=mode)
    every = connector(FEATURES, GRID, N).tokens  # one per patch
    if mode != "max":
        torch.testing.assert_close(made.tokens, made.weight[:, 1:] @ every, atol=1e-5, rtol=1e-4)
        return
    for i, row in enumerate(made.weight[0]):  # the share of channels that each patch won
        won = (every[0] == made.tokens[0, i]).float().mean(1)  # [n]
        torch.testing.assert_close(row[1:][row[1:] > 0], won[row[1:] > 0])


# -- learned queries ------------------------------------------------------------------------------------------------
def blip2(ours: q_former.QFormerConnector) -> nn.Module:
    """BLIP-2's Q-Former with the weights of ours."""
    config = Blip2QFormerConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, encoder_hidden_size=24,
        cross_attention_frequency=2,
    )  # fmt: skip
    names = {
        "attention_norm": "attention.output.LayerNorm", "cross_norm": "crossattention.output.LayerNorm",
        "feed.0": "intermediate_query.dense", "feed.2": "output_query.dense", "feed_norm": "output_query.LayerNorm",
    }  # fmt: skip
    for ours_name, theirs_name in (("attention", "attention"), ("cross", "crossattention")):
        for part, dense in (("q", "query"), ("k", "key"), ("v", "value")):
            names[f"{ours_name}.{part}_proj"] = f"{theirs_name}.attention.{dense}"
        names[f"{ours_name}.o_proj"] = f"{theirs_name}.output.dense"
    state = {"layernorm.weight": ours.norm.weight, "layernorm.bias": ours.norm.bias}
    for i, layer in enumerate(ours.layers):
        for name, weight in layer.state_dict().items():
            module, kind = name.rsplit(".", 1)
            state[f"encoder.layer.{i}.{names[module]}.{kind}"] = weight
    return copied(Blip2QFormerModel(config), state)


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_q_former_equals_blip_2():
    ours = build("q-former")
    theirs = blip2(ours)
    seen = ours.feature_norm(FEATURES)
    out = theirs(query_embeds=ours.queries[:, :BUDGET].expand(2, -1, -1), encoder_hidden_states=seen).last_hidden_state
    torch.testing.assert_close(ours(FEATURES, GRID, BUDGET).tokens, ours.out(out))
    assert [layer.cross is not None for layer in ours.layers] == [True, False, True, False]


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_resampler_equals_idefics():
    config = IdeficsConfig(vision_config={"embed_dim": 24}, perceiver_config={"qk_layer_norms_perceiver": False})
    ours = perceiver.Resampler(24, 20, 2, 4).eval()
    theirs = IdeficsPerceiverResampler(config, 24, 2, 4, 6, 20).eval()
    theirs.latents.copy_(ours.latents[0])
    theirs.layer_norm.load_state_dict(ours.norm.state_dict())
    for block, (attention, feed) in zip(ours.blocks, theirs.blocks, strict=True):
        block.feed[1] = nn.ReLU()  # theirs; Flamingo's is GELU
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(attention, name).weight.copy_(getattr(block.attention, name).weight)
        attention.output_proj.weight.copy_(block.attention.o_proj.weight)
        feed.fc.weight.copy_(block.feed[0].weight), feed.c_proj.weight.copy_(block.feed[2].weight)
        pairs = [(attention.context_layer_norm, block.context_norm), (attention.latents_layer_norm, block.latent_norm)]
        for norm, other in (*pairs, (feed.ln, block.feed_norm)):
            norm.weight.copy_(other.weight.normal_()), norm.bias.copy_(other.bias.normal_())
    torch.testing.assert_close(ours(FEATURES, 20)[0], theirs(FEATURES))


@pytest.mark.parametrize("side", [2, 3, 4])
@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_tokenpacker_equals_its_equations(side):
    ours, m = build("tokenpacker"), N // side**2
    made = ours(FEATURES, GRID, m)
    attention = nn.MultiheadAttention(24, ours.heads, batch_first=True).eval()
    projections = [ours.q_proj, ours.k_proj, ours.v_proj]
    attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    attention.out_proj.load_state_dict(ours.o_proj.state_dict())
    patches = FEATURES[0, 1:].view(12, 12, 24)
    for i in range(m):
        r, c = i // (12 // side) * side, i % (12 // side) * side
        region = patches[r : r + side, c : c + side].reshape(-1, 24)
        middle = {2: [0, 1, 2, 3], 3: [4], 4: [5, 6, 9, 10]}[side]  # what bilinear takes
        query = ours.query_norm(ours.query(region[middle].mean(0, keepdim=True)))
        k, v = ours.key_norm(ours.key(region)), ours.value_norm(ours.value(region))
        out, weights = attention(query[None], k[None], v[None])
        torch.testing.assert_close(made.tokens[0, i], ours.mlp(out[0, 0]), atol=1e-5, rtol=1e-4)
        places = [1 + (r + a) * 12 + c + b for a in range(side) for b in range(side)]
        torch.testing.assert_close(made.weight[0, i, places], weights[0, 0], atol=1e-5, rtol=1e-4)


def test_tokenpacker_refuses_a_budget_below_its_largest_region():
    with pytest.raises(ValueError, match="too few"):
        build("tokenpacker")(FEATURES, GRID, 8)
    assert [tokenpacker.region_side((24, 24), b) for b in (576, 144, 143, 64, 36)] == [2, 2, 3, 3, 4]


# -- FocusLLaVA's first sampler -------------------------------------------------------------------------------------
@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_focus_equals_its_equations():
    ours = build("focus")
    ours.router.weight.mul_(20)  # so that the windows differ
    made = ours(FEATURES[:1], GRID, N)
    patches, expected, owners = FEATURES[0, 1:].view(12, 12, 24), [], []
    for r in range(0, 12, 4):
        for c in range(0, 12, 4):
            window = patches[r : r + 4, c : c + 4]
            gate = ours.router(window.mean((0, 1))).softmax(-1)
            scale = int(gate.argmax())
            side = (1, 2, 4)[scale]
            for y in range(0, 4, side):
                for x in range(0, 4, side):
                    token = window[y : y + side, x : x + side].amax((0, 1))
                    expected.append(gate[scale] * ours.layers[scale](token))
                    owners.append(1 + (r + y) * 12 + c + x)
    torch.testing.assert_close(made.tokens[0], torch.stack(expected))
    assert made.anchor[0].tolist() == owners
    assert len({len(expected), 9, 36, 144}) == 4, "windows of several scales"


def test_focus_balance_is_least_when_even():
    even = torch.full((1, 9, 3), 1 / 3)
    spread = focusllava.FocusConnector.balance(even, torch.arange(9)[None] % 3)
    assert spread == pytest.approx(focusllava.BALANCE)
    piled = torch.tensor([0.8, 0.1, 0.1]).expand(1, 9, 3)
    assert focusllava.FocusConnector.balance(piled, torch.zeros(1, 9)) == pytest.approx(2.4 * focusllava.BALANCE)


def test_focus_cuts_end_at_the_budget():
    assert [focusllava.keep_count(250, 64, i, 3) for i in (1, 2, 3)] == [159, 101, 64]
    assert focusllava.keep_count(50, 64, 2, 3) == 50


# -- attention reworks ----------------------------------------------------------------------------------------------
def decoder() -> LlamaModel:
    torch.manual_seed(2)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=11, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaModel(config).eval()


def plain(lm, h):
    return {"attention_mask": None, "position_embeddings": lm.rotary_emb(h, torch.arange(h.shape[1])[None])}


def through(connector, lm, made: Connected, h, place=2):
    """h [1, S, D] through all layers, the picture standing at `place`."""
    held, sees = connector.layer_memory(lm, made.tokens, place), torch.arange(h.shape[1]) >= place
    for k, layer in enumerate(lm.layers):
        h = connector.run(k, layer, h, held, sees, **plain(lm, h))
    return h


@pytest.mark.parametrize("name", ["gated", "vlora"])
@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_gates_at_zero_leave_the_decoder_as_it_is(name):
    torch.manual_seed(0)
    connector, lm, h = BUILDS[name](DIMS).eval(), decoder(), torch.randn(1, 7, 32)
    expected = h
    for layer in lm.layers:
        expected = layer(expected, **plain(lm, h))
    torch.testing.assert_close(through(connector, lm, connector(FEATURES[:1], GRID, BUDGET), h), expected)
    changed = build(name)
    assert not torch.allclose(through(changed, lm, changed(FEATURES[:1], GRID, BUDGET), h), expected)


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_gated_block_equals_idefics():
    config = IdeficsConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, vision_config={"embed_dim": 24},
        alpha_type="float", dropout=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    ours = gated_attention.GatedBlock(32, 24, 4, 48).eval()
    ours.gate.fill_(0.7), ours.feed_gate.fill_(-0.4)
    theirs = IdeficsGatedCrossAttentionLayer(config, 0).eval()
    names = {
        "norm": "input_layernorm", "feed_norm": "post_attention_layernorm", "gate_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj",
    }  # fmt: skip
    names |= {f"{x}_proj": f"cross_attn.{x}_proj" for x in "qkvo"}
    state = {f"{names[n.rsplit('.', 1)[0]]}.weight": w for n, w in ours.state_dict().items() if "." in n}
    state |= {"alpha_cross_attn": ours.gate, "alpha_dense": ours.feed_gate}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("rotary" in name for name in missing)
    h, tokens, sees = torch.randn(2, 7, 32), FEATURES[:, :9], torch.arange(7) >= 2
    gate, mask = sees.long().expand(2, -1), torch.zeros(2, 1, 7, 9)  # without a mask their kernel is causal
    expected = theirs(h, image_hidden_states=tokens, image_attention_mask=mask, cross_attention_gate=gate)
    got = ours(h, *ours.keys(tokens), sees)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)  # their norm computes in float32


def rotated(x, position, theta=10000.0):
    """x [d] by the rotary angles of a position: pairs (i, i + d / 2)."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(position * theta ** (-2 * i / len(x)))
        a, b = x[i], x[i + half]
        out[i], out[i + half] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return out


def slow_hyper(connector, lm, tokens, h, place):
    """Layer 0 of hyper attention, one word and one head at a time. tokens [n, D], h [S, D]."""
    layer, out = lm.layers[0], []
    attention, x = layer.self_attn, layer.input_layernorm(h)
    norm = layer.input_layernorm(tokens)
    wide = connector.layers["0"](norm).view(len(tokens), 2, 2, 8)  # [n, kv heads, key and value, d]
    for i in range(len(h)):
        heads_text, heads_picture, heads_joint = [], [], []
        for head in range(4):
            kv = head // 2
            q = rotated(attention.q_proj(x[i])[8 * head : 8 * head + 8], i)
            keys = [rotated(attention.k_proj(x[j])[8 * kv : 8 * kv + 8], j) for j in range(i + 1)]
            values = [attention.v_proj(x[j])[8 * kv : 8 * kv + 8] for j in range(i + 1)]
            seen = [rotated(wide[j, kv, 0], place) for j in range(len(tokens))] if i >= place else []
            told = [wide[j, kv, 1] for j in range(len(tokens))] if i >= place else []
            mix = lambda ks, vs, q=q: torch.stack([q @ k / 8**0.5 for k in ks]).softmax(0) @ torch.stack(vs)  # noqa: E731
            heads_text.append(mix(keys, values))
            heads_picture.append(mix(seen, told) if seen else heads_text[-1])
            heads_joint.append(mix(seen + keys, told + values))
        if connector.gated:
            g = connector.gates["0"].sigmoid()
            mixed = (1 - g) * torch.cat(heads_text) + g * torch.cat(heads_picture)
        else:
            mixed = torch.cat(heads_joint)
        y = h[i] + attention.o_proj(mixed)
        out.append(y + layer.mlp(layer.post_attention_layernorm(y)))
    return torch.stack(out)


@pytest.mark.parametrize("name", ["hyper-gated", "hyper-fused"])
@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_hyper_attention_equals_its_equations(name):
    connector, lm, h, place = build(name), decoder(), torch.randn(1, 5, 32), 2
    tokens = torch.randn(1, 6, 32)
    held, sees = connector.layer_memory(lm, tokens, place), torch.arange(5) >= place
    ours = connector.run(0, lm.layers[0], h, held, sees, **plain(lm, h))
    torch.testing.assert_close(ours[0], slow_hyper(connector, lm, tokens[0], h[0], place))
    assert sorted(held) == [0, 2]
    untouched = connector.run(1, lm.layers[1], h, held, sees, **plain(lm, h))
    assert torch.equal(untouched, lm.layers[1](h, **plain(lm, h)))


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_vlora_equals_a_decoder_whose_weights_were_changed():
    connector, lm, h = build("vlora"), decoder(), torch.randn(1, 6, 32)
    made = connector(FEATURES[:1], GRID, BUDGET)
    held = connector.layer_memory(lm, made.tokens, 2)
    merged = copy.deepcopy(lm)
    expected = h
    for k, layer in enumerate(merged.layers):
        for i, kind in enumerate("qkvo"):
            weight = getattr(layer.self_attn, f"{kind}_proj").weight
            weight += connector.constant[kind][k] @ held[k][i][0].T
        y = expected + layer.self_attn(layer.input_layernorm(expected), **plain(lm, expected))[0]
        x = layer.post_attention_layernorm(y)
        expected = y + layer.mlp(x) + x @ held[k][4][0] @ connector.constant["m"][k].T
    torch.testing.assert_close(through(connector, lm, made, h), expected)


@pytest.mark.parametrize("name", ["gated", "hyper-gated", "hyper-fused", "vlora"])
@torch.no_grad()
def test_flops_in_the_decoder_are_those_that_the_counter_sees(name):
    """Beyond the plain decoder. Attention kernels are counted by hand, because the counter does not know masks."""
    connector, lm, h = build(name).requires_grad_(False), decoder(), torch.randn(1, 7, 32)
    made = connector(FEATURES[:1], GRID, BUDGET)
    m = made.tokens.shape[1]
    with FlopCounterMode(display=False) as mode:
        held = connector.layer_memory(lm, made.tokens, 2)
    assert connector.layer_memory_flops(m) == mode.get_total_flops()

    def linear(layers):
        with FlopCounterMode(display=False, custom_mapping=NO_KERNELS) as mode:
            layers()
        return mode.get_total_flops()

    def reworked():
        x = h
        for k, layer in enumerate(lm.layers):
            x = connector.run(k, layer, x, held, None, **plain(lm, x))

    ours = linear(reworked) - linear(lambda: [layer(h, **plain(lm, h)) for layer in lm.layers])
    kernels = 0 if name == "vlora" else len(held) * 2 * 2 * 7 * m * 32  # scores and their use, 4 heads of 8
    assert connector.layer_flops(7, m) == ours + kernels
