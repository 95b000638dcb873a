"""Every family against transformers' own generate, slow references, recorded attention and counted FLOPs."""

import copy
import json

import families
import numpy as np
import pytest
import tiny
import torch
from counting import counter
from huggingface_hub.errors import GatedRepoError
from oracle import Fixed, Spy, close, keep
from PIL import Image
from recorded import TowerLayer, of_layer, recorded
from torch.utils.flop_counter import FlopCounterMode
from transformers import Idefics3Processor

from vtc_demo import engine, registry
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.engine.chat import Chat
from vtc_demo.engine.language import step
from vtc_demo.figures import masks
from vtc_demo.models import CATALOG, FAMILIES, load_vlm, memory
from vtc_demo.models.catalog import pick
from vtc_demo.models.layout import NEWLINE, VISUAL

NEW = 6
PICTURE = tiny.image(2, side=56).crop((0, 0, 56, 36))  # wide: padding, unequal tiles, a cut centre
OTHER = tiny.image(3, side=48)


@pytest.fixture(scope="module", params=families.BUILDERS)
def vlm(request):
    return families.vlm(request.param)


def answer(vlm, method="full", images=PICTURE, question=tiny.QUESTION, **options):
    method = registry.resolve(method)
    return engine.run(vlm, images, question, method, **{"max_new_tokens": NEW, **options})


def given(vlm, images):
    """Arguments of transformers' generate; the model itself checks the number of image tokens against its features."""
    inputs = vlm.inputs(images)
    prompt = vlm.prompt(tiny.QUESTION, inputs.layout)
    ids = prompt.ids.where(prompt.ids >= 0, torch.tensor(vlm.config.image_token_id))[None]
    nested = vlm.config.model_type in ("llava_onevision", "idefics3", "smolvlm")
    made = dict(vlm.processor.image_processor([images] if nested else images, return_tensors="pt"))
    made = {k: v for k, v in made.items() if k not in ("num_patches", "rows", "cols")}
    if "batch_num_images" in made:
        made["batch_num_images"] = torch.as_tensor(made["batch_num_images"])
    if "image_grid_thw" in made:
        made["mm_token_type_ids"] = (prompt.ids == VISUAL).int()[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | made, prompt


def generate(vlm, images):
    inputs, _ = given(vlm, images)
    out = vlm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


class Whole:
    """The prompt of one picture by transformers' own functions: embeddings, positions, what deepstack adds."""

    @torch.no_grad()
    def __init__(self, vlm, images):
        self.vlm = vlm
        inputs, prompt = given(vlm, images)
        model, ids = vlm.model.model, inputs["input_ids"]
        features = ("pixel_values", "image_sizes", "batch_num_images", "image_grid_thw", "pixel_attention_mask")
        out = model.get_image_features(**{k: v for k, v in inputs.items() if k in features})
        seen = out.pooler_output
        seen = torch.cat(list(seen)) if isinstance(seen, list | tuple) else seen.flatten(0, -2)
        self.embeds = model.get_input_embeddings()(ids).clone()
        framed = (prompt.ids == VISUAL) | (prompt.ids == NEWLINE)
        self.embeds[0, framed] = seen
        self.places, self.after = prompt.visual, ids.shape[1]
        self.positions, self.deep = torch.arange(ids.shape[1])[None], []
        if "image_grid_thw" in inputs:
            self.positions, delta = model.get_rope_index(
                ids, inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
            )
            self.after = ids.shape[1] + int(delta)
            for feature in getattr(out, "deepstack_features", None) or []:
                self.deep.append(feature if isinstance(feature, torch.Tensor) else torch.cat(list(feature)))

    @torch.no_grad()
    def masked(self, drops, renumber=False, steps=NEW, extra_ids=()):
        """drops {layer: kept visual tokens}: nothing leaves the sequence; from that layer on a mask hides the others.
        No cache. renumber: positions count only what layer 0 keeps. extra_ids: fed after the prompt."""
        lm, out = self.vlm.adapter.decoder(self.vlm.model), []
        embeds = torch.cat([self.embeds, lm.embed_tokens(torch.tensor([list(extra_ids)], dtype=torch.long))], 1)
        for _ in range(steps):
            length, n = embeds.shape[1], len(self.places)
            tail = self.after + torch.arange(length - self.positions.shape[-1])
            positions = torch.cat([self.positions, tail.expand(*self.positions.shape[:-1], -1)], -1)
            alive, h = torch.ones(length, dtype=torch.bool), embeds
            for i, layer in enumerate(lm.layers):
                if i in drops:
                    gone = torch.ones(n, dtype=torch.bool)
                    gone[drops[i]] = False
                    alive[self.places[gone]] = False
                if i == 0 and renumber:
                    positions = (alive.cumsum(0) - 1).clamp(min=0)[None]
                seen = torch.ones(length, length, dtype=torch.bool).tril() & alive | torch.eye(length, dtype=torch.bool)
                mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]
                h = layer(h, attention_mask=mask, position_embeddings=lm.rotary_emb(h, positions))
                if i < len(self.deep):
                    h = h.clone()
                    h[0, self.places] += self.deep[i]
            out.append(self.vlm.model.lm_head(lm.norm(h))[0, -1].argmax().item())
            embeds = torch.cat([embeds, lm.embed_tokens(torch.tensor([[out[-1]]]))], 1)
        return out


