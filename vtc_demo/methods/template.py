"""A method in one file. Copy it, give class and card names of their own, write the maths and the hook.

Copied into vtc_demo/methods it is found at the next start. Copied into another folder it is found with
`--methods FOLDER` or `vtc_demo.registry.load_folder(FOLDER)`. A file named template.py itself, or with a leading
underscore, is not loaded. Nothing else has to be edited: lists, page, shell and contract tests find the class.

This example keeps the tokens with the largest norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import top
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site


# 1. The maths: pure functions on plain tensors. State the shapes. Do not read values back from the device (.item(),
#    .tolist(), `if tensor`): that would make the GPU wait.
def norms(tokens: Tensor, power: float) -> Tensor:
    """tokens [n, C] -> p-norm of each, [n] float32."""
    return tokens.float().norm(p=power, dim=-1)


# 2. The method: a frozen dataclass. Its fields are the hyper-parameters, with default, help and range; `retention` is
#    inherited.
@dataclass(frozen=True)
class Mine(Method):
    """Keeps the tokens with the largest norm."""

    power: float = param(2.0, "order of the norm", low=1.0, high=8.0, step=0.5)

    def sites(self, shape):
        """Where `reduce` is called. `shape` says which layers the model has; raise ValueError if one is missing."""
        return (Site("llm_input"),)

    def reduce(self, context):
        """Called at each of the sites. Return a Reduction (select, merge, from_dense), or None to change nothing.

        `context` shows the tokens [n, C], their places, sizes, attention rows on request; see `HookContext`.
        """
        n = context.hidden.shape[0]
        return Reduction.select(top(norms(context.hidden, self.power), self.keep(n)), n)

    def overhead_flops(self, context):
        """Of what `reduce` computes, 2 FLOPs per multiply-add, from shapes alone; the contract counts and compares."""
        n, dim = context.hidden.shape
        return 2 * n * dim


# 3. The card: what a visitor reads.
Mine.card = Card(
    name="mine",  # the name in API, shell and page; no other method may have it
    title="My method",
    family="baseline",
    summary="One sentence for a visitor without background: the patches with the strongest signal are kept.",
    sites=("llm_input",),  # kinds of site, see core.tokens.SITE_ORDER
    faithfulness="in the style of",  # see core.card.Faithfulness; "matches released code" needs a conformance test
    deviations=("No published method: an example.",),
)
