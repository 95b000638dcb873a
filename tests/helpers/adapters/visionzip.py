"""VisionZip."""

import torch

from vtc_demo.methods.projector.visionzip import compress

METHOD = "visionzip"


def visionzip(inputs, hp):
    tokens, dominant = [], []
    for hidden, attention, metric in zip(inputs["hidden_states"], inputs["attention"], inputs["key_metric"]):
        scores = attention[:, 0, 1:].mean(0)  # [heads, CLS row, 577] -> [576]
        reduction = compress(scores, metric, hp["dominant"], hp["contextual"])
        tokens.append(reduction.apply(hidden))
        dominant.append(reduction.anchor[: hp["dominant"]])
    return {
        "tokens": torch.stack(tokens),
        "dominant_indices_with_cls": torch.stack(dominant),
        "n_tokens": tokens[0].shape[0],
    }


ADAPTERS = {"visionzip": visionzip}