@pytest.mark.parametrize("images", [[PICTURE], [OTHER], [PICTURE, OTHER]], ids=["wide", "square", "two"])
def test_full_equals_generate(vlm, images):
    run = answer(vlm, images=images)
    assert run.token_ids == generate(vlm, images)
    assert len(set(run.token_ids)) > 1
    assert answer(vlm, images=[OTHER] * len(images)).token_ids != run.token_ids or images == [OTHER]


@pytest.mark.parametrize("images", [[PICTURE], [PICTURE, OTHER]], ids=["one", "two"])
def test_inputs_for_generate(vlm, images):
    ours, (theirs, _) = vlm.generate_inputs(images, tiny.QUESTION), given(vlm, images)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], torch.as_tensor(theirs[name])), name
    half = copy.copy(vlm)
    half.model = copy.deepcopy(vlm.model).to(torch.bfloat16)
    wide = {n: v.dtype for n, v in half.generate_inputs(images, tiny.QUESTION).items() if v.is_floating_point()}
    assert wide == {"pixel_values": torch.bfloat16}


def test_dropping_inside_the_llm_equals_hiding(vlm):
    whole = Whole(vlm, [PICTURE])
    n = len(whole.places)
    first = keep(0.6, n=n)
    second = keep(0.5, n=first.m, seed=5)
    run = answer(vlm, Fixed(plan={Site("llm_layer", 1): first, Site("llm_layer", 3): second}))
    expected = whole.masked({1: first.anchor, 3: first.anchor[second.anchor]})
    assert run.token_ids == expected
    assert run.trace.schedule == [n, first.m, first.m, second.m]
    assert run.kv_lengths == [m + whole.embeds.shape[1] - n + NEW - 1 for m in run.trace.schedule]
    assert whole.masked({}) == answer(vlm).token_ids


def test_dropping_before_the_llm(vlm):
    """Positions are counted anew; on several axes each token keeps its own."""
    whole = Whole(vlm, [PICTURE])
    n, extra = len(whole.places), vlm.inputs([PICTURE]).layout.extra
    kept = keep(0.4, n=n)
    expected = whole.masked({0: kept.anchor}, renumber=vlm.adapter.axes == 1)
    assert answer(vlm, Fixed(plan={Site("llm_input"): kept})).token_ids == expected
    selected = Reduction.select(extra + kept.anchor, extra + n)
    run = answer(vlm, Fixed(plan={Site("projector"): selected}))
    assert run.token_ids == expected != answer(vlm).token_ids
    assert run.trace.fate().counts["kept"] == kept.m
    assert run.flops["projector"] < answer(vlm).flops["projector"]


