"""Reductions inside the tower, of tiles and of tokens that are merged later, against transformers' own towers.

The reference never drops a token: it runs the whole model's `get_image_features`, hides the keys of dropped tokens in
each layer's attention, and writes merged tokens over the hidden states of their anchors.
"""

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import families
import pytest
import tiny
import torch
from counting import counter
from oracle import card
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vtc_demo import engine, registry
from vtc_demo.core.effects import Redistribute, SizeBias
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.engine.forward import ForwardPass
from vtc_demo.engine.vision import encode, project
from vtc_demo.models.layout import NEWLINE, VISUAL

PICTURE = tiny.image(2, side=56).crop((0, 0, 56, 36))  # wide: padding, unequal tiles
OTHER = tiny.image(3, side=28)
UNEQUAL, EQUAL = (0.75, 0.4, 0.6), (0.5,)  # shares that the views keep, in turn
NEW = 4
pytestmark = pytest.mark.slow  # a minute together, in hundreds of short tests


@pytest.fixture(scope="module", params=families.BUILDERS)
def vlm(request):
    return families.vlm(request.param)


@dataclass(frozen=True)
class PerView(Method):
    """Keeps or merges a seeded part of each view.

    shares: of the patches, view by view in turn. sizes: gives random ones for proportional attention. made: (site,
    view, Reduction, sizes or None), in the order in which they were asked for.
    """

    card: ClassVar = card("per view")
    at: tuple = ()
    shares: tuple = UNEQUAL
    merges: bool = False
    cls: bool = True
    sizes: bool = False
    made: list = field(default_factory=list)

    def sites(self, shape):
        return self.at

    def reduce(self, context):
        view, n, extra = context.seed, len(context.hidden), context.extra
        generator = torch.Generator().manual_seed(100 * view + (context.site.layer or 0))
        order = extra + torch.randperm(n - extra, generator=generator)
        share = self.shares[view % len(self.shares)]
        m = round(share * (n - extra)) or int(share > 0)
        kept, gone = order[:m].sort().values, order[m:]
        kept = torch.cat([torch.arange(extra if self.cls else 0), kept])
        if self.merges and m and len(gone):
            target = torch.randint(len(kept) - m, len(kept), (len(gone),), generator=generator)  # none goes into CLS
            weights = torch.rand(n, generator=generator) + 0.1
            parts = {"source_weight": weights[: len(gone)], "anchor_weight": weights[len(gone) :][: len(kept)]}
            reduction = Reduction.merge(kept, gone, target, n, **parts)
        else:
            reduction = Reduction.select(kept, n)
        size = torch.rand(reduction.m, generator=generator) * 30 + 0.1 if self.sizes else None
        self.made.append((context.site, view, reduction, size))
        return reduction if size is None else (reduction, SizeBias(size))


class Inside(PerView):
    card: ClassVar = card("per view, inside")
    inside = True


