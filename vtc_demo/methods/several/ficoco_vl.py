"""FiCoCo-VL: FiCoCo-V in the encoder, then FiCoCo-L on what is left (arXiv 2411.17686, first version)."""

from __future__ import annotations

from dataclasses import dataclass

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.parameters import param
from vtc_demo.core.shape import ModelShape
from vtc_demo.core.tokens import Reduction

from ..encoder import ficoco_v
from ..llm import ficoco_l


@dataclass(frozen=True)
class FiCoCoVL(Method):
    """Both variants in one pass."""

    inside = True

    retention: float = param(
        0.25, "share of the patches that is kept, as mean over the decoder's layers", low=0.01, high=1.0, step=0.01
    )
    split: float = param(0.5, "how much of the reduction is the encoder's: 0 none, 1 all", low=0.0, high=1.0, step=0.05)
    released: bool = param(False, "compute as the released code does, defects included")

    @property
    def positions(self):
        return self.language.positions

    @property
    def vision(self) -> ficoco_v.FiCoCoV:
        return ficoco_v.FiCoCoV(retention=max(0.01, self.retention**self.split), released=self.released)

    @property
    def language(self) -> ficoco_l.FiCoCoL:
        return ficoco_l.FiCoCoL(retention=self.retention, released=self.released)

    def sites(self, shape: ModelShape):
        return self.vision.sites(shape) + self.language.sites(shape)

    def reduce(self, context) -> Reduction | None:
        return (self.language if context.site.kind == "llm_layer" else self.vision).reduce(context)

    def overhead_flops(self, context):
        return (self.language if context.site.kind == "llm_layer" else self.vision).overhead_flops(context)


FiCoCoVL.card = Card(
    name="ficoco-vl",
    title="FiCoCo-VL",
    family="merging",
    summary="FiCoCo-V inside the image encoder, then FiCoCo-L inside the language model on the patches left.",
    sites=("vision_layer", "llm_layer"),
    faithfulness="from the paper",
    paper="arXiv 2411.17686",
    code="kawhiiiileo/FiCoCo",
    deviations=(
        "No source says how the reduction is split; `split` is the exponent: of 576 tokens with retention 1/9 the "
        "encoder leaves 576 * (1/9)^split, and the language model brings the mean over its layers to 64.",
        "In the first version of the paper only; the fourth dropped it.",
        "Everything else as in FiCoCo-V and FiCoCo-L with their defaults; released=True switches both.",
    ),
    reported="LLaVA-1.5-7B at 3.3 / 1.5 TFLOPs: SQA 68.3 / 68.1 of 69.5, TextVQA 55.1 / 54.7 of 58.2, GQA 58.7 / 57.4.",
    finding="At 128 and 64 its language stage ends at one token, as FiCoCo-L does.",
    order=33,
)
