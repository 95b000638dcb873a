"""The engine against transformers' own generate, and against slow references that keep no cache and drop nothing."""

import copy
import threading
from dataclasses import dataclass

import pytest
import tiny
import torch
from oracle import IMAGE, Fixed, N, Renumbered, Spy, close, inputs, keep, reference_embeds

from vtc_demo import cost, engine, registry
from vtc_demo.benchmark.timing import repeat, spread
from vtc_demo.core.clock import Stopwatch, timings_ms
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.models.attention import DecoderProbe

NEW = 10


@pytest.fixture(scope="module", params=[4, 2], ids=["mha", "gqa"])
def vlm(request):
    return tiny.vlm(kv_heads=request.param, eos=False)


def answer(vlm, method, image=IMAGE, **options):
    return engine.run(vlm, image, tiny.QUESTION, method, **{"max_new_tokens": NEW, **options})


def generate(vlm, **given):
    given = given or inputs(vlm)
    ids = vlm.model.generate(**given, max_new_tokens=NEW, do_sample=False)[0]
    return ids[given["input_ids"].shape[1] :].tolist() if "input_ids" in given else ids.tolist()


# -- slow references ----------------------------------------------------------------------------------------------
@torch.no_grad()
def masked_answer(vlm, drops, renumber=False, steps=NEW):
    """drops {layer: kept visual tokens}: nothing leaves the sequence; from that layer on an additive mask hides the
    others. No cache: the whole sequence is computed anew for every token."""
    lm, (embeds, start) = vlm.model.model.language_model, reference_embeds(vlm)
    out = []
    for _ in range(steps):
        length = embeds.shape[1]
        alive = torch.ones(length, dtype=torch.bool)
        h = embeds
        for i, layer in enumerate(lm.layers):
            if i in drops:
                span = torch.zeros(N, dtype=torch.bool)
                span[drops[i]] = True
                alive[start : start + N] &= span
            positions = alive.cumsum(0) - 1 if renumber else torch.arange(length)
            seen = torch.ones(length, length, dtype=torch.bool).tril() & alive
            seen |= torch.eye(length, dtype=torch.bool)  # a row without any key would be nan
            mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]
            h = layer(h, attention_mask=mask, position_embeddings=lm.rotary_emb(h, positions[None].clamp(min=0)))
        out.append(vlm.model.lm_head(lm.norm(h))[0, -1].argmax().item())
        embeds = torch.cat([embeds, lm.embed_tokens(torch.tensor([[out[-1]]]))], 1)
    return out


@torch.no_grad()
def merged_answer(vlm, layer, matrix, anchors, steps=NEW):
    """At `layer` the visual tokens become matrix [m, N] @ tokens, at the places of their anchors. No cache."""
    lm, (embeds, start) = vlm.model.model.language_model, reference_embeds(vlm)
    out = []
    for _ in range(steps):
        h, positions = embeds, torch.arange(embeds.shape[1])
        for i, block in enumerate(lm.layers):
            if i == layer:
                h = torch.cat([h[:, :start], matrix @ h[:, start : start + N], h[:, start + N :]], 1)
                positions = torch.cat([positions[:start], start + anchors, positions[start + N :]])
            seen = positions[:, None] >= positions
            mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[None, None]
            h = block(h, attention_mask=mask, position_embeddings=lm.rotary_emb(h, positions[None]))
        out.append(vlm.model.lm_head(lm.norm(h))[0, -1].argmax().item())
        embeds = torch.cat([embeds, lm.embed_tokens(torch.tensor([[out[-1]]]))], 1)
    return out


# -- nothing dropped ----------------------------------------------------------------------------------------------
def test_full_equals_generate(vlm):
    run = answer(vlm, registry.resolve("full"))
    assert run.token_ids == generate(vlm)
    assert len(set(run.token_ids)) > 2
    assert run.kv_lengths == [inputs(vlm)["input_ids"].shape[1] + NEW - 1] * 4


def test_answers_depend_on_the_image(vlm):
    assert (
        answer(vlm, registry.resolve("full"), tiny.image(1)).token_ids
        != answer(vlm, registry.resolve("full")).token_ids
    )


