"""FiCoCo-V, and the merge that all variants share."""

import torch

from vtc_demo.methods.encoder.ficoco_v import released_layer
from vtc_demo.methods.maths.ficoco import compress

from ._ficoco import whole_logits

METHOD = "ficoco-v"


def ficoco_compress(inputs, hp):
    correlation = inputs["correlation"]  # [10, 3]
    alpha = correlation / correlation.sum(1, keepdim=True)
    n = inputs["tokens"].shape[1]
    reduction, whole = compress(inputs["kept"], inputs["discarded"], inputs["target_positions_in_kept"], alpha, n)
    return {"tokens": reduction.apply(inputs["tokens"]), "denominator": whole[None, :, None]}


def ficoco_v(inputs, hp):
    cells = torch.arange(577) - 1
    reduction, discarded, target, alpha = released_layer(whole_logits(inputs, (577,)), hp["r"], cells, (24, 24))
    return {
        "discarded_indices_sorted": discarded.sort().values,
        "remain_order": reduction.anchor,
        "official_target_indices": target,
        "alpha": alpha,
        "official_output": reduction.apply(inputs["hidden_states"]),
        "K": target.shape[1],
    }


ADAPTERS = {"ficoco_compress": ficoco_compress, "ficoco_v": ficoco_v}
