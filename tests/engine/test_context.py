"""What hooks are shown before and in the language model, for every family, against passes by a plain softmax."""

from dataclasses import dataclass, field
from typing import ClassVar

import families
import pytest
import tiny
import torch
from counting import counter
from oracle import Fixed, Spy, card, close, keep
from recorded import TowerLayer, of_layer, recorded

from vtc_demo import engine
from vtc_demo.core.effects import SizeBias
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.models import attention

PICTURE = tiny.image(2, side=56).crop((0, 0, 56, 36))  # wide: padding, unequal tiles
OTHER = tiny.image(3, side=48)
IMAGES = {"one": [PICTURE], "two": [PICTURE, OTHER]}
PROJECTOR, LLM_INPUT = Site("projector"), Site("llm_input")


@pytest.fixture(scope="module", params=families.BUILDERS)
def vlm(request):
    return families.vlm(request.param)


@dataclass(frozen=True)
class Rows(Spy):
    """Asks for the CLS rows of all layers; does what each call of `look` returns."""

    card: ClassVar = card("rows")
    layers: tuple = ()
    calls: list = field(default_factory=list)

    def cls_layers(self, shape):
        return self.layers

    def reduce(self, context):
        self.calls.append(context.site)
        return self.look(context)


def watch(vlm, sites, look, images=(PICTURE,), layers=(), **options):
    """The run of a method that looks at these sites, of which every one was visited."""
    method = Rows(plan=dict.fromkeys(sites), look=look, layers=tuple(layers))
    run = engine.run(vlm, list(images), tiny.QUESTION, method, max_new_tokens=1, **options)
    assert set(method.calls) == set(sites)
    return run


# -- attention of the tower -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("reduced", [False, True], ids=["whole", "reduced"])
def test_attention_before_the_language_model(vlm, images, reduced):
    """At llm_input the keys are the tokens that stand there, after a reduction at the projector, too."""
    found, layout = recorded(vlm, images), vlm.inputs(images).layout
    layer = TowerLayer(vlm, found, vlm.shape.feature_layer, layout)
    extra, n = layout.extra, layout.extra + layout.units
    kept = extra + (keep(0.5, n=layout.units).anchor if reduced else torch.arange(layout.units))

    def look(context):
        whole = context.site == PROJECTOR
        here = torch.arange(n) if whole else kept
        assert (context.extra, len(context.hidden)) == ((extra, n) if whole else (0, len(kept)))
        assert close(context.attention("all"), layer.weights[:, :, here])
        visual = here[here >= extra]
        assert close(context.attention("visual"), layer.weights[:, visual][:, :, here])
        assert close(context.attention("visual", heads="mean"), layer.weights[:, visual][:, :, here].mean(0))
        assert close(context.received(), layer.weights.mean((0, 1))[here])
        assert close(context.values(), layer.values[:, here])
        if vlm.adapter.axes == 1:  # keys come without RoPE
            assert close(context.keys(), layer.keys[:, here])
        if extra:
            assert close(context.attention("cls"), layer.weights[:, :extra][:, :, here])
        else:
            with pytest.raises(ValueError, match=f"at {context.site} there is no CLS token"):
                context.attention("cls")
        with pytest.raises(ValueError, match="no rows 'last'"):
            context.attention("last")
        for i, recorded_layer in enumerate(layers):
            if extra:  # views do not see each other's CLS
                assert close(context.cls_attention(i), recorded_layer.weights[:, :extra].sum(1)[:, here])
            else:
                assert close(context.cls_attention(i), recorded_layer.weights.mean((0, 1))[None, here])
        with pytest.raises(ValueError, match="encoder layer 99 was not asked for"):
            context.cls_attention(99)
        return Reduction.select(kept, n) if whole and reduced else None

    layers = [TowerLayer(vlm, found, i, layout) for i in range(vlm.shape.feature_layer + 1)]
    watch(vlm, [PROJECTOR, LLM_INPUT], look, images, range(len(layers)))


