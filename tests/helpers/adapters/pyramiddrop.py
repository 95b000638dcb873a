"""PyramidDrop, which its recording calls pdrop."""

import torch

from vtc_demo.methods.llm.pyramiddrop import PyramidDrop, keep_count, select

METHOD = "pyramiddrop"


def pdrop(inputs, hp):
    system, image, ratios = 5, 64, (1.0, *PyramidDrop().ratios)
    hidden = inputs["hidden_states"][0]  # [78, 32]
    base = round(image / ratios[hp["stage"]])
    visual = torch.arange(system, system + image)
    keep = keep_count(base, ratios[hp["stage"] + 1])
    last_row = _next_layer_last_row(hidden, inputs["wq"], inputs["wk"], inputs["ln_weight"], heads=4)
    kept = visual[select(last_row, visual, keep)]
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


ADAPTERS = {"pdrop": pdrop}