def test_two_pictures_share_or_split_a_budget(vlm):
    images = [PICTURE, OTHER]
    layout = vlm.inputs(images).layout
    n = [sum(len(c.units) for c in layout.crops if c.image == i) for i in (0, 1)]
    run = answer(vlm, "divprune@0.5", images)
    assert run.visual_tokens == round(0.5 * sum(n))
    per_crop = answer(vlm, "divprune@0.5", images, tiles="crop")
    owner = layout.owner[layout.extra :][per_crop.trace.product().anchor - layout.extra]
    assert owner.bincount().tolist() == [max(1, round(0.5 * len(c.units))) for c in layout.crops]
    whole = Whole(vlm, images)
    kept = keep(0.5, n=sum(n))
    run = answer(vlm, Fixed(plan={Site("llm_layer", 2): kept}), images)
    assert run.token_ids == whole.masked({2: kept.anchor})


REASONS = ("cannot be used with this model or picture", "set the size of the picture", "larger than the grid")


@pytest.mark.parametrize("card", [c for c in registry.list_methods() if c.training_free], ids=lambda card: card.name)
def test_every_method_without_weights_of_its_own_runs_or_says_why_not(vlm, card):
    n = vlm.inputs([PICTURE]).layout.units
    for retention in (0.1, 0.25, 0.5, 0.8):
        method = registry.resolve(card.name if card.name == "full" else f"{card.name}@{retention}")
        try:
            runs = [answer(vlm, method, max_new_tokens=1)]
            runs += [answer(vlm, method, max_new_tokens=1, tiles="crop")] if retention == 0.25 else []
        except ValueError as error:
            assert card.name in str(error) and any(reason in str(error) for reason in REASONS), error
            assert {"vision_layer", "input_image"} & set(card.sites) and vlm.name != "llava"
            continue
        for run in runs:
            assert 1 <= run.visual_tokens <= n
            for site in run.to_dict()["sites"][-1:]:
                assert len(site["status"]) == run.trace.grid[0] * run.trace.grid[1]
                assert sum(s > 0 for s in site["status"]) == site["counts"]["kept"] + site["counts"]["merged"]


# -- nothing is left ----------------------------------------------------------------------------------------------
class Withdrawn(Fixed):
    withdraws = True

    def spec(self):
        return {"method": "fixed"}  # plans are no JSON


def withdrawn(site, n):
    return Withdrawn(plan={site: Reduction.select(torch.empty(0, dtype=torch.long), n, torch.arange(float(n)))})


@pytest.mark.parametrize("site", [Site("projector"), Site("llm_input"), Site("llm_layer", 0), Site("llm_layer", 2)])
def test_a_withdrawal(vlm, site):
    """The words alone go on; in chats, too. Everything that reads the run says that nothing is left."""
    whole, further = Whole(vlm, [PICTURE]), "how many star ?"
    n, extra = len(whole.places), vlm.inputs([PICTURE]).layout.extra
    before = site.layer is None
    method = withdrawn(site, n + (extra if site.kind == "projector" else 0))
    chat = Chat(vlm, PICTURE, method)
    first, second = chat.ask(tiny.QUESTION, NEW), chat.ask(further, NEW)
    drops, renumber = {site.layer or 0: []}, before and vlm.adapter.axes == 1
    assert first.token_ids == whole.masked(drops, renumber)
    if not renumber:
        fed = first.token_ids + vlm.next_turn(further)
        assert second.token_ids == whole.masked(drops, extra_ids=fed)
    schedule = [0 if k >= (site.layer or 0) else n for k in range(4)]
    text = whole.embeds.shape[1] - n
    assert first.trace.schedule == schedule and first.kv_lengths == [m + text + NEW - 1 for m in schedule]
    assert first.trace.fate().counts == {"dropped": n, "merged": 0, "kept": 0}
    assert first.trace.evidence_kept(torch.ones(n)) == 0 and len(first.trace.sizes()) == 0
    assert first.trace.steps[-1].reduction.scores.tolist() == list(range(method.plan[site].n))
    told = json.loads(json.dumps(first.to_dict()))
    assert told["sites"][-1]["tokens"] == told["visual_tokens"] == 0 and set(told["sites"][-1]["status"]) <= {0}
    assert not masks.outside(told) and f"{n} dropped" in masks.counts(told["sites"][-1])
    assert masks.frames(told)[-1]["tokens"] == 0 and masks.mask(told, "data:,", title="x").startswith("<svg")
    assert masks.evidence_share(told, np.ones((4, 4), dtype=bool)) == 0
    assert first.flops["total"] < answer(vlm).flops["total"]


