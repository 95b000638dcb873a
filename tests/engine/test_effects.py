"""Effects against decoders that are written out by hand: no fused kernel, no cache, the whole sequence for every token.

The reference keeps every token where the engine drops, hides keys by a mask, and tells prompt and answer apart by the
number of the row.
"""

import copy
import json
from dataclasses import dataclass, field

import families
import pytest
import tiny
import torch
from counting import counter
from oracle import IMAGE, Fixed, N, Spy, inputs, keep, reference_embeds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vtc_demo import engine
from vtc_demo.core.effects import QuantiseCache, Redistribute, SizeBias, Skip, SparseMLP, ZeroCache
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.engine import shape_only
from vtc_demo.engine.chat import Chat
from vtc_demo.engine.forward import ForwardPass
from vtc_demo.engine.language import prefill, step
from vtc_demo.engine.vision import encode, project

NEW = 8
PATCHES = torch.arange(N)


@pytest.fixture(scope="module", params=[4, 2], ids=["mha", "gqa"])
def vlm(request):
    return tiny.vlm(kv_heads=request.param, eos=False)


def answer(vlm, plan, **options):
    return engine.run(vlm, IMAGE, tiny.QUESTION, Fixed(plan=plan), **{"max_new_tokens": NEW, **options})


# -- the reference --------------------------------------------------------------------------------------------------
@dataclass
class Layer:
    """What one decoder layer of the reference does differently. Visual tokens by their place in the picture.

    kept: the visual tokens that its attention sees. evicted: of these, those that the answer does not see. bias [N]:
    added to the scores of visual keys. edit(weights [heads, r, S], visual [n]), last: of the last position of the
    prompt and of the answer's alone. skipped, unfed: tokens that pass the layer, or its MLP, unchanged. neurons: of the
    MLP, for the answer. held(keys or values [heads, n, d]): entries of visual tokens as the answer sees them.
    """

    kept: Tensor = PATCHES
    evicted: Tensor = PATCHES[:0]
    bias: Tensor | None = None
    edit: object = None
    last: bool = True
    skipped: Tensor = PATCHES[:0]
    unfed: Tensor = PATCHES[:0]
    neurons: Tensor | None = None
    held: object = None
    held_of: Tensor = field(default=PATCHES)


@torch.no_grad()
def reference(vlm, changed, steps=NEW):
    """The answer of the decoder with changed {number: Layer}."""
    lm, (embeds, start) = vlm.model.model.language_model, reference_embeds(vlm)
    prompt, out = embeds.shape[1], []
    for _ in range(steps):
        h = embeds
        rope = lm.rotary_emb(h, torch.arange(h.shape[1])[None])
        for k, layer in enumerate(lm.layers):
            h = by_hand(layer, h, rope, changed.get(k, Layer()), start, prompt)
        out.append(vlm.model.lm_head(lm.norm(h))[0, -1].argmax().item())
        embeds = torch.cat([embeds, lm.embed_tokens(torch.tensor([out[-1:]]))], 1)
    return out


