"""The contract about outcomes of several parts, withdrawals, and what the rehearsal shows."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from vtc_demo.core.card import Card
from vtc_demo.core.effects import QuantiseCache, Redistribute, SizeBias, Skip, SparseMLP, ZeroCache
from vtc_demo.core.method import Method
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.methods import contract, rehearsal
from vtc_demo.methods.faults import faults
from vtc_demo.methods.rehearsal import SHAPE, SeededContext, rehearse

NONE = torch.empty(0, dtype=torch.long)
AT = (Site("llm_layer", 2),)


@dataclass(frozen=True)
class Does(Method):
    """Answers what a function makes of each context."""

    card: ClassVar[Card] = Card("does", "Does", "test", "Does what it is told.", ("llm_layer",), "baseline")
    at: ClassVar[tuple] = AT

    def sites(self, shape):
        return self.at

    def reduce(self, context):
        return self.answer(context)


class Withdraws(Does):
    withdraws = True


class Inside(Does):
    inside = True


def does(answer, base=Does, at=AT, **fields):
    return dataclass(frozen=True)(type("Made", (base,), {"answer": lambda self, c: answer(c), "at": at, **fields}))


def half(context):
    return Reduction.select(torch.arange(0, context.n, 2), context.n)


def few(context):
    return (context.n + 1) // 2


# -- outcomes -------------------------------------------------------------------------------------------------------
SOUND = {
    "reduction": half,
    "nothing": lambda c: None,
    "no parts": lambda c: (),
    "effect": lambda c: SparseMLP(torch.tensor([0, 5, 3])),
    "both": lambda c: (half(c), SizeBias(torch.ones(few(c))), Skip(torch.tensor([few(c) - 1]))),
    "effect first": lambda c: (Skip(torch.tensor([0]), "mlp"), half(c)),
    "edit": lambda c: Redistribute(lambda weights, visual: weights.index_fill(-1, visual, 0.0)),
}


@pytest.mark.parametrize("answer", SOUND.values(), ids=SOUND)
def test_sound_outcomes(answer):
    assert contract.check(does(answer)) == []


BROKEN = {
    "two reductions": (lambda c: (half(c), half(c)), "2 Reductions at one site"),
    "something else": (lambda c: (half(c), 3), "must return a Reduction, Effects or None, not int"),
    "a list": (lambda c: [half(c)], "must return a Reduction, Effects or None, not list"),
    "too many sizes": (lambda c: (half(c), SizeBias(torch.ones(c.n))), "SizeBias.size needs one size above 0"),
    "size 0": (lambda c: SizeBias(torch.zeros(c.n)), "SizeBias.size needs one size above 0"),
    "gone": (lambda c: (half(c), Skip(torch.tensor([few(c)]))), "Skip.tokens must be int64 indices from 0 to"),
    "twice": (lambda c: Skip(torch.tensor([1, 1])), "none twice"),
    "a mask": (lambda c: Skip(torch.ones(c.n, dtype=torch.bool)), "Skip.tokens must be int64 indices"),
    "neurons": (lambda c: SparseMLP(torch.tensor([-1])), "SparseMLP.neurons must be int64 indices from 0 on"),
    "another site": (lambda c: ZeroCache(torch.tensor([0])), "ZeroCache cannot be asked for at llm_layer(2)"),
    "shape": (lambda c: Redistribute(lambda w, visual: w[..., visual]), "finite weights of the shape that it gets"),
    "not a number": (lambda c: Redistribute(lambda w, visual: w / 0 - w / 0), "finite weights of the shape"),
    "in place": (lambda c: Redistribute(lambda w, visual: w.zero_()), "changed the weights that it got"),
    "scores": (lambda c: Reduction.select(torch.arange(3), c.n, torch.ones(3)), "one score for each of the"),
    "withdrawal": (lambda c: Reduction.select(NONE, c.n), "0 tokens are left; at least 1"),
}


@pytest.mark.parametrize(("answer", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_outcomes_are_told(answer, words):
    assert any(words in f.message for f in contract.check(does(answer)) if f.check == "reductions")


def test_no_effect_between_attention_and_mlp():
    found = contract.check(does(lambda c: SparseMLP(torch.tensor([0])), Inside))
    assert any("between attention and MLP" in f.message for f in found)


def test_effects_of_the_cache():
    card = Card("does", "Does", "test", "Does what it is told.", ("kv_cache",), "baseline")
    sound = does(lambda c: (half(c), QuantiseCache(4), ZeroCache(torch.tensor([0]))), at=(Site("kv_cache"),), card=card)
    assert contract.check(sound) == []


def test_outcomes_that_differ_are_noticed():
    seen = []

    def drifting(context):
        seen.append(1)
        return half(context), Skip(torch.tensor([len(seen) % 7]))

    assert [f.check for f in contract.check(does(drifting))].count("repeatable") == 1


@pytest.mark.parametrize("make", [lambda: QuantiseCache(0), lambda: QuantiseCache(9), lambda: QuantiseCache(16)])
def test_bits_that_cannot_be(make):
    with pytest.raises(ValueError, match=r"QuantiseCache\(bits=.*; choose 1, .* or 8"):
        make()


def test_words_that_are_no_choice():
    with pytest.raises(ValueError, match=r"Skip\(part='all'\); choose layer or mlp"):
        Skip(torch.tensor([0]), "all")
    with pytest.raises(ValueError, match=r"Redistribute\(rows='first'\); choose last or all"):
        Redistribute(lambda weights, visual: weights, "first")


# -- withdrawal -----------------------------------------------------------------------------------------------------
def test_only_a_method_that_says_so_may_withdraw():
    sites = (Site("llm_layer", 2), Site("llm_layer", 4))
    asked = []

    def withdraw(context):
        asked.append(context.site)
        return Reduction.select(NONE, context.n, torch.rand(context.n, generator=torch.Generator().manual_seed(0)))

    assert contract.check(does(withdraw, Withdraws, sites)) == []
    assert set(asked) == {sites[0]}  # where no token is left nothing is asked
    assert any("0 tokens are left" in f.message for f in contract.check(does(withdraw, at=sites)))


def test_a_selection_of_some_cannot_have_no_entries():
    context = SeededContext(Site("llm_layer", 2), SHAPE, 5, 5)
    bad = Reduction(NONE, NONE, None, 2, 5, torch.arange(2))
    assert any("Reduction.new must hold indices" in fault for fault in faults(bad, context, Withdraws))


# -- what is shown --------------------------------------------------------------------------------------------------
def test_the_rehearsal_shows_what_the_engine_shows():
    """By site: rows, keys and values, CLS rows, question and tiles; what the engine refuses there is refused."""
    seen = []

    def look(context):
        kind, heads = context.site.kind, rehearsal.HEADS
        patches = context.n - context.extra
        assert context.attention("visual").shape[:2] == (heads, patches)
        assert context.received().shape == (context.attention("all").shape[-1],)
        if context.in_llm:
            assert context.attention().shape == (heads, 1, context.n + sum(rehearsal.TEXT))
            assert context.attention("after").shape[1] == rehearsal.TEXT[1] == context.question.after
            for asked in (context.keys, context.values):
                with pytest.raises(ValueError, match="for sites up to llm_input"):
                    asked()
        else:
            assert context.attention("all").shape == (heads, context.n, context.n)
            assert context.keys().shape == context.values().shape == (heads, context.n, context.size)
            assert not torch.equal(context.keys(), context.values())
            for rows in ("last", "text", "after"):
                with pytest.raises(ValueError, match=f"no rows '{rows}'"):
                    context.attention(rows)
        if kind == "vision_layer":
            assert context.question is None
        else:
            assert context.cls_attention(1).shape == (heads, context.n)
            assert context.question.features.shape == context.question.token_features.shape[1:]
            assert len(context.question.own) == len(context.question.token_features) <= len(context.question.words)
            assert context.question.aligned(context.hidden).shape == (context.n, len(context.question.features))
        (tile,) = context.tiles
        assert tile.part.tolist() == list(range(context.extra, context.n)) and not tile.thumbnail
        seen.append(kind)

    sites = (Site("vision_layer", 1), Site("projector"), Site("llm_input"), Site("llm_layer", 3), Site("kv_cache"))
    rehearse(does(look, at=sites, cls_layers=lambda self, shape: (1,))())
    assert seen == [site.kind for site in sites]