# -- the reference ------------------------------------------------------------------------------------------------
class Hidden:
    """A copy of the model whose tower hides and overwrites tokens. alive, bias [N]: of the tower's tokens. current: by
    view, the tokens at the projector that are left."""

    def __init__(self, vlm, images, made, inside=False):
        self.vlm, self.inside, self.layout = vlm, inside, vlm.inputs(images).layout
        layout, n = self.layout, self.layout.extra + self.layout.units
        self.sources = torch.arange(n)[:, None] if layout.sources is None else layout.sources
        self.alive, self.offset, self.images = torch.ones(sum(layout.segments), dtype=torch.bool), 0, images
        self.bias = torch.zeros(len(self.alive))
        self.current = {i: (layout.owner == i).nonzero().flatten() for i in range(len(layout.crops))}
        self.model, self.made = copy.deepcopy(vlm.model), made
        self.taps, self.final = [], []  # outputs that the decoder gets too, as later reductions leave them
        for i, layer in enumerate(vlm.adapter.encoder_layers(self.model)):
            layer.forward = self.wrapped(i, layer, layer.forward)
        mergers = self.model.model.visual.deepstack_merger_list if vlm.name == "qwen3_vl" else ()
        for tap, merger in enumerate(mergers):
            merger.register_forward_pre_hook(lambda _, args, tap=tap: (self.tapped(tap, args[0]),))

    def at(self, i):
        return [(view, r, size) for site, view, r, size in self.made if site == Site("vision_layer", i)]

    def written(self, h, i):
        """h [..., N, C] with what is merged before layer i written over its anchors."""
        flat = h.flatten(0, -2).clone()
        old = flat.clone()
        for view, r, _ in self.at(i):
            members = self.sources[self.current[view]]  # [n, g]
            flat[members[r.anchor]] = torch.einsum("mn,ngc->mgc", r.dense(), old[members])
        return flat.view_as(h)

    def drop(self, i):
        for view, r, size in self.at(i):
            self.alive[self.sources[self.current[view]]] = False
            self.current[view] = self.current[view][r.anchor]  # ascending
            self.alive[self.sources[self.current[view]]] = True
            if size is not None:
                self.bias[self.sources[self.current[view]]] = size.log()[:, None]

    def wrapped(self, i, layer, forward):
        second = next(getattr(layer, n) for n in ("layer_norm2", "norm2", "layernorm_after") if hasattr(layer, n))
        between = {}

        def at_second(_, args):
            between["old"], between["new"] = args[0], self.written(args[0], i)
            return (between["new"],)

        if self.inside:
            second.register_forward_pre_hook(at_second)

        def run(hidden_states, *args, **kwargs):
            self.offset = 0
            if not self.inside:
                hidden_states = self.written(hidden_states, i)
                self.taps = [self.written(tap, i) for tap in self.taps]
                self.drop(i)
            out = forward(hidden_states, *args, **kwargs)
            if self.inside:
                out = out - between["old"] + between["new"]
                self.taps = [self.written(tap, i) for tap in self.taps]
                self.drop(i)
            if i in self.vlm.adapter.deepstack_layers(self.vlm.config):
                self.taps = [*self.taps, out]
            return out

        return run

    def tapped(self, tap, x):
        """The layer's output as later reductions have left it; the mergers run in the pass, before those."""
        return self.final[tap].view_as(x) if self.final else x

    def attention(self, module, q, k, v, mask=None, scaling=None, **_):
        keys = self.bias.masked_fill(~self.alive, float("-inf"))
        seen = torch.stack([keys[self.offset + b * q.shape[2] :][: q.shape[2]] for b in range(len(q))])
        self.offset += q.shape[0] * q.shape[2]
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None], scale=scaling)
        out = out.nan_to_num()  # of a view or window with no token left
        return out.transpose(1, 2).contiguous(), None

    @torch.no_grad()
    def features(self):
        """(visual tokens [units, D] of all patches, those of each deepstack layer)."""
        AttentionInterface.register("hiding", self.attention)
        self.model.set_attn_implementation("hiding")
        given = self.vlm.generate_inputs(self.images, tiny.QUESTION)
        names = ("pixel_values", "image_sizes", "batch_num_images", "image_grid_thw", "pixel_attention_mask")
        given = {k: v for k, v in given.items() if k in names}
        start = copy.deepcopy((self.alive, self.current))
        out = self.model.model.get_image_features(**given)
        if self.taps:  # once more, now that it is known what later layers make of the taps
            self.final, (self.alive, self.current), self.taps = self.taps, start, []
            out = self.model.model.get_image_features(**given)
        seen = out.pooler_output
        seen = torch.cat(list(seen)) if isinstance(seen, list | tuple) else seen.flatten(0, -2)
        ids = self.vlm.prompt(tiny.QUESTION, self.layout).ids
        framed = ids[(ids == VISUAL) | (ids == NEWLINE)]
        deep = getattr(out, "deepstack_features", None) or []
        deep = [feature if isinstance(feature, torch.Tensor) else torch.cat(list(feature)) for feature in deep]
        return seen[framed == VISUAL], deep

    @property
    def left(self):
        """Patches whose tokens are left, ascending."""
        left = torch.cat(list(self.current.values())).sort().values
        return left[left >= self.layout.extra] - self.layout.extra

    @torch.no_grad()
    def answer(self):
        """The answer by transformers' language model on the embeddings that are left, without a cache."""
        features, deep = self.features()
        model, prompt, left = self.model.model, self.vlm.prompt(tiny.QUESTION, self.layout), self.left
        self.model.set_attn_implementation("sdpa")
        ids = prompt.ids.clamp(min=0)
        embeds = self.model.get_input_embeddings()(ids[None]).clone()
        if (prompt.ids == NEWLINE).any():
            embeds[0, prompt.ids == NEWLINE] = model.image_newline
        embeds[0, prompt.visual] = features
        stays = torch.cat([prompt.others, prompt.visual[left]]).sort().values
        where = {}
        if self.vlm.adapter.axes > 1:  # tokens keep their rows and columns
            given = self.vlm.generate_inputs(self.images, tiny.QUESTION)
            names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
            positions, _ = model.get_rope_index(*(given[name] for name in names))
            where = {"position_ids": positions[..., stays]}
        if deep:
            where |= {"visual_pos_masks": torch.isin(stays, prompt.visual)[None]}
            where |= {"deepstack_visual_embeds": [feature[left] for feature in deep]}
        embeds, out = embeds[:, stays], []
        after = int(positions.max()) + 1 if "position_ids" in where else None
        for step in range(NEW):
            h = self.vlm.adapter.decoder(self.model)(inputs_embeds=embeds, use_cache=False, **where).last_hidden_state
            out.append(self.model.lm_head(h)[0, -1].argmax().item())
            embeds = torch.cat([embeds, self.model.get_input_embeddings()(torch.tensor([out[-1:]]))], 1)
            if after is not None:
                next_one = torch.full((3, 1, 1), after + step)
                where["position_ids"] = torch.cat([where["position_ids"], next_one], -1)
            if deep:
                where["visual_pos_masks"] = torch.cat([where["visual_pos_masks"], torch.zeros(1, 1).bool()], -1)
        return out