def test_end_of_answer(vlm):
    ids = answer(vlm, registry.resolve("full")).token_ids
    ended = copy.copy(vlm)
    ended.model = copy.copy(vlm.model)
    ended.model.generation_config = copy.deepcopy(vlm.model.generation_config)
    ended.model.generation_config.eos_token_id = [ids[3], 2]
    run = answer(ended, registry.resolve("full"))
    assert run.token_ids == ids[: ids.index(ids[3]) + 1] == generate(ended)
    assert answer(ended, registry.resolve("full"), ignore_eos=True).token_ids == ids
    assert answer(vlm, registry.resolve("full"), max_new_tokens=1).token_ids == ids[:1]


def test_cls_is_kept_where_the_model_says_so():
    vlm = tiny.vlm(strategy="full", eos=False)
    run = answer(vlm, registry.resolve("full"))
    assert run.token_ids == generate(vlm)
    assert run.trace.schedule == [N + 1] * 4


def test_full_grid_of_llava():
    vlm = tiny.vlm(side=336, eos=False)
    image = tiny.image(side=336)
    run = engine.run(vlm, image, tiny.QUESTION, registry.resolve("full"), max_new_tokens=NEW)
    assert run.token_ids == generate(vlm, **inputs(vlm, image))
    assert run.trace.schedule == [576] * 4


def test_layers_beyond_the_feature_layer_do_not_run(vlm):
    ran = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(vlm.model.model.vision_tower.encoder.layers)
    ]
    answer(vlm, registry.resolve("full"), tiny.image(7))
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2]


# -- before the LLM -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("site", ["projector", "llm_input"])
def test_dropping_before_the_llm_equals_generate_on_fewer_embeddings(vlm, site):
    kept = keep(0.4)
    plan = Reduction.select(1 + kept.anchor, N + 1) if site == "projector" else kept
    embeds, start = reference_embeds(vlm)
    fewer = torch.cat([embeds[:, :start], embeds[:, start + kept.anchor], embeds[:, start + N :]], 1)
    run = answer(vlm, Fixed(plan={Site(site): plan}))
    assert run.token_ids == generate(vlm, inputs_embeds=fewer, attention_mask=torch.ones(fewer.shape[:2]))
    assert run.token_ids != generate(vlm)
    assert run.trace.schedule == [kept.m] * 4
    assert run.kv_lengths == [fewer.shape[1] + NEW - 1] * 4


@torch.no_grad()
def test_dropping_inside_the_tower_equals_hiding_in_the_tower(vlm):
    kept = torch.cat([torch.zeros(1, dtype=torch.long), 1 + keep(0.5).anchor])  # CLS and half of the patches
    tower, model = vlm.model.model.vision_tower, vlm.model
    h = tower.pre_layrnorm(tower.embeddings(inputs(vlm)["pixel_values"]))
    mask = torch.full((N + 1,), float("-inf"))
    mask[kept] = 0
    for i, layer in enumerate(tower.encoder.layers[:3]):
        h = layer(h, attention_mask=mask.expand(1, 1, N + 1, N + 1) if i >= 1 else None)
    features = model.model.multi_modal_projector(h[:, kept[1:]])
    embeds, start = reference_embeds(vlm)
    embeds = torch.cat([embeds[:, :start], features, embeds[:, start + N :]], 1)
    run = answer(vlm, Fixed(plan={Site("vision_layer", 1): Reduction.select(kept, N + 1)}))
    assert run.token_ids == generate(vlm, inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]))
    assert not run.vision_shared
    half = [N + 1, len(kept), len(kept)]
    text = inputs(vlm)["input_ids"].shape[1] - N
    expected = cost.run_flops(vlm.spec, run.trace.schedule, text, NEW, encoder_schedule=half, projector_tokens=18)
    assert run.flops == expected


def test_tokens_without_cls_pass_the_projector_whole(vlm):
    patches = Reduction.select(1 + torch.arange(N), N + 1)  # the tower drops its CLS
    run = answer(vlm, Fixed(plan={Site("vision_layer", 2): patches}))
    assert run.trace.schedule == [N] * 4


@torch.no_grad()
def test_a_smaller_image(vlm):
    run = answer(vlm, registry.resolve("downsample@0.45"))  # 16 of 36 patches, 56 of 84 pixels
    how = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    pixels = vlm.processor.image_processor(images=IMAGE, return_tensors="pt", **how)["pixel_values"]
    tower = vlm.model.model.vision_tower
    hidden = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]
    features = vlm.model.model.multi_modal_projector(hidden[:, 1:])
    embeds, start = reference_embeds(vlm)
    embeds = torch.cat([embeds[:, :start], features, embeds[:, start + N :]], 1)
    assert run.token_ids == generate(vlm, inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]))
    assert not run.vision_shared
    share = run.trace.product().dense()  # [16, CLS + 36]
    assert torch.allclose(share.sum(1), torch.ones(16)) and share[:, 0].eq(0).all()
    assert torch.allclose(share.sum(0)[1:], torch.full((N,), 16 / 36), atol=1e-6)  # every patch counts alike
    assert run.trace.fate().counts == {"dropped": 0, "merged": 20, "kept": 16}
    assert run.flops["vision"] == cost.run_flops(vlm.spec, [16] * 4, 0, encoder_schedule=[17] * 3, patches=16)["vision"]