def test_one_view_at_a_time(vlm):
    images = [PICTURE, OTHER]
    found, layout = recorded(vlm, images), vlm.inputs(images).layout
    layer = TowerLayer(vlm, found, vlm.shape.feature_layer, layout)
    seen = []

    def look(context):
        i = context.seed
        view = (layout.owner == i).nonzero().flatten()
        part = view if context.site == PROJECTOR else view[view >= layout.extra]
        patches = view[view >= layout.extra]
        assert close(context.values(), layer.values[:, part])
        assert close(context.attention("visual"), layer.weights[:, patches][:, :, part])
        assert close(context.received(), layer.weights[:, view][:, :, part].mean((0, 1)))
        (tile,) = context.tiles
        assert torch.equal(tile.part, torch.arange(context.extra, len(part)))
        assert (tile.grid, tile.image) == (layout.crops[i].grid, layout.crops[i].image)
        if layout.extra:
            assert close(context.cls_attention(1), first.weights[:, i][:, part])
        seen.append(i)

    first = TowerLayer(vlm, found, 1, layout)
    watch(vlm, [PROJECTOR, LLM_INPUT], look, images, [1], tiles="crop")
    assert seen == 2 * list(range(len(layout.crops)))


def test_attention_over_merged_tokens_is_of_their_anchors(vlm):
    layout = vlm.inputs([PICTURE]).layout
    layer = TowerLayer(vlm, recorded(vlm, [PICTURE]), vlm.shape.feature_layer, layout)
    n = layout.extra + layout.units
    anchors, sources = torch.arange(layout.extra, n - 1, 2), torch.arange(layout.extra + 1, n, 2)
    half = torch.full((len(anchors),), 0.5)
    merge = Reduction.merge(
        anchors, sources, torch.arange(len(sources)), n, source_weight=half[: len(sources)], anchor_weight=half
    )

    def look(context):
        if context.site == PROJECTOR:
            return merge
        assert close(context.attention("visual"), layer.weights[:, anchors][:, :, anchors])
        assert torch.equal(context.anchors, anchors - layout.extra)
        assert torch.equal(context.sizes, torch.full((len(anchors),), 2))
        return None

    watch(vlm, [PROJECTOR, LLM_INPUT], look)


def test_cls_rows_of_tokens_that_the_tower_reduced_later(vlm):
    """Rows of an earlier layer are of the tokens that are left; what the tower lost it does not show any more."""
    layout = vlm.inputs([PICTURE]).layout
    found = recorded(vlm, [PICTURE])
    n, extra = layout.extra + layout.units, layout.extra
    rows = [TowerLayer(vlm, found, i, layout).weights for i in (0, 1)]
    rows = [w[:, :extra].sum(1) if extra else w.mean((0, 1))[None] for w in rows]
    left = []

    def look(context):
        if context.site.kind == "vision_layer":
            size = len(context.hidden)
            return Reduction.select(torch.arange(context.extra, size)[:: 1 if size - context.extra < 2 else 2], size)
        if context.site == PROJECTOR:
            left.append(context.anchors + extra)
            assert context.extra == 0 and len(context.hidden) <= n
            with pytest.raises(ValueError, match="there is no CLS token"):
                context.attention("cls")
        for i, expected in enumerate(rows):
            assert close(context.cls_attention(i), expected[:, left[0]])
        assert context.attention("visual").shape[1:] == (len(left[0]), len(left[0]))
        return None

    watch(vlm, [Site("vision_layer", 2), PROJECTOR, LLM_INPUT], look, layers=[0, 1])


# -- attention of the language model --------------------------------------------------------------------------------
def test_attention_in_the_language_model(vlm):
    layer = vlm.adapter.decoder(vlm.model).layers[1]
    weights = of_layer(vlm, recorded(vlm, [PICTURE]), layer).weights[0]
    prompt = vlm.prompt(tiny.QUESTION, vlm.inputs([PICTURE]).layout)

    def look(context):
        assert torch.equal(context.visual, prompt.visual)
        assert close(context.attention("all"), weights)
        assert close(context.received(), weights.mean((0, 1)))
        assert close(context.attention("last"), weights[:, -1:])
        assert close(context.attention("visual"), weights[:, prompt.visual])
        assert close(context.attention("text"), weights[:, prompt.others[prompt.text]])
        assert close(context.attention("after"), weights[:, -prompt.after :])
        for asked in (context.keys, context.values):
            with pytest.raises(ValueError, match="no encoder layer has just run"):
                asked()

    watch(vlm, [Site("llm_layer", 2)], look)


