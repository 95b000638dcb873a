"""FasterVLM: keep the patches that the encoder's CLS token attends to (arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import top
from vtc_demo.core.tokens import Reduction, Site

from ..maths.received import patch_attention


def select(cls_attention: Tensor, keep: int) -> Tensor:
    """cls_attention [heads, patches] (CLS row of the feature layer) -> kept patches in raster order, [keep] int64."""
    return top(cls_attention.mean(0), keep)


@dataclass(frozen=True)
class FasterVLM(Method):
    """Ranks patches by CLS attention and keeps the best."""

    def sites(self, shape):
        return (Site("projector"),)

    def reduce(self, context):
        n = context.hidden.shape[0]
        kept = top(patch_attention(context), self.keep(n - context.extra))
        return Reduction.select(context.extra + kept, n)


FasterVLM.card = Card(
    name="fastervlm",
    title="FasterVLM",
    family="pruning by vision attention",
    summary="The image encoder already knows where it looked most; only those patches go on to the language model.",
    sites=("projector",),
    faithfulness="matches released code",
    paper="arXiv 2412.01818",
    code="Theia-4869/FasterVLM",
    deviations=(
        "Selects before the projector instead of after it; the same tokens, as the projector works token by token.",
        "Encoder without CLS token: scored by the attention a patch receives, averaged over all rows.",
        "Equal scores: the lowest index wins; the released top-k leaves their order open.",
        "The released code drops the newline tokens of LLaVA-NeXT, so all tokens are not its full input.",
    ),
    reported="95% of the tokens pruned keeps 90% of LLaVA-1.5-7B's performance.",
    order=10,
)