# -- inside the LLM -----------------------------------------------------------------------------------------------
DROPS = [{0: 0.5}, {2: 0.25}, {1: 0.6, 3: 0.2}]


def plan_of(drops):
    """(method plan, {layer: kept visual tokens in the numbering of the image})."""
    plan, kept, alive = {}, {}, torch.arange(N)
    for layer, share in drops.items():
        plan[Site("llm_layer", layer)] = keep(share * N / len(alive), n=len(alive), seed=layer)
        alive = alive[plan[Site("llm_layer", layer)].anchor]
        kept[layer] = alive
    return plan, kept


@pytest.mark.parametrize("drops", DROPS, ids=str)
@pytest.mark.parametrize("cls", [Fixed, Renumbered])
def test_dropping_inside_the_llm_equals_hiding(vlm, drops, cls):
    plan, kept = plan_of(drops)
    run = answer(vlm, cls(plan=plan))
    assert run.token_ids == masked_answer(vlm, kept, renumber=cls is Renumbered)
    assert run.token_ids != generate(vlm)
    lengths = []
    for layer in range(4):
        alive = [len(kept[k]) for k in kept if k <= layer]
        lengths.append((alive or [N])[-1])
    assert run.trace.schedule == lengths
    text = inputs(vlm)["input_ids"].shape[1] - N
    assert run.kv_lengths == [n + text + NEW - 1 for n in lengths]  # ragged
    assert run.kv_bytes == cost.kv_bytes(vlm.spec, lengths, text, NEW, bytes_per_value=4)


def test_the_references_tell_positions_apart(vlm):
    kept = plan_of(DROPS[2])[1]
    assert masked_answer(vlm, kept) != masked_answer(vlm, kept, renumber=True)


def test_an_unsorted_selection_is_put_in_order(vlm):
    kept = keep(0.5)
    mixed = Reduction.select(kept.anchor.flip(0), N)
    site = Site("llm_layer", 1)
    runs = [answer(vlm, Fixed(plan={site: r})) for r in (kept, mixed)]
    assert runs[0].token_ids == runs[1].token_ids


@pytest.mark.parametrize("shuffled", [False, True])
def test_merging_inside_the_llm(vlm, shuffled):
    anchors, sources = torch.arange(0, N, 3), torch.arange(1, N, 3)  # every third token takes in its neighbour
    order = torch.randperm(len(anchors)) if shuffled else torch.arange(len(anchors))
    weights = torch.full((len(anchors),), 0.5)
    target = torch.argsort(order)
    merge = Reduction.merge(anchors[order], sources, target, N, source_weight=weights, anchor_weight=weights)
    run = answer(vlm, Fixed(plan={Site("llm_layer", 2): merge}))
    matrix = torch.zeros(len(anchors), N)
    matrix[torch.arange(len(anchors)), anchors] = matrix[torch.arange(len(anchors)), sources] = 0.5
    assert run.token_ids == merged_answer(vlm, 2, matrix, anchors)
    assert run.trace.schedule == [N, N, 12, 12]
    assert run.trace.fate().counts == {"dropped": 12, "merged": 12, "kept": 12}


@torch.no_grad()
def test_evicting_from_the_cache(vlm):
    """Hidden from the answer's tokens on, but seen by the whole prompt; where an earlier layer holds more, it stays."""
    early, late = keep(0.7), keep(0.5, n=25, seed=5)
    plan = {Site("llm_layer", 2): early, Site("kv_cache"): late}
    run = answer(vlm, Fixed(plan=plan))
    text = inputs(vlm)["input_ids"].shape[1] - N
    gone = 25 - late.m
    assert run.kv_lengths == [n - gone + text + NEW - 1 for n in (N, N, 25, 25)]
    gone = early.anchor[~torch.isin(torch.arange(25), late.anchor)]
    assert run.token_ids == evicted_answer(vlm, early.anchor, gone)
    with pytest.raises(ValueError, match="not merged"):
        answer(vlm, Fixed(plan={Site("kv_cache"): Reduction.from_dense(torch.eye(N)[:5])}))


