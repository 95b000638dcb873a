"""FasterVLM."""

import torch

from vtc_demo.core.tokens import Reduction
from vtc_demo.methods.projector.fastervlm import select

METHOD = "fastervlm"


def fastervlm(inputs, hp):
    features, attention = inputs["features"], inputs["cls_attention"]  # [2, 576, 32], [2, heads, 576]
    kept = torch.stack([select(a, hp["visual_token_num"]) for a in attention])
    mask = torch.zeros(features.shape[:2], dtype=torch.bool).scatter(1, kept, True)
    tokens = torch.stack([Reduction.select(k, len(f)).apply(f) for k, f in zip(kept, features)])
    return {"index_mask": mask, "kept_indices": kept, "scores": attention.mean(1), "tokens": tokens}


ADAPTERS = {"fastervlm": fastervlm}