def test_a_cache_without_visual_tokens(vlm):
    n = vlm.inputs([PICTURE]).layout.units
    run = answer(vlm, withdrawn(Site("kv_cache"), n))
    text = Whole(vlm, [PICTURE]).embeds.shape[1] - n
    assert run.kv_lengths == [text + NEW - 1] * 4 and run.trace.schedule == [n] * 4
    assert run.token_ids[0] == answer(vlm).token_ids[0]


def test_after_a_withdrawal_nothing_is_asked(vlm):
    n, asked = vlm.inputs([PICTURE]).layout.units, []
    none = withdrawn(Site("llm_input"), n).plan
    plan = none | dict.fromkeys([Site("llm_layer", 1), Site("kv_cache")])
    answer(vlm, Spy(plan=plan, look=lambda context: asked.append(context.site)))
    assert asked == [Site("llm_input")]


# -- attention on demand ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", [[PICTURE], [PICTURE, OTHER]], ids=["one", "two"])
def test_attention_equals_a_plain_softmax(vlm, images):
    found, layout = recorded(vlm, images), vlm.inputs(images).layout
    grouped = TowerLayer(vlm, found, vlm.shape.feature_layer, layout).weights  # [heads, n, n]
    tokens = layout.extra + layout.units
    checked = []

    def look(context):
        if context.site.kind == "projector":
            rows = torch.tensor([5, 0, 6])
            assert close(context.attention("all"), grouped)
            assert close(context.attention(rows, heads="mean"), grouped[:, rows].mean(0))
            assert context.extra == layout.extra and len(context.hidden) == tokens
            if context.extra:
                assert close(context.attention("cls"), grouped[:, : context.extra])
            assert context.keys().shape[1] == tokens and context.logits(rows).shape == (3, tokens)
        elif context.site.kind == "llm_layer":
            reference = of_layer(vlm, found, vlm.adapter.decoder(vlm.model).layers[1]).weights[0]
            assert close(context.attention("all"), reference)
            assert torch.equal(context.anchors, torch.arange(layout.units))
            assert not set(context.text.tolist()) & set(context.visual.tolist())
        checked.append(context.site)

    sites = [Site("projector"), Site("llm_layer", 2)]
    answer(vlm, Spy(plan=dict.fromkeys(sites), look=look), images, max_new_tokens=1)
    assert checked == sites


def test_attention_of_one_view_alone(vlm):
    layout, seen = vlm.inputs([PICTURE, OTHER]).layout, []

    def together(context):
        seen.append(context.attention("all"))

    def alone(context):
        i = len(seen) - 1
        part = (layout.owner == i).nonzero().flatten()
        assert close(context.attention("all"), seen[0][:, part][:, :, part])
        assert context.shape.grid == layout.crops[i].grid
        assert torch.equal(context.anchors, torch.arange(len(part) - context.extra)) or context.extra
        seen.append(None)

    plan = {Site("projector"): None}
    answer(vlm, Spy(plan=plan, look=together), [PICTURE, OTHER], max_new_tokens=1)
    answer(vlm, Spy(plan=plan, look=alone), [PICTURE, OTHER], max_new_tokens=1, tiles="crop")
    assert len(seen) == 1 + len(layout.crops)


