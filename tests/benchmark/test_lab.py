"""The Latency lab: its shapes, its counts, its sums, its command.

No test depends on how fast anything is, but one: that one layer times the number of layers is the time of the whole.
"""

import dataclasses
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from vtc_demo import cost, models, registry
from vtc_demo.benchmark import budgets, lab, peak_memory, timing
from vtc_demo.benchmark.lab import experiment, parts, passes, plan, report, settings, shapes
from vtc_demo.connectors import files as weights_on_disk
from vtc_demo.engine import ForwardPass
from vtc_demo.engine.language import prefill
from vtc_demo.engine.vision import encode, project
from vtc_demo.models import memory
from vtc_demo.models.layout import Prompt

QUICK = {"shape": "embedded", "dtype": "float32", "warmups": 1, "repeats": 3, "seconds": 60.0}


@pytest.fixture(scope="module")
def record():
    chosen = {"methods": ("fastervlm", "fastv", "ficoco-l", "downsample"), "tokens": (144, 64), "batches": (1, 4)}
    return json.loads(json.dumps(lab.run(lab.Settings(**QUICK, **chosen, prefill_batches=(3,)))))


def rows(record, name):
    return [row for row in record["rows"] if row["method"]["method"] == name]


# -- shapes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", shapes.catalogue())
def test_a_shape_is_that_of_its_spec(name):
    shape = shapes.pick(name)
    config, spec = shape.config, shape.spec
    found = models.spec_of(config)
    if name == "qwen2.5-vl-7b":  # the adapter's spec is of a picture of another size
        found = dataclasses.replace(found, patches=spec.patches, visual_tokens=spec.visual_tokens)
    assert dataclasses.replace(found, name=name) == spec


def test_the_published_rope_sections_of_qwen():
    assert shapes.pick("qwen2.5-vl-7b").config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]


def test_the_embedded_shape_is_the_shipped_model():
    shipped = AutoConfig.from_pretrained(models.EMBEDDED)
    ours = shapes.pick("embedded").config
    for part in ("vision_config", "text_config"):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(getattr(ours, part), name) == getattr(getattr(shipped, part), name), (part, name)


def test_an_unknown_shape_names_those_there_are():
    with pytest.raises(ValueError, match=r"unknown model shape 'gpt'; choose one of llava-1.5-7b"):
        shapes.pick("gpt")


