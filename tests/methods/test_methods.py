"""Every method keeps the contract; the maths of each on cases worked out by hand."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from vtc_demo import methods, registry
from vtc_demo.core import operations as common
from vtc_demo.core.card import Card
from vtc_demo.core.flop_counting import FlopCounter
from vtc_demo.core.method import Method
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.methods import contract
from vtc_demo.methods.baselines import pool, uniform
from vtc_demo.methods.baselines.random import draw
from vtc_demo.methods.llm import fastv, pyramiddrop
from vtc_demo.methods.maths import received
from vtc_demo.methods.projector import divprune, fastervlm, visionzip
from vtc_demo.methods.rehearsal import SHAPE, TEXT, SeededContext, rehearse

tensor = torch.tensor
CARDS = {card.name: card for card in registry.list_methods()}
SHIPPED = [
    "full",
    "random",
    "uniform",
    "pool",
    "downsample",
    "fastervlm",
    "visionzip",
    "divprune",
    "fastv",
    "pyramiddrop",
]


def expected_counts(name, r, n):
    """Tokens after each site, where a method's rule differs from `Method.keep`."""
    keep = max(1, round(r * n))
    if name == "pool":
        rows, columns = common.grid_within(SHAPE.grid, keep)
        return [rows * columns]
    if name == "pyramiddrop":
        return [max(1, int(n * round(r ** (k / 3), 12))) for k in (1, 2, 3)]
    return [keep]


# -- the contract, over every method that discovery finds ---------------------------------------------------------
each = pytest.mark.parametrize("name", CARDS)


def test_discovery_finds_the_shipped_methods_in_order_and_reports_no_problem():
    assert [n for n in CARDS if n in SHIPPED] == SHIPPED
    assert "vtc_demo.methods.template" not in {registry.get(n).__module__ for n in CARDS}
    assert not registry.problems


@cache
def findings(name):
    return contract.check(registry.get(name))


@each
@pytest.mark.parametrize("check", contract.CHECKS)
def test_contract(name, check):
    assert [finding for finding in findings(name) if finding.check == check] == []


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("retention", contract.RETENTIONS)
def test_counts(name, has_cls, retention):
    if name == "full":
        retention = 1.0
    done = rehearse(registry.resolve(name, retention=retention), dataclasses.replace(SHAPE, has_cls=has_cls))
    if name in ("full", "downsample"):
        assert done == []
    else:
        assert [r.m for r in done] == expected_counts(name, retention, SHAPE.patches)


@pytest.mark.parametrize("name", [n for n in SHIPPED if n != "visionzip"])  # which keeps CLS in place of a patch
def test_retention_one_changes_nothing(name):
    for reduction in rehearse(registry.resolve(name, retention=1.0)):
        assert torch.equal(reduction.apply(torch.eye(reduction.n))[:, -reduction.m :], torch.eye(reduction.m))


def test_the_sync_detector_detects():
    for sync in (lambda t: t.sum().item(), lambda t: bool(t[0] > 0), lambda t: t[t > 0], lambda t: t[t.argmax()]):
        with pytest.raises(contract.Broken, match="GPU wait"), contract.NoSync():
            sync(torch.randn(4))


@dataclass(frozen=True)
class Forgetful(Method):
    """Declares a part of what it computes."""

    card: ClassVar[Card] = Card("forgetful", "", "", "", ("llm_input",), "baseline")
    work: str = param("pairs", "", choices=("pairs", "distances", "squares", "spectrum", "spread"))
    declared: ClassVar[str] = ""

    def sites(self, shape):
        return (Site("llm_input"),)

    def reduce(self, context):
        x = context.hidden
        {
            "pairs": lambda: x @ x.T,
            "distances": lambda: torch.cdist(x, x),
            "squares": lambda: (x * x).sum(1),
            "spectrum": lambda: torch.fft.rfft(x, dim=0),
            "spread": lambda: torch.linalg.svd(x, full_matrices=False),
        }[self.work]()

    def overhead_flops(self, context):
        n, dim = context.hidden.shape
        return {"pairs": 2 * n * n * dim, "squares": 2 * n * dim}[self.work] if self.work == self.declared else 0


@pytest.mark.parametrize("work", ["pairs", "distances", "squares", "spectrum", "spread"])
def test_undeclared_arithmetic_is_refused(work, monkeypatch):
    monkeypatch.setattr(contract, "_workloads", lambda cls: [(cls(work=work), SHAPE, 16)])
    (finding,) = [f for f in contract.check(Forgetful) if f.check == "overhead"]
    assert "declares 0 FLOPs, but the hook computes" in finding.message and "at llm_input" in finding.message


