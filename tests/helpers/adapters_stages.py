"""Adapters for methods that act in several stages or layers: MustDrop and FiCoCo."""

import torch

from vtc_demo.core.shape import ModelShape
from vtc_demo.methods.encoder import ficoco_v as ficoco_v_maths
from vtc_demo.methods.llm import ficoco_l as ficoco_l_maths
from vtc_demo.methods.maths import ficoco as ficoco_maths
from vtc_demo.methods.several import mustdrop as mustdrop_maths

GRID = (24, 24)


# -- MustDrop -------------------------------------------------------------------------------------------------------
def mustdrop_merge(inputs, hp):
    hidden = inputs["hidden_states"][0]  # [577, 16]
    reduction = mustdrop_maths.merge_windows(hidden, 1, mustdrop_maths.windows(GRID, hp["window"]), hp["threshold"])
    size = torch.bincount(reduction.new, minlength=reduction.m)
    return {
        "tokens": reduction.apply(hidden)[None],
        "size": size[None, :, None].float(),
        "n_merged_windows": (size > 1).sum(),
        "n_tokens": reduction.m,
    }


def mustdrop_encoder(inputs, hp):
    """Identity layers, so what merging leaves is what every later layer sees."""
    method, hidden = mustdrop_maths.MustDrop(), inputs["hidden_states"][0]
    merged = mustdrop_maths.merge_windows(hidden, 1, mustdrop_maths.windows(GRID, method.window), method.tau).apply(
        hidden
    )
    q = merged.view(len(merged), 4, -1).transpose(0, 1)  # [heads, n, d]
    cls = torch.softmax(q[:, :1] @ q.transpose(1, 2) / q.shape[-1] ** 0.5, -1).mean(0)[0, 1:]
    return {
        "features_patch_only": merged[None, 1:],
        "key_set_indices": mustdrop_maths.key_set(cls, method.key_share)[None],
        "n_tokens": len(merged) - 1,
        "hidden_state_lengths": torch.tensor([len(hidden)] + [len(merged)] * 24),
    }


def mustdrop_prefill(inputs, hp):
    """Identity layers; the weights of pruning layer j come from the top left block of attn_logits[j]."""
    system, image, depth = 5, 60, 32
    total, cuts = inputs["inputs_embeds"].shape[1], mustdrop_maths.cuts(mustdrop_maths.MustDrop().layers, depth)
    alive, key = torch.arange(image), inputs["key_set"]
    seen = []  # image tokens that each layer runs on
    for layer in range(depth):
        if layer in cuts:
            n = len(alive)
            length = total - image + n
            logits = inputs["attn_logits"][cuts.index(layer), :, :length, :length]
            logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            rows = logits.softmax(-1).mean(0)[system + n :, system : system + n]  # [text, n]
            kept = mustdrop_maths.passes(rows, key, hp["global_thr"], hp["individual_thr"])
            key = torch.tensor([kept.tolist().index(k) for k in key.tolist()])
            alive = alive[kept]
        seen.append(alive)
    positions = [torch.cat([torch.arange(system), system + a, torch.arange(system + image, total)]) for a in seen]
    trim = mustdrop_maths.MustDrop().trim_from(ModelShape((24, 24), 14, 24, 22, depth, True))
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


# -- FiCoCo ---------------------------------------------------------------------------------------------------------
def ficoco_compress(inputs, hp):
    correlation = inputs["correlation"]  # [10, 3]
    alpha = correlation / correlation.sum(1, keepdim=True)
    n = inputs["tokens"].shape[1]
    reduction, whole = ficoco_maths.compress(
        inputs["kept"], inputs["discarded"], inputs["target_positions_in_kept"], alpha, n
    )
    return {"tokens": reduction.apply(inputs["tokens"]), "denominator": whole[None, :, None]}


def ficoco_v(inputs, hp):
    cells = torch.arange(577) - 1
    reduction, discarded, target, alpha = ficoco_v_maths.released_layer(_logits(inputs, (577,)), hp["r"], cells, GRID)
    return {
        "discarded_indices_sorted": discarded.sort().values,
        "remain_order": reduction.anchor,
        "official_target_indices": target,
        "alpha": alpha,
        "official_output": reduction.apply(inputs["hidden_states"]),
        "K": target.shape[1],
    }


def ficoco_l(inputs, hp):
    visual, text = torch.arange(576), torch.arange(576, 606)
    reduction, discarded, target, alpha = ficoco_l_maths.released_layer(
        _logits(inputs, (576, 30)), visual, text, hp["r"]
    )
    return {
        "discarded_order": discarded,
        "discarded_indices_sorted": discarded.sort().values,
        "kept_indices": reduction.anchor,
        "target_indices": target,
        "alpha": alpha,
        "visual_tokens_out": reduction.apply(inputs["hidden_states"][:, :576]),
        "K": target.shape[1],
    }


def _logits(inputs, spans):
    """The recorded logits [n, n].

    The copies in tests/data hold whole rows only for CLS, text and discarded tokens. The maths uses any other row by
    its mean alone (over the visual, and over the text columns), so these are filled up with their means.
    """
    if "attention_logits" in inputs:
        return inputs["attention_logits"].view(sum(spans), sum(spans))
    logits = inputs["row_means"].repeat_interleave(torch.tensor(spans), 1)  # [n, spans] -> [n, n]
    return logits.index_copy(0, inputs["row_index"], inputs["rows"])


ADAPTERS = {
    f.__name__: f for f in (mustdrop_merge, mustdrop_encoder, mustdrop_prefill, ficoco_compress, ficoco_v, ficoco_l)
}
