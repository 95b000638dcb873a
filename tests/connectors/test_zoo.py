"""The zoo from two training steps to an answer: recipe, weights on disk, the engine, counts and bytes, refusals."""

import copy
import dataclasses
import json

import pytest
import tiny
import torch
from counting import NO_KERNELS
from torch.utils.flop_counter import FlopCounterMode

import vtc_demo as vtc
from vtc_demo import registry, world
from vtc_demo.benchmark import budgets
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.connectors import store
from vtc_demo.connectors.base import Dims
from vtc_demo.core.flop_counting import cpu_attention
from vtc_demo.core.tokens import Site
from vtc_demo.core.workspace import Workspace
from vtc_demo.evaluation.sweep import sweep as vtc_sweep
from vtc_demo.methods import contract
from vtc_demo.models import EMBEDDED
from vtc_demo.training import build, zoo
from vtc_demo.training.data import GRID

pytestmark = pytest.mark.slow  # every connector is trained for two steps first
NAMES = list(registry.trained())
BESIDE = {name for name in NAMES if registry.trained()[name].connector.outside}
N, IMAGES = 576, 4
SCENE = world.sample(seed=3, split="eval")
QUESTION = SCENE.questions[0].text
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def vlm():
    return vtc.load_vlm("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of the run, folder of the weights) of all of them after two steps."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("zoo")
    zoo.train_zoo([], runs, out, steps=1, tune=1, batch=2, images=IMAGES)
    return runs, out


@pytest.fixture(autouse=True)
def here(trained, monkeypatch):
    monkeypatch.setattr(weights_on_disk, "FOLDER", trained[1])


def method(name, **hyper):
    return registry.resolve(name, **hyper)


def answer(vlm, chosen, new=1):
    vlm.workspace.forget()  # the vision pass anew
    return vtc.run(vlm, SCENE.image, QUESTION, chosen, max_new_tokens=new)


@torch.no_grad()
def awake(vlm, chosen):
    """The fitted method with open gates: they start at 0, where a mistake would not show."""
    fitted = store.fit(vlm, chosen)
    for name, weight in fitted.connector.named_parameters():
        if "constant" in name or name.endswith("gate"):
            weight.normal_(0.1, 0.1, generator=torch.Generator().manual_seed(0))
    return fitted


# -- the recipe -----------------------------------------------------------------------------------------------------
def test_there_are_all_of_them():
    assert set(NAMES) >= {
        "llava-mlp", "patch-merger", "pixel-shuffle", "trained-pool", "q-former", "perceiver-resampler", "tokenpacker",
        "focusllava", "gated-cross-attention", "hyper-gated", "hyper-fused", "vlora",
    }  # fmt: skip
    assert {"gated-cross-attention", "hyper-gated", "hyper-fused", "vlora"} <= BESIDE
    assert all(not cls.card.training_free and cls.card.deviations for cls in registry.trained().values())


def test_weights_are_small_and_one_log_tells_of_all(trained):
    runs, out = trained
    sizes = {name: sum(file.stat().st_size for file in (out / name).iterdir()) for name in NAMES}
    assert max(sizes.values()) <= 6e6 and sum(sizes.values()) <= 60e6, sizes
    log = [json.loads(line) for line in (runs / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == [f"{name} {part}" for name in NAMES for part in ("align", "tune")]
    assert all(row["step"] == 1 and row["loss"] > 0 for row in log)
    facts = json.loads((out / "vlora" / weights_on_disk.FACTS).read_text())
    assert facts["steps"] == [1, 1] and facts["parameters"] > 100_000


def test_the_decoder_is_frozen_first_then_goes_on_in_the_stream():
    (align, frozen), (both, free) = zoo.stages("q-former", lambda start, length: (start, length), 600, 150, 8)
    assert frozen and not free
    assert align.dataset(0, 4800) == (0, 4800) and both.dataset(8, 16) == (4808, 16)


def test_a_finished_run_is_not_trained_again(trained, tmp_path):
    runs, out = trained
    before = (runs / "log.jsonl").read_text()
    again = zoo.train_zoo(["llava-mlp"], runs, tmp_path, steps=1, tune=1, batch=2, images=IMAGES)
    assert again == [tmp_path / "llava-mlp"]
    assert (runs / "log.jsonl").read_text() == before
    assert (tmp_path / "llava-mlp" / weights_on_disk.WEIGHTS).read_bytes() == (
        out / "llava-mlp" / weights_on_disk.WEIGHTS
    ).read_bytes()


def test_features_go_on_where_they_stopped(trained):
    folder = trained[0] / f"features-{IMAGES}"
    note, whole = folder / "cache.json", (folder / "features.f16").read_bytes()
    base = build.load(EMBEDDED).eval()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"done": 1}))
    (folder / "features.f16").write_bytes(whole[: len(whole) // IMAGES].ljust(len(whole), b"\0"))
    size = zoo.cache(base, vtc.load_vlm("embedded").processor, folder, IMAGES, batch=2)
    assert size == len(whole) + (folder / "questions.i16").stat().st_size
    done = [
        torch.frombuffer(bytearray(b), dtype=torch.float16) for b in (whole, (folder / "features.f16").read_bytes())
    ]
    torch.testing.assert_close(*done, atol=0.02, rtol=0.01)  # batches of another size round otherwise
    with pytest.raises(ValueError, match="another tower or number"):
        zoo.cache(base, None, folder, IMAGES + 1)


def test_the_stream_repeats_the_pictures(trained):
    data = zoo.CachedPictures(1, 5, trained[0] / f"features-{IMAGES}", IMAGES, 128)
    first, again = data[0], data[IMAGES]
    assert (first["item"], again["item"]) == (1, 5)
    assert (first["features"] == again["features"]).all() and (first["ids"] == again["ids"]).all()
    assert not (first["features"] == data[1]["features"]).all()


# -- slow reference: no cache, the whole sequence anew for every word -------------------------------------------------
@torch.no_grad()
def hidden(fitted, chosen, features, before, after):
    """The decoder's last hidden states of the words `after` the picture. features [1, 577, C]."""
    lm = fitted.model.model.language_model
    made = fitted.connector(features, (GRID, GRID), chosen.keep(N), **chosen.options())
    held = fitted.connector.layer_memory(lm, made.tokens, len(before)) if fitted.connector.outside else {}
    words = [lm.embed_tokens(torch.tensor([ids])) for ids in (before, after)]
    h = torch.cat([words[0], *([] if fitted.connector.outside else [made.tokens]), words[1]], 1)
    how = {"attention_mask": None, "position_embeddings": lm.rotary_emb(h, torch.arange(h.shape[1])[None])}
    for k, layer in enumerate(lm.layers):
        h = fitted.connector.run(k, layer, h, held, torch.arange(h.shape[1]) >= len(before), **how)
    return lm.norm(h[:, -len(after) :])[0]


@each
@torch.no_grad()
def test_the_engine_equals_the_whole_sequence_anew(vlm, name):
    """Retention 1 for FocusLLaVA, which then drops nothing inside."""
    chosen = method(name, retention=1.0) if name == "focusllava" else method(name)
    fitted, run = awake(vlm, chosen), answer(vlm, chosen, new=4)
    vision = vlm.model.model.vision_tower
    features = vision(vlm.inputs([SCENE.image]).pixels, output_hidden_states=True).hidden_states[-2]
    ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, QUESTION))
    at = ids.index(vlm.config.image_token_id)
    before, after = ids[:at], ids[at + 1 :]
    for token in run.token_ids:
        logits = fitted.model.lm_head(hidden(fitted, chosen, features, before, after))[-1]
        assert logits[token] > logits.max() - 1e-3, "the likeliest, but for a tie"
        after = [*after, token]


