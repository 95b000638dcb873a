"""The token algebra against dense matrices and hand-made cases."""

import pytest
import torch

from vtc_demo.core.tokens import Reduction, Site, Trace

tensor = torch.tensor


def merge_pairs():
    """4 tokens -> 2: token 0 takes in token 1 with weights 1/2, token 2 takes in token 3 with 3/4 and 1/4."""
    return Reduction.merge(
        tensor([0, 2]), tensor([1, 3]), tensor([0, 1]), 4,
        source_weight=tensor([0.5, 0.25]), anchor_weight=tensor([0.5, 0.75]),
    )  # fmt: skip


def random_reduction(n, m, generator):
    """A selection, a merge or a soft reduction with n -> m tokens."""
    kind = torch.randint(3, (), generator=generator).item()
    order = torch.randperm(n, generator=generator)
    if kind == 0:
        return Reduction.select(order[:m], n)
    if kind == 1:
        k = (n - m) // 2
        target = torch.randint(m, (k,), generator=generator)
        weight = torch.rand(k, generator=generator)
        return Reduction.merge(
            order[:m], order[m : m + k], target, n, source_weight=weight, anchor_weight=torch.ones(m)
        )
    matrix = torch.rand(m, n, generator=generator) * (torch.rand(m, n, generator=generator) > 0.5)
    return Reduction.from_dense(matrix, soft=True)


def slow_fate(trace, upto=None):
    """status, weight, home by loops over the dense product: the definition, spelled out."""
    size = trace.extra + trace.patches
    matrix, anchor = torch.eye(size), list(range(size))
    for step in trace.steps:
        if upto is None or step.site.key <= upto.key:
            matrix = step.reduction.dense() @ matrix
            anchor = [anchor[a] for a in step.reduction.anchor.tolist()]
    status, weight, home = [], [], []
    for patch in range(trace.patches):
        column = matrix[:, trace.extra + patch].abs().tolist()
        best = max(range(len(column)), key=lambda t: column[t])
        own = any(anchor[t] == trace.extra + patch and share > 0 for t, share in enumerate(column))
        status.append(2 if own else 1 if column[best] > 0 else 0)
        weight.append(column[best])
        place = max(anchor[best] - trace.extra, -1) if column[best] > 0 else -1
        home.append(patch if own else place)
    return status, weight, home


# -- Site -----------------------------------------------------------------------------------------------------------
def test_sites_sort_in_the_order_of_the_pass():
    sites = [Site("llm_layer", 10), Site("kv_cache"), Site("llm_layer", 2), Site("projector"), Site("vision_layer", 3)]
    assert [str(s) for s in sorted(sites, key=lambda s: s.key)] == [
        "vision_layer(3)", "projector", "llm_layer(2)", "llm_layer(10)", "kv_cache",
    ]  # fmt: skip


@pytest.mark.parametrize("args", [("llm_layer",), ("projector", 1), ("head",)])
def test_impossible_sites(args):
    with pytest.raises(ValueError, match="site"):
        Site(*args)


# -- Reduction ------------------------------------------------------------------------------------------------------
def test_select_keeps_tokens_in_the_given_order():
    r = Reduction.select(tensor([2, 0]), 3)
    assert torch.equal(r.apply(tensor([[1.0], [2.0], [3.0]])), tensor([[3.0], [1.0]]))
    assert torch.equal(r.dense(), tensor([[0.0, 0, 1], [1, 0, 0]]))
    assert r.is_selection and r.anchor.tolist() == [2, 0]


def test_select_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="cannot keep 3 of 2 tokens"):
        Reduction.select(tensor([0, 1, 2]), 2)


def test_a_withdrawal_keeps_nothing():
    none = Reduction.select(tensor([], dtype=torch.long), 4, scores=torch.arange(4.0))
    assert none.m == 0 and none.apply(torch.ones(2, 4, 3)).shape == (2, 0, 3) and none.dense().shape == (0, 4)
    trace = Trace((2, 2), 0, 3)
    trace.add(Site("llm_input"), Reduction.select(tensor([0, 3]), 4))
    trace.add(Site("llm_layer", 1), Reduction.select(tensor([], dtype=torch.long), 2))
    assert trace.schedule == [2, 0, 0] and trace.equivalent_tokens == 2 / 3
    assert trace.fate().counts == {"dropped": 4, "merged": 0, "kept": 0}
    assert trace.fate(Site("llm_input")).counts == {"dropped": 2, "merged": 0, "kept": 2}
    assert trace.evidence_kept(tensor([True, False, False, True])) == 0 and len(trace.sizes()) == 0
    assert none.to("cpu").scores.tolist() == [0, 1, 2, 3]


def test_merge_by_hand():
    assert torch.equal(merge_pairs().dense(), tensor([[0.5, 0.5, 0, 0], [0, 0, 0.75, 0.25]]))
    assert torch.equal(merge_pairs().apply(tensor([[2.0], [4.0], [4.0], [8.0]])), tensor([[3.0], [5.0]]))


