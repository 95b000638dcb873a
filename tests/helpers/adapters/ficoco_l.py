"""FiCoCo-L."""

import torch

from vtc_demo.methods.llm.ficoco_l import released_layer

from ._ficoco import whole_logits

METHOD = "ficoco-l"


def ficoco_l(inputs, hp):
    visual, text = torch.arange(576), torch.arange(576, 606)
    reduction, discarded, target, alpha = released_layer(whole_logits(inputs, (576, 30)), visual, text, hp["r"])
    return {
        "discarded_order": discarded,
        "discarded_indices_sorted": discarded.sort().values,
        "kept_indices": reduction.anchor,
        "target_indices": target,
        "alpha": alpha,
        "visual_tokens_out": reduction.apply(inputs["hidden_states"][:, :576]),
        "K": target.shape[1],
    }


ADAPTERS = {"ficoco_l": ficoco_l}