@pytest.mark.parametrize("work", ["pairs", "squares"])
def test_declared_arithmetic_passes(work, monkeypatch):
    monkeypatch.setattr(contract, "_workloads", lambda cls: [(cls(work=work), SHAPE, 16)])
    monkeypatch.setattr(Forgetful, "declared", work)
    assert [f for f in contract.check(Forgetful) if f.check == "overhead"] == []


def test_every_choice_and_switch_is_held_to_its_declaration():
    works = {method.work for method, *_ in contract._workloads(Forgetful)}
    assert works == {"pairs", "distances", "squares", "spectrum", "spread"}
    assert {(shape.has_cls, shape.grid) for _, shape, _ in contract._workloads(Forgetful)} == {
        (cls, grid) for cls in (True, False) for grid, _ in contract.WORKLOADS
    }
    assert {method.retention for method, *_ in contract._workloads(Forgetful)} == {0.01, 0.25, 0.6, 1.0}


@pytest.mark.parametrize("name", [*SHIPPED, "mustdrop", "ficoco-v", "ficoco-l", "ficoco-vl"])
def test_declared_overhead_is_not_far_above_the_count(name):
    """A method that declares too much would lose every comparison at equal FLOPs."""
    for method, shape, size in contract._workloads(registry.get(name)):

        def held(hook, context, method=method):
            with FlopCounter() as counter:
                reduction = hook(context)
            assert method.overhead_flops(context) <= 1.5 * counter.flops + contract.SLACK * len(context.hidden)
            return reduction

        rehearse(method, shape, held, size)


@dataclass(frozen=True)
class Curious(Method):
    """Asks for all that a context shows from the projector on."""

    card: ClassVar[Card] = Card("curious", "", "", "Asks.", ("projector", "llm_input"), "baseline")
    layers: ClassVar[tuple[int, ...]] = (0, 2)

    def sites(self, shape):
        return (Site("projector"), Site("llm_input"))

    def cls_layers(self, shape):
        return self.layers

    def reduce(self, context):
        n, asked, (tile,) = len(context.hidden), context.question, context.tiles
        by_text = context.question.aligned(context.hidden[tile.part]) @ asked.features  # [patches]
        rows = [context.cls_attention(layer).mean(0) for layer in (0, 2)]
        seen = context.attention("cls" if context.shape.has_cls else "all", heads="mean").mean(0)
        assert len(asked.words) > asked.after == len(asked.own) == len(asked.token_features) and asked.text
        assert {len(x) for x in (*rows, seen, context.received())} == {n} == {context.values().shape[1]}
        assert by_text.shape == (n - context.extra,)
        return Reduction.select(torch.arange(context.extra, n), n)

    def overhead_flops(self, context):
        n, dim = context.hidden.shape
        return 2 * n * dim + n * n


def test_a_context_shows_the_question_tiles_and_rows_of_many_layers():
    assert contract.check(Curious) == []


def test_rows_that_were_not_asked_for_are_refused(monkeypatch):
    monkeypatch.setattr(Curious, "layers", (0,))
    assert any("layer 2 was not asked for in cls_layers()" in f.message for f in contract.check(Curious))


# -- resolve and the registry ---------------------------------------------------------------------------------------
def test_resolve_reads_every_form():
    expected = methods.FastV(retention=0.5, layer=3)
    forms = [
        "fastv@0.5",
        " FastV@0.5",
        {"method": "fastv", "retention": 0.5},
        methods.FastV(retention=0.5),
        methods.FastV,
    ]
    assert [registry.resolve(x, layer=3, retention=0.5) for x in forms] == [expected] * 5
    assert registry.resolve("fastv@0.5").retention == 0.5 and registry.resolve("fastv") == methods.FastV()
    numpy = methods.FastV(retention=np.float32(0.5), layer=np.int64(3))
    assert json.dumps(numpy.spec()) == json.dumps(expected.spec())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("fastvlm", "did you mean"),
        ("zzz", "methods are full, random"),
        ("", "methods are"),
        ("fastv@", "between 0.01 and 1.0"),
        ("fastv@half", "between 0.01 and 1.0"),
        ("fastv@nan", "between 0.01 and 1.0"),
        ("fastv@1e999", "between 0.01 and 1.0"),
        ("full@0.5", "exactly 1.0"),
        (None, "name@retention"),
        (3, "name@retention"),
        ({"retention": 0.5}, "name@retention"),
        ({"method": ["fastv"]}, "unknown method"),
        ({"method": "fastv", "rate": 0.5}, "no hyper-parameter rate; it has retention, layer"),
        ({"method": "fastv", "layer": 0}, "between 1 and 99"),
        ({"method": "fastv", "layer": 2.5}, "whole number"),
        ({"method": "fastv", "layer": float("inf")}, "between 1 and 99"),
        ({"method": "visionzip", "average": "yes"}, "True, False"),
    ],
)
def test_resolve_says_what_is_wrong(x, message):
    with pytest.raises(ValueError, match=message):
        registry.resolve(x)