def test_apply_is_the_dense_product_and_keeps_dtype_and_batch():
    g = torch.Generator().manual_seed(0)
    for _ in range(6):
        r, x = random_reduction(8, 4, g), torch.randn(2, 8, 3, generator=g)
        torch.testing.assert_close(r.apply(x), r.dense() @ x)
        assert r.apply(x.bfloat16()).dtype == torch.bfloat16


def test_apply_refuses_the_wrong_number_of_tokens():
    with pytest.raises(ValueError, match="takes 4 tokens, got 5"):
        merge_pairs().apply(torch.zeros(5, 2))


def test_identity_changes_nothing():
    x = torch.randn(5, 2)
    assert torch.equal(Reduction.identity(5).apply(x), x)


def test_after_is_the_matrix_product():
    g = torch.Generator().manual_seed(1)
    for _ in range(12):
        first, second = random_reduction(9, 5, g), random_reduction(5, 3, g)
        both = second.after(first)
        torch.testing.assert_close(both.dense(), second.dense() @ first.dense())
        assert both.anchor.tolist() == first.anchor[second.anchor].tolist()
        assert both.soft == (first.soft or second.soft)


def test_after_refuses_counts_that_do_not_chain():
    with pytest.raises(ValueError, match="yields 2 tokens, this one takes 4"):
        merge_pairs().after(merge_pairs())


def test_to_keeps_every_field():
    moved = merge_pairs().to("cpu")
    assert torch.equal(moved.dense(), merge_pairs().dense()) and moved.m == 2 and moved.n == 4


# -- Trace ----------------------------------------------------------------------------------------------------------
def merged_trace():
    """2 x 2 patches and CLS. Projector: CLS goes, patch 1 merges into 0, 3 into 2. At LLM layer 1 one goes."""
    trace = Trace(grid=(2, 2), extra=1, llm_layers=3)
    trace.add(Site("projector"), merge_pairs().after(Reduction.select(tensor([1, 2, 3, 4]), 5)))
    trace.add(Site("llm_layer", 1), Reduction.select(tensor([0]), 2))
    return trace


def test_fate_by_hand():
    trace = merged_trace()
    early, late = trace.fate(Site("projector")), trace.fate()
    assert early.status.tolist() == [2, 1, 2, 1]
    assert early.weight.tolist() == [0.5, 0.5, 0.75, 0.25]
    assert early.home.tolist() == [0, 0, 2, 2]
    assert late.status.tolist() == [2, 1, 0, 0]
    assert late.home.tolist() == [0, 0, -1, -1]
    assert late.counts == {"dropped": 2, "merged": 1, "kept": 1}


def test_a_patch_averaged_into_cls_is_merged_and_has_no_home():
    trace = Trace(grid=(1, 2), extra=1, llm_layers=1)
    trace.add(Site("projector"), Reduction.from_dense(tensor([[0.6, 0.4, 0.0]])))
    fate = trace.fate()
    assert fate.status.tolist() == [1, 0] and fate.home.tolist() == [-1, -1]


def test_a_patch_whose_place_is_taken_by_a_token_that_ignores_it_is_dropped():
    trace = Trace(grid=(1, 2), extra=0, llm_layers=1)
    trace.add(Site("llm_input"), Reduction.from_dense(tensor([[0.0, 1.0]]), anchor=tensor([0])))
    fate = trace.fate()
    assert fate.status.tolist() == [0, 1] and fate.home.tolist() == [-1, 0]


@pytest.mark.parametrize("seed", range(8))
def test_fate_equals_loops_over_dense_matrices(seed):
    g = torch.Generator().manual_seed(seed)
    trace = Trace(grid=(3, 4), extra=seed % 2, llm_layers=4)
    size = trace.extra + trace.patches
    for site, m in ((Site("projector"), 9), (Site("llm_layer", 1), 6), (Site("llm_layer", 3), 3)):
        trace.add(site, random_reduction(size, m, g))
        size = m
    for upto in (None, *trace.sites):
        fate, (status, weight, home) = trace.fate(upto), slow_fate(trace, upto)
        assert fate.status.tolist() == status
        torch.testing.assert_close(fate.weight, tensor(weight))
        assert fate.home.tolist() == home


def test_without_steps_every_patch_is_kept():
    fate = Trace(grid=(2, 3), extra=1, llm_layers=2).fate()
    assert fate.counts == {"dropped": 0, "merged": 0, "kept": 6} and fate.home.tolist() == list(range(6))


def test_schedule_counts_the_tokens_that_enter_each_layer():
    trace = merged_trace()
    assert trace.schedule == [2, 1, 1]
    assert trace.equivalent_tokens == pytest.approx(4 / 3)
    assert trace.sizes().tolist() == [2]


def test_evidence_kept():
    trace = merged_trace()
    assert trace.evidence_kept(tensor([[True, False], [True, False]])) == 0.5
    assert trace.evidence_kept(tensor([False, True, False, False])) == 1.0
    assert trace.evidence_kept(torch.zeros(4)) != trace.evidence_kept(torch.zeros(4))  # nan: no evidence