@torch.inference_mode()
def ours(vlm, method, images):
    """(visual tokens [n, D], the patches at whose places they stand, deepstack features) by the engine."""
    work = ForwardPass(vlm, method)
    projected = project(work, encode(work, vlm.inputs(images)))
    anchor = projected.anchor - work.hooks.layout.extra
    return projected.tokens[0], anchor, [feature[0] for feature in projected.deepstack]


def equal(vlm, method, images, inside=False):
    tokens, anchor, deep = ours(vlm, method, images)
    reference = Hidden(vlm, images, method.made, inside)
    expected, expected_deep = reference.features()
    assert torch.equal(anchor, reference.left)
    torch.testing.assert_close(tokens, expected[anchor], atol=2e-5, rtol=1e-4)
    assert len(deep) == len(expected_deep) == len(vlm.adapter.deepstack_layers(vlm.config))
    for mine, theirs in zip(deep, expected_deep, strict=True):
        torch.testing.assert_close(mine, theirs[anchor], atol=2e-5, rtol=1e-4)
    return len(expected) - len(tokens)


IMAGES = {"tiles": [PICTURE], "two": [PICTURE, OTHER]}
LAYERS = (Site("vision_layer", 1), Site("vision_layer", 2))


def dropped(vlm, shares):
    """Whether these shares drop anything: the tiles of the tiny SmolVLM are one token each, which always stays."""
    return vlm.name != "smolvlm" or 0 in shares


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize(
    ("shares", "merges"), [(UNEQUAL, False), (EQUAL, False), (UNEQUAL, True)], ids=["unequal", "equal", "merged"]
)
@pytest.mark.parametrize("cls", [PerView, Inside])
def test_reductions_inside_the_tower(vlm, images, shares, merges, cls):
    fewer = equal(vlm, cls(at=LAYERS, shares=shares, merges=merges), images, cls is Inside)
    assert (fewer > 0) == dropped(vlm, shares)


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("merges", [False, True], ids=["select", "merge"])
def test_proportional_attention_inside_the_tower(vlm, images, merges):
    """View by view; tokens of the tower that are behind no token of a method have size 1."""
    method = PerView(at=LAYERS, merges=merges, sizes=True)
    if vlm.name == "internvl" or vlm.adapter.axes > 1:
        with pytest.raises(ValueError, match=f"the attention of {vlm.name} towers takes no bias on its keys"):
            ours(vlm, method, images)
        return
    equal(vlm, method, images)
    told = engine.run(vlm, images, tiny.QUESTION, method, max_new_tokens=1).trace.effects
    assert [site for site, _ in told] == list(LAYERS)