# -- counts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("llava-next-7b", "qwen2.5-vl-7b") else ())
        for name in shapes.catalogue()
    ],
)
def test_plans_by_arithmetic(name):
    shape, text = shapes.pick(name), 20
    n, layers = shape.visual, shape.spec.layers
    full, early, late = plan.plans(shape, ["fastervlm", "fastv"], [n // 9], text)
    extra = 48 if "next" in name else 0  # a line break for each of the 2 x 24 rows of tiles
    assert full.schedule == (n,) * layers and full.text == text + extra
    assert early.schedule == early.cached == (n // 9,) * layers
    assert late.schedule == (n, n) + (n // 9,) * (layers - 2)
    assert early.projected == n // 9 and late.projected == n
    assert full.encoder == (shape.spec.patches + shape.spec.extra,) * shape.spec.vision_layers


def test_a_method_that_does_not_suit_a_shape_is_refused():
    with pytest.raises(ValueError, match="downsample: models of this family set the size"):
        plan.plans(shapes.pick("llava-next-7b"), ["downsample"], [320], 64)


def test_tiles_are_reduced_inside_the_tower():
    shape = shapes.pick("llava-next-7b")
    full, found = plan.plans(shape, ["ficoco-v"], [320], 64)
    assert found.encoder[0] == full.encoder[0] == 577 and list(found.encoder) == sorted(found.encoder, reverse=True)
    assert found.encoder[-1] < 577 and found.schedule[0] == 320


@pytest.mark.parametrize("name", shapes.catalogue())
def test_points_add_up_to_the_counted_costs(name):
    """FLOPs of all the layers are those of the pass; an answer's steps at their mean length are its decoding."""
    spec, text, new = shapes.pick(name).spec, 20, 64
    schedule = [spec.visual_tokens // (1 + k // 5) for k in range(spec.layers)]
    counted = cost.run_flops(spec, schedule, text, new)
    found = plan.Plan(
        registry.resolve("full"), None, tuple(spec.full_encoder_schedule), spec.visual_tokens, tuple(schedule),
        tuple(schedule), text,
    )  # fmt: skip
    flops = lambda *made: sum(parts.work(spec, p, 2).flops for p in made)  # noqa: E731
    assert flops(*passes.tower(spec, found)) == counted["vision"]
    assert flops(parts.Point("projector", found.projected)) == counted["projector"]
    assert flops(*(parts.Point("prefill", n + text) for n in schedule)) == counted["prefill"]
    assert (new - 1) * flops(*(parts.Point("decode", n) for n in passes.contexts(found, new))) == counted["decode"]
    assert new * flops(parts.Point("lm_head", 1)) == counted["lm_head"]
    assert flops(*(parts.Point("prefill", n + text, 8) for n in schedule)) == 8 * counted["prefill"]


@pytest.mark.parametrize("name", shapes.catalogue())
def test_bytes_of_points_are_those_of_weights_and_cache(name):
    spec = shapes.pick(name).spec
    weights, value = cost.weight_bytes(spec), 2
    layer = parts.work(spec, parts.Point("decode", 700, 3), value)
    cache = cost.kv_bytes_per_layer(spec, [600] * spec.layers, 100, bytes_per_value=value)[0]
    assert layer.bytes == weights["prefill"] / spec.layers + 3 * cache
    tower = [parts.work(spec, p, value).bytes for p in passes.tower(spec, plan.plans(shapes.pick(name), [], [], 2)[0])]
    assert sum(tower) == weights["vision"]
    assert parts.work(spec, parts.Point("lm_head", 1, 8), value).bytes == weights["lm_head"]


def test_more_tokens_and_answers_cost_more():
    spec = shapes.pick("llava-1.5-7b").spec
    for kind in ("prefill", "decode"):
        few, more, many = (parts.work(spec, parts.Point(kind, n, b), 2) for n, b in ((64, 1), (65, 1), (65, 2)))
        assert few.flops < more.flops < many.flops and few.bytes < more.bytes < many.bytes
        assert many.flops == 2 * more.flops and many.bytes < 2 * more.bytes  # weights are read once


# -- a method's own work --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["random", "pool", "fastervlm", "divprune", "fastv", "pyramiddrop", "ficoco-vl"])
def test_own_work_is_what_the_engine_books_on_the_real_model(name):
    """On the weights of the embedded VLM, with the same picture and prompt."""
    vlm, shape = models.load_vlm("embedded", device="cpu"), shapes.pick("embedded")
    (_, method), *_ = budgets.at_budgets(name, [64], shape.visual)
    work = ForwardPass(vlm, method)
    with torch.inference_mode():
        encoded = encode(work, shape.inputs(work.side))
        image = vlm.config.image_token_id
        prompt = Prompt.build([9] * 32 + [image] + [9] * 32, image, encoded.layout, vlm.device)
        prefill(work, prompt, project(work, encoded))
    assert plan.plan(shape, method, 64).own == work.hooks.overhead
    assert (work.hooks.overhead == 0) == (name == "random")


def test_own_work_that_depends_on_the_picture_is_that_of_the_pass_that_was_made():
    shape = shapes.pick("embedded")
    (_, method), *_ = budgets.at_budgets("mustdrop", [64], shape.visual)
    found = plan.plan(shape, method, 64)
    scores = cost.linear_flops(1, shape.spec.vision_width, shape.visual)
    assert method.adaptive and found.own > scores


def test_own_work_grows_with_the_width_of_the_model():
    owns = {
        name: plan.plans(shapes.pick(name), ["divprune"], [64], 64)[1].own for name in ("llava-1.5-7b", "llava-1.5-13b")
    }
    similarities = [2 * 576 * 576 * shapes.pick(name).spec.hidden for name in owns]
    assert all(own >= least for own, least in zip(owns.values(), similarities))
    assert owns["llava-1.5-13b"] / owns["llava-1.5-7b"] == pytest.approx(5120 / 4096, rel=0.01)


def test_where_own_work_cannot_be_counted_that_is_said():
    shape = shapes.pick("qwen2.5-vl-7b")
    full, random, late = plan.plans(shape, ["random", "fastv"], [shape.visual // 9], 64)
    assert full.own == random.own == 0, "nothing is nothing at any width"
    assert late.own is None and late.uncounted == plan.SPANS


def test_own_work_on_tiles_is_counted():
    """FastV reads one row: a query, its scores over 2,880 visual tokens, line breaks and words; keys are there."""
    shape = shapes.pick("llava-next-7b")
    *_, late = plan.plans(shape, ["fastv"], [320], 64)
    spec = shape.spec
    assert late.own == 2 * spec.hidden**2 + 2 * spec.hidden * (2880 + late.text)


# -- sums -----------------------------------------------------------------------------------------------------------
def test_sampled_keeps_the_ends():
    assert passes.sampled([5, 3, 5], 4) == [3, 5]
    chosen = passes.sampled(range(100), 5)
    assert len(chosen) == 5 and chosen[0] == 0 and chosen[-1] == 99


def test_times_between_points_lie_on_a_line_and_nowhere_else():
    point = lambda n: parts.Point("prefill", n)  # noqa: E731
    times = passes.Times({point(100): np.array([1.0, 3.0]), point(200): np.array([2.0, 5.0])})
    assert times.at("prefill", 150).tolist() == [1.5, 4.0] and times.at("prefill", 200).tolist() == [2.0, 5.0]
    assert times.at("prefill", 99) is None and times.at("decode", 100) is None
    assert times.over("prefill", [100, 100, 150]).tolist() == [3.5, 10.0]
    assert times.over("prefill", [100, 300]) is None


def test_rounds_stop_in_time_and_change_nothing_else():
    calls = []
    jobs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    rounds, shares = timing.in_turn(jobs, torch.device("cpu"), warmups=2, repeats=3), []
    while True:
        try:
            shares.append(next(rounds))
        except StopIteration as end:
            times, warm = end.value
            break
    assert calls == ["a", "b"] * 5 and warm == 2 and {len(row) for row in times.values()} == {3}
    assert shares == sorted(shares) and shares[-1] == 1
    calls.clear()
    late = timing.in_turn(jobs, torch.device("cpu"), warmups=2, repeats=3, seconds=0)
    assert len(list(late)) == 4 and calls == ["a", "b"] * 2  # one warm-up and one measured round are the least
    with pytest.raises(ValueError, match=">= 1"):
        next(timing.in_turn(jobs, torch.device("cpu"), warmups=0))


def test_short_jobs_are_called_in_a_row(monkeypatch):
    calls = []
    list(timing.in_turn({"a": lambda: calls.append(1)}, torch.device("cpu"), warmups=1, repeats=1, calls=7))
    assert len(calls) == 1 + 7


def decode_step(vlm, entries):
    """A call of every decoder layer of a model, each with a cache of its own, and of the LM head."""
    lm, spec = vlm.adapter.decoder(vlm.model), vlm.spec
    caches = [parts.FullCache(*torch.randn(2, 1, spec.kv_heads, entries, spec.head_dim)) for _ in lm.layers]
    h, ids = torch.randn(1, 1, spec.hidden), torch.tensor([[entries - 1]])

    @torch.inference_mode()
    def step(x=h):
        rope = lm.rotary_emb(x, ids)
        for layer, cache in zip(lm.layers, caches):
            x = layer(x, attention_mask=None, position_embeddings=rope, past_key_values=cache, use_cache=True)
        return vlm.model.lm_head(lm.norm(x[:, -1])).argmax(-1)

    return step


@pytest.mark.slow
def test_one_layer_times_their_number_is_the_whole(monkeypatch):
    """Prefill and tower of the shipped model in the engine, and a decode step over allocated caches, against sums over
    one layer of each kind; best of rounds in turn. The bounds allow a factor of 1.5; a factor of two is found."""
    monkeypatch.setattr(timing.time, "perf_counter", time.process_time)  # of this process: others may be at work, too
    vlm, shape = models.load_vlm("embedded", device="cpu"), shapes.pick("embedded")
    made = parts.Parts(shape, vlm.device, vlm.dtype)
    inputs, text = shape.inputs(), 64
    full = plan.plan(shape, registry.resolve("full"), text)
    whole = ForwardPass(vlm, registry.resolve("full"))
    with torch.inference_mode():
        encoded = encode(whole, inputs)
        image = vlm.config.image_token_id
        prompt = Prompt.build([9] * 32 + [image] + [9] * 32, image, encoded.layout, vlm.device)
        visual = project(whole, encoded)

    @torch.inference_mode()
    def read():
        return prefill(whole, prompt, visual)

    tower = torch.inference_mode()(lambda: encode(ForwardPass(vlm, registry.resolve("full")), inputs))
    length, entries = full.schedule[0] + text, full.schedule[0] + text + 32
    step = decode_step(vlm, entries)
    kinds = {
        p: made.job(p)
        for p in (
            parts.Point("prefill", length), parts.Point("decode", entries), parts.Point("lm_head", 1),
            *passes.tower(shape.spec, full),
        )
    }  # fmt: skip
    jobs = kinds | {"prefill": read, "step": step, "tower": tower}
    rounds = timing.in_turn(jobs, vlm.device, warmups=2, repeats=9, calls=8)
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            best = {name: min(row) for name, row in end.value[0].items()}
            break
    layers, head = shape.spec.layers, best[parts.Point("lm_head", 1)]
    sums = {
        "prefill": layers * best[parts.Point("prefill", length)] + head,
        "step": layers * best[parts.Point("decode", entries)] + head,
        "tower": sum(best[p] for p in passes.tower(shape.spec, full)),
    }
    ratios = {name: best[name] / value for name, value in sums.items()}
    assert all(2 / 3 < ratio < 3 / 2 for ratio in ratios.values()), ratios


# -- prefills of several prompts ------------------------------------------------------------------------------------
def test_prefills_of_several_prompts_stand_beside_their_roofline(record):
    assert record["settings"]["prefill_batches"] == [1, 3] == report.batches(record, "batched_prefill")
    spec, machine = shapes.pick("embedded").spec, record["environment"]
    roofs = machine["peak_flops"], machine["bandwidth"]
    full = record["rows"][0]
    for row in record["rows"]:
        for figures in ("ms", "expected_ms", "ratios", "expected_ratios"):
            assert set(row[figures]["batched_prefill"]) == {"1", "3"}
            assert row[figures]["batched_prefill"]["1"] == row[figures]["prefill"]
        assert row["ms"]["batched_prefill"]["3"]["median"] > 0
    layer = cost.layers.layer_prefill(spec, 640, 3, 4).seconds(*roofs)
    assert full["expected_ms"]["batched_prefill"]["3"] == pytest.approx(1000 * spec.layers * layer)
    lengths = [p["tokens"] for p in record["points"] if p["kind"] == "prefill" and p["batch"] == 3]
    least = 64 + min(n for row in record["rows"] for n in row["schedule"])
    assert len(lengths) == passes.PROMPTS and (min(lengths), max(lengths)) == (least, 640)
    text = lab.table(record)
    assert "prefill of all prompts" in text and "3 prompts of 128 tokens each" in text


def test_prefills_where_nothing_else_is_asked_for():
    chosen = {kind: settings.prompt_batches(kind) for kind in ("cpu", "cuda")}
    assert chosen == {"cpu": (1, 8), "cuda": (1, 8, 32)}
    asked = lab.Settings(prefill_batches=(16, 4))
    assert settings.with_prompts(asked, torch.device("cpu")).prefill_batches == (1, 4, 16)


GROUPED = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 96, "vocab": 64}
GROUPED |= {"vision_width": 32, "vision_heads": 4, "vision_mlp": 32, "projector": (128, 128, 64)}


@pytest.mark.parametrize("name", ["embedded", "qwen2.5-vl-7b"])
@pytest.mark.parametrize("batch", [1, 3])
def test_memory_of_a_prefill_is_known_beforehand(name, batch):
    """Against what torch's profiler sees at its most; Qwen small, for its grouped heads and three axes of positions."""
    shape = shapes.pick(name)
    shape = shape if name == "embedded" else dataclasses.replace(shape, spec=dataclasses.replace(shape.spec, **GROUPED))
    made, asked = parts.Parts(shape, torch.device("cpu"), torch.float32), []
    made._check = lambda values, what: asked.append(values)
    job = made.job(parts.Point("prefill", 640, batch))
    job()
    entering = 4 * batch * 640 * shape.spec.hidden
    assert 4 * asked[0] == pytest.approx(entering + peak_memory.peak_bytes(job, torch.device("cpu")), rel=0.02)


def test_a_prefill_that_does_not_fit_is_left_out_and_told(monkeypatch):
    def check(self, values, what):
        if "prefill of 4 x 640" in what:
            raise memory.TooLarge(f"{what} needs more")

    monkeypatch.setattr(parts.Parts, "_check", check)
    record = lab.run(lab.Settings(**QUICK, methods=("fastervlm",), batches=(1,), prefill_batches=(4,)))
    full, row = record["rows"]
    assert full["ms"]["batched_prefill"]["4"] is None and full["expected_ms"]["batched_prefill"]["4"] > 0
    assert row["ms"]["batched_prefill"]["4"]["median"] > 0 and row["ratios"]["batched_prefill"]["4"] is None
    (skipped,) = record["skipped"]
    assert (skipped["kind"], skipped["tokens"], skipped["batch"], skipped["cause"]) == ("prefill", 640, 4, "memory")
    text = lab.table(record)
    assert "not timed: prefill, batch 4 with 640 tokens each. one layer's prefill of 4 x 640 tokens needs more" in text
    assert "The prefill of 4 prompts at once does not fit into memory" in text


def test_prefills_beyond_the_seconds_are_left_out_and_told(monkeypatch):
    """The single prompt takes twice what the roofline says, so the others are taken to do so, too. Two rounds of 0.2 s
    and of the quicker prefill's 0.8 s fit into 3 s; 1.6 s more in each do not."""
    point = lambda n, batch=1: parts.Point("prefill", n, batch)  # noqa: E731
    expected = {point(100): 0.1, point(100, 8): 0.8, point(50, 8): 0.4}
    monkeypatch.setattr(timing, "seconds_per_call", lambda work, device: 0.2)
    jobs, skipped = {point(100): lambda: None}, {}
    made = SimpleNamespace(device=torch.device("cpu"), job=lambda point: point)
    experiment.add_prefills(made, jobs, skipped, expected, lab.Settings(seconds=3), time.perf_counter())
    assert list(jobs) == [point(100), point(50, 8)] and list(skipped) == [point(100, 8)]
    cause, reason = skipped[point(100, 8)]
    assert cause == "time" and "about 5 s" in reason and "of the 3 s allowed 3 s are left" in reason


def test_a_row_without_time_says_so(record):
    found = json.loads(json.dumps(record))
    full, row = found["rows"][:2]
    full["ms"]["batched_prefill"]["3"] = row["ratios"]["batched_prefill"]["3"] = None
    point = {"kind": "prefill", "tokens": 640, "batch": 3, "side": None}
    found["skipped"] = [point | {"cause": "time", "reason": "Allow more seconds."}]
    assert report.prompts_reason(found, full, 3) == "The prefill of 3 prompts at once takes too long for this run."
    assert "The full model's prefill of them takes too long" in report.prompts_reason(found, row, 3)
    assert "not timed: prefill, batch 3 with 640 tokens each. Allow more seconds." in lab.table(found)


def older(record):
    """As records were before prompts were batched and own work counted."""
    found = json.loads(json.dumps(record))
    del found["settings"]["prefill_batches"]
    found["points"] = [p for p in found["points"] if p["kind"] != "prefill" or p["batch"] == 1]
    for row in found["rows"]:
        del row["own_flops"]
        for figures in ("ms", "expected_ms", "ratios", "expected_ratios"):
            del row[figures]["batched_prefill"]
    return found


def test_older_records_can_be_read(record):
    text = lab.table(older(record))
    assert "1 prompt" in text and "3 prompts" not in text and "not counted" in text


# -- the record -----------------------------------------------------------------------------------------------------
def test_rows_hold_what_is_counted(record):
    spec = shapes.pick("embedded").spec
    full, *others = record["rows"]
    assert full["method"]["method"] == "full" and len(others) == 8
    for row in record["rows"]:
        name, early = row["method"]["method"], row["budget"]
        if name != "downsample":
            projected = early if name == "fastervlm" else None  # the only one here that cuts before the projector
            assert row["flops"] == cost.run_flops(spec, row["schedule"], 64, 64, projector_tokens=projected)
        assert row["kv_bytes"] == cost.kv_bytes(spec, row["cached"], 64, 64, 4)
    at = {(row["method"]["method"], row["budget"]): row for row in others}
    for name in ("fastervlm", "fastv", "downsample"):
        more, fewer = at[name, 144], at[name, 64]
        assert fewer["flops"]["total"] < more["flops"]["total"] < full["flops"]["total"]
        assert fewer["kv_bytes"] < more["kv_bytes"] < full["kv_bytes"]
        assert fewer["expected_ms"]["prefill"] < more["expected_ms"]["prefill"] < full["expected_ms"]["prefill"]


def test_stages_add_up_and_the_full_model_is_the_reference(record):
    full = record["rows"][0]
    for row in record["rows"]:
        expected = row["expected_ms"]
        parts_of_it = sum(expected[s] for s in ("vision", "projector", "prefill", "lm_head"))
        assert expected["ttft"] == pytest.approx(parts_of_it)
        assert row["ms"]["ttft"]["n"] == record["repeats"] == 3
        assert row["expected_ratios"]["ttft"] == pytest.approx(full["expected_ms"]["ttft"] / expected["ttft"])
        assert set(row["ms"]["decode"]) == {"1", "4"}
    assert full["ratios"]["prefill"]["median"] == full["expected_ratios"]["prefill"] == 1
    assert rows(record, "fastervlm")[0]["ms"]["vision"] == full["ms"]["vision"]  # the same points


def test_own_work_is_shown_beside_the_times_and_not_in_them(record):
    owns = {row["method"]["method"]: row["own_flops"] for row in record["rows"]}
    assert owns["full"] == owns["downsample"] == 0 and min(owns["fastervlm"], owns["fastv"], owns["ficoco-l"]) > 0
    assert all(row["flops"]["compression"] == 0 for row in record["rows"])
    text = lab.table(record)
    assert "own work, FLOPs, not timed" in text and report.own_work(rows(record, "ficoco-l")[-1]) in text


def test_a_smaller_picture_makes_the_tower_cheaper(record):
    small, full = rows(record, "downsample")[-1], record["rows"][0]
    assert small["expected_ms"]["vision"] < full["expected_ms"]["vision"]
    assert small["flops"]["vision"] < full["flops"]["vision"]


def test_the_environment_and_the_shape_are_told(record):
    e = record["environment"]
    assert e["peak_flops"] > 1e8 and e["bandwidth"] > 1e7 and e["dtype"] == "float32" and "batch" not in e
    assert report.spec_of(record).layers == shapes.pick("embedded").spec.layers
    for p in record["points"]:
        seconds = cost.Work(p["flops"], p["bytes"]).seconds(e["peak_flops"], e["bandwidth"])
        assert p["expected_ms"] == pytest.approx(1000 * seconds) and p["ms"]["median"] > 0


def test_table_names_every_row_and_says_what_is_left_out(record):
    text = lab.table(record)
    assert all(text.count(report.label(row)) >= 3 for row in record["rows"])
    assert "own work is counted" in text and "not to be quoted" in text and "random weights" in text
    assert "attention and MLP" in text  # the note of FiCoCo-L
    fine = lab.table(record | {"warmups": 2, "repeats": 5})
    assert "not to be quoted" not in fine


def test_reasons_follow_the_roofline(record):
    row = rows(record, "fastervlm")[-1]
    machine = record["environment"]
    compute_bound = record | {"environment": machine | {"peak_flops": 1e9, "bandwidth": 1e12}}
    memory_bound = record | {"environment": machine | {"peak_flops": 1e15, "bandwidth": 1e9}}
    assert "Arithmetic decides" in report.prefill_reason(compute_bound, row)
    assert "Reading the weights decides" in report.prefill_reason(memory_bound, row)
    slow = row | {"ratios": row["ratios"] | {"prefill": {"median": 1.0, "iqr": 0.0, "n": 3}}}
    assert "GFLOP/s over 128 tokens" in report.gap_reason(record, slow)
    enough = row | {"ratios": row["ratios"] | {"prefill": {"median": 1e3, "iqr": 0.0, "n": 3}}}
    assert report.gap_reason(record, enough) is None
    assert "the roofline expects" in report.decode_reason(record, row, 4)


# -- methods with trained weights -----------------------------------------------------------------------------------
@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder in which q-former seems to be trained."""
    (tmp_path / "q-former").mkdir()
    for name in (weights_on_disk.WEIGHTS, weights_on_disk.FACTS):
        (tmp_path / "q-former" / name).touch()
    monkeypatch.setattr(weights_on_disk, "FOLDER", tmp_path)


def test_methods_with_trained_weights_are_not_offered(zoo):
    offered = {card.name for card in lab.offered()}
    assert {card.name for card in registry.list_methods()} - offered == {"q-former"} and "fastv" in offered


@pytest.mark.parametrize("name", ["q-former", "q-former@0.1", "vlora"], ids=["here", "with retention", "not here"])
def test_methods_with_trained_weights_are_refused(zoo, name):
    with pytest.raises(ValueError, match=r"needs weights of its own that were trained.*need no training"):
        lab.run(lab.Settings(**QUICK, methods=("fastv", name)))


# -- refusals -------------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 10**8)
    with pytest.raises(
        ValueError, match=r"one layer of each kind of LLaVA-1.5-13B needs 2\.\d GB on cpu, .* 0.1 GB free"
    ):
        parts.Parts(shapes.pick("llava-1.5-13b"), torch.device("cpu"), torch.float32)


def test_a_cache_that_does_not_fit_is_left_out_and_told(monkeypatch):
    def check(self, values, what):
        if "cache of 4 answers with 672" in what:
            raise memory.TooLarge(f"{what} needs more")

    monkeypatch.setattr(parts.Parts, "_check", check)
    record = lab.run(lab.Settings(**QUICK, methods=("fastervlm",), batches=(1, 4)))
    full, row = record["rows"]
    assert full["ms"]["decode"]["4"] is None and row["ms"]["decode"]["4"]["median"] > 0
    assert row["ratios"]["decode"]["4"] is None and row["ratios"]["decode"]["1"]["median"] > 0
    (skipped,) = record["skipped"]
    assert (skipped["batch"], skipped["tokens"]) == (4, 672)
    text = lab.table(record)
    assert (
        "not timed: decode step, batch 4 with 672 entries" in text and "does not fit into this machine's memory" in text
    )


def test_too_little_time_is_refused_with_what_would_do(monkeypatch):
    slow = {"peak_flops": 1e9, "bandwidth": 1e9}
    monkeypatch.setattr(timing, "roofs", lambda device, dtype: slow)
    with pytest.raises(ValueError, match=r"at least \d+ s on this machine, more than the 40 s allowed; allow \d+ s"):
        lab.run(lab.Settings(dtype="float32"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "llama"}, "unknown model shape"),
        ({"methods": ("fastvv",)}, "did you mean fastv"),
        ({"tokens": (577,)}, "give 1 to 576"),
        ({"batches": (0,)}, "batch 0 must be a whole number from 1"),
        ({"prefill_batches": (0,)}, "prefill batch 0 must be a whole number from 1"),
        ({"new_tokens": 1}, "new_tokens must be a whole number from 2"),
        ({"text_tokens": 0}, "text_tokens"),
        ({"repeats": 0}, "repeats"),
        ({"seconds": 0.1}, "seconds must be from 1 to 3600"),
        ({"seconds": math.nan}, "seconds must be from 1 to 3600"),
        ({"dtype": "int8"}, "dtype 'int8' cannot be used"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_bad_settings_say_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message):
        lab.run(lab.Settings(**(QUICK | change)))


def test_closing_the_stream_stops_the_work():
    events = lab.stream(lab.Settings(**QUICK))
    kinds = [next(events).kind for _ in range(5)]
    assert kinds[0] == "stage" and kinds[-1] == "progress"
    events.close()
    with pytest.raises(StopIteration):
        next(events)