# -- the picture --------------------------------------------------------------------------------------------------
def test_patches_lie_where_they_are_drawn(vlm):
    """The mean colour that the tower gets for a patch is that of the drawn sheet under it."""
    ramp = Image.new("RGB", (112, 84))
    ramp.putdata([(2 * x, 3 * y, 128) for y in range(84) for x in range(112)])
    small = ramp.resize((40, 60))
    pixels, layout = vlm.inputs([ramp, small] if len(vlm.inputs([ramp]).layout.crops) == 1 else [ramp])
    images = [ramp, small] if len(layout.pieces) == 2 else [ramp]
    unit = vlm.shape.patch_size
    sheet = torch.tensor(list(vlm.seen(images).convert("RGB").getdata()), dtype=torch.float32)
    (rows, columns), cells = layout.sheet[0], layout.cells
    sheet = sheet.view(rows, unit, columns, unit, 3).mean((1, 3)).flatten(0, 1)  # [cells, 3]
    drawn = sheet if cells is None else sheet[cells]
    patch = vlm.config.vision_config.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    if pixels.dim() == 4:  # [crops, 3, H, W]
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        means = pixels.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch)).mean((3, 5))  # [crops, 3, h, w]
        means = means.flatten(2).transpose(1, 2)  # [crops, patches, 3]
        cls = (layout.segments[0] - means.shape[1]) * [torch.zeros(len(means), 1, 3)]
        means = torch.cat([*cls, means], 1).flatten(0, 1)
    else:  # flat patches, as Qwen-VL takes them
        means = pixels.view(len(pixels), 3, -1).mean(2)
        if hasattr(vlm.adapter, "windows"):  # its tower takes them window by window
            joined, _ = vlm.adapter.windows(vlm.config, torch.tensor([(1, *size) for size in layout.sizes]))
            means = means.unflatten(0, (-1, 4))[joined].flatten(0, 1)
    how = vlm.processor.image_processor
    means = means * torch.tensor(how.image_std) + torch.tensor(how.image_mean)
    sources = torch.arange(len(means))[:, None] if layout.sources is None else layout.sources
    got = 255 * means[sources].mean(1)[layout.extra if layout.sources is not None else len(means) - layout.units :]
    assert got.shape == drawn.shape
    assert (got - drawn).abs().max() < 14
    assert (got - drawn).abs().mean() < 3