def test_view_by_view_only_sizes_and_for_every_view():
    """Of a method that some views answer otherwise, the whole is refused."""
    vlm = families.vlm("llava_next")

    @dataclass(frozen=True)
    class Some(PerView):
        what: object = None

        def reduce(self, context):
            return self.what(context)

    def sizes(context):
        return SizeBias(torch.ones(len(context.hidden)))

    def run(what, site, **options):
        return engine.run(vlm, [PICTURE], tiny.QUESTION, Some(at=(site,), what=what), max_new_tokens=1, **options)

    layers = Site("vision_layer", 1), Site("llm_layer", 1)
    for site in layers:
        assert len(run(sizes, site, tiles="crop").trace.effects) == 1
        with pytest.raises(ValueError, match="one SizeBias for every view, no other effect; got SizeBias for"):
            run(lambda c: None if c.seed else sizes(c), site, tiles="crop")
        with pytest.raises(ValueError, match=r"a SizeBias of \d+ tokens was due, got 3 sizes"):
            run(lambda c: SizeBias(torch.ones(3)), site, tiles="crop")
    with pytest.raises(ValueError, match="no other effect; got Redistribute"):
        run(lambda c: Redistribute(lambda weights, visual: weights), layers[1], tiles="crop")


@pytest.mark.parametrize("cls", [PerView, Inside])
def test_views_of_which_nothing_is_left(vlm, cls):
    images = [PICTURE, OTHER]
    method = cls(at=LAYERS, shares=(0.5, 0.0, 0.0))
    assert equal(vlm, method, images, cls is Inside) > 0
    run = engine.run(vlm, images, tiny.QUESTION, method, max_new_tokens=1)
    assert 0 < run.visual_tokens < vlm.inputs(images).layout.units


@pytest.mark.parametrize("shares", [UNEQUAL, EQUAL], ids=["unequal", "equal"])
def test_a_tower_that_loses_its_cls(vlm, shares):
    """Where there is one, it goes with the first reduction; InternVL's own is no method's and stays."""
    method = PerView(at=LAYERS, shares=shares, cls=False)
    equal(vlm, method, [PICTURE, OTHER])
    layout = vlm.inputs([PICTURE, OTHER]).layout
    assert bool(layout.extra) == vlm.shape.has_cls
    first = [r for site, _, r, _ in method.made if site == LAYERS[0]]
    lost = sum(r.n - r.m for r in first)
    views = [int((layout.owner == i).sum()) for i in range(len(layout.crops))]
    assert sum(r.n for r in first) == sum(views)
    assert vlm.name == "smolvlm" or lost > 0