def test_unknown_class_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuch"):
        _ = methods.NoSuch
    assert "FastV" in dir(methods)


@pytest.fixture
def forgetful(monkeypatch):
    """Extra files are forgotten after the test; the template's name is free."""
    monkeypatch.setattr(registry, "_classes", {k: v for k, v in registry._classes.items() if k != "mine"})
    monkeypatch.setattr(registry, "problems", {})


TEMPLATE = Path(methods.__file__).with_name("template.py")


def test_a_copied_template_is_all_that_a_new_method_needs(tmp_path, forgetful):
    shutil.copy(TEMPLATE, tmp_path / "mine.py")
    shutil.copy(TEMPLATE, tmp_path / "template.py")  # skipped by its name
    assert registry.load_folder(tmp_path) == ["mine"]
    assert "mine" in [card.name for card in registry.list_methods()]
    (reduction,) = rehearse(registry.resolve("mine@0.25", power=1))
    assert reduction.m == 12
    assert registry.load_folder(tmp_path) == ["mine"] and not registry.problems  # again: no clash with itself


BROKEN = {
    "syntax": ("def f(:\n", "SyntaxError"),
    "imports": ("import no_such_package\n", "no_such_package"),
    "exits": ("raise SystemExit(3)\n", "SystemExit"),
    "taken": (TEMPLATE.read_text(encoding="utf-8").replace('name="mine"', 'name="fastv"'), "is taken by"),
    "unnamed": (TEMPLATE.read_text(encoding="utf-8").replace('name="mine"', 'name="Mine@1"'), "lower-case"),
    "hookless": (TEMPLATE.read_text(encoding="utf-8").replace("def reduce(", "def reduces("), "lacks reduce"),
    "thawed": (TEMPLATE.read_text(encoding="utf-8").replace("@dataclass(frozen=True)\n", ""), "frozen"),
    "no_default": (TEMPLATE.read_text(encoding="utf-8").replace("param(2.0,", "param(20.0,"), "between 1.0 and 8.0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_and_takes_nothing_down(kind, tmp_path, forgetful):
    text, reason = BROKEN[kind]
    (tmp_path / f"{kind}.py").write_text(text, encoding="utf-8")
    shutil.copy(TEMPLATE, tmp_path / "well.py")
    before = [card.name for card in registry.list_methods()]
    with pytest.warns(UserWarning, match=rf"{kind}\.py.*(?s:.*){reason}"):
        assert registry.load_folder(tmp_path) == ["mine"]
    assert list(registry.problems) == [str((tmp_path / f"{kind}.py").resolve())]
    assert [n for n in [card.name for card in registry.list_methods()] if n != "mine"] == before


def test_a_folder_that_is_not_there():
    with pytest.raises(ValueError, match="no folder"):
        registry.load_folder("no/such/folder")


# -- the maths of each method ---------------------------------------------------------------------------------------
def test_top_prefers_the_lowest_index_among_equals():
    assert common.top(tensor([1.0, 3, 2, 3, 2, 2]), 4).tolist() == [1, 2, 3, 4]
    assert common.others(tensor([4, 1]), 6).tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("grid", "keep", "expected"),
    [
        ((24, 24), 576, (24, 24)),
        ((24, 24), 192, (13, 14)),
        ((24, 24), 144, (12, 12)),
        ((24, 24), 128, (11, 11)),
        ((24, 24), 64, (8, 8)),
        ((24, 24), 2, (1, 2)),
        ((24, 24), 1, (1, 1)),
        ((4, 16), 16, (2, 8)),
        ((2, 100), 150, (2, 75)),
    ],
)
def test_grid_within(grid, keep, expected):
    assert common.grid_within(grid, keep) == expected


def test_random_is_seeded_and_nested():
    assert draw(50, 10, 3).tolist() == draw(50, 10, 3).tolist() != draw(50, 10, 4).tolist()
    assert set(draw(50, 10, 3).tolist()) < set(draw(50, 20, 3).tolist())


def test_uniform_by_hand():
    assert uniform.spread(6, 3) == [1, 3, 5]
    assert uniform.evenly((4, 4), 4).tolist() == [5, 7, 13, 15]
    assert uniform.evenly((4, 4), 5).tolist() == [5, 7, 8, 13, 15]  # the middle of the other twelve on top
    for keep in range(1, 49):
        assert uniform.evenly((6, 8), keep).unique().numel() == keep


@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (4, 5), (6, 8), (1, 1), (5, 7)])
def test_pool_equals_adaptive_average_pooling(rows, columns):
    x, reduction = torch.randn(48, 3), pool.average((6, 8), rows, columns)
    theirs = torch.nn.functional.adaptive_avg_pool2d(x.T.view(3, 6, 8), (rows, columns)).flatten(1).T
    torch.testing.assert_close(reduction.apply(x), theirs)
    torch.testing.assert_close(reduction.dense().sum(1), torch.ones(rows * columns))