def test_attention_has_the_bias_of_the_layer():
    """In the tower and in the language model, of the layer that ran."""
    vlm = tiny.vlm(kv_heads=2, eos=False)
    size = torch.rand(37, generator=torch.Generator().manual_seed(4)) * 30 + 0.1
    plain, biased = {}, {}

    def look(into):
        def at(context):
            into[context.site] = context.attention("all"), context.received()
            if into is biased and context.site in (Site("vision_layer", 1), Site("llm_layer", 1)):
                return SizeBias(size[-len(context.hidden) :])
            return None

        return at

    sites = [Site("vision_layer", 1), Site("vision_layer", 2), Site("llm_layer", 1), Site("llm_layer", 2)]
    watch(vlm, sites[:2], look(plain), [tiny.image()])
    watch(vlm, sites[:2], look(biased), [tiny.image()])
    expected = plain[sites[1]][0] * size  # the layer that ran first under the bias had the same tokens before it
    expected = expected / expected.sum(-1, keepdim=True)
    assert close(biased[sites[1]][0], expected) and close(biased[sites[1]][1], expected.mean((0, 1)))
    watch(vlm, sites[2:], look(plain), [tiny.image()])
    watch(vlm, sites[2:], look(biased), [tiny.image()])
    all_sizes = torch.ones(plain[sites[3]][0].shape[-1])
    all_sizes[vlm.prompt(tiny.QUESTION, vlm.inputs([tiny.image()]).layout).visual] = size[1:]
    expected = plain[sites[3]][0] * all_sizes
    expected = expected / expected.sum(-1, keepdim=True)
    assert close(biased[sites[3]][0], expected) and close(biased[sites[3]][1], expected.mean((0, 1)))


# -- memory and cost of attention -----------------------------------------------------------------------------------
def test_received_attention_in_chunks(vlm, monkeypatch):
    """The same whatever the size of a chunk, and no map of all rows is held."""
    whole, parts, biggest = [], [], []
    plain = torch.softmax

    def measured(scores, *args, **kwargs):
        biggest.append(scores.numel())
        return plain(scores, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, *args, **kwargs: measured(self, *args, **kwargs))
    sites = [PROJECTOR, LLM_INPUT, Site("llm_layer", 2)]
    images = [PICTURE, OTHER]
    watch(vlm, sites, lambda context: whole.append(context.received()), images)
    monkeypatch.setattr(attention, "CHUNK", 1)
    biggest.clear()
    watch(vlm, sites, lambda context: parts.append(context.received()), images)
    length = len(vlm.prompt(tiny.QUESTION, vlm.inputs(images).layout).ids)
    assert max(biggest) <= 4 * max(length, *vlm.inputs(images).layout.segments)  # one row of four heads
    for a, b in zip(whole, parts, strict=True):
        assert close(a, b)


ASKED = {
    "all": lambda context: context.attention("all"),
    "some": lambda context: context.attention(torch.tensor([3, 0, 5]), heads="mean"),
    "received": lambda context: context.received(),
    "logits": lambda context: context.logits("visual"),
    "next": lambda context: context.attention("visual", of="next"),
    "two": lambda context: (context.attention("all"), context.received()),
}
TOWER = {"keys": lambda context: context.keys(), "values": lambda context: (context.values(), context.values())}


@pytest.mark.parametrize("name", ASKED | TOWER)
def test_what_is_asked_for_is_booked(vlm, name):
    """By torch's counter; a mean over heads costs the same."""
    ask = (ASKED | TOWER)[name]
    if name == "next" and vlm.shape.feature_layer + 1 == vlm.shape.vision_layers:
        sites = [Site("llm_layer", 2)]
    else:
        sites = [PROJECTOR, LLM_INPUT] + ([Site("llm_layer", 2)] if name in ASKED else [])
    for site in sites:
        counted = []

        def look(context, counted=counted):
            with counter() as mode:
                ask(context)
            counted.append(mode.get_total_flops())

        run = watch(vlm, [site], look, [PICTURE, OTHER])
        assert run.flops["compression"] == sum(counted) > 0