# -- cost ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", [[PICTURE], [PICTURE, OTHER]], ids=["one", "two"])
def test_flops_equal_the_counter(vlm, images):
    vlm.workspace.forget()
    with counter() as mode:
        run = answer(vlm, images=images, max_new_tokens=1)
    spec, length = vlm.spec, run.kv_lengths[0]
    hidden = spec.layers * spec.heads * 4 * spec.head_dim * (length * (length - 1) // 2)  # pairs that the mask hides
    lm = vlm.adapter.decoder(vlm.model)
    with FlopCounterMode(display=False) as turns, torch.inference_mode():  # rotary angles are no matrix product of ours
        shape = (1, length) if vlm.adapter.axes == 1 else (vlm.adapter.axes, 1, length)
        lm.rotary_emb(torch.zeros(1, 1, spec.hidden), torch.zeros(shape, dtype=torch.long))
    assert run.flops["total"] == mode.get_total_flops() - hidden - turns.get_total_flops()


def test_tiles_scaled_after_the_projector():
    """OneVision scales the tiles of a large picture once they are projected: no method can act before that."""
    vlm = families.vlm("llava_onevision")
    assert vlm.inputs([OTHER]).layout.blend == ((8, 8), (6, 6))
    with pytest.raises(ValueError, match="scales them down after"):
        answer(vlm, "fastervlm", OTHER)
    whole, kept = Whole(vlm, [OTHER]), keep(0.4, n=16 + 36)
    run = answer(vlm, Fixed(plan={Site("llm_layer", 1): kept}), OTHER)
    assert (
        run.token_ids
        == whole.masked({1: kept.anchor})
        == answer(vlm, Fixed(plan={Site("llm_layer", 1): kept}), OTHER).token_ids
    )


@pytest.mark.parametrize("images", [[PICTURE], [PICTURE, OTHER]], ids=["one", "two"])
def test_prompts_of_idefics3_are_those_of_its_processor(images):
    vlm = families.vlm("idefics3")
    inputs = vlm.inputs(images)
    ours = vlm.prompt(tiny.QUESTION, inputs.layout).ids
    parts = vlm.processor
    stock = Idefics3Processor(parts.image_processor, copy.deepcopy(parts.tokenizer), image_seq_len=4)
    text = vlm.adapter.prompt(parts, tiny.QUESTION, len(images))
    theirs = stock(images=[images], text=[text], return_tensors="pt")["input_ids"][0]
    assert torch.equal(ours.where(ours >= 0, torch.tensor(families.IMAGE)), theirs)


# -- further turns ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", [[PICTURE], [PICTURE, OTHER]], ids=["one", "two"])
def test_a_second_turn_equals_the_whole_chat_in_one_prompt(vlm, images):
    chat = Chat(vlm, images)
    first, second = chat.ask(tiny.QUESTION, NEW), chat.ask("how many star ?", NEW)
    third = chat.ask("what is left ?", NEW)
    whole = Whole(vlm, images)
    fed = first.token_ids + vlm.next_turn("how many star ?")
    assert second.token_ids == whole.masked({}, extra_ids=fed)
    fed += second.token_ids + vlm.next_turn("what is left ?")
    assert third.token_ids == whole.masked({}, extra_ids=fed)
    assert third.kv_lengths == [whole.embeds.shape[1] + len(fed) + NEW - 1] * 4
    text = vlm.adapter.prompt(vlm.processor, tiny.QUESTION, len(images), ((first.answer, "how many star ?"),))
    ids = vlm.tokenize(text)
    assert ids[-len(vlm.next_turn("how many star ?")) :] == vlm.next_turn("how many star ?")


def test_what_the_first_turn_dropped_stays_dropped(vlm):
    whole, further = Whole(vlm, [PICTURE]), "how many star ?"
    n = len(whole.places)
    kept = keep(0.5, n=n)
    chat = Chat(vlm, PICTURE, Fixed(plan={Site("llm_layer", 2): kept}))
    first, second = chat.ask(tiny.QUESTION, NEW), chat.ask(further, NEW)
    fed = first.token_ids + vlm.next_turn(further)
    assert second.token_ids == whole.masked({2: kept.anchor}, extra_ids=fed)
    text = whole.embeds.shape[1] - n
    assert second.kv_lengths == [m + text + len(fed) + NEW - 1 for m in (n, n, kept.m, kept.m)]


def test_flops_of_a_second_turn():
    vlm = families.vlm("llava")
    chat = Chat(vlm, PICTURE, "fastv@0.5")
    first = chat.ask(tiny.QUESTION, NEW)
    fed = 1 + len(vlm.next_turn("how many star ?"))
    with counter() as mode:
        second = chat.ask("how many star ?", NEW)
    spec = vlm.spec
    hidden = spec.layers * spec.heads * 4 * spec.head_dim * (fed * (fed - 1) // 2)
    with FlopCounterMode(display=False) as turns, torch.inference_mode():
        lm = vlm.adapter.decoder(vlm.model)
        for q in [fed] + [1] * (NEW - 1):
            lm.rotary_emb(torch.zeros(1, 1, spec.hidden), torch.zeros((1, q), dtype=torch.long))
    assert second.flops["total"] == mode.get_total_flops() - hidden - turns.get_total_flops()
    assert second.flops["vision"] == 0 and second.timings["prefill"] > 0
    assert first.trace is second.trace


def test_an_answer_that_ended_is_not_ended_twice(monkeypatch):
    vlm = families.vlm("llava")
    ids = Chat(vlm, PICTURE).ask(tiny.QUESTION, NEW).token_ids
    vlm.model.generation_config.eos_token_id = 2
    chat, fed = Chat(vlm, PICTURE), []
    chat.ask(tiny.QUESTION, NEW)
    assert vlm.next_turn("what is left ?")[0] == 2  # the template ends an answer by this
    chat.work.said = [*ids[:-1], 2]
    feed = lambda work, prefilled, tokens: fed.append(tokens.tolist()) or step(work, prefilled, tokens)  # noqa: E731
    monkeypatch.setattr("vtc_demo.engine.chat.step", feed)
    chat.ask("what is left ?", 1)
    assert fed[0] == vlm.next_turn("what is left ?")


# -- loading ------------------------------------------------------------------------------------------------------
def saved(vlm, folder):
    vlm.model.save_pretrained(folder)
    vlm.processor.image_processor.save_pretrained(folder)
    words = copy.deepcopy(vlm.processor.tokenizer)
    words.chat_template = families.TEMPLATE
    words.save_pretrained(folder)
    return folder


def test_a_saved_model_answers_the_same(vlm, tmp_path):
    loaded = load_vlm(saved(vlm, tmp_path), device_map="auto" if vlm.name != "llava" else None)
    for method in ("full", "fastv"):
        assert answer(loaded, method).token_ids == answer(vlm, method).token_ids


def test_a_model_that_does_not_fit(tmp_path, monkeypatch):
    vlm = families.vlm("smolvlm")
    folder, size = saved(vlm, tmp_path), sum(p.numel() * 4 for p in vlm.model.parameters())
    assert (
        memory.weights(vlm.adapter, vlm.config, torch.float32)
        == size
        == 2 * memory.weights(vlm.adapter, vlm.config, torch.bfloat16)
    )
    assert memory.free(torch.device("cpu")) > size
    monkeypatch.setattr(memory, "free", lambda device: size)
    monkeypatch.setattr(type(vlm.adapter), "load", lambda *_, **__: pytest.fail("the weights were read"))
    with pytest.raises(ValueError, match=r"needs 0.0 GB on cpu, which has 0.0 GB free.*device_map"):
        load_vlm(folder)
    with pytest.raises(ValueError, match="not both"):
        load_vlm(folder, device="cpu", device_map="auto")


def test_running_out_of_memory_while_loading(tmp_path, monkeypatch):
    vlm = families.vlm("smolvlm")
    folder = saved(vlm, tmp_path)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(type(vlm.adapter), "load", fail)
    with pytest.raises(ValueError, match=r"ran out of memory on cpu.*smaller model"):
        load_vlm(folder)


def test_the_catalogue_holds_families_that_run():
    assert {entry.family for entry in CATALOG} == set(FAMILIES)
    assert all(entry.revision is None or len(entry.revision) == 40 for entry in CATALOG)
    assert pick(CATALOG[0].id) is CATALOG[0]
    with pytest.raises(ValueError, match="does not offer 'someone/else'"):
        pick("someone/else")


def test_a_gated_repository(monkeypatch):
    def gated(*_, **__):
        raise GatedRepoError.__new__(GatedRepoError)  # made by the hub from its response

    monkeypatch.setattr("vtc_demo.models.loading.HfApi.model_info", gated)
    with pytest.raises(ValueError, match="is gated: accept its terms"):
        load_vlm("someone/gated")


def test_parts_left_aside_are_refused(tmp_path):
    vlm = families.vlm("smolvlm")
    folder = saved(vlm, tmp_path)
    tail = {f"model.text_model.layers.{i}": "disk" if i else "cpu" for i in range(4)}
    names = ("model.vision_model", "model.connector", "model.text_model.embed_tokens", "model.text_model.norm")
    rest = dict.fromkeys([*names, "model.text_model.rotary_emb", "lm_head"], "cpu")
    with pytest.raises(ValueError, match=r"accelerate left parts of it aside"):
        load_vlm(folder, device_map=rest | tail)
