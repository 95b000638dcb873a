"""Laws of the token algebra over many generated reductions, those that keep nothing among them.

Weights are quarters, so products are exact in float32.
"""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc_demo.core.rearrange import concatenate_blocks, in_order, overlap, shrink
from vtc_demo.core.tokens import Reduction, Site, Trace

COUNT = st.integers(1, 9)
QUARTER = st.integers(1, 8).map(lambda quarters: quarters / 4)


@st.composite
def selections(draw, n, m):
    return Reduction.select(torch.tensor(draw(st.permutations(range(n)))[:m], dtype=torch.long), n)


@st.composite
def merges(draw, n, m):
    """Some of the tokens that do not survive are merged into survivors, the others are dropped."""
    order = draw(st.permutations(range(n)))
    k = draw(st.integers(0, n - m)) if m else 0
    return Reduction.merge(
        torch.tensor(order[:m], dtype=torch.long),
        torch.tensor(order[m : m + k], dtype=torch.long),
        torch.tensor(draw(st.lists(st.integers(0, max(0, m - 1)), min_size=k, max_size=k)), dtype=torch.long),
        n,
        source_weight=torch.tensor(draw(st.lists(QUARTER, min_size=k, max_size=k)), dtype=torch.float32),
        anchor_weight=torch.tensor(draw(st.lists(QUARTER, min_size=m, max_size=m))),
    )


@st.composite
def mixes(draw, n, m):
    """Soft rows, some of their weights nought."""
    weight = st.integers(0, 4).map(lambda quarters: quarters / 4)
    values = draw(st.lists(weight, min_size=m * n, max_size=m * n))
    return Reduction.from_dense(torch.tensor(values).view(m, n), soft=True)


@st.composite
def reductions(draw, n=None, m=None):
    n = draw(COUNT) if n is None else n
    m = draw(st.integers(0, n)) if m is None else m
    if n == 0:
        return Reduction.identity(0)
    return draw(st.one_of(selections(n, m), merges(n, m), mixes(n, m)))


@st.composite
def chains(draw, length):
    """Reductions in the order in which they act; each takes what the one before leaves."""
    found = [draw(reductions())]
    while len(found) < length:
        found.append(draw(reductions(n=found[-1].m)))
    return found


