"""MustDrop: its maths by hand and against loops, its stages in the engine."""

import math

import pytest
import tiny
import torch

from vtc_demo import engine, methods
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Site
from vtc_demo.engine import answer, language
from vtc_demo.methods.rehearsal import HEADS, SIZE, TEXT, SeededContext
from vtc_demo.methods.several import mustdrop

tensor = torch.tensor
LLAVA = ModelShape(grid=(24, 24), patch_size=14, vision_layers=24, feature_layer=22, llm_layers=32, has_cls=True)


# -- stage 1 --------------------------------------------------------------------------------------------------------
def test_windows_by_hand():
    assert mustdrop.windows((2, 4), 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert mustdrop.windows((3, 5), 2).tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]  # a row and a column are left over
    assert mustdrop.windows((24, 24), 3).shape == (64, 9)
    with pytest.raises(ValueError, match=r"window=3 is larger than the grid of 2 x 24"):
        mustdrop.windows((2, 24), 3)


def test_likeness_equals_the_loops():
    x, places = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), mustdrop.windows((4, 4), 2)
    for window, got in zip(places.tolist(), mustdrop.likeness(x, places)):
        pairs = [torch.cosine_similarity(x[a], x[b], 0).item() for a in window for b in window if a != b]
        assert got.item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def merged(tau):
    """CLS and a 2 x 4 grid: the right window is of one direction, the left one nearly so."""
    x = tensor([[9.0, 9], [1, 0], [1, 0], [2, 2], [2, 2], [1, 0], [1, 0.5], [4, 4], [6, 6]])
    return x, mustdrop.merge_windows(x, 1, mustdrop.windows((2, 4), 2), tau)


def test_merging_by_hand():
    x, reduction = merged(0.99)
    assert reduction.anchor.tolist() == [0, 8, 1, 2, 5, 6]  # the merged window first, at its last patch
    torch.testing.assert_close(reduction.apply(x), tensor([[9.0, 9], [3.5, 3.5], [1, 0], [1, 0], [1, 0], [1, 0.5]]))
    _, both = merged(0.5)
    assert both.anchor.tolist() == [0, 8, 6]  # by falling likeness
    torch.testing.assert_close(both.dense().sum(1), torch.ones(3))


def test_nothing_alike_nothing_merged():
    x = torch.eye(9)[:, :9]
    assert mustdrop.merge_windows(x, 1, mustdrop.windows((2, 4), 2), 0.5) is None


def test_key_set_is_rounded_up_and_best_first():
    assert mustdrop.key_set(tensor([0.1, 0.4, 0.2, 0.3]), 0.5).tolist() == [1, 3]
    assert [len(mustdrop.key_set(torch.rand(n), 0.08)) for n in (576, 440, 25, 26, 1)] == [47, 36, 2, 3, 1]
    assert len(mustdrop.key_set(torch.rand(9), 0.0)) == 0


# -- stage 2 --------------------------------------------------------------------------------------------------------
ROWS = tensor([[0.30, 0.02, 0.10, 0.01], [0.30, 0.02, 0.00, 0.01]])  # two text tokens, four visual; sums .6 .04 .1 .02


def test_both_thresholds_must_fail():
    none = tensor([], dtype=torch.long)
    keep = lambda gamma, alpha, key=none: mustdrop.passes(ROWS, key, gamma, alpha).tolist()  # noqa: E731
    assert keep(0.1, 0.05) == [0, 2]  # shares .79 .05 .13 .03
    assert keep(0.5, 0.05) == [0, 2]  # token 2 by its one text token
    assert keep(0.5, 0.2) == [0]
    assert keep(0.5, 0.2, tensor([3])) == [0, 3]
    assert keep(1.0, 1.0) == [0]  # nothing passes: the nearest one stays
    assert keep(0.04, 1.0) == [0, 1, 2]


def test_passes_equals_the_loops():
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        rows = torch.rand(7, 30, generator=generator).pow(4) / 50
        key = torch.randperm(30, generator=generator)[:4]
        expected = []
        for j in range(30):
            g, p = sum(rows[:, j].tolist()), max(rows[:, j].tolist())
            if not (g < 0.03 * rows.sum().item() and p < 0.012) or j in key:
                expected.append(j)
        assert mustdrop.passes(rows, key, 0.03, 0.012).tolist() == expected
        assert 4 < len(expected) < 30


def test_a_budget_is_a_common_factor_on_both_thresholds():
    rows = torch.rand(7, 30, generator=torch.Generator().manual_seed(2)).pow(4) / 50
    none = tensor([], dtype=torch.long)
    for keep in (1, 5, 17, 29):
        chosen = mustdrop.strongest(rows, none, keep, 0.03, 0.012)
        factor = mustdrop.strength(rows, 0.03, 0.012).sort(descending=True).values[keep - 1].item() * (1 - 1e-6)
        assert torch.equal(chosen, mustdrop.passes(rows, none, 0.03 * factor, 0.012 * factor))
        assert len(chosen) == keep


