"""FiCoCo: its maths by hand and against loops, its layers in the engine."""

import itertools

import pytest
import tiny
import torch
from oracle import reference_embeds
from torch.utils._python_dispatch import TorchDispatchMode

from vtc_demo import cost, engine, methods, registry
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Site
from vtc_demo.methods.encoder import ficoco_v
from vtc_demo.methods.llm import ficoco_l
from vtc_demo.methods.maths import ficoco
from vtc_demo.methods.rehearsal import SeededContext
from vtc_demo.models import attention

tensor = torch.tensor
LLAVA = ModelShape(grid=(24, 24), patch_size=14, vision_layers=24, feature_layer=22, llm_layers=32, has_cls=True)
NEW = 4


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- counts ---------------------------------------------------------------------------------------------------------
def test_even_and_per_layer():
    assert ficoco.even(576, 192, 3) == [448, 320, 192]
    assert ficoco.even(576, 64, 11)[-1] == 64
    assert ficoco.even(576, 0, 11, per_layer=35)[-1] == 191 and ficoco.even(576, 0, 11, per_layer=47)[-1] == 59
    assert ficoco.even(20, 1, 3, per_layer=9) == [11, 2, 1]
    falls = {a - b for a, b in itertools.pairwise([576, *ficoco.even(576, 64, 11)])}
    assert falls <= {46, 47}


@pytest.mark.parametrize(("depth", "start"), [(32, 4), (8, 1)])
@pytest.mark.parametrize("mean", [400, 192, 170])
def test_ramp_meets_the_mean(depth, start, mean):
    left = ficoco.ramp(576, mean, start, depth)
    entering = [576] * (start + 1) + left
    assert len(entering) == depth and sum(entering) / depth == pytest.approx(mean, abs=0.6)
    falls = [a - b for a, b in itertools.pairwise(entering) if b > 1]
    assert max(falls[start:]) - min(falls[start : falls.index(max(falls)) + 1]) <= 1  # the same at each layer


def test_ramp_corner_cases():
    assert ficoco.ramp(576, 20, 4, 8) == [1, 1, 1]  # out of reach: one token
    assert ficoco.ramp(576, 576, 4, 8) == [576] * 3
    assert ficoco.ramp(100, 50, 0, 4, per_layer=30) == [70, 40, 10]


def test_starts_scale_and_late_ones_are_refused():
    layers = lambda cls, **how: list(cls(**how).layers(LLAVA))  # noqa: E731
    assert layers(methods.FiCoCoV) == list(range(12, 23))
    assert layers(methods.FiCoCoL) == list(range(4, 31))
    small = ModelShape((24, 24), 14, 8, 6, 8, True)
    assert list(methods.FiCoCoV().layers(small)) == [4, 5, 6] and list(methods.FiCoCoL().layers(small)) == list(
        range(1, 7)
    )
    with pytest.raises(ValueError, match="last layer that can be reduced is 22"):
        methods.FiCoCoV(start=23).sites(LLAVA)
    with pytest.raises(ValueError, match="choose a lower start"):
        methods.FiCoCoL(start=30).sites(small)
    with pytest.raises(ValueError, match="needs a CLS token"):
        methods.FiCoCoV(released=True).sites(ModelShape((6, 6), 14, 4, 2, 4, False))


# -- filter ---------------------------------------------------------------------------------------------------------
def test_penalty_by_hand():
    """Grid 2 x 4; token order mixed, patch 5 gone, CLS first. Windows: patches 0 1 4 (5) and 2 3 6 7."""
    cells = tensor([-1, 4, 0, 1, 2, 3, 6, 7])
    score = tensor([9.0, 3, 1, 2, -4, -2, -3, -2])
    assert ficoco.penalise(score, cells, (2, 4)).tolist() == [9, 6, 1, 2, -4, -1, -3, -2]  # first of two equals


