"""Equal cost: solved retentions against hand-made arithmetic, dry passes against real ones."""

import dataclasses
import json
import math

import families
import pytest
import tiny
import torch

import vtc_demo as vtc
from vtc_demo import cost, engine, registry
from vtc_demo.comparison.matching import Matcher, nearest
from vtc_demo.comparison.request import MATCHES
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.connectors import store
from vtc_demo.connectors.base import Dims
from vtc_demo.core.card import Card
from vtc_demo.core.images import Pictures
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.engine.answer import prepared
from vtc_demo.engine.shape_only import Cost, count, countable
from vtc_demo.engine.vision import encode

IMAGE = tiny.image()
LAYERS, TOTAL, TOKENS = 4, 36, 9
GALLERY = [card.name for card in vtc.list_methods() if registry.get(card.name).connector is None]
BEFORE = ("random", "uniform", "pool", "fastervlm", "visionzip", "divprune")  # leave all that they drop before the LLM
RETENTIONS = (0.02, 0.1, 0.27, 0.5, 1.0)


@pytest.fixture(scope="module")
def vlm():
    return tiny.vlm()


def matcher(vlm, match, **options):
    options = options or {"tokens": TOKENS}
    return Matcher(vlm, IMAGE, tiny.QUESTION, match, **options)


def layout_of(vlm, image=IMAGE):
    return prepared(vlm, Pictures.open(image))[0].layout


def first_token_flops(run):
    """Of a pass that ends with the first token, from the stages alone."""
    stages = ("vision", "projector", "compression", "prefill")
    return sum(run.flops[stage] for stage in stages) + run.flops["lm_head"] // len(run.token_ids)


# -- counting without running -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GALLERY)
def test_counting_counts_as_a_real_one(vlm, name):
    vtc.run(vlm, IMAGE, tiny.QUESTION)
    layout = layout_of(vlm)
    prompt = vlm.prompt(tiny.QUESTION, layout)
    for retention in RETENTIONS if name != "full" else (1.0,):
        method = registry.resolve(name, retention=retention)
        run = engine.run(vlm, IMAGE, tiny.QUESTION, method, max_new_tokens=5)
        counted = count(vlm, method, layout, prompt, replay=run.trace if method.adaptive else None)
        assert counted == Cost(tuple(run.trace.schedule), first_token_flops(run), run.flops["compression"])


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize(
    "spec",
    [
        {"method": "ficoco-l", "released": True, "retention": 0.5},
        {"method": "ficoco-l", "scores": "probs", "retention": 0.5},
        {"method": "ficoco-v", "scores": "logits", "retention": 0.5},
        {"method": "fastv", "layer": 1, "retention": 0.3},
        {"method": "fastervlm", "retention": 0.3},
        {"method": "visionzip", "retention": 0.3},
    ],
    ids=str,
)
def test_counting_follows_hyper_parameters_grouped_heads_and_a_cls_that_stays(strategy, spec):
    vlm, method = tiny.vlm(kv_heads=2, strategy=strategy), registry.resolve(spec)
    run = vtc.run(vlm, IMAGE, tiny.QUESTION, method, max_new_tokens=1)
    layout = layout_of(vlm)
    assert count(vlm, method, layout, vlm.prompt(tiny.QUESTION, layout)) == Cost.of(run)


def test_no_layer_runs_for_methods_that_follow_from_their_hyper_parameters(vlm):
    vtc.run(vlm, IMAGE, tiny.QUESTION)
    calls = []
    parts = [*vlm.model.model.language_model.layers, *vlm.model.model.vision_tower.encoder.layers, vlm.model.lm_head]
    handles = [part.register_forward_hook(lambda *_: calls.append(1)) for part in parts]
    try:
        for match in MATCHES:
            for name in GALLERY:
                if not registry.get(name).adaptive:
                    matcher(vlm, match).solve(registry.resolve(name))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == []


# -- arithmetic -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("match", MATCHES)
def test_a_budget_before_the_llm_is_the_same_in_all_three_measures(vlm, match):
    found = matcher(vlm, match).solve(registry.resolve("random"))
    assert found.retention == TOKENS / TOTAL
    assert found.note == ""
    spec, text = vlm.spec, len(vlm.prompt(tiny.QUESTION, vlm.inputs([IMAGE]).layout).others)
    by_hand = {
        "final tokens": TOKENS,
        "equivalent tokens": TOKENS,
        "flops": cost.run_flops(spec, [TOKENS] * LAYERS, text)["total"],
    }
    assert found.reached == found.target == by_hand[match]


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("match", ["final tokens", "equivalent tokens"])
def test_methods_before_the_llm_keep_exactly_the_budget(vlm, name, match):
    for tokens in (1, 4, 9, 25, 36):
        found = matcher(vlm, match, tokens=tokens).solve(registry.resolve(name))
        assert (found.reached, found.note) == (tokens, "")


@pytest.mark.parametrize(("layer", "tokens"), [(1, 12), (1, 30), (2, 20), (2, 31), (3, 33)])
def test_fastv_by_its_average(vlm, layer, tokens):
    """k layers see everything, L - k see m: (k * N + (L - k) * m) / L."""
    found = matcher(vlm, "equivalent tokens", tokens=tokens).solve(registry.resolve("fastv", layer=layer))
    m = (LAYERS * tokens - layer * TOTAL) / (LAYERS - layer)
    kept = found.method.keep(TOTAL)
    assert abs(kept - m) <= 1
    assert found.reached == (layer * TOTAL + (LAYERS - layer) * kept) / LAYERS
    assert abs(found.reached - tokens) <= 0.5 * (LAYERS - layer) / LAYERS


def test_fastv_says_that_its_first_layers_see_everything(vlm):
    found = matcher(vlm, "equivalent tokens", tokens=9).solve(registry.resolve("fastv"))
    assert found.reached == (2 * TOTAL + 2 * 1) / LAYERS == 18.5
    assert found.note == "cannot go below 18.5 tokens on average"
    assert found.method.keep(TOTAL) == 1


def test_a_target_above_what_a_method_can_cost(vlm):
    found = matcher(vlm, "flops", target=1e12).solve(registry.resolve("pool"))
    assert found.retention == 1.0 and found.note.startswith("cannot go above")


def test_steps_are_named(vlm):
    """A smaller square picture has a square number of patches: 16 or 25, not 20."""
    found = matcher(vlm, "final tokens", tokens=20).solve(registry.resolve("downsample"))
    assert found.reached == 16
    assert found.note == "its steps next to this are 16 tokens and 25 tokens"


def test_what_the_tower_saves_may_be_spent_in_the_llm(vlm):
    """At equal FLOPs a method that also thins the tower keeps more tokens than one that does not."""
    kept = {n: matcher(vlm, "flops", tokens=20).solve(registry.resolve(n)).method for n in ("random", "downsample")}
    spent = [first_token_flops(vtc.run(vlm, IMAGE, tiny.QUESTION, m, max_new_tokens=1)) for m in kept.values()]
    assert kept["downsample"].keep(TOTAL) > kept["random"].keep(TOTAL)
    assert abs(spent[1] - spent[0]) < abs(cost.run_flops(vlm.spec, vlm.spec.full_schedule, 13)["total"] - spent[0])