def test_key_tokens_come_first():
    key = tensor([3, 1, 2])
    assert mustdrop.strongest(ROWS, key, 3, 0.1, 0.1).tolist() == [1, 2, 3]
    assert mustdrop.strongest(ROWS, key, 4, 0.1, 0.1).tolist() == [0, 1, 2, 3]
    assert mustdrop.strongest(ROWS, key, 2, 0.1, 0.1).tolist() == [1, 3]  # the best two of the key set


def test_cuts():
    assert mustdrop.cuts("2, 6, 10, 14", 32) == (3, 7, 11, 15)
    assert mustdrop.cuts("2,6,20", 32) == (3, 7, 21)
    assert mustdrop.cuts("2, 6, 10, 14", 8) == (1, 2, 3, 4)
    assert mustdrop.cuts("2, 6, 10, 14", 4) == (1, 2)  # several fall on one layer
    for bad in ("", "2,", "31", "40", "-1", "two", "2.5", "²"):
        with pytest.raises(ValueError, match="whole numbers from 0 to 30"):
            methods.MustDrop(layers=bad)
    with pytest.raises(ValueError, match="must be text"):
        methods.MustDrop(layers=2)
    with pytest.raises(ValueError, match="fewer than 2 decoder layers"):
        mustdrop.cuts("2", 1)


@pytest.mark.parametrize("wanted", [192, 128, 64])
@pytest.mark.parametrize(("depth", "at"), [(32, (3, 7, 11, 15)), (8, (1, 2, 3, 4))])
def test_counts_meet_the_average(wanted, depth, at):
    for n in (576, 440):
        done = mustdrop.counts(n, wanted, at, depth, 1, average=True)
        spans = [b - a for a, b in zip((0, *at), (*at, depth))]
        mean = sum(c * s for c, s in zip((n, *done), spans)) / depth
        lowest = (n * at[0] + depth - at[0]) / depth
        assert mean == pytest.approx(max(wanted, lowest), abs=1)
        assert sorted(done, reverse=True) == done


def test_counts_corner_cases():
    final = lambda *a: mustdrop.counts(576, *a, average=False)  # noqa: E731
    assert final(64, (3, 7, 11, 15), 32, 1)[-1] == 64
    assert final(36, (3, 7), 32, 1) == [144, 36]  # falling by one factor
    assert final(576, (3, 7), 32, 1) == [576, 576]
    assert mustdrop.counts(576, 20, (3, 7), 32, 47, average=True) == [47, 47]  # out of reach: the floor
    assert mustdrop.counts(5, 9, (3,), 32, 1, average=True) == [5]


# -- the method -----------------------------------------------------------------------------------------------------
def test_sites_follow_the_switches():
    sites = lambda **how: [str(s) for s in methods.MustDrop(**how).sites(LLAVA)]  # noqa: E731
    prefill = ["projector", "llm_layer(3)", "llm_layer(7)", "llm_layer(11)", "llm_layer(15)"]
    assert sites() == ["vision_layer(1)", *prefill, "kv_cache"]
    assert sites(merge=False) == [*prefill, "kv_cache"]
    assert sites(cache=False) == ["vision_layer(1)", *prefill]
    assert sites(prefill=False) == ["vision_layer(1)"]
    assert sites(key_share=0)[1] == "llm_layer(3)"
    assert sites(merge=False, prefill=False) == []
    assert methods.MustDrop().trim_from(LLAVA) == 2
    with pytest.raises(ValueError, match="window=24"):
        methods.MustDrop(window=24).sites(ModelShape((6, 8), 14, 4, 2, 8, True))


N, NEW = 36, 4


@pytest.fixture(scope="module")
def vlm():
    return tiny.vlm(eos=False)


def run(vlm, **how):
    how = {"window": 2, "tau": 0.35, "layers": "2, 10"} | how
    return engine.run(vlm, tiny.image(), tiny.QUESTION, methods.MustDrop(**how), max_new_tokens=NEW)


def test_all_stages_in_the_engine(vlm):
    done = run(vlm, layers="6, 22", retention=0.5)
    steps = {str(s.site): s.reduction for s in done.trace.steps}
    assert list(steps) == ["vision_layer(1)", "projector", "llm_layer(1)", "llm_layer(3)", "kv_cache"]
    after = steps["projector"].m
    assert after < N and (N - after) % 3 == 0  # windows of four became one
    torch.testing.assert_close(steps["vision_layer(1)"].dense().sum(1), torch.ones(after + 1))
    at = mustdrop.cuts("6, 22", 4)
    first, second = mustdrop.counts(after, 18, at, 4, 3, average=True)
    assert done.trace.schedule == [after, first, first, second]
    assert done.trace.equivalent_tokens == pytest.approx(18, abs=1)
    text = done.kv_lengths[-1] - second
    assert done.kv_lengths == [second + text] * 4  # trimmed from the layer before the first cut on
    untrimmed = run(vlm, layers="6, 22", retention=0.5, cache=False)
    assert untrimmed.kv_lengths == [n + text for n in done.trace.schedule]
    assert done.kv_bytes < untrimmed.kv_bytes and done.flops["decode"] < untrimmed.flops["decode"]
    assert done.flops["prefill"] == untrimmed.flops["prefill"]
    assert done.token_ids[0] == untrimmed.token_ids[0]  # the first token comes before the cache is trimmed
    torch.testing.assert_close(done.trace.product().dense().sum(1), torch.ones(second))