def test_pool_by_hand():
    reduction = pool.average((3, 4), 1, 2)
    assert reduction.anchor.tolist() == [4, 6]
    assert reduction.dense()[0].nonzero().flatten().tolist() == [0, 1, 4, 5, 8, 9]
    assert reduction.flops(10) == 2 * 12 * 10


def test_grid_methods_refuse_tokens_that_are_not_the_grid():
    context = SeededContext(Site("llm_input"), SHAPE, 48, 50)
    for name in ("pool", "uniform"):
        with pytest.raises(ValueError, match="6 x 8 grid"):
            registry.resolve(name).reduce(context)


@pytest.mark.parametrize(("keep", "side"), [(576, None), (192, 13), (144, 12), (128, 11), (64, 8), (6, 2)])
def test_downsample_side(keep, side):
    shape = dataclasses.replace(SHAPE, grid=(24, 24))
    assert methods.Downsample(retention=keep / 576).image_side(shape) == (side and side * 14)
    assert side is None or isqrt(keep) == side


def test_fastervlm_by_hand():
    attention = tensor([[0.1, 0.5, 0.0, 0.2], [0.3, 0.0, 0.2, 0.4]])  # means 0.2 0.25 0.1 0.3
    assert fastervlm.select(attention, 2).tolist() == [1, 3]


def test_patch_attention_without_cls_is_the_attention_received():
    context = SeededContext(Site("projector"), SHAPE, 48, 48)
    means = torch.stack([context.attention("all")[:, :, j].mean() for j in range(48)])
    torch.testing.assert_close(received.patch_attention(context), means)
    context = SeededContext(Site("projector"), SHAPE, 48, 49, extra=1)
    torch.testing.assert_close(received.patch_attention(context), context.attention("cls")[:, 0, 1:].mean(0))


@pytest.mark.parametrize(
    ("keep", "parts"), [(64, (54, 10)), (128, (108, 20)), (192, (162, 30)), (1, (1, 0)), (4, (3, 1))]
)
def test_visionzip_split(keep, parts):
    assert visionzip.split(keep) == parts


@pytest.mark.parametrize("average", [False, True])
def test_visionzip_by_hand(average):
    """CLS and 6 patches; 0 and 2 dominate. Rest 1 3 4 5 6, step 2: targets 1 and 4. 5, 6 go to 1 and 3 to 4."""
    scores = tensor([0.1, 0.9, 0.1, 0.2, 0.3, 0.1])
    metric = tensor([[0.0, 0], [1, 0], [9, 9], [0, 2], [0, 1], [3, 1], [1, 0]])
    reduction = visionzip.compress(scores, metric, 2, 2, average)
    assert reduction.anchor.tolist() == [0, 2, 1, 4]
    expected = torch.zeros(4, 7)
    expected[0, 0] = expected[1, 2] = 1
    expected[2, [1, 5, 6]] = tensor([1 / 3] * 3 if average else [1, 0.5, 0.5])
    expected[3, [4, 3]] = tensor([0.5] * 2 if average else [1.0, 1.0])
    torch.testing.assert_close(reduction.dense(), expected)
    assert reduction.dense()[2:].sum(1).tolist() == pytest.approx([1, 1] if average else [2, 2])


def test_visionzip_corner_cases():
    scores, metric = torch.rand(6), torch.randn(7, 3)
    assert visionzip.compress(scores, metric, 1, 0).old.tolist() == [0]  # one token: CLS
    everything = visionzip.compress(scores, metric[1:], 3, 3)  # no CLS; every other patch is a target
    assert everything.dense().sum(1).tolist() == [1.0] * 6 and sorted(everything.anchor.tolist()) == list(range(6))
    equal = visionzip.assign(torch.ones(4, 2), tensor([0, 1]), tensor([2, 3]))
    assert equal.tolist() == [0, 0]