# -- every method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("name", GALLERY)
def test_every_method_reaches_the_target_or_says_why_not(vlm, name, match):
    work = matcher(vlm, match, tokens=20)
    found = work.solve(registry.resolve(name))
    run = vtc.run(vlm, IMAGE, tiny.QUESTION, found.method, max_new_tokens=3)
    schedule = run.trace.schedule
    real = {"final tokens": schedule[-1], "equivalent tokens": sum(schedule) / LAYERS, "flops": first_token_flops(run)}
    assert found.reached == real[match]
    assert work.after(found, run) == found
    missed = abs(found.reached - found.target)
    assert bool(found.note) == (missed >= work.worth)
    if missed < work.worth:
        return
    assert any(reason in found.note for reason in ("cannot go", "its steps next to this", "cannot be set"))
    if "cannot be set" in found.note:
        assert name == "full"
        return
    others = [registry.resolve(name, retention=k / 72) for k in range(1, 73)]  # nothing on a grid of halves is nearer
    runs = [engine.run(vlm, IMAGE, tiny.QUESTION, m, max_new_tokens=1) for m in others]
    assert missed <= min(abs(work.measure(Cost.of(r)) - found.target) for r in runs)


def test_one_tokens_worth_of_flops(vlm):
    """The least that a token costs in the language model: its products, and its attention to the text and itself."""
    s, text = vlm.spec, len(matcher(vlm, "flops").prompt.others)
    linear = 2 * (2 * s.hidden * s.hidden + 2 * s.hidden * s.kv_heads * s.head_dim + 3 * s.hidden * s.intermediate)
    assert matcher(vlm, "flops").worth == s.layers * (linear + 4 * (text + 1) * s.heads * s.head_dim)
    assert matcher(vlm, "final tokens").worth == 1


# -- methods whose counts depend on the picture -----------------------------------------------------------------------
def test_an_adaptive_method_needs_two_real_passes_at_most_where_they_can_be_foreseen(vlm):
    for match in MATCHES:
        work = matcher(vlm, match, tokens=20)
        found = work.solve(registry.resolve("mustdrop"))
        assert 1 <= len(work._passes) <= 2
        assert found.reached == work.measure(Cost.of(vtc.run(vlm, IMAGE, tiny.QUESTION, found.method)))


def test_published_thresholds_take_no_retention(vlm):
    work = matcher(vlm, "equivalent tokens", tokens=5)
    found = work.solve(registry.resolve("mustdrop", mode="threshold"))
    alone = vtc.run(vlm, IMAGE, tiny.QUESTION, found.method)
    assert found.reached == alone.trace.equivalent_tokens
    assert found.note.startswith("cannot go below")


@dataclasses.dataclass(frozen=True)
class Bright(Method):
    """Keeps what comes near to the strongest: how many do depends on the picture."""

    card = Card("bright", "Bright", "baseline", "For this test.", ("llm_input",), "baseline")
    adaptive = True

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        score = context.hidden.norm(dim=1)
        kept = (score >= score.max() * (1 - self.retention)).nonzero().flatten()
        return Reduction.select(kept, len(score))


def test_what_cannot_be_foreseen_is_searched_by_real_passes(vlm):
    options = {"max_new_tokens": 1}
    counts = [vtc.run(vlm, IMAGE, tiny.QUESTION, Bright(k / 36), **options).visual_tokens for k in range(1, 37)]
    assert counts == sorted(counts) and len(set(counts)) > 10
    found = matcher(vlm, "final tokens").solve(Bright())
    assert found.reached == vtc.run(vlm, IMAGE, tiny.QUESTION, found.method, **options).visual_tokens
    assert abs(found.reached - TOKENS) <= min(abs(n - TOKENS) for n in counts)


class Liar(Bright):
    """The same, though it says that its counts follow from its hyper-parameters."""

    adaptive = False


def test_the_run_has_the_last_word(vlm):
    work = matcher(vlm, "final tokens")
    found = work.solve(Liar())
    run = vtc.run(vlm, IMAGE, tiny.QUESTION, found.method)
    after = work.after(found, run)
    assert after.reached == run.visual_tokens
    assert (after.reached == found.reached) or "depends on the picture" in after.note


class Touchy(registry.get("random")):
    """Its hook wants hidden states that lie in memory in one piece."""

    def reduce(self, context):
        context.hidden.view(-1)
        return super().reduce(context)


class Broken(registry.get("random")):
    def reduce(self, context):
        raise ZeroDivisionError("a fault of the method")