def by_hand(layer, h, rope, what, start, prompt):
    attention, length, x = layer.self_attn, h.shape[1], layer.input_layernorm(h)
    parts = (getattr(attention, f"{name}_proj")(x).view(1, length, -1, attention.head_dim) for name in "qkv")
    q, k, v = (part.transpose(1, 2) for part in parts)
    q, k = apply_rotary_pos_emb(q, k, *rope)
    q, k, v = (part[0].repeat_interleave(q.shape[1] // part.shape[1], 0) for part in (q, k, v))
    gone = torch.tensor([p for p in range(N) if p not in what.kept or p in what.skipped], dtype=torch.long)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[:, start + gone] = False
    seen[prompt:, start + what.evicted] = False
    seen |= torch.eye(length, dtype=torch.bool)  # rows of tokens that are gone go nowhere
    scores = q @ k.transpose(1, 2) * attention.scaling
    if what.held is not None:  # the answer sees entries of the cache
        held_k, held_v = k.clone(), v.clone()
        places = start + what.held_of
        held_k[:, places], held_v[:, places] = what.held(k[:, places]), what.held(v[:, places])
        scores[:, prompt:] = (q @ held_k.transpose(1, 2) * attention.scaling)[:, prompt:]
    if what.bias is not None:
        scores[:, :, start : start + N] += what.bias
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    if what.edit is not None:
        rows = torch.arange(prompt - 1 if what.last else 0, length)
        alive = start + torch.tensor([p for p in what.kept.tolist() if p not in what.skipped], dtype=torch.long)
        weights[:, rows] = what.edit(weights[:, rows], alive)
    mixed = weights @ v
    if what.held is not None:
        mixed[:, prompt:] = (weights @ held_v)[:, prompt:]
    out = h + attention.o_proj(mixed.transpose(0, 1).flatten(1))[None]
    fed = layer.post_attention_layernorm(out)
    added = layer.mlp(fed)
    if what.neurons is not None:
        cut = copy.deepcopy(layer.mlp)
        for part in (cut.gate_proj, cut.up_proj):
            part.weight.data = part.weight.data[what.neurons]
        cut.down_proj.weight.data = cut.down_proj.weight.data[:, what.neurons]
        added[:, prompt:] = cut(fed)[:, prompt:]
    added[:, start + what.unfed] = 0
    out = out + added
    out[:, start + what.skipped] = h[:, start + what.skipped]
    return out


def test_the_reference_without_effects(vlm):
    assert reference(vlm, {}) == answer(vlm, {}).token_ids
    kept = keep(0.4)
    plan = {Site("llm_layer", 2): kept}
    dropped = {k: Layer(kept=kept.anchor) for k in (2, 3)}
    assert reference(vlm, dropped) == answer(vlm, plan).token_ids != reference(vlm, {})


# -- proportional attention -----------------------------------------------------------------------------------------
SIZE = torch.rand(N, generator=torch.Generator().manual_seed(1)) * 40 + 0.05


def test_size_bias_in_the_decoder(vlm):
    """From its layer on, in the steps, too; survivors of a later reduction and of an eviction keep theirs."""
    from_1 = {k: Layer(bias=SIZE.log()) for k in (1, 2, 3)}
    expected = reference(vlm, from_1)
    assert answer(vlm, {Site("llm_layer", 1): SizeBias(SIZE)}).token_ids == expected != reference(vlm, {})
    kept = keep(0.5)
    late = {k: Layer(kept=kept.anchor, bias=SIZE.log()) for k in (2, 3)}
    plan = {Site("llm_layer", 1): SizeBias(SIZE), Site("llm_layer", 2): kept}
    assert answer(vlm, plan).token_ids == reference(vlm, {1: from_1[1]} | late)
    last = keep(0.5, n=kept.m, seed=8)
    gone = kept.anchor[~torch.isin(torch.arange(kept.m), last.anchor)]
    for layer in (late | {1: from_1[1]}).values():
        layer.evicted = gone
    expected = reference(vlm, {0: Layer(evicted=gone), 1: from_1[1]} | late)
    assert answer(vlm, plan | {Site("kv_cache"): last}).token_ids == expected


def test_a_bias_comes_with_a_reduction_and_a_new_one_replaces_it(vlm):
    """Sizes are those of the tokens that are left, in whatever order the method names them."""
    kept = keep(0.5)
    mixed = kept.anchor[torch.randperm(kept.m, generator=torch.Generator().manual_seed(2))]
    plan = {
        Site("llm_layer", 0): SizeBias(SIZE.flip(0)),
        Site("llm_layer", 2): (Reduction.select(mixed, N), SizeBias(SIZE[mixed])),
    }
    early, late = Layer(bias=SIZE.flip(0).log()), Layer(kept=kept.anchor, bias=SIZE.log())
    run = answer(vlm, plan)
    assert run.token_ids == reference(vlm, {0: early, 1: early, 2: late, 3: late})
    assert run.trace.schedule == [N, N, kept.m, kept.m]


@torch.no_grad()
def test_size_bias_in_the_tower(vlm):
    kept = torch.cat([torch.zeros(1, dtype=torch.long), 1 + keep(0.5).anchor])
    size = torch.cat([torch.ones(1), SIZE[: len(kept) - 1]])
    tower, pixels = vlm.model.model.vision_tower, inputs(vlm)["pixel_values"]
    h = tower.pre_layrnorm(tower.embeddings(pixels))
    for i, layer in enumerate(tower.encoder.layers[:3]):
        if i == 1:
            h = h[:, kept]
        mask = size.log().expand(1, 1, len(kept), len(kept)) if i else None
        h = layer(h, attention_mask=mask)
    expected = vlm.model.model.multi_modal_projector(h[:, 1:])[0]
    plan = {Site("vision_layer", 1): (Reduction.select(kept, N + 1), SizeBias(size))}
    work = ForwardPass(vlm, Fixed(plan=plan))
    with torch.inference_mode():
        got = project(work, encode(work, vlm.inputs([IMAGE]))).tokens[0]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    later = {Site("vision_layer", 0): SizeBias(torch.cat([torch.ones(1), SIZE])), **plan}
    assert answer(vlm, later).token_ids != answer(vlm, plan).token_ids


# -- attention weights, changed -------------------------------------------------------------------------------------
def hide(weights, visual):
    """Attention to every other visual token becomes 0; rows do not add up to 1 any more."""
    return weights.index_fill(-1, visual[::2], 0.0)


def share_out(weights, visual):
    """What visual tokens get goes to all of them alike."""
    out, held = weights.clone(), weights[..., visual]
    out[..., visual] = held.mean(-1, keepdim=True).expand_as(held)
    return out


@pytest.mark.parametrize("rows", ["last", "all"])
@pytest.mark.parametrize("edit", [hide, share_out])
def test_redistribute(vlm, rows, edit):
    if rows == "all" and edit is share_out:
        edit = lambda weights, visual: share_out(weights, visual).tril(weights.shape[-1] - weights.shape[-2])  # noqa: E731
    kept = keep(0.5)
    plan = {Site("llm_layer", 1): Redistribute(edit, rows), Site("llm_layer", 2): (kept, Redistribute(edit, rows))}
    changed = {1: Layer(edit=edit, last=rows == "last")}
    changed |= {2: Layer(kept=kept.anchor, edit=edit, last=rows == "last"), 3: Layer(kept=kept.anchor)}
    run = answer(vlm, plan)
    assert run.token_ids == reference(vlm, changed)
    assert run.token_ids != answer(vlm, {Site("llm_layer", 2): kept}).token_ids


def test_redistribute_after_an_eviction_and_under_a_bias(vlm):
    last = keep(0.5)
    gone = PATCHES[~torch.isin(PATCHES, last.anchor)]
    what = {k: Layer(evicted=gone) for k in range(4)}
    prompt = inputs(vlm)["input_ids"].shape[1]

    def edit(weights, visual):  # every other token that is left gets nothing
        return weights.index_fill(-1, visual[1::2], 0.0)

    def by_row(weights, visual):
        """The answer's rows see the tokens that are left: other visual tokens than the prompt's row."""
        start, out = int(visual[0]), weights.clone()
        out[:, :1] = edit(weights[:, :1], visual)
        out[:, 1:] = edit(weights[:, 1:], start + last.anchor)
        return out

    what[1] = Layer(evicted=gone, edit=by_row, bias=SIZE.log())
    what[2].bias = what[3].bias = SIZE.log()
    plan = {Site("llm_layer", 1): (SizeBias(SIZE), Redistribute(edit)), Site("kv_cache"): last}
    assert prompt > N and answer(vlm, plan).token_ids == reference(vlm, what)


# -- tokens that pass by --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["layer", "mlp"])
def test_skip(vlm, part):
    kept, few = keep(0.7), torch.arange(2, 20)
    name = {"layer": "skipped", "mlp": "unfed"}[part]
    plan = {Site("llm_layer", 1): Skip(few, part), Site("llm_layer", 2): (kept, Skip(few, part))}
    changed = {1: Layer(**{name: few}), 2: Layer(kept=kept.anchor, **{name: kept.anchor[few]})}
    changed[3] = Layer(kept=kept.anchor)
    run = answer(vlm, plan)
    assert run.token_ids == reference(vlm, changed) != answer(vlm, {Site("llm_layer", 2): kept}).token_ids
    text = inputs(vlm)["input_ids"].shape[1] - N
    passed = len(few) if part == "layer" else 0
    held = [N, N - passed, kept.m - passed, kept.m]
    assert run.kv_lengths == [n + text + NEW - 1 for n in held]
    assert run.trace.schedule == [N, N, kept.m, kept.m]


def test_skipped_tokens_can_leave_the_cache(vlm):
    few, last = torch.tensor([1, 4, 5, 11]), keep(0.6)
    gone = PATCHES[~torch.isin(PATCHES, last.anchor)]
    changed = {k: Layer(evicted=gone, skipped=few if k == 2 else PATCHES[:0]) for k in range(4)}
    run = answer(vlm, {Site("llm_layer", 2): Skip(few), Site("kv_cache"): last})
    assert run.token_ids == reference(vlm, changed)
    text = inputs(vlm)["input_ids"].shape[1] - N
    short = sum(p in last.anchor for p in few.tolist())
    assert run.kv_lengths == [last.m - short * (k == 2) + text + NEW - 1 for k in range(4)]


def test_a_layer_that_tokens_skipped_has_no_map_of_all(vlm):
    """Neither for the next layer nor, after the last one, for the cache."""
    asked = []

    def look(context):
        with pytest.raises(ValueError, match="there is no previous layer with attention"):
            context.attention("last")
        asked.append(context.site)

    few = Skip(torch.arange(3))
    for layer, site in ((1, Site("llm_layer", 2)), (3, Site("kv_cache"))):

        def at(context, site=site):
            return look(context) if context.site == site else None

        method = Spy(plan={Site("llm_layer", layer): few, site: None}, look=at)
        engine.run(vlm, IMAGE, tiny.QUESTION, method, max_new_tokens=1)
    assert asked == [Site("llm_layer", 2), Site("kv_cache")]


# -- the cache ------------------------------------------------------------------------------------------------------
def rounded(bits):
    def held(x):  # [heads, n, d]
        low, high = x.min(-1).values[..., None], x.max(-1).values[..., None]
        step = (high - low) / (2**bits - 1)
        return low + torch.round((x - low) / step) * step

    return held


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_entries(vlm, bits):
    early = keep(0.7)
    some = torch.tensor([0, 3, 4, 9, 10])
    run = answer(vlm, {Site("llm_layer", 2): early, Site("kv_cache"): QuantiseCache(bits, some)})
    named = early.anchor[some]
    changed = {k: Layer(held=rounded(bits), held_of=named) for k in range(4)}
    for k in (2, 3):
        changed[k].kept = early.anchor
    assert run.token_ids == reference(vlm, changed)
    whole = answer(vlm, {Site("llm_layer", 2): early})
    heads, d = vlm.spec.kv_heads, vlm.spec.head_dim
    entry = 4 * d - (d * bits / 8 + 2 * 4)  # bytes that one row of keys or values spares
    assert whole.kv_bytes - run.kv_bytes == max(0, 4 * 2 * heads * len(some) * entry)
    assert run.kv_lengths == whole.kv_lengths


def test_all_visual_entries_are_quantised_within_one_step(vlm):
    def cached(plan):
        work = ForwardPass(vlm, Fixed(plan=plan))
        with torch.inference_mode():
            encoded = encode(work, vlm.inputs([IMAGE]))
            return prefill(work, vlm.prompt(tiny.QUESTION, encoded.layout), project(work, encoded))

    fresh, held = cached({}), cached({Site("kv_cache"): QuantiseCache(4)})
    visual = vlm.prompt(tiny.QUESTION, vlm.inputs([IMAGE]).layout).visual
    for a, b in zip(fresh.cache.layers, held.cache.layers, strict=True):
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            text = torch.ones(x.shape[2], dtype=torch.bool).index_fill(0, visual, False)
            assert torch.equal(x[:, :, text], y[:, :, text])
            x, y = x[:, :, visual], y[:, :, visual]
            step = (x.amax(-1) - x.amin(-1)) / 15
            assert ((x - y).abs().amax(-1) <= step / 2 + 1e-6).all() and not torch.equal(x, y)
            assert max(len(row.unique()) for row in y.flatten(0, 2)) <= 16
    assert held.kv_bytes < fresh.kv_bytes


def test_zeroed_entries(vlm):
    early, some = keep(0.7), torch.arange(2, 20)
    plan = {Site("llm_layer", 2): early, Site("kv_cache"): ZeroCache(some)}
    changed = {k: Layer(held=torch.zeros_like, held_of=early.anchor[some]) for k in range(4)}
    for k in (2, 3):
        changed[k].kept = early.anchor
    run, whole = answer(vlm, plan), answer(vlm, {Site("llm_layer", 2): early})
    assert run.token_ids == reference(vlm, changed) != whole.token_ids
    assert (run.kv_bytes, run.kv_lengths) == (whole.kv_bytes, whole.kv_lengths)


def test_entries_are_evicted_and_the_rest_is_quantised(vlm):
    """Tokens of the effect are counted among those that the reduction leaves."""
    last = keep(0.5)
    gone = PATCHES[~torch.isin(PATCHES, last.anchor)]
    some = torch.tensor([2, 3, 7])
    changed = {k: Layer(evicted=gone, held=rounded(2), held_of=last.anchor[some]) for k in range(4)}
    run = answer(vlm, {Site("kv_cache"): (last, QuantiseCache(2, some))})
    assert run.token_ids == reference(vlm, changed)
    assert run.kv_bytes < answer(vlm, {Site("kv_cache"): last}).kv_bytes


# -- a sparse MLP ---------------------------------------------------------------------------------------------------
NEURONS = torch.tensor([0, 3, 4, 17, 21, 30, 47])


def test_sparse_mlp(vlm):
    run = answer(vlm, {Site("llm_layer", 1): SparseMLP(NEURONS), Site("llm_layer", 3): SparseMLP(NEURONS[:3])})
    full = reference(vlm, {})
    assert run.token_ids == reference(vlm, {1: Layer(neurons=NEURONS), 3: Layer(neurons=NEURONS[:3])}) != full
    assert run.token_ids[0] == full[0]  # the prompt goes through the whole MLP


def test_a_sparse_mlp_with_changed_attention(vlm):
    run = answer(vlm, {Site("llm_layer", 1): (SparseMLP(NEURONS), Redistribute(hide))})
    assert run.token_ids == reference(vlm, {1: Layer(neurons=NEURONS, edit=hide)})


# -- cost -----------------------------------------------------------------------------------------------------------
COSTS = {
    "bias": {Site("llm_layer", 1): SizeBias(SIZE)},
    "tower bias": {Site("vision_layer", 1): SizeBias(torch.ones(N + 1))},
    "last rows": {Site("llm_layer", 1): Redistribute(hide)},
    "all rows": {Site("llm_layer", 1): Redistribute(hide, "all")},
    "skip": {Site("llm_layer", 1): Skip(torch.arange(9))},
    "skip and drop": {Site("llm_layer", 1): Skip(torch.arange(9)), Site("llm_layer", 2): keep(0.5)},
    "skip mlp": {Site("llm_layer", 1): Skip(torch.arange(9), "mlp")},
    "sparse": {Site("llm_layer", 1): SparseMLP(NEURONS)},
    "sparse and edited": {Site("llm_layer", 1): (SparseMLP(NEURONS), Redistribute(hide))},
    "quantised": {Site("kv_cache"): QuantiseCache(4)},
}


@pytest.mark.parametrize("plan", COSTS.values(), ids=COSTS)
def test_flops_equal_the_counter(vlm, plan):
    vlm.workspace.forget()
    with counter() as mode:
        run = answer(vlm, plan, max_new_tokens=3)
    spec, lm = vlm.spec, vlm.model.model.language_model
    entered = [length - 2 for length in run.kv_lengths]
    pairs = sum(n * (n - 1) // 2 for n in entered)  # that the mask hides; the kernel that runs does not know of them
    hidden = spec.heads * 4 * spec.head_dim * pairs
    length = entered[0]
    with FlopCounterMode(display=False) as turns, torch.inference_mode():
        for rows in (length, 1, 1):
            lm.rotary_emb(torch.zeros(1, 1, spec.hidden), torch.zeros((1, rows), dtype=torch.long))
    assert run.flops["total"] == mode.get_total_flops() - hidden - turns.get_total_flops()
    assert run.flops["total"] == sum(v for name, v in run.flops.items() if name != "total")


@pytest.mark.parametrize("plan", COSTS.values(), ids=COSTS)
def test_counting_without_running_counts_the_same(vlm, plan):
    """Up to the first token."""
    method = Fixed(plan=plan)
    layout = vlm.inputs([IMAGE]).layout
    counted = shape_only.count(vlm, method, layout, vlm.prompt(tiny.QUESTION, layout))
    run = engine.run(vlm, IMAGE, tiny.QUESTION, method, max_new_tokens=1)
    assert (counted.flops, list(counted.schedule)) == (run.flops["total"], run.trace.schedule)
    assert counted.overhead == run.flops["compression"]


# -- every family ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", families.BUILDERS)
def test_effects_that_change_nothing(family):
    """A size of 1, weights left as they are, all neurons, nobody skipped: the answer is the full model's; real ones
    change it."""
    vlm = families.vlm(family)
    n, inner = vlm.inputs([IMAGE]).layout.units, vlm.spec.intermediate

    def run(*effects):
        return answer(vlm, {Site("llm_layer", 1): effects, Site("llm_layer", 2): effects})

    full = answer(vlm, {}).token_ids
    nothing = {
        "size": SizeBias(torch.ones(n)),
        "last": Redistribute(lambda weights, visual: weights),
        "all": Redistribute(lambda weights, visual: weights, "all"),
        "neurons": SparseMLP(torch.arange(inner)),
        "skip": Skip(torch.arange(0)),
    }
    for effect in nothing.values():
        assert run(effect).token_ids == full
    assert run(*nothing.values()).token_ids == full
    changed = SizeBias(torch.full((n,), 1e4)), Redistribute(hide, "all"), SparseMLP(torch.arange(3))
    assert all(run(effect).token_ids != full for effect in changed)


# -- what is refused, what is told ----------------------------------------------------------------------------------
EFFECTS = {
    "SizeBias": SizeBias(torch.ones(N)),
    "Redistribute": Redistribute(hide),
    "Skip": Skip(torch.arange(2)),
    "QuantiseCache": QuantiseCache(),
    "ZeroCache": ZeroCache(torch.arange(2)),
    "SparseMLP": SparseMLP(NEURONS),
}
SITES = (Site("vision_layer", 1), Site("projector"), Site("llm_input"), Site("llm_layer", 2), Site("kv_cache"))


class FixedInside(Fixed):
    inside = True


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_at_sites_that_have_none(vlm, name):
    effect = EFFECTS[name]
    for site in SITES:
        if site.kind not in effect.sites:
            with pytest.raises(ValueError, match=rf"fixed: {name} cannot be asked for at {site.kind}"):
                answer(vlm, {site: effect}, max_new_tokens=1)
    with pytest.raises(ValueError, match=f"fixed: {name} cannot be asked for at"):
        method = FixedInside(plan={Site("llm_layer", 2): effect})
        engine.run(vlm, IMAGE, tiny.QUESTION, method, max_new_tokens=1)


class Told(Fixed):
    def spec(self):
        return {"method": "fixed"}  # plans are no JSON


def test_effects_are_told(vlm):
    kept = keep(0.5)
    plan = {
        Site("llm_layer", 1): (kept, SizeBias(SIZE[: kept.m]), Skip(torch.arange(3), "mlp")),
        Site("llm_layer", 2): (Redistribute(hide, "all"), SparseMLP(NEURONS)),
        Site("kv_cache"): (QuantiseCache(4), ZeroCache(torch.arange(2))),
    }
    run = engine.run(vlm, IMAGE, tiny.QUESTION, Told(plan=plan), max_new_tokens=2)
    assert json.loads(json.dumps(run.to_dict()))["effects"] == [
        {"site": "llm_layer(1)", "effect": "SizeBias", "size": kept.m},
        {"site": "llm_layer(1)", "effect": "Skip", "tokens": 3, "part": "mlp"},
        {"site": "llm_layer(2)", "effect": "Redistribute", "rows": "all"},
        {"site": "llm_layer(2)", "effect": "SparseMLP", "neurons": 7},
        {"site": "kv_cache", "effect": "QuantiseCache", "bits": 4, "tokens": None},
        {"site": "kv_cache", "effect": "ZeroCache", "tokens": 2},
    ]
    run = engine.run(vlm, IMAGE, tiny.QUESTION, Told(plan={Site("llm_layer", 1): kept}), max_new_tokens=2)
    assert run.to_dict()["effects"] == []


def test_the_model_is_as_before(vlm):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    fresh = answer(vlm, {}).token_ids
    for plan in COSTS.values():
        answer(vlm, plan)
    assert answer(vlm, {}).token_ids == fresh
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())


@pytest.mark.parametrize("plan", COSTS.values(), ids=COSTS)
def test_flops_of_a_further_turn_equal_the_counter(vlm, plan):
    """Under effects that go on; the first turn's are not booked again."""
    chat, text = Chat(vlm, IMAGE, Fixed(plan=plan)), "how many star ?"
    first = chat.ask(tiny.QUESTION, 3)
    fed = 1 + len(vlm.next_turn(text))
    with counter() as mode:
        second = chat.ask(text, 3)
    spec, lm = vlm.spec, vlm.model.model.language_model
    hidden = spec.layers * spec.heads * 4 * spec.head_dim * (fed * (fed - 1) // 2)
    with FlopCounterMode(display=False) as turns, torch.inference_mode():
        for rows in (fed, 1, 1):
            lm.rotary_emb(torch.zeros(1, 1, spec.hidden), torch.zeros((1, rows), dtype=torch.long))
    assert second.flops["total"] == mode.get_total_flops() - hidden - turns.get_total_flops()
    assert second.flops["total"] == sum(v for name, v in second.flops.items() if name != "total")
    assert first.flops["total"] > second.flops["total"]


def test_a_further_turn_goes_on_under_the_effects(vlm):
    """Fed at once or word by word, the words of a later turn meet the same bias, edits and sparse MLP."""
    plan = {Site("llm_layer", 1): (SizeBias(SIZE), Redistribute(hide), SparseMLP(NEURONS))}
    fed = torch.tensor([6, 9, 11])

    def fresh():
        work = ForwardPass(vlm, Fixed(plan=plan))
        encoded = encode(work, vlm.inputs([IMAGE]))
        return work, prefill(work, vlm.prompt(tiny.QUESTION, encoded.layout), project(work, encoded))

    with torch.inference_mode():
        (work, together), (other, single) = fresh(), fresh()
        last = step(work, together, fed)
        for token in fed.split(1):
            word = step(other, single, token)
        assert torch.equal(last, word)
        for a, b in zip(together.cache.layers, single.cache.layers, strict=True):
            torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(a.values, b.values, atol=1e-5, rtol=1e-4)