def test_visionzip_overhead_by_hand():
    shape = dataclasses.replace(SHAPE, vision_heads=2)  # 48 patches, keep 12 = 10 + 2, 37 others, head size 4
    context = SeededContext(Site("projector"), shape, 48, 49, extra=1)
    assert methods.VisionZip().overhead_flops(context) == 49 * 8 + 3 * 49 * 4 + 2 * 37 * 2 * 4


def slow_divprune(tokens, keep):
    """The definition in loops: every distance and every minimum anew."""
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    n = len(tokens)
    distance = [[1 - float(unit[i] @ unit[j]) for j in range(n)] for i in range(n)]
    first = [min(distance[i][j] for j in range(n) if j != i) for i in range(n)]
    picks = [first.index(max(first))]
    while len(picks) < keep:
        gaps = {i: min(distance[i][p] for p in picks) for i in range(n) if i not in picks}
        picks.append(max(gaps, key=gaps.get))
    return picks


@pytest.mark.parametrize("seed", range(3))
def test_divprune_equals_the_loops(seed):
    tokens = torch.randn(20, 5, generator=torch.Generator().manual_seed(seed))
    for keep in (1, 2, 7, 20):
        order = divprune.farthest_first(divprune.cosine_distance(tokens), keep)
        assert order.tolist() == slow_divprune(tokens, keep)


def test_divprune_corner_cases():
    copies = divprune.farthest_first(divprune.cosine_distance(torch.ones(6, 3)), 6)
    assert sorted(copies.tolist()) == list(range(6))  # identical tokens: none twice
    assert divprune.farthest_first(torch.zeros(1, 1), 1).tolist() == [0]
    half = divprune.cosine_distance(torch.randn(4, 8).bfloat16())
    assert half.dtype == torch.float32
    context = SeededContext(Site("llm_input"), SHAPE, 48, 48)
    assert methods.DivPrune().overhead_flops(context) == 2 * 48 * 48 * 8 + 3 * 48 * 8 + 48 * 48


def test_fastv_by_hand():
    last_row = tensor([[0.9, 0.1, 0.3, 0.0, 0.2], [0.9, 0.3, 0.0, 0.2, 0.2]])  # system token first, text last
    assert fastv.select(last_row, tensor([1, 2, 3]), 2).tolist() == [0, 1]
    assert methods.FastV.positions == "keep"


def test_fastv_names_the_layers_that_exist():
    assert methods.FastV(layer=7).sites(SHAPE) == (Site("llm_layer", 7),)
    with pytest.raises(ValueError, match=r"layer=8 does not exist.*layer 1 to 7"):
        methods.FastV(layer=8).sites(SHAPE)
    with pytest.raises(ValueError, match="fewer than 2 decoder layers"):
        methods.FastV(layer=1).sites(dataclasses.replace(SHAPE, llm_layers=1))


def test_pyramiddrop_follows_the_paper():
    method = methods.PyramidDrop()
    assert pyramiddrop.boundaries(32) == (8, 16, 24) and pyramiddrop.boundaries(8) == (2, 4, 6)
    assert method.ratios == (0.5, 0.25, 0.125) and method.factor == 0.5 and method.positions == "renumber"
    assert [pyramiddrop.keep_count(576, r) for r in method.ratios] == [288, 144, 72]
    assert methods.PyramidDrop(retention=0.729).ratios == (0.9, 0.81, 0.729)
    assert pyramiddrop.keep_count(30, 0.01) == 1
    with pytest.raises(ValueError, match="at least 4 decoder layers"):
        method.sites(dataclasses.replace(SHAPE, llm_layers=3))


def test_llm_methods_ask_for_the_right_attention():
    """FastV ranks by the layer that has run, PyramidDrop by the layer about to run."""
    context = SeededContext(Site("llm_layer", 2), SHAPE, 48, 48)
    for method, of, keep in ((methods.FastV(), "previous", 12), (methods.PyramidDrop(), "next", 24)):
        scores = context.attention("last", of=of).mean((0, 1))[TEXT[0] : TEXT[0] + 48]
        best = sorted(scores.tolist(), reverse=True)[:keep]
        assert sorted(scores[method.reduce(context).old].tolist(), reverse=True) == best


def test_base_cannot_be_used_without_its_hooks():
    with pytest.raises(TypeError, match="abstract"):
        Method()