def test_shapes_lie_in_memory_as_hidden_states_do_and_faults_are_not_hidden(vlm):
    work = matcher(vlm, "flops")
    found = work.solve(Touchy())
    assert found.method.keep(TOTAL) == TOKENS and found.reached == found.target and not work._passes
    with pytest.raises(ZeroDivisionError, match="a fault of the method"):
        work.solve(Broken())


@pytest.mark.parametrize("name", ["llava-mlp", "q-former", "gated-cross-attention"])
def test_trained_connectors_are_counted_by_real_passes(vlm, tmp_path, monkeypatch, name):
    """Weights are of no matter for the cost, so those of a fresh connector do."""
    monkeypatch.setattr(weights_on_disk, "FOLDER", tmp_path)
    store.save(name, registry.trained()[name].connector(Dims.of(vlm.config)), vlm.model, {})
    work = matcher(vlm, "flops")
    found = work.solve(registry.resolve(name))
    run = vtc.run(vlm, IMAGE, tiny.QUESTION, found.method, max_new_tokens=3)
    assert found.reached == first_token_flops(run) and work.after(found, run) == found
    if name == "llava-mlp":
        assert found.note == "its retention cannot be set"
    else:
        assert found.note == "" or found.note.startswith(("cannot go", "its steps"))


@pytest.mark.parametrize("family", families.BUILDERS)
@pytest.mark.parametrize("name", ["random", "fastervlm", "visionzip", "ficoco-v", "fastv"])
def test_several_views_are_counted_as_they_run(family, name):
    """Where shapes say what the tower does they say what a pass costs, tile by tile."""
    vlm = families.vlm(family)
    image = tiny.image(2, side=56).crop((0, 0, 56, 44))
    run = vtc.run(vlm, image, tiny.QUESTION, name, retention=0.5, max_new_tokens=3)
    layout = layout_of(vlm, image)
    if not countable(vlm, run.method):
        assert vlm.adapter.axes == 3  # spans of the Qwen towers
        return
    counted = count(vlm, run.method, layout, vlm.prompt(tiny.QUESTION, layout))
    assert counted == Cost(tuple(run.trace.schedule), first_token_flops(run), run.flops["compression"])