@torch.no_grad()
def evicted_answer(vlm, early, gone):
    """The prompt sees tokens `early` from layer 2 on; the answer sees no token of `gone` in any layer. No cache."""
    lm, (embeds, start) = vlm.model.model.language_model, reference_embeds(vlm)
    prompt, out = embeds.shape[1], []
    for _ in range(NEW):
        length = embeds.shape[1]
        h = embeds
        for i, layer in enumerate(lm.layers):
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            if i >= 2:
                seen[:, [start + j for j in range(N) if j not in early]] = False
            seen[prompt:, start + gone] = False
            seen |= torch.eye(length, dtype=torch.bool)
            mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]
            h = layer(h, attention_mask=mask, position_embeddings=lm.rotary_emb(h, torch.arange(length)[None]))
        out.append(vlm.model.lm_head(lm.norm(h))[0, -1].argmax().item())
        embeds = torch.cat([embeds, lm.embed_tokens(torch.tensor([[out[-1]]]))], 1)
    return out


# -- attention on demand ------------------------------------------------------------------------------------------
def watch(vlm, sites, look):
    return answer(vlm, Spy(plan={site: None for site in sites}, look=look), max_new_tokens=1)


@pytest.fixture(scope="module")
def eager(vlm):
    """Attention of all layers by transformers' eager code: (encoder [layers, H, n, n], decoder [layers, H, S, S])."""
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    given = inputs(vlm)
    with torch.no_grad():
        vision = model.model.vision_tower(given["pixel_values"], output_attentions=True).attentions
        text = model(**given, output_attentions=True).attentions
    return torch.cat(vision), torch.cat(text)


def test_encoder_attention_equals_eager(vlm, eager):
    seen = []

    def look(context):
        reference = eager[0]
        if context.site.kind == "projector":
            assert close(context.attention("cls"), reference[2][:, :1])
            assert close(context.attention("visual"), reference[2][:, 1:])
            assert close(context.attention("all", of="next"), reference[3])  # a layer that the pass does not run
            assert close(context.attention("all", heads="mean"), reference[2].mean(0))
        else:
            i = context.site.layer
            assert close(context.attention(torch.tensor([5, 0, 9]), of="next"), reference[i][:, [5, 0, 9]])
            if i:
                assert close(context.attention("all"), reference[i - 1])
            else:
                with pytest.raises(ValueError, match="no previous layer"):
                    context.attention("all")
        with pytest.raises(ValueError, match="no rows 'last'"):
            context.attention("last", of="previous" if context.previous else "next")
        seen.append(context.site)

    sites = [Site("vision_layer", 0), Site("vision_layer", 2), Site("projector")]
    watch(vlm, sites, look)
    assert seen == sites
    watch(vlm, sites[2:], look)  # also from the kept vision pass
    watch(vlm, sites[2:], look)


def test_keys_of_the_encoder(vlm):
    layer = vlm.model.model.vision_tower.encoder.layers[2].self_attn.k_proj
    caught = []
    vlm.workspace.forget()
    handle = layer.register_forward_hook(lambda _, __, out: caught.append(out.reshape(N + 1, -1)))
    watch(vlm, [Site("projector")], lambda context: caught.append(context.keys()))
    handle.remove()
    keys = caught[-1]
    assert keys.shape == (4, N + 1, 8)
    assert torch.allclose(keys.transpose(0, 1).flatten(1), caught[0], atol=1e-6)


def test_decoder_attention_equals_eager(vlm, eager):
    seen = []

    def look(context):
        reference = eager[1]
        k = context.site.layer if context.site.kind == "llm_layer" else 4
        total = len(context.sequence)
        assert total == reference.shape[-1]
        assert torch.equal(context.sequence[context.visual], context.hidden)
        assert torch.equal(torch.cat([context.visual, context.text]).sort().values, torch.arange(total))
        if k:
            assert close(context.attention(), reference[k - 1][:, -1:])
            assert close(context.attention("text"), reference[k - 1][:, context.text])
            assert close(context.attention("text", heads="mean"), reference[k - 1].mean(0)[context.text])
        if k < 4:
            assert close(context.attention("all", of="next"), reference[k])
            assert close(context.attention(torch.tensor([3, 40]), of="next"), reference[k][:, [3, 40]])
        for call in (
            lambda: context.keys(),
            lambda: context.attention("cls"),
            lambda: context.attention("last", of="both"),
        ):
            with pytest.raises(ValueError):
                call()
        seen.append(context.site)

    sites = [Site("llm_layer", 0), Site("llm_layer", 1), Site("llm_layer", 3), Site("kv_cache")]
    watch(vlm, sites, look)
    assert seen == sites