# -- tiles ----------------------------------------------------------------------------------------------------------
def covered(tiles):
    """Shares of a picture that its tiles cover."""
    return sum((right - left) * (bottom - top) for left, top, right, bottom in (tile.box for tile in tiles))


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("family", ["llava_next", "idefics3", "smolvlm", "internvl", "llava_onevision", "qwen2_vl"])
def test_tiles(family, images):
    """They part the patches at every site; of a cut picture one is the thumbnail and the others cover it once."""
    vlm = families.vlm(family)
    layout = vlm.inputs(images).layout
    kept = keep(0.6, n=layout.units)
    owner = layout.owner[layout.extra :]

    def look(context):
        tiles, n = context.tiles, len(context.hidden)
        assert torch.equal(torch.cat([tile.part for tile in tiles]).sort().values, torch.arange(context.extra, n))
        for i, tile in enumerate(tiles):
            assert (owner[context.anchors[tile.part]] == i).all() and tile.grid == layout.crops[i].grid
            if n - context.extra == layout.units:
                assert len(tile.part) == tile.grid[0] * tile.grid[1]
        for image in range(len(images)):
            own = [tile for tile in tiles if tile.image == image]
            cut = len(own) > 1
            assert cut == (family not in ("qwen2_vl",) and not (family == "llava_onevision" and len(images) > 1))
            assert sum(tile.thumbnail for tile in own) == cut
            if cut:
                assert next(tile.box for tile in own if tile.thumbnail) == (0, 0, 1, 1)
                assert covered(tile for tile in own if not tile.thumbnail) == pytest.approx(1)
        return kept if context.site == LLM_INPUT else None

    watch(vlm, [PROJECTOR, LLM_INPUT, Site("llm_layer", 1)], look, images)


def test_the_thumbnail_of_a_picture_that_is_scaled_down():
    """Both views show it whole; the coarse one is the thumbnail."""
    vlm = families.vlm("llava_onevision")
    seen = []
    watch(vlm, [LLM_INPUT], lambda context: seen.extend(context.tiles), [OTHER])
    assert [(tile.grid, tile.thumbnail) for tile in seen] == [((4, 4), True), ((6, 6), False)]


# -- the question ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("text", [tiny.QUESTION, "assistant", "a", "user : the red key ?"])
def test_the_question(vlm, images, text):
    """Also one that repeats words of the chat around it."""
    ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, text, len(images)))
    words = [token for token in ids if token != families.IMAGE]
    after = len(ids) - 1 - max(i for i, token in enumerate(ids) if token == families.IMAGE)
    sites = [PROJECTOR, LLM_INPUT, Site("llm_layer", 0), Site("llm_layer", 2), Site("kv_cache")]
    seen = []

    def look(context):
        question = context.question
        assert question.text == text and question.after == after
        assert torch.equal(question.words, vlm.model.get_input_embeddings()(torch.tensor(words)))
        own = [words[i] for i in question.own.tolist()]
        assert vlm.tokenizer.convert_ids_to_tokens(own) == text.split()
        assert question.own.tolist() == list(range(question.own[0], question.own[-1] + 1))
        assert question.own[0] >= len(words) - after
        with pytest.raises(ValueError, match="was loaded without one; give load_vlm"):
            _ = question.features
        if context.text is not None:
            assert len(context.text) == len(words)
        seen.append(question)

    method = Spy(plan=dict.fromkeys(sites), look=look)
    run = engine.run(vlm, images, text, method, max_new_tokens=1)
    assert len(seen) == len(sites) and len(set(map(id, seen))) == 1
    assert run.flops["compression"] == 0


def test_before_the_projector_there_is_no_question(vlm):
    method = Spy(plan={Site("vision_layer", 1): None}, look=lambda context: seen.append(context.question))
    seen = []
    engine.run(vlm, [PICTURE], tiny.QUESTION, method, max_new_tokens=1)
    assert seen and set(seen) == {None}
    assert isinstance(method, Fixed)
