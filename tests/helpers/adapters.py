"""Our pure functions, wrapped to take the inputs and give the outputs of a recorded run of the released code.

An adapter maps (inputs, hp) to outputs under the names of the recording, both without the prefix `inputs.`/`outputs.`.
"""

import adapters_stages
import torch

from vtc_demo.core.tokens import Reduction
from vtc_demo.methods.llm import fastv as fastv_maths
from vtc_demo.methods.llm import pyramiddrop as pyramiddrop_maths
from vtc_demo.methods.projector import divprune as divprune_maths
from vtc_demo.methods.projector import fastervlm as fastervlm_maths
from vtc_demo.methods.projector import visionzip as visionzip_maths


def divprune(inputs, hp):
    tokens = inputs["visual_tokens"]  # [576, 64]
    distance = divprune_maths.cosine_distance(tokens)
    order = divprune_maths.farthest_first(distance, round(hp["ratio"] * len(tokens)))
    return {"selection_order": order, "kept_indices": order.sort().values, "first_distance_row": distance[order[0]]}


def fastervlm(inputs, hp):
    features, attention = inputs["features"], inputs["cls_attention"]  # [2, 576, 32], [2, heads, 576]
    kept = torch.stack([fastervlm_maths.select(a, hp["visual_token_num"]) for a in attention])
    mask = torch.zeros(features.shape[:2], dtype=torch.bool).scatter(1, kept, True)
    tokens = torch.stack([Reduction.select(k, len(f)).apply(f) for k, f in zip(kept, features)])
    return {"index_mask": mask, "kept_indices": kept, "scores": attention.mean(1), "tokens": tokens}


def visionzip(inputs, hp):
    tokens, dominant = [], []
    for hidden, attention, metric in zip(inputs["hidden_states"], inputs["attention"], inputs["key_metric"]):
        scores = attention[:, 0, 1:].mean(0)  # [heads, CLS row, 577] -> [576]
        reduction = visionzip_maths.compress(scores, metric, hp["dominant"], hp["contextual"])
        tokens.append(reduction.apply(hidden))
        dominant.append(reduction.anchor[: hp["dominant"]])
    return {
        "tokens": torch.stack(tokens),
        "dominant_indices_with_cls": torch.stack(dominant),
        "n_tokens": tokens[0].shape[0],
    }


def fastv(inputs, hp):
    system, image, layers = 5, 576, 6  # the prompt and the stand-in model of the recording
    hidden, last_row = inputs["inputs_embeds"], inputs["last_row_attention"][0, :, 0]  # [1, 601, 8], [heads, 601]
    total, layer = hidden.shape[1], hp["fastv_k"]
    method = fastv_maths.FastV(layer=layer, retention=1 - hp["fastv_r"])
    visual = torch.arange(system, system + image)
    kept = visual[fastv_maths.select(last_row, visual, method.keep(image))]
    kept = torch.cat([torch.arange(system), kept, torch.arange(system + image, total)])
    return {
        "kept_positions": kept,
        "tokens_per_layer": torch.tensor([total] * layer + [len(kept)] * (layers - layer)),
        "hidden_out": hidden[:, kept],  # identity layers
        "attention_taken_from_layer": layer - 1,
    }


def pdrop(inputs, hp):
    system, image, ratios = 5, 64, (1.0, *pyramiddrop_maths.PyramidDrop().ratios)
    hidden = inputs["hidden_states"][0]  # [78, 32]
    base = round(image / ratios[hp["stage"]])
    visual = torch.arange(system, system + image)
    keep = pyramiddrop_maths.keep_count(base, ratios[hp["stage"] + 1])
    last_row = _next_layer_last_row(hidden, inputs["wq"], inputs["wk"], inputs["ln_weight"], heads=4)
    kept = visual[pyramiddrop_maths.select(last_row, visual, keep)]
    kept = torch.cat([torch.arange(system), kept, torch.arange(system + image, len(hidden))])
    return {"kept_positions": kept, "new_position_ids": torch.arange(len(kept)), "hidden_out": hidden[None, kept]}


def _next_layer_last_row(hidden, wq, wk, ln_weight, heads, base=10000.0, eps=1e-6):
    """What the engine gives for `attention("last", of="next")`: RMS norm, q, k, RoPE, softmax. [heads, S]."""
    x = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps) * ln_weight
    size = x.shape[1] // heads
    angle = torch.outer(torch.arange(len(x)).float(), base ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)  # [S, d]
    q, k = ((x @ w.T).view(len(x), heads, size).transpose(0, 1) for w in (wq, wk))  # [heads, S, d]
    q, k = (t * angle.cos() + torch.cat([-t[..., size // 2 :], t[..., : size // 2]], -1) * angle.sin() for t in (q, k))
    return torch.softmax(q[:, -1:] @ k.transpose(1, 2) / size**0.5, -1)[:, 0]


ADAPTERS = {"divprune": divprune, "fastervlm": fastervlm, "visionzip": visionzip, "fastv": fastv, "pdrop": pdrop}
ADAPTERS |= adapters_stages.ADAPTERS