def test_what_is_not_countable_is_searched_by_passes_that_share_the_tower():
    vlm = families.vlm("qwen2_vl")
    image, question = tiny.image(side=56), tiny.QUESTION
    full = vtc.run(vlm, image, question)
    key = Pictures.open(image).key
    encoded = vlm.workspace.get("encoded", key)
    for match in MATCHES:
        work = Matcher(vlm, image, question, match, tokens=full.visual_tokens // 2)
        found = work.solve(registry.resolve("fastv", layer=1))
        assert vlm.workspace.get("encoded", key) is encoded and work._passes
        run = vtc.run(vlm, image, question, found.method)
        assert work.after(found, run) == found
        assert found.note == "" and abs(found.reached - found.target) < work.worth


# -- search -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", [-3, 0, 1, 7.4, 7.6, 50, 99, 120])
@pytest.mark.parametrize(
    "value",
    [
        lambda j: j,
        lambda j: 3 * j // 7,
        lambda j: math.isqrt(j) ** 2,
        lambda j: 0 if j < 60 else 100,
        lambda j: j**3 / 10**4,
    ],
    ids=["line", "slope", "squares", "cliff", "cubic"],
)
@pytest.mark.parametrize("guess", [1, 50, 100])
def test_the_nearest_of_all(value, target, guess):
    step, seen = nearest(value, target, 1, 100, guess, near=1e-9)
    assert abs(value(step) - target) == min(abs(value(j) - target) for j in range(1, 101))
    assert len(seen) <= 16 and seen[step] == value(step)


# -- comparisons ------------------------------------------------------------------------------------------------------
def test_a_comparison_at_equal_cost(vlm):
    columns = ["full", "random@0.9", {"method": "fastv", "layer": 1}, "mustdrop"]
    c = vtc.compare(vlm, IMAGE, tiny.QUESTION, columns, match="equivalent tokens", tokens=20, max_new_tokens=3)
    record = json.loads(c.to_json())
    assert record["match"] == {"by": "equivalent tokens", "tokens": 20, "target": 20}
    for run in record["runs"]:
        matched = run["matched"]
        assert (matched["match"], matched["target"]) == ("equivalent tokens", 20)
        assert matched["reached"] == run["equivalent_tokens"]
        assert matched["retention"] == run["method"]["retention"]
    full, random, fastv, _ = record["runs"]
    assert (full["equivalent_tokens"], full["matched"]["note"]) == (36, "its retention cannot be set")
    assert (random["equivalent_tokens"], random["matched"]["note"]) == (20, "")
    assert fastv["method"]["layer"] == 1 and abs(fastv["equivalent_tokens"] - 20) < 0.5


def test_events_tell_when_a_retention_is_solved(vlm):
    options = {"match": "flops", "tokens": 9, "max_new_tokens": 2}
    events = list(vtc.compare_events(vlm, IMAGE, tiny.QUESTION, ["random", "fastv"], **options))
    for index in (0, 1):
        own = [e for e in events if e.index == index]
        assert own[0].kind == "stage" and own[0].data == {"stage": "matching"}
        assert own[-1].kind == "run" and own[-1].method == own[-1].data.method
        assert own[-1].data.matched.method == own[-1].data.method


def test_a_column_that_fails_leaves_the_others_their_match(vlm):
    columns = [{"method": "fastv", "layer": 9}, "random"]
    c = vtc.compare(vlm, IMAGE, tiny.QUESTION, columns, match="flops", tokens=9)
    assert "layer=9 does not exist" in c.runs[0].error and c.runs[0].matched is None
    assert c.runs[1].matched.note == ""


def test_without_a_match_nothing_is_solved(vlm):
    c = vtc.compare(vlm, IMAGE, tiny.QUESTION, ["random@0.5"])
    assert c.to_dict()["match"] is None and c.to_dict()["runs"][0]["matched"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": "tokens", "tokens": 9}, "no measure of cost; choose"),
        ({"match": "flops"}, "give either tokens or target"),
        ({"match": "flops", "tokens": 9, "target": 1e6}, "give either tokens or target"),
        ({"tokens": 9}, "needs a measure"),
        ({"target": 9.0}, "needs a measure"),
        ({"match": "flops", "tokens": 0}, "this picture has 36, keep 1 or more"),
        ({"match": "flops", "tokens": 37}, "this picture has 36"),
        ({"match": "flops", "tokens": 2.5}, "whole number"),
        ({"match": "flops", "tokens": True}, "whole number"),
        ({"match": "flops", "target": float("nan")}, "above 0, in FLOPs"),
        ({"match": "flops", "target": -1}, "above 0, in FLOPs"),
        ({"match": "final tokens", "target": math.inf}, "above 0, in tokens"),
        ({"match": "final tokens", "target": "9"}, "above 0, in tokens"),
    ],
)
def test_bad_budgets_show_before_the_first_event(vlm, options, message):
    with pytest.raises(ValueError, match=message):
        vtc.compare_events(vlm, IMAGE, tiny.QUESTION, ["random"], **options)


def test_a_vision_pass_at_hand_is_used(vlm):
    vlm.workspace.forget()
    c = vtc.compare(vlm, IMAGE, tiny.QUESTION, ["full", "fastv", "random"], match="flops", tokens=20)
    assert [run.vision_shared for run in c.runs] == [False, True, True]
    assert torch.equal(vlm.workspace.get("encoded", Pictures.open(IMAGE).key).features.hidden, tiny_features(vlm))


def tiny_features(vlm):
    with torch.inference_mode():
        return encode(engine.ForwardPass(vlm, registry.resolve("full")), vlm.inputs([IMAGE])).features.hidden