def test_the_first_layers_keep_their_cache(vlm):
    done = run(vlm, layers="22, 25", retention=0.5, budget="final", merge=False)
    schedule = done.trace.schedule
    assert schedule[:3] == [N] * 3 and schedule[3] == 18
    text = done.kv_lengths[0] - N
    assert done.kv_lengths == [N + text, N + text, 18 + text, 18 + text]


def test_key_tokens_survive_whatever_the_thresholds(vlm):
    how = {"mode": "threshold", "gamma": 1.0, "alpha": 1.0, "merge": False}
    done = run(vlm, **how, key_share=0.2)
    assert done.trace.schedule[-1] == math.ceil(0.2 * N)
    layer = vlm.model.model.vision_tower.encoder.layers[3]  # the one after the feature layer
    with torch.inference_mode():
        tower = vlm.model.model.vision_tower
        pixels = vlm.processor.image_processor(images=tiny.image(), return_tensors="pt")["pixel_values"]
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2][0]
        x = layer.layer_norm1(hidden)
        q, k = (p(x).view(N + 1, 4, 8).transpose(0, 1) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        cls = (q[:, :1] @ k.transpose(1, 2) / 8**0.5).softmax(-1).mean(0)[0, 1:]
    assert done.trace.product().anchor.sub(1).tolist() == cls.topk(8).indices.sort().values.tolist()
    assert run(vlm, **how, key_share=0.0).trace.schedule[-1] == 1  # the documented floor
    everything = run(vlm, **(how | {"gamma": 1e-6}))
    assert everything.trace.schedule == [N] * 4 and everything.token_ids == full(vlm)


def full(vlm):
    return engine.run(vlm, tiny.image(), tiny.QUESTION, methods.Full(), max_new_tokens=NEW).token_ids


def test_all_switches_off_is_the_full_model(vlm):
    done = run(vlm, merge=False, prefill=False)
    assert done.token_ids == full(vlm) and done.flops["compression"] == 0


def test_released_positions_count_each_layers_cache(vlm, monkeypatch):
    how = {"layers": "6, 22", "retention": 0.5, "merge": False}
    ours, released = run(vlm, **how), run(vlm, **how, released_positions=True)
    assert ours.trace.schedule == released.trace.schedule and ours.kv_lengths == released.kv_lengths
    done, real = [], language.prefill
    monkeypatch.setattr(answer, "prefill", lambda *args: done.append(real(*args)) or done[-1])
    lengths = run(vlm, **how, released_positions=True).kv_lengths
    assert done[0].positions == [length - NEW + 1 for length in lengths]
    kept = run(vlm, **how)
    assert set(done[1].positions) == {N + lengths[0] - kept.trace.schedule[-1] - NEW + 1}  # the prompt's own length


def test_merged_tokens_keep_their_place_if_asked(vlm):
    step = lambda **how: run(vlm, **how).trace.steps[0].reduction  # noqa: E731
    moved, raster = step(), step(raster=True)
    assert raster.anchor.tolist() == sorted(moved.anchor.tolist()) != moved.anchor.tolist()
    assert raster.dense().sum(0).tolist() == moved.dense().sum(0).tolist()


def test_runs_leave_no_state_behind(vlm):
    method = methods.MustDrop(window=2, tau=0.35)
    ask = lambda seed: engine.run(vlm, tiny.image(seed), tiny.QUESTION, method, max_new_tokens=NEW)  # noqa: E731
    first, _, again = ask(0), ask(1), ask(0)
    assert first.token_ids == again.token_ids and first.trace.schedule == again.trace.schedule
    for a, b in zip(first.trace.steps, again.trace.steps):
        assert torch.equal(a.reduction.anchor, b.reduction.anchor)


def test_overhead_by_hand():
    shape = ModelShape((4, 4), 14, 4, 2, 8, True)
    method, n, width = methods.MustDrop(window=2), 17, HEADS * SIZE
    at = lambda *site: method.overhead_flops(SeededContext(Site(*site), shape, 16, n, 1))  # noqa: E731
    squares, pairs = 2 * 16 * width, 2 * 4 * 4 * 4 * width + 4 * 4 * 4  # 4 windows of 4 patches; sums over both
    assert at("vision_layer", 1) == 3 * 16 * width + pairs + squares
    assert (at("projector"), at("kv_cache")) == (0, 0)
    assert at("llm_layer", 1) == sum(TEXT) * n