@dataclass(frozen=True)
class RenumberedSpy(Spy):
    positions = "renumber"


@pytest.mark.parametrize("cls", [Spy, RenumberedSpy])
def test_attention_after_a_drop_is_that_of_the_shorter_sequence(vlm, cls):
    """Keys from the cache equal keys projected anew at the positions that the layer used."""
    kept, checked = keep(0.5), []

    def look(context):
        if context.site.layer == 3:
            p = context.previous
            rows = torch.arange(p.tokens)
            assert close(context.attention("all"), DecoderProbe(p.layer, p.entered, p.rope).attention(rows))
            assert torch.equal(context.anchors, kept.anchor)
            checked.append(p.tokens)

    plan = {Site("llm_layer", 2): kept, Site("llm_layer", 3): None}
    run = answer(vlm, cls(plan=plan, look=look), max_new_tokens=1)
    assert checked == [run.kv_lengths[2]]


def test_rows_are_computed_in_chunks(vlm, eager, monkeypatch):
    monkeypatch.setattr("vtc_demo.models.attention.CHUNK", 1000)
    site = Site("llm_layer", 2)
    watch(vlm, [site], lambda context: close(context.attention("all"), eager[1][1]) or pytest.fail("chunks differ"))


def test_attention_is_booked_as_the_methods_own_work(vlm):
    def look(context):
        context.attention("last", of="next")

    run = watch(vlm, [Site("llm_layer", 2)], look)
    spec, length = vlm.spec, len(inputs(vlm)["input_ids"][0])
    expected = cost.rows_attention_flops(1, length, spec.heads, spec.head_dim, spec.hidden, spec.kv_heads)
    assert run.flops["compression"] == expected
    assert run.flops["total"] == sum(v for k, v in run.flops.items() if k != "total")
    assert run.timings["compression"] > 0
    assert answer(vlm, registry.resolve("full")).timings["compression"] == 0


# -- no state between runs ----------------------------------------------------------------------------------------
PAIR = ["full", "fastv@0.3", "pyramiddrop", "visionzip@0.3", "downsample@0.45"]


def logits_of(vlm, names):
    """Step the runs of `names` in turn; the logits of every decoding step of each."""
    streams = [engine.stream(vlm, IMAGE, tiny.QUESTION, registry.resolve(x), max_new_tokens=NEW) for x in names]
    out, live = [[] for _ in names], list(range(len(names)))
    current = None
    handle = vlm.model.lm_head.register_forward_hook(lambda _, __, logits: out[current].append(logits))
    while live:
        for current in list(live):
            if next(streams[current], None) is None:
                live.remove(current)
            assert not torch.is_inference_mode_enabled()  # nothing leaks into the reader of the stream
    handle.remove()
    return out


@pytest.mark.parametrize("name", PAIR[1:])
def test_interleaved_runs_are_bit_equal_to_running_alone(vlm, name):
    names = ["full", name]
    together = logits_of(vlm, names)
    for one, both in zip(names, together):
        alone = logits_of(vlm, [one])[0]
        assert len(alone) == len(both) == NEW
        assert all(torch.equal(a, b) for a, b in zip(alone, both))