def test_penalty_equals_the_loops():
    grid, cells = (5, 7), torch.randperm(35, generator=torch.Generator().manual_seed(3))[:20]
    score = seeded(20)
    expected = score.clone()
    for i, j in itertools.product(range(0, 5, 2), range(0, 7, 2)):
        inside = [t for t, c in enumerate(cells.tolist()) if c // 7 in (i, i + 1) and c % 7 in (j, j + 1)]
        if inside:
            worst = max(inside, key=lambda t: score[t].item())
            expected[worst] *= 2 if score[worst] > 0 else 0.5
    torch.testing.assert_close(ficoco.penalise(score, cells, grid), expected)


def test_filters_by_hand():
    visual, other = tensor([0.2, 0.4]), tensor([0.1, 0.8])
    torch.testing.assert_close(ficoco.redundancy_v(visual, other, 0.35), tensor([0.07 - 0.065, 0.14 - 0.52]))
    torch.testing.assert_close(ficoco.redundancy_l(visual, other, 0.6), tensor([0.12 - 0.04, 0.24 - 0.32]))
    keys = tensor([[1.0, 0], [0, 1], [1, 1]])  # their mean points along the third
    torch.testing.assert_close(ficoco.no_cls(keys), tensor([-(0.5**0.5), -(0.5**0.5), -1]))


# -- correlate and compress -------------------------------------------------------------------------------------------
def test_bridge_equals_the_loops():
    direct, out, back = seeded(3, 5), seeded(3, 4, seed=1), seeded(4, 5, seed=2)
    got = ficoco.bridge(direct, out, back, 0.6)
    for i, j in itertools.product(range(3), range(5)):
        way = sum(out[i, k].item() * back[k, j].item() for k in range(4)) / 4
        assert got[i, j].item() == pytest.approx(0.6 * direct[i, j].item() + 0.4 * way, abs=1e-5)
    torch.testing.assert_close(ficoco.bridge(direct, out, back, 0.6, mean=False), 0.6 * direct + 0.4 * out @ back)


@pytest.mark.parametrize("eps", [0.0, 0.5, 0.9, 0.998, 1.0])
@pytest.mark.parametrize("columns", [1, 2, 10, 11, 500, 501, 502, 534])
def test_fan_out_counts_what_the_quantile_leaves(columns, eps):
    row = torch.randperm(columns, generator=torch.Generator().manual_seed(columns)).double()
    bound = row.quantile(eps).item()
    at_or_above, above = (row >= bound - 1e-9).sum().item(), (row > bound + 1e-9).sum().item()
    assert ficoco.fan_out(columns, eps) == at_or_above
    assert ficoco.fan_out(columns, eps, strict=True) == max(1, above)


def test_one_layer_equals_the_formulas():
    """CLS and 12 patches, 5 discarded, eps 0.7: the definition in loops."""
    n, count, eps = 13, 5, 0.7
    score, pairs, tokens = seeded(n - 1), seeded(n, n, seed=1).softmax(-1), seeded(n, 4, seed=2)
    reduction = ficoco.reduce(score, lambda s, t: pairs[s][:, t], 1, count, eps)
    discarded = sorted(sorted(range(1, n), key=lambda i: -score[i - 1].item())[:count])
    kept = [j for j in range(n) if j not in discarded]
    alpha = {}
    for i in discarded:
        row = pairs[i, kept[1:]]
        chosen = [j for j in kept[1:] if pairs[i, j] >= row.quantile(eps)]
        assert len(chosen) == 2
        alpha |= {(i, j): (pairs[i, j] / sum(pairs[i, c] for c in chosen)).item() for j in chosen}
    for row, j in zip(reduction.apply(tokens), kept):
        given = [(i, a) for (i, t), a in alpha.items() if t == j]
        expected = (tokens[j] + sum(a * tokens[i] for i, a in given)) / (1 + sum(a for _, a in given))
        torch.testing.assert_close(row, expected)
    assert reduction.anchor.tolist() == kept
    share = reduction.dense()
    torch.testing.assert_close(share.sum(1), torch.ones(n - count))
    assert share[0].tolist() == [1.0] + [0.0] * 12  # CLS takes part in nothing


def test_undivided_sums_add_up():
    kept, discarded = tensor([0, 1, 3]), tensor([2])
    reduction, whole = ficoco.compress(kept, discarded, tensor([[2, 0]]), tensor([[0.75, 0.25]]), 4, divide=False)
    assert reduction.dense().tolist() == [[1, 0, 0.25, 0], [0, 1, 0, 0], [0, 0, 0.75, 1]]
    assert whole.tolist() == [1.25, 1, 1.75]


def test_released_l_loses_what_it_sends_to_discarded_tokens():
    pairs = seeded(46, 46)
    visual, text = torch.arange(3, 43), tensor([0, 1, 2, 43, 44, 45])  # text on both sides
    reduction, discarded, target, alpha = ficoco_l.released_layer(pairs, visual, text, 20, eps=0.8)
    assert 0 not in discarded and reduction.anchor.tolist() == [j for j in range(40) if j not in discarded.tolist()]
    lost = torch.isin(target, discarded)
    assert lost.any() and not torch.isin(target, discarded[:, None]).all()
    dense = reduction.dense()
    given = dense.sum() - reduction.m
    assert given.item() == pytest.approx(alpha[~lost].sum().item(), abs=1e-5)
    assert dense[torch.arange(20), reduction.anchor].tolist() == [1.0] * 20


def test_released_v_puts_token_0_last():
    reduction, discarded, target, _ = ficoco_v.released_layer(seeded(37, 37), 10, torch.arange(37) - 1, (6, 6))
    assert reduction.anchor[-1] == 0 and 0 not in discarded
    assert target.shape == (10, 1)  # 37 entries, quantile 0.998: one
    whole = reduction.dense().sum(1)
    torch.testing.assert_close(whole, torch.ones(27))


# -- in the engine --------------------------------------------------------------------------------------------------
N = 36


@pytest.fixture(scope="module")
def vlm():
    return tiny.vlm(eos=False)


def run(vlm, method, **options):
    return engine.run(vlm, tiny.image(), tiny.QUESTION, method, **({"max_new_tokens": NEW} | options))


def test_v_leaves_what_was_asked_for(vlm):
    done = run(vlm, methods.FiCoCoV(retention=0.5, start=6))  # inside encoder layers 1 and 2 of 4
    assert [str(s.site) for s in done.trace.steps] == ["vision_layer(1)", "vision_layer(2)", "projector"]
    assert [s.reduction.m for s in done.trace.steps] == [28, 19, 18]
    assert done.trace.schedule == [18] * 4
    share = done.trace.product().dense()
    torch.testing.assert_close(share.sum(1), torch.ones(18))
    assert share[:, 0].eq(0).all()  # nothing of CLS
    assert done.trace.fate().counts["kept"] == 18 and done.trace.fate().counts["merged"] > 10


def test_l_falls_at_every_layer(vlm):
    vlm.workspace.forget()
    done = run(vlm, methods.FiCoCoL(retention=0.6))
    left = ficoco.ramp(N, 22, 0, 4)
    assert [str(s.site) for s in done.trace.steps] == ["projector", "llm_layer(0)", "llm_layer(1)", "llm_layer(2)"]
    assert done.trace.schedule == [N, *left]
    text = done.kv_lengths[0] - N
    assert done.kv_lengths == [n + text for n in done.trace.schedule]  # a layer's keys come before its reduction
    torch.testing.assert_close(done.trace.product().dense().sum(1), torch.ones(left[-1]))
    spec, widths = vlm.spec, [*done.trace.schedule[1:], left[-1]]  # the MLPs already see fewer
    whole = cost.run_flops(spec, done.trace.schedule, text - NEW + 1, NEW)
    spared = sum(done.trace.schedule) - sum(widths)
    assert done.flops["prefill"] == whole["prefill"] - 3 * 2 * spared * spec.hidden * spec.intermediate
    assert done.flops["decode"] == whole["decode"] and done.flops["vision"] == whole["vision"]


@torch.no_grad()
def test_inside_means_between_attention_and_mlp(vlm):
    """One reduction inside a decoder layer, against transformers' layer with its MLP put off."""
    lm, left = vlm.model.model.language_model, []
    handle = lm.layers[3].register_forward_hook(lambda _, __, out: left.append(out))
    done = run(vlm, methods.FiCoCoL(per_layer=10, start=16), max_new_tokens=1)  # inside layer 2 of 4
    handle.remove()
    (step,) = [s for s in done.trace.steps if s.site.kind == "llm_layer"]
    assert step.site == Site("llm_layer", 2) and step.inside and step.reduction.m == N - 10
    h, start = reference_embeds(vlm)
    positions = torch.arange(h.shape[1])
    rest = len(positions) - start - N
    matrix = torch.block_diag(torch.eye(start), step.reduction.dense(), torch.eye(rest))
    for i, layer in enumerate(lm.layers):
        mask = torch.full((len(positions), len(positions)), -torch.inf).triu(1)[None, None]
        how = {"attention_mask": mask, "position_embeddings": lm.rotary_emb(h, positions[None])}
        if i != 2:
            h = layer(h, **how)
            continue
        h = matrix @ (h + layer.self_attn(layer.input_layernorm(h), **how)[0])  # [1, S, D] -> [1, S - 10, D]
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        positions = torch.cat([positions[:start], start + step.reduction.anchor, positions[start + N :]])
    torch.testing.assert_close(left[0], h, atol=1e-4, rtol=1e-4)


def test_vl_reduces_twice(vlm):
    method = methods.FiCoCoVL(retention=0.36)
    done = run(vlm, method)
    assert done.trace.schedule[0] == round(0.6 * N)
    assert done.trace.equivalent_tokens == pytest.approx(0.36 * N, abs=1)
    assert {s.site.kind for s in done.trace.steps} == {"vision_layer", "projector", "llm_layer"}
    assert run(vlm, methods.FiCoCoVL(retention=0.36, split=0.0)).trace.schedule[0] == N
    assert set(run(vlm, methods.FiCoCoVL(retention=0.25, split=1.0)).trace.schedule) == {9}


@pytest.mark.parametrize("name", ["ficoco-v", "ficoco-l", "ficoco-vl"])
@pytest.mark.parametrize("how", [{}, {"scores": "logits"}, {"scores": "probs"}, {"released": True}], ids=str)
def test_every_setting_runs_and_repeats(vlm, name, how):
    if name == "ficoco-vl" and "scores" in how:
        pytest.skip("has no such setting")
    method = registry.resolve(name, retention=0.4, **how)
    first, _, again = run(vlm, method), engine.run(vlm, tiny.image(1), tiny.QUESTION, method), run(vlm, method)
    assert first.token_ids == again.token_ids  # no state from image to image
    assert first.trace.schedule[-1] < N and first.flops["compression"] > 0
    product = first.trace.product().dense()
    assert torch.isfinite(product).all()
    if not how.get("released"):
        torch.testing.assert_close(product.sum(1), torch.ones(len(product)))


def test_released_v_keeps_cls_and_loses_a_patch(vlm):
    done = run(vlm, methods.FiCoCoV(retention=0.5, released=True, start=6))
    assert done.trace.schedule == [18] * 4
    assert 0 in done.trace.product().anchor  # CLS


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel())
        return out


