"""MustDrop: a recording per stage."""

import torch

from vtc_demo.core.shape import ModelShape
from vtc_demo.methods.several.mustdrop import MustDrop, cuts, key_set, merge_windows, passes, windows

METHOD, GRID = "mustdrop", (24, 24)


def mustdrop_merge(inputs, hp):
    hidden = inputs["hidden_states"][0]  # [577, 16]
    reduction = merge_windows(hidden, 1, windows(GRID, hp["window"]), hp["threshold"])
    size = torch.bincount(reduction.new, minlength=reduction.m)
    return {
        "tokens": reduction.apply(hidden)[None],
        "size": size[None, :, None].float(),
        "n_merged_windows": (size > 1).sum(),
        "n_tokens": reduction.m,
    }


def mustdrop_encoder(inputs, hp):
    """Identity layers, so what merging leaves is what every later layer sees."""
    method, hidden = MustDrop(), inputs["hidden_states"][0]
    merged = merge_windows(hidden, 1, windows(GRID, method.window), method.tau).apply(hidden)
    q = merged.view(len(merged), 4, -1).transpose(0, 1)  # [heads, n, d]
    cls = torch.softmax(q[:, :1] @ q.transpose(1, 2) / q.shape[-1] ** 0.5, -1).mean(0)[0, 1:]
    return {
        "features_patch_only": merged[None, 1:],
        "key_set_indices": key_set(cls, method.key_share)[None],
        "n_tokens": len(merged) - 1,
        "hidden_state_lengths": torch.tensor([len(hidden)] + [len(merged)] * 24),
    }


def mustdrop_prefill(inputs, hp):
    """Identity layers; the weights of pruning layer j come from the top left block of attn_logits[j]."""
    system, image, depth = 5, 60, 32
    total, places = inputs["inputs_embeds"].shape[1], cuts(MustDrop().layers, depth)
    alive, key = torch.arange(image), inputs["key_set"]
    seen = []  # image tokens that each layer runs on
    for layer in range(depth):
        if layer in places:
            n = len(alive)
            length = total - image + n
            logits = inputs["attn_logits"][places.index(layer), :, :length, :length]
            logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            rows = logits.softmax(-1).mean(0)[system + n :, system : system + n]  # [text, n]
            kept = passes(rows, key, hp["global_thr"], hp["individual_thr"])
            key = torch.tensor([kept.tolist().index(k) for k in key.tolist()])
            alive = alive[kept]
        seen.append(alive)
    positions = [torch.cat([torch.arange(system), system + a, torch.arange(system + image, total)]) for a in seen]
    trim = MustDrop().trim_from(ModelShape((24, 24), 14, 24, 22, depth, True))
    cached = [p if k < trim else p[torch.isin(p, positions[-1])] for k, p in enumerate(positions)]
    after = [*seen[1:], seen[-1]]  # a layer drops at its end
    return {
        "tokens_seen_by_layer": torch.tensor([len(p) for p in positions]),
        "kept_original_positions": positions[-1],
        "kv_length_per_layer": torch.tensor([len(p) for p in cached]),
        **{f"kv_original_positions_layer{k}": cached[k] for k in (0, 2, 8)},
        "position_ids_last_layer": torch.arange(len(positions[-1])),
        "average_image_tokens": sum(map(len, after)) / depth,
    }


ADAPTERS = {
    "mustdrop_merge": mustdrop_merge,
    "mustdrop_encoder": mustdrop_encoder,
    "mustdrop_prefill": mustdrop_prefill,
}