def test_two_threads_share_a_model(vlm):
    expected = {name: answer(vlm, registry.resolve(name)).token_ids for name in PAIR}
    wrong = []

    def work(names):
        for name in names:
            for image in (tiny.image(5), IMAGE):  # also against each other's kept vision pass
                run = answer(vlm, registry.resolve(name), image)
            if run.token_ids != expected[name]:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(names,)) for names in (PAIR, PAIR[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_vision_pass_is_shared_and_changes_nothing(vlm):
    for name in ("full", "fastervlm@0.3", "fastv@0.3"):
        vlm.workspace.forget()
        fresh = answer(vlm, registry.resolve(name))
        again = answer(vlm, registry.resolve(name))
        assert (fresh.vision_shared, again.vision_shared) == (False, True)
        assert fresh.token_ids == again.token_ids
        assert again.timings["vision"] == fresh.timings["vision"] > 0
        parts = ("preprocess", "vision", "projector", "compression", "prefill")
        assert again.timings["ttft"] == pytest.approx(sum(again.timings[p] for p in parts))
    assert not answer(vlm, registry.resolve("full"), tiny.image(9)).vision_shared


def test_closing_the_stream_stops_the_work(vlm):
    calls = []
    handle = vlm.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    stream = engine.stream(vlm, IMAGE, tiny.QUESTION, registry.resolve("full"), max_new_tokens=500)
    tokens = 0
    for event in stream:
        tokens += event.kind == "token"
        if tokens == 3:
            break
    stream.close()
    handle.remove()
    assert len(calls) == 3


# -- bad input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("site", "reduction", "message"),
    [
        (Site("llm_layer", 4), keep(0.5), "llm_layer 0 to 3"),
        (Site("vision_layer", 3), keep(0.5, n=N + 1), "vision_layer 0 to 2"),  # not run: beyond the feature layer
        (Site("input_image"), keep(0.5), "image_side"),
        (Site("llm_input"), keep(0.5, n=20), "36 tokens was due"),
        (Site("projector"), keep(0.5), "37 tokens was due"),
        (Site("llm_input"), torch.arange(4), "was due"),
    ],
)
def test_a_method_that_does_not_fit(vlm, site, reduction, message):
    with pytest.raises(ValueError, match=message):
        answer(vlm, Fixed(plan={site: reduction}))
    assert answer(vlm, registry.resolve("full")).token_ids == generate(vlm)


@pytest.mark.parametrize("side", [85, 0, 98, -14])
def test_an_image_side_that_does_not_fit(vlm, side):
    class Sided(Fixed):
        def image_side(self, shape):
            return side

    with pytest.raises(ValueError, match="multiple of 14"):
        answer(vlm, Sided())


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "empty"),
        ("   ", "empty"),
        (None, "empty"),
        ("what " * 100, "at most 400"),
        ("what is the giraffe ?", "does not know: 'giraffe'"),
        ("is the hart red ?", "Did you mean 'heart'"),
        ("what <image> is red", "control token '<image>'"),
        ("what </s> is red", "control token"),
    ],
)
def test_questions_that_cannot_be_asked(vlm, question, message):
    with pytest.raises(ValueError, match=message):
        engine.run(vlm, IMAGE, question, registry.resolve("full"))


@pytest.mark.parametrize("length", [0, -1, 5000])
def test_answer_lengths_that_cannot_be(vlm, length):
    with pytest.raises(ValueError, match="max_new_tokens"):
        answer(vlm, registry.resolve("full"), max_new_tokens=length)


def test_eager_models_are_refused():
    vlm = tiny.vlm()
    vlm.model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="sdpa"):
        type(vlm)(vlm.model, vlm.processor, vlm.adapter, "eager")


# -- the clock ----------------------------------------------------------------------------------------------------
def test_stages_exclude_each_other_and_pauses(monkeypatch):
    now = iter([0.0, 1.0, 1.5, 3.5, 10.0, 10.25])
    monkeypatch.setattr("vtc_demo.core.clock.time.perf_counter", lambda: next(now))
    clock = Stopwatch(torch.device("cpu"))
    clock.enter("prefill")  # 0
    assert clock.enter("compression") == "prefill"  # 1: prefill 1
    clock.enter("prefill")  # 1.5: compression 0.5
    assert list(clock.pause("x")) == ["x"]  # 3.5: prefill 2, then the reader takes its time until 10
    clock.enter(None)
    assert clock.seconds == {"prefill": 3.25, "compression": 0.5}
    ms = timings_ms(clock.seconds | {"decode": 0.4}, 4)
    assert (ms["ttft"], ms["decode_per_token"], ms["total"]) == (3750, 100, 4150)
    assert timings_ms({}, 0)["decode_per_token"] == 0


def test_spread_and_repeat():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "iqr": 2.0, "n": 5}
    assert spread([7.0]) == {"median": 7.0, "iqr": 0.0, "n": 1}
    calls = []
    out = repeat(lambda: calls.append(1) or {"ms": float(len(calls))}, warmups=2, repeats=3)
    assert out == {"ms": {"median": 4.0, "iqr": 1.0, "n": 3}}
    for bad in (lambda: spread([]), lambda: repeat(dict, repeats=0)):
        with pytest.raises(ValueError):
            bad()