@st.composite
def partitions(draw):
    """(parts of n tokens with a reduction or None each, n): every token lies in one part."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = torch.tensor(draw(st.permutations(range(sum(sizes)))))
    parts = [(which, draw(st.none() | reductions(n=len(which)))) for which in order.split(sizes)]
    return parts, sum(sizes)


def same(a, b):
    assert torch.equal(a.dense(), b.dense())
    assert torch.equal(a.anchor, b.anchor)
    assert (a.m, a.n, a.soft) == (b.m, b.n, b.soft)


# -- products -------------------------------------------------------------------------------------------------------
@given(chains(3))
def test_products_are_associative(chain):
    first, second, third = chain
    same(third.after(second).after(first), third.after(second.after(first)))


@given(chains(2))
def test_a_product_is_the_product_of_the_matrices_and_keeps_anchors(chain):
    first, second = chain
    both = second.after(first)
    assert torch.equal(both.dense(), second.dense() @ first.dense())
    assert both.anchor.tolist() == [first.anchor[a] for a in second.anchor]
    assert both.is_selection == (first.is_selection and second.is_selection)
    assert both.soft == (first.soft or second.soft)


@given(reductions())
def test_identity_is_neutral(r):
    same(r.after(Reduction.identity(r.n)), r)
    same(Reduction.identity(r.m).after(r), r)


@given(chains(2), st.integers(0, 2**32))
def test_one_after_the_other_is_their_product(chain, seed):
    first, second = chain
    x = torch.randint(-8, 8, (2, first.n, 3), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(second.apply(first.apply(x)), second.after(first).apply(x))


# -- apply ----------------------------------------------------------------------------------------------------------
@given(reductions(), st.integers(0, 2**32))
def test_apply_is_the_dense_product(r, seed):
    x = torch.randint(-8, 8, (2, r.n, 3), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(r.apply(x), r.dense() @ x)


@given(reductions())
def test_apply_to_ones_gives_the_sums_of_the_rows(r):
    assert torch.equal(r.apply(torch.ones(r.n, 1))[:, 0], r.dense().sum(1))


# -- round trips ----------------------------------------------------------------------------------------------------
@given(reductions())
def test_dense_and_back(r):
    same(Reduction.from_dense(r.dense(), r.anchor, r.soft), r)


@given(COUNT.flatmap(lambda n: st.permutations(range(n)).map(lambda order: (n, order[: 1 + order[0]]))))
def test_a_selection_is_a_merge_of_nothing(case):
    n, keep = case
    keep, none = torch.tensor(keep), torch.tensor([], dtype=torch.long)
    weight = torch.ones(len(keep))
    merged = Reduction.merge(keep, none, none, n, source_weight=weight[:0], anchor_weight=weight)
    same(merged, Reduction.select(keep, n))


# -- rearranging ----------------------------------------------------------------------------------------------------
@given(reductions())
def test_in_order_moves_rows_with_their_anchors(r):
    ordered = in_order(r)
    order = r.anchor.argsort(stable=True)
    assert torch.equal(ordered.dense(), r.dense()[order]) and torch.equal(ordered.anchor, r.anchor[order])
    same(in_order(ordered), ordered)


@given(partitions())
def test_blocks_side_by_side_leave_every_part_as_it_was(case):
    parts, n = case
    whole = concatenate_blocks(parts, n)
    rows = whole.dense().split([len(which) if one is None else one.m for which, one in parts])
    anchors = whole.anchor.split([len(block) for block in rows])
    for (which, one), block, anchor in zip(parts, rows, anchors, strict=True):
        one = one or Reduction.identity(len(which))
        wanted = torch.zeros(one.m, n)
        wanted[:, which] = one.dense()
        assert torch.equal(block, wanted) and torch.equal(anchor, which[one.anchor])
    assert whole.is_selection == all(one is None or one.is_selection for _, one in parts)


@given(st.tuples(COUNT, COUNT), st.tuples(COUNT, COUNT), st.integers(0, 1))
def test_a_coarser_grid_weighs_by_shared_area(grid, ratio, extra):
    small = (min(grid[0], ratio[0]), min(grid[1], ratio[1]))
    r = shrink(grid, small, extra)
    assert (r.m, r.n) == (extra + small[0] * small[1], extra + grid[0] * grid[1])
    torch.testing.assert_close(r.dense().sum(1), torch.ones(r.m))  # every coarse patch is covered once
    area = small[0] * small[1] / (grid[0] * grid[1])
    torch.testing.assert_close(r.dense()[:, extra:].sum(0), torch.full((r.n - extra,), area))  # and every fine one used
    assert r.anchor[:extra].tolist() == list(range(extra)) and (r.dense()[range(r.m), r.anchor] > 0).all()
    assert len(r.anchor.unique()) == r.m  # no two stand at one place


@given(COUNT, COUNT)
def test_shares_of_cells_of_one_length(n, m):
    torch.testing.assert_close(overlap(n, m).sum(1), torch.ones(m))
    torch.testing.assert_close(overlap(n, n), torch.eye(n))


@given(partitions(), st.integers(0, 2**32))
def test_scores_travel(case, seed):
    """They are of the old tokens: the order of the new ones is no matter to them; parts bring theirs."""
    parts, n = case
    scores = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    scored = [(which, None if one is None else replace(one, scores=scores[which])) for which, one in parts]
    whole = concatenate_blocks(scored, n)
    ranked = [which for which, one in scored if one is not None]
    if ranked:
        expected = torch.full((n,), torch.nan)
        expected[torch.cat(ranked)] = scores[torch.cat(ranked)]
        for one in (whole, in_order(whole), whole.to("cpu")):
            assert torch.equal(one.scores.nan_to_num(-1), expected.nan_to_num(-1))
    else:
        assert whole.scores is None


# -- traces ---------------------------------------------------------------------------------------------------------
@given(chains(3))
def test_a_trace_accounts_for_every_patch(chain):
    trace = Trace(grid=(1, chain[0].n), extra=0, llm_layers=2)
    for site, reduction in zip((Site("projector"), Site("llm_input"), Site("llm_layer", 1)), chain, strict=True):
        trace.add(site, reduction)
    same(trace.product(), chain[2].after(chain[1]).after(chain[0]))
    assert trace.schedule == [chain[1].m, chain[2].m]
    fed = [set(row.nonzero().flatten().tolist()) for row in trace.product().dense()]
    fate = trace.fate()
    assert sum(fate.counts.values()) == trace.patches
    assert set((fate.status > 0).nonzero().flatten().tolist()) == set().union(*fed)
    assert trace.sizes().tolist() == [len(patches) for patches in fed]


@given(reductions())
def test_after_a_withdrawal_nothing_is_left(r):
    trace = Trace(grid=(1, r.n), extra=0, llm_layers=3)
    trace.add(Site("llm_input"), r)
    trace.add(Site("llm_layer", 1), Reduction.select(torch.empty(0, dtype=torch.long), r.m))
    assert trace.schedule == [r.m, 0, 0] and trace.sizes().tolist() == []
    assert trace.fate().counts == {"dropped": r.n, "merged": 0, "kept": 0}
    assert trace.fate().home.eq(-1).all() and trace.evidence_kept(torch.ones(r.n)) == 0
    assert trace.product().apply(torch.ones(r.n, 2)).shape == (0, 2)
    same(trace.product(), Reduction.from_dense(torch.empty(0, r.n), r.anchor[:0], r.soft))