@pytest.mark.parametrize("merges", [False, True], ids=["select", "merge"])
def test_the_answer_is_that_of_the_language_model_on_what_is_left(vlm, merges):
    images = [PICTURE]
    method = PerView(at=LAYERS, shares=(0.5, 0.0, 0.75) if vlm.name == "smolvlm" else UNEQUAL, merges=merges)
    run = engine.run(vlm, images, tiny.QUESTION, method, max_new_tokens=NEW)
    reference = Hidden(vlm, images, method.made)
    assert run.token_ids == reference.answer()
    assert run.trace.schedule == [len(reference.left)] * 4
    assert not run.vision_shared
    whole = engine.run(vlm, images, tiny.QUESTION, registry.resolve("full"), max_new_tokens=NEW)
    assert Hidden(vlm, images, []).answer() == whole.token_ids


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("cls", [PerView, Inside])
@torch.inference_mode()
def test_flops_of_the_tower_equal_the_counter(vlm, images, cls):
    shares = (0.5, 0.0) if vlm.name == "smolvlm" else UNEQUAL
    inputs = vlm.inputs(images)
    work = ForwardPass(vlm, cls(at=LAYERS, shares=shares))
    with counter() as mode:
        encode(work, inputs)
    method = cls(at=LAYERS, shares=shares)
    run = engine.run(vlm, images, tiny.QUESTION, method, max_new_tokens=1)
    whole = engine.run(vlm, images, tiny.QUESTION, registry.resolve("full"), max_new_tokens=1)
    assert run.flops["vision"] == mode.get_total_flops() < whole.flops["vision"]
    assert run.flops["compression"] == 0


def test_the_cost_of_a_merge_is_counted_by_its_entries(vlm):
    method = PerView(at=LAYERS[:1], shares=EQUAL, merges=True)
    run = engine.run(vlm, [PICTURE], tiny.QUESTION, method, max_new_tokens=1)
    group = 1 if (sources := vlm.inputs([PICTURE]).layout.sources) is None else sources.shape[1]
    # deepstack features of earlier layers are merged with them
    earlier = sum(layer < LAYERS[0].layer for layer in vlm.adapter.deepstack_layers(vlm.config))
    assert run.flops["compression"] == sum(
        2 * len(r.new) * 32 * group * (1 + earlier) for _, _, r, _ in method.made if r.weight is not None
    )


@pytest.mark.parametrize("name", ["mustdrop", "ficoco-v", "ficoco-vl"])
def test_published_methods_that_act_in_the_tower(vlm, name):
    """They run wherever MustDrop's windows of 3 x 3 patches fit into the views."""
    images = [PICTURE, OTHER]
    layout, method = vlm.inputs(images).layout, registry.resolve(f"{name}@0.5")
    small = min(min(vlm.shape.grid), *(side for crop in layout.crops for side in crop.grid)) < 3
    if name == "mustdrop" and small:
        with pytest.raises(ValueError, match=r"mustdrop: window=3 is larger than the grid of \d+ x \d+ patches"):
            engine.run(vlm, images, tiny.QUESTION, method, max_new_tokens=1)
        return
    run = engine.run(vlm, images, tiny.QUESTION, method, max_new_tokens=1)
    assert 0 < run.visual_tokens < layout.units or vlm.name == "smolvlm"
    assert any(site.kind == "vision_layer" for site in method.sites(vlm.shape))
    assert sum(run.trace.fate().counts.values()) == layout.units


@pytest.mark.parametrize("cls", [PerView, Inside])
def test_a_tower_of_which_nothing_is_left(vlm, cls):
    """The language model reads the question alone, at the positions that the words have without a picture's tokens."""
    run = engine.run(vlm, [PICTURE], tiny.QUESTION, cls(at=LAYERS, shares=(0.0,), cls=False), max_new_tokens=NEW)
    assert run.trace.schedule == [0] * 4 and run.error is None
    assert run.token_ids == Hidden(vlm, [PICTURE], run.method.made).answer()
    assert run.trace.fate().counts["dropped"] == vlm.inputs([PICTURE]).layout.units