@each
@torch.no_grad()
def test_training_sees_what_the_engine_computes(vlm, trained, name):
    """The first question of a pack, against the same question alone. In float64: changed weights amplify rounding."""
    chosen = method(name, retention=1.0) if name == "focusllava" else method(name)
    fitted = copy.deepcopy(awake(vlm, chosen))
    fitted.connector.double(), fitted.model.double()
    item = zoo.CachedPictures(0, 2, trained[0] / f"features-{IMAGES}", IMAGES, 128)
    batch = {k: torch.stack([torch.as_tensor(item[i][k]) for i in range(2)]) for k in item[0]}
    prefix = vlm.tokenizer.encode("user:")
    objective = zoo.ZooObjective(fitted.connector, fitted.model, prefix)
    made = fitted.connector(batch["features"].double(), (GRID, GRID), chosen.keep(N), **chosen.options())
    packed = objective.decode(made, batch, N)
    for row, number in ((0, 0), (1, 2)):
        words = batch["block"][row] == number
        features = batch["features"][row : row + 1].double()
        alone = hidden(fitted, chosen, features, prefix, batch["ids"][row, words].tolist())
        torch.testing.assert_close(packed[row, words], alone, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_training_hides_from_a_question_what_the_engine_drops(vlm, trained):
    """Of the first cut; later ones see other pictures' tokens, see the card."""
    chosen = method("focusllava", retention=0.05)
    fitted = store.fit(vlm, chosen)
    item = zoo.CachedPictures(0, 1, trained[0] / f"features-{IMAGES}", IMAGES, 128)[0]
    batch = {k: torch.as_tensor(v)[None] for k, v in item.items()}
    prefix, seen = vlm.tokenizer.encode("user:"), {}
    made = fitted.connector(batch["features"].float(), (GRID, GRID), 0)

    class Spy(type(fitted.connector)):
        def narrow(self, k, lm, entered, rope, mask, pack):
            out = super().narrow(k, lm, entered, rope, mask, pack)
            seen[k] = (mask, out, pack)
            return out

    spy = Spy(Dims.of(vlm.config))
    spy.load_state_dict(fitted.connector.state_dict())
    zoo.ZooObjective(spy, fitted.model, prefix).decode(made, batch, chosen.keep(N))
    mask, out, pack = seen[2]
    n, words = pack.visual, (batch["block"][0] == 1).nonzero().flatten() + pack.first + pack.visual
    kept = out[0, words][:, pack.first : pack.first + n]
    assert (kept == kept[0]).all() and torch.equal(out[0, : pack.first + n], mask[0, : pack.first + n])
    expected = round(n * (chosen.keep(N) / n) ** (1 / 3))
    assert kept[0].sum() == expected < n
    assert seen[6][1][0, words[0], pack.first : pack.first + n].sum() == chosen.keep(N)


# -- what a run reports ---------------------------------------------------------------------------------------------
@each
def test_flops_are_those_that_the_counter_sees(vlm, name):
    chosen = method(name)
    store.fit(vlm, chosen).connector.requires_grad_(False)
    vlm.model.requires_grad_(False), store.fit(vlm, chosen).model.requires_grad_(False)
    every = {op: cpu_attention for op in NO_KERNELS}
    with FlopCounterMode(display=False, custom_mapping=every) as mode:
        run = answer(vlm, chosen)
    spec, text = vlm.spec, run.kv_lengths[-1] - run.trace.schedule[-1]
    masked = sum((n + text) * (n + text - 1) // 2 for n in run.trace.schedule)  # pairs that the kernel is asked for
    assert run.flops["total"] == mode.get_total_flops() - masked * 2 * 2 * spec.heads * spec.head_dim
    assert run.flops["total"] == sum(v for k, v in run.flops.items() if k != "total")
    assert run.flops["projector"] > 0


@pytest.fixture(scope="module")
def half():
    return vtc.load_vlm("embedded", device="cpu", dtype="bfloat16")


@each
def test_bfloat16_runs(half, name):
    """No part of a method insists on float32."""
    run = answer(half, method(name))
    assert len(run.token_ids) == 1 and run.kv_bytes > 0


@each
def test_decode_costs_what_the_layers_add(vlm, name):
    one, four = (answer(vlm, method(name), new=n) for n in (1, 4))
    steps = len(four.token_ids) - 1
    extra = (
        four.flops["decode"]
        - vtc.cost.run_flops(vlm.spec, four.trace.schedule, one.kv_lengths[-1] - one.trace.schedule[-1], steps + 1)[
            "decode"
        ]
    )
    connector, m = store.fit(vlm, method(name)).connector, four.trace.steps[0].reduction.m
    assert extra == steps * connector.layer_flops(1, m) and (extra > 0) == (name in BESIDE and steps > 0)


@each
def test_schedule_provenance_and_bytes(vlm, name):
    chosen = method(name)
    run = answer(vlm, chosen)
    reduction = run.trace.steps[0].reduction
    assert run.trace.sites[0] == Site("projector") and reduction.n == 1 + N
    assert run.timings["projector"] > 0 and run.timings["ttft"] > run.timings["projector"]
    text = run.kv_lengths[-1] - run.trace.schedule[-1]
    assert run.kv_lengths == [n + text for n in run.trace.schedule]
    cached = sum(run.kv_lengths) * 2 * vlm.spec.kv_heads * vlm.spec.head_dim * 4
    assert sum(run.trace.fate(Site("projector")).counts.values()) == N
    if name not in BESIDE:
        assert run.kv_bytes == cached and run.trace.schedule[0] == reduction.m
        assert name == "focusllava" or set(run.trace.schedule) == {chosen.keep(N)}
        return
    held = {
        "gated-cross-attention": 4 * 2 * 64 * 128,  # 4 blocks, keys and values of 64 latents
        "hyper-gated": 4 * 2 * 576 * 128,
        "hyper-fused": 4 * 2 * 576 * 128,
        "vlora": 8 * 5 * 128 * 8,  # layers, types, width, rank
    }[name]
    assert run.trace.schedule == [0] * 8 and run.visual_tokens == 0 == run.trace.equivalent_tokens
    assert run.kv_bytes == cached + 4 * held
    json.dumps(run.to_dict())


@pytest.mark.parametrize(("name", "keep"), [("trained-pool", 100), ("q-former", 20), ("tokenpacker", 36)])
def test_the_budget_is_the_slider(vlm, name, keep):
    assert answer(vlm, method(name, retention=keep / N)).visual_tokens == keep


@pytest.mark.parametrize(("name", "most"), [("q-former", 144), ("perceiver-resampler", 144), ("tokenpacker", 144)])
def test_a_larger_budget_gives_the_most_that_there_is(vlm, name, most):
    assert answer(vlm, method(name, retention=1.0)).visual_tokens == most


def test_a_sweep_and_a_benchmark_take_every_method(vlm):
    """Those with a fixed count once, tokenpacker left out where even its largest regions are too many."""
    record = vtc_sweep(vlm, NAMES, (400, 20), questions=1)
    rows = {(row["method"]["method"], round(row["final_tokens"])) for row in record["rows"]}
    assert {("patch-merger", 144), ("q-former", 144), ("q-former", 20), ("vlora", 0)} <= rows
    assert [left["method"]["method"] for left in record["left_out"]] == ["tokenpacker"]
    assert [(n, m.retention) for n, m in budgets.at_budgets("patch-merger", (192, 64), N)] == [(144, 0.25)]


def test_focusllava_ends_at_its_budget(vlm):
    schedule = answer(vlm, method("focusllava", retention=0.05)).trace.schedule
    assert schedule[-1] == 29 and schedule == sorted(schedule, reverse=True) and len(set(schedule)) == 4


def test_other_methods_are_left_alone(vlm):
    """The same tokens and counts before and after, and the weights untouched."""
    before, weights = answer(vlm, "full", new=6), {k: v.clone() for k, v in vlm.model.state_dict().items()}
    for name in ("hyper-fused", "vlora"):
        answer(vlm, name, new=3)
    after = answer(vlm, "full", new=6)
    assert (before.token_ids, before.flops, before.kv_bytes) == (after.token_ids, after.flops, after.kv_bytes)
    assert all(torch.equal(v, weights[k]) for k, v in vlm.model.state_dict().items())


def test_the_tower_is_shared_and_weights_are_loaded_once(vlm):
    fitted = store.fit(vlm, method("q-former"))
    assert fitted is store.fit(vlm, method("q-former", retention=0.05))
    assert fitted.model.model.vision_tower is vlm.model.model.vision_tower
    assert fitted.model.model.language_model is not vlm.model.model.language_model


def test_a_chat_goes_on(vlm):
    chat = vtc.Chat(vlm, SCENE.image, "hyper-gated")
    first, second = (chat.ask(q.text, max_new_tokens=3) for q in SCENE.questions[:2])
    assert second.answer and second.kv_bytes > first.kv_bytes > 4 * 4 * 2 * 576 * 128
    assert second.flops["total"] == sum(v for k, v in second.flops.items() if k != "total")


def test_equal_cost_is_solved_by_real_passes(vlm):
    c = vtc.compare(vlm, SCENE.image, QUESTION, ["trained-pool"], match="final tokens", tokens=64, max_new_tokens=1)
    assert c.runs[0].error is None and c.runs[0].visual_tokens == 64


# -- refusals -------------------------------------------------------------------------------------------------------
@each
def test_another_model_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} was trained for the embedded model.*Choose the\s+embedded model"):
        vtc.run(tiny.vlm(), tiny.image(), tiny.QUESTION, name)


def test_another_tower_of_the_same_size_is_refused(vlm):
    other = dataclasses.replace(vlm, model=build.load(EMBEDDED), workspace=Workspace())
    with torch.no_grad():
        other.model.model.vision_tower.pre_layrnorm.weight[0] += 0.5
    with pytest.raises(ValueError, match="python -m vtc_demo train zoo vlora"):
        answer(other, "vlora")


def test_two_pictures_are_refused(vlm):
    with pytest.raises(ValueError, match="one picture per question"):
        vtc.run(vlm, [SCENE.image, SCENE.image], QUESTION, "q-former")


def test_without_weights_a_method_is_not_listed(tmp_path, monkeypatch):
    assert set(NAMES) <= {card.name for card in vtc.list_methods()}
    monkeypatch.setattr(weights_on_disk, "FOLDER", tmp_path)
    assert not set(NAMES) & {card.name for card in vtc.list_methods()}
    with pytest.raises(ValueError, match="train zoo vlora"):
        registry.resolve("vlora")


def test_broken_weights_are_told(vlm, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_on_disk, "FOLDER", tmp_path)
    (tmp_path / "vlora").mkdir()
    (tmp_path / "vlora" / weights_on_disk.WEIGHTS).write_bytes(b"no weights")
    (tmp_path / "vlora" / weights_on_disk.FACTS).write_bytes(
        (trained[1] / "vlora" / weights_on_disk.FACTS).read_bytes()
    )
    with pytest.raises(ValueError, match=r"weights of vlora.*cannot be read"):
        answer(vlm, "vlora")


@each
def test_contract(name):
    assert contract.check(registry.get(name)) == []