def test_rows_of_2880_visual_tokens_stay_within_memory():
    heads, n = 4, 2940  # even of 4 heads the whole would be more than is held at a time
    q, k = seeded(heads, n, 2), seeded(2, n, 2, seed=1)
    with Largest() as seen:
        weights = attention.softmax_rows(q, k, 1.0, torch.arange(n), mean=True)
    assert weights.shape == (n, n) and n * n <= seen.size <= attention.CHUNK < heads * n * n
    torch.testing.assert_close(weights.sum(1), torch.ones(n))
    with Largest() as seen:
        logits = attention.mean_logits(q, k, 1.0)
    assert logits.shape == (n, n) and seen.size == n * n


def test_chunks_and_head_means_equal_the_whole(monkeypatch):
    q, k = seeded(4, 30, 8), seeded(2, 30, 8, seed=1)
    whole = attention.softmax_rows(q, k, 0.3, torch.arange(30))
    monkeypatch.setattr(attention, "CHUNK", 4 * 30 * 7)
    torch.testing.assert_close(attention.softmax_rows(q, k, 0.3, torch.arange(30), mean=True), whole.mean(0))
    expected = (q @ k.repeat_interleave(2, 0).transpose(1, 2)).mean(0) * 0.3
    torch.testing.assert_close(attention.mean_logits(q, k, 0.3), expected)


def test_without_cls_token():
    shape = ModelShape((4, 4), 14, 4, 2, 4, False)
    context = SeededContext(Site("vision_layer", 2), shape, 16, 16)
    reduction = methods.FiCoCoV(retention=0.5, penalty=False).reduce(context)
    keys = context.keys().mean(0)
    cls = -torch.cosine_similarity(keys.mean(0)[None], keys)
    score = 0.35 * context.attention("all").mean((0, 1)) - 0.65 * cls
    assert sorted(score.topk(8, largest=False).indices.tolist()) == reduction.anchor.tolist()


def test_retention_one_is_the_full_model(vlm):
    full = run(vlm, methods.Full()).token_ids
    for name in ("ficoco-v", "ficoco-l", "ficoco-vl"):
        assert run(vlm, registry.resolve(name, retention=1.0)).token_ids == full
