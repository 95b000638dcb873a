# /// lesson
# title = "Pruning before the LLM"
# objectives = [
#   "compute the CLS row of a vision tower's attention from its own queries and keys, and rank patches by it",
#   "write the greedy search for the most diverse subset, and say what it optimises",
#   "write VisionZip's contextual tokens as rows of a matrix, and say why these rows add up to 2",
#   "compare the three with blind baselines at the same count, and tell surviving evidence from right answers",
# ]
# prerequisites = ["lesson 00", "lesson 01 helps: merging as a matrix"]
# methods = ["fastervlm", "divprune", "visionzip", "random", "uniform", "pool", "downsample"]
# papers = ["2412.01818 FasterVLM", "2503.02175 DivPrune", "2412.04467 VisionZip"]
# ///

# %% [slide]
# ## Which 64 of 576?
#
# - Between tower and decoder the tokens can be thinned out **once, for all layers**: least prefill, smallest cache.
# - The question has not been read yet. Only the **picture** can tell what matters.
# - Three answers: where the tower looked (FasterVLM), what differs (DivPrune), both kinds of token (VisionZip).

# %%
import json
from pathlib import Path

import plotly.graph_objects as go
import torch

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.methods.projector import divprune, fastervlm, visionzip

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=2)
BUDGET = 64 / 576

# %% [markdown] minutes=16
# ## 1. Where the tower looked
#
# A method that acts before the decoder pays off in every decoder layer. In exchange it has not seen the question: one selection must serve all of them. What it can ask is the vision tower.
#
# The towers of CLIP put one more token before the patches, **CLS**. It gathers what the whole picture is about, and its attention says from which patches. In layer $\ell$, for head $h$:
#
# $$ a_h = \operatorname{softmax}\!\left( \frac{q_h^{\text{CLS}}\, K_h^\top}{\sqrt{d}} \right) \in \mathbb{R}^{1 + N}, \qquad s_j = \frac{1}{H} \sum_h a_{h,\, j} $$
#
# $K_h$ holds the keys of CLS and of all $N$ patches; $s_j$ is the score of patch $j$. FasterVLM keeps the patches with the largest $s_j$. The layer is the one whose output goes
# to the projector: the second-last, number 22 of 0 to 23 in CLIP-L.
#
# A CLS token tells something only if it was trained to. CLIP trained it to match captions. A loss on answers alone would give it no gradient, because LLaVA throws it away;
# the tower of this course was trained to name the contents of the picture from CLS.

# %%
with torch.inference_mode():
    tower = vlm.model.model.vision_tower
    states = tower(vlm.inputs([scene.image]).pixels, output_hidden_states=True).hidden_states
    entered = states[vlm.shape.feature_layer][0]  # what entered the feature layer: [1 + 576, C], CLS first
    features = states[-2][0, 1:]  # its output without CLS: [576, C]
    visual = vlm.model.model.multi_modal_projector(features[None])[0]  # the visual tokens, [576, D]
layers = len(states) - 1
assert vlm.shape.feature_layer == layers - 2
say(
    f"This tower has layers 0 to {layers - 1}; layer {vlm.shape.feature_layer} is asked. {tuple(entered.shape)} entered it."
)

# %% [exercise] difficulty=medium minutes=8
# Compute the CLS row of one layer from what entered it. The layer normalises first (`layer.layer_norm1`), then projects (`layer.self_attn.q_proj`, `k_proj`) and splits the width into
# `layer.self_attn.num_heads` heads of equal size, one after another. The softmax runs over *all* keys, CLS among them; return the columns of the patches, as they are.


# %% [solution]
def cls_row(layer, entered):
    """Post-softmax attention of CLS to each patch, [heads, N]. entered [1 + N, C]: the tokens that entered the layer."""
    # BEGIN SOLUTION
    attention = layer.self_attn
    x = layer.layer_norm1(entered)
    q = attention.q_proj(x[:1]).view(1, attention.num_heads, -1).transpose(0, 1)  # [heads, 1, d]
    k = attention.k_proj(x).view(len(x), attention.num_heads, -1).transpose(0, 1)  # [heads, 1 + N, d]
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # [heads, 1, 1 + N]
    return weights[:, 0, 1:]
    # END SOLUTION


# %% [check]
seen = {}


class LookAtCLS(vtc.methods.FasterVLM):
    """Remembers what the package shows to a method at the projector, and leaves the tokens alone."""

    def reduce(self, context):
        seen["row"] = context.attention("cls")[:, 0, context.extra :].clone()


vtc.run(vlm, scene.image, "How many objects are there?", method=LookAtCLS(), max_new_tokens=1)
with torch.inference_mode():
    got = cls_row(tower.encoder.layers[vlm.shape.feature_layer], entered)
check(
    tuple(got.shape) == tuple(seen["row"].shape),
    f"One row per head and one column per patch, [4, 576]; yours has the shape {tuple(got.shape)}.",
)
check(
    not torch.allclose(got.sum(-1), torch.ones(len(got)), atol=1e-6),
    "Each of your rows adds up to 1 over the patches alone. CLS attends to itself too: softmax first, then leave its column out.",
)
check_equal(
    got,
    seen["row"],
    "The package finds other numbers. Norm before q and k? Divided by the root of the width of *one head*? Heads split before the product?",
    1e-4,
)
done("the row equals what the package shows to a method")

# %% [hint]
# `x.view(n, heads, -1).transpose(0, 1)` makes `[heads, n, d]` of `[n, C]`. Only one query is needed, so `q_proj` of the first token is enough; the keys are needed of all.


# %% [mistake] why="The softmax runs over the patches alone, so the share that CLS gives to itself is lost."
def cls_row(layer, entered):
    attention = layer.self_attn
    x = layer.layer_norm1(entered)
    q = attention.q_proj(x[:1]).view(1, attention.num_heads, -1).transpose(0, 1)
    k = attention.k_proj(x[1:]).view(len(x) - 1, attention.num_heads, -1).transpose(0, 1)
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)[:, 0]


# %% [mistake] why="The scale is that of the whole width instead of one head."
def cls_row(layer, entered):
    attention = layer.self_attn
    x = layer.layer_norm1(entered)
    q = attention.q_proj(x[:1]).view(1, attention.num_heads, -1).transpose(0, 1)
    k = attention.k_proj(x).view(len(x), attention.num_heads, -1).transpose(0, 1)
    return (q @ k.transpose(1, 2) / entered.shape[-1] ** 0.5).softmax(-1)[:, 0, 1:]


# %% [instructor]
# One row of one layer is all that is needed. The released code of several methods asks the library for the attention of *every* layer, which switches the fused kernel off for the whole
# tower. Ask the participants what that does to the "before" column of a table of times.

# %% [markdown]
# The package shows the same row to a method through `context.attention("cls")`. A method that only looks and returns nothing is a convenient probe. Here are one head and the mean of all.


# %%
class Probe(vtc.methods.FasterVLM):
    def reduce(self, context):
        probed["cls"] = context.attention("cls")[:, 0, context.extra :].clone()  # [heads, 576]
        probed["keys"] = context.keys().clone()  # [heads, 577, d]; section 4 needs them


probed = {}
vtc.run(vlm, scene.image, "How many objects are there?", method=Probe(), max_new_tokens=1)
cls_attention = probed["cls"]
scores = cls_attention.mean(0)  # [576]
assert 0 < scores.sum() < 1  # the rest is what CLS gives to itself

# %% [slide]
# ## Attention of CLS, per patch
#
# One row of one layer, computed from that layer's q and k. The score is the mean over the heads.

# %% slide
kit.heat(
    scene.image,
    {"head 0": cls_attention[0].sqrt(), "mean over heads: the score": scores.sqrt()},
    title="How much CLS attends to each patch (square root)",
)

# %% [markdown] minutes=8
# ## 2. FasterVLM: keep the best
#
# Rank, keep, and put the survivors back **in raster order**. Rows of a picture read in the order of their scores would be a shuffled sentence: the decoder has learned what stands before what.
# The sequence simply becomes shorter, so position ids count through; nothing tells the decoder where the gaps were, other than what the features themselves know of their place.

# %% [exercise] difficulty=easy minutes=4
# The indices of the `keep` largest scores, ascending. Among equal scores the lowest index wins. (`torch.topk` promises no order among equals; it differs between devices.)


# %% [solution]
def keep_best(scores, keep):
    """scores [n] -> indices of the `keep` largest, ascending, [keep]."""
    # BEGIN SOLUTION
    return scores.argsort(descending=True, stable=True)[:keep].sort().values
    # END SOLUTION


# %% [check]
got = keep_best(torch.tensor([0.1, 0.5, 0.2, 0.9]), 2)
check_equal(got, [1, 3], "The two largest of 0.1, 0.5, 0.2, 0.9 are at 1 and 3, in this order.")
check_equal(keep_best(torch.tensor([2.0, 1.0, 2.0, 2.0]), 2), [0, 2], "Three equal scores, room for two: 0 and 2.")
check_equal(keep_best(torch.zeros(576), 64), list(range(64)), "All 576 scores equal: the first 64.")
check_equal(keep_best(scores, 64), fastervlm.select(cls_attention, 64), "The package keeps other patches.")
done("the same patches as FasterVLM's in the package")

# %% [hint]
# `argsort` with `stable=True` leaves equals in their order. Cut, then sort the indices.


# %% [mistake] why="In the order of the scores: the picture's patches are shuffled."
def keep_best(scores, keep):
    return scores.argsort(descending=True, stable=True)[:keep]


# %% [mistake] why="A threshold: with equal scores it keeps more than the budget."
def keep_best(scores, keep):
    return (scores >= scores.sort(descending=True).values[keep - 1]).nonzero().flatten()


# %%
question = next(q for q in scene.questions if q.kind == "counting")
run = vtc.run(vlm, scene.image, question.text, method="fastervlm", retention=BUDGET)
kept = (run.trace.fate().status == 2).nonzero().flatten()
assert torch.equal(kept, fastervlm.select(cls_attention, 64))  # the pass did what the function says

unit = torch.nn.functional.normalize(visual, dim=-1)
likeness = (unit[kept] @ unit[kept].T).fill_diagonal_(-1).max(1).values  # of each kept token to its nearest kept one
say(f"""
64 of 576 patches hold {100 * scores[kept].sum() / scores.sum():.0f} % of the attention that CLS gives to patches. But look at what was bought: the median kept token has a cosine similarity of
**{likeness.median():.2f}** to another kept token. Patches are ranked one by one; whether a like token has been picked before plays no part.
""")

# %% [markdown] minutes=17
# ## 3. DivPrune: keep what differs
#
# DivPrune asks no attention at all. It looks for the subset $S$ whose two most similar members differ most (**max-min diversity**), by cosine distance of the visual tokens $x_i$ as the decoder would read them:
#
# $$ S^\ast = \arg\max_{|S| = m} \; \min_{i \ne j \in S} \, d_{ij}, \qquad d_{ij} = 1 - \frac{x_i^\top x_j}{\lVert x_i\rVert \lVert x_j\rVert} $$
#
# The exact search is NP-hard. The greedy one starts with the token whose nearest neighbour is farthest away and goes on with
#
# $$ i_{t+1} = \arg\max_{i} \; \min_{j \in S_t} d_{ij} $$
#
# One vector with the distance of every token to its nearest chosen one is enough. After each pick it can only fall: $g_i \leftarrow \min(g_i, d_{i,\,i_t})$. So $m$ picks take $m$ passes over $N$ numbers.
# They follow one another, though: on a GPU this is $m$ small kernels in a row.

# %% [exercise] difficulty=hard minutes=10
# Write the greedy search. Ties go to the lowest index; no token is chosen twice. The diagonal of `distance` is 0 (or nearly so), which matters for the first pick.


# %% [solution]
def greedy_max_min(distance, keep):
    """distance [n, n], symmetric -> indices in the order of selection, [keep]."""
    # BEGIN SOLUTION
    nearest = distance.sort(dim=0).values[1]  # row 0 is each token's distance to itself
    picks = [int(nearest.argmax())]
    gap = torch.full_like(nearest, torch.inf)  # distance to the chosen set
    for _ in range(keep - 1):
        gap = torch.minimum(gap, distance[picks[-1]])
        gap[picks[-1]] = -torch.inf
        picks.append(int(gap.argmax()))
    return torch.tensor(picks)
    # END SOLUTION


# %% [check]
places = torch.tensor([0.0, 1, 50, 90, 200])  # five points on a line
line = (places[:, None] - places[None, :]).abs()
got = greedy_max_min(line, 4)
check(
    int(got[0]) == 4,
    f"The first pick is the point whose *nearest* neighbour is farthest: number 4, at 200. Yours is number {int(got[0])}.",
)
check_equal(
    got, [4, 0, 3, 2], "Points at 0, 1, 50, 90, 200: first 200, then 0, then 90 (90 from the nearest chosen), then 50."
)
check_equal(
    greedy_max_min(torch.zeros(6, 6), 6).sort().values,
    [0, 1, 2, 3, 4, 5],
    "Six copies of one token: each is chosen once.",
)
distance = divprune.cosine_distance(visual)
check_equal(
    greedy_max_min(distance, 64), divprune.farthest_first(distance, 64), "Real tokens: the package picks others."
)
done("the picks of the package, in the same order")

# %% [hint]
# Sort every column of `distance`: its first entry is the token itself, its second the nearest neighbour. In the loop, set `gap` of a chosen token to $-\infty$.


# %% [mistake] why="It begins with token 0 instead of the loneliest one."
def greedy_max_min(distance, keep):
    picks, gap = [0], distance[0].clone()
    for _ in range(keep - 1):
        gap[picks[-1]] = -torch.inf
        picks.append(int(gap.argmax()))
        gap = torch.minimum(gap, distance[picks[-1]])
    return torch.tensor(picks)


# %% [mistake] why="The sum of the distances to the chosen ones instead of the smallest: it crowds at the far ends."
def greedy_max_min(distance, keep):
    nearest = distance.sort(dim=0).values[1]
    picks = [int(nearest.argmax())]
    total = torch.zeros_like(nearest)
    for _ in range(keep - 1):
        total = total + distance[picks[-1]]
        total[picks[-1]] = -torch.inf
        picks.append(int(total.argmax()))
    return torch.tensor(picks)


# %% [markdown]
# Two choices of 64 tokens, measured by what each of the two methods is after: the attention that they hold, and the distance of a token to its nearest fellow.

# %%
apart = divprune.cosine_distance(visual)
diverse = divprune.farthest_first(apart, 64)
by_chance = vtc.methods.baselines.random.draw(576, 64, 0)


def closest(chosen):
    """Cosine distance of the two most similar tokens among the chosen."""
    return apart[chosen][:, chosen].fill_diagonal_(torch.inf).min().item()


sets = {"FasterVLM": kept, "DivPrune": diverse, "random": by_chance}
kit.table(
    [[name, f"{100 * scores[c].sum() / scores.sum():.0f} %", closest(c)] for name, c in sets.items()],
    ["64 tokens by", "share of CLS attention", "smallest distance between two"],
)
share = {name: (scores[c].sum() / scores.sum()).item() for name, c in sets.items()}
assert share["FasterVLM"] > share["DivPrune"] and share["FasterVLM"] > share["random"]  # it is the maximum
assert closest(diverse) > 2 * max(closest(kept), closest(by_chance))

# %% [quiz]
# DivPrune is run on a photograph whose sky fills half of the picture, and every patch of sky has nearly the same token. What happens to the sky?
#
# - [ ] It keeps half of the budget, because it is half of the picture
#   That is what random or even picking would give it. Max-min asks how different a token is, not how common.
# - [x] It gets a few tokens: after the first one, the others are close to a chosen one
#   Their distance to the chosen set is nearly 0, so they are picked only when nothing more different is left.
# - [ ] It gets none, because no object is there
#   DivPrune knows nothing of objects. The first patch of sky differs from all objects and is likely to be picked.

# %% [markdown] minutes=13
# ## 4. VisionZip: dominant and contextual tokens
#
# VisionZip spends the budget on two kinds of token. **Dominant** tokens are chosen as in section 2 and kept as they are; CLS itself is one of them. The rest is not thrown away but averaged into a few **contextual** tokens:
#
# 1. The remaining tokens in raster order: every $\lfloor R / K \rfloor$-th of the $R$ becomes a *target*, $K$ in all.
# 2. Every other one goes to the target with the most similar *key* (cosine of the keys of the layer, averaged over the heads).
# 3. The new token is its target plus the mean of its group, as in the released code:
#
# $$ c_t = h_t + \frac{1}{|G_t|} \sum_{i \in G_t} h_i $$
#
# As a matrix, a row of a dominant token has a single 1. A row of a contextual token has a 1 at the target and $1/|G_t|$ at each member: **it adds up to 2**. So the token is about twice as long as a mean.
# Of 64 tokens 54 are dominant (CLS among them) and 10 contextual; other budgets are split alike.

# %%
toy_scores = torch.tensor([0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0])  # seven patches; CLS is token 0, so patch 2 is token 3
toy_keys = torch.tensor([[0.0, 0], [1, 0], [2, 1], [5, 5], [1, 3], [0, 9], [0.3, 0.1], [0, 4]])
toy = visionzip.compress(toy_scores, toy_keys, dominant=2, contextual=2)
assert toy.dense().sum(1).tolist() == [1.0, 1.0, 2.0, 2.0]
kit.matrix(toy.dense(), title="Eight tokens become four: CLS, a dominant patch, two contextual tokens")

# %% [exercise] difficulty=medium minutes=7
# Write the rows of the contextual tokens. `rest` are the tokens that are not dominant. A target without a group stands alone.


# %% [solution]
def contextual_rows(keys, rest, contextual):
    """Rows of the matrix, [contextual, n]. keys [n, d]: head mean; rest [R]: indices of the tokens left, ascending."""
    # BEGIN SOLUTION
    step = max(1, len(rest) // contextual)
    target = rest[torch.arange(contextual) * step]
    source = rest[~torch.isin(rest, target)]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    group = (unit[source] @ unit[target].T).argmax(1)  # [sources]
    rows = torch.zeros(contextual, len(keys))
    rows[torch.arange(contextual), target] = 1
    size = torch.bincount(group, minlength=contextual)
    rows[group, source] = 1 / size[group]
    return rows
    # END SOLUTION


# %% [check]
keys = torch.tensor([[0.0, 0], [1, 0], [2, 1], [1, 3], [0, 9], [0.3, 0.1], [0, 4]])  # token 0 is CLS
got = contextual_rows(keys, torch.arange(1, 7), 2)
check(tuple(got.shape) == (2, 7), f"Two contextual tokens of seven: [2, 7]; yours has the shape {tuple(got.shape)}.")
check(
    got[0, 1] == 1 and got[1, 4] == 1,
    "The targets are tokens 1 and 4, each with weight 1: six are left, two are wanted, so every third.",
)
check(
    got[0, 2] > 0,
    "Token 2 has the key (2, 1), in direction nearer to (1, 0) than to (0, 9). Normalise the keys: a long one must not win by its length.",
)
check_equal(got[0], [0, 1, 0.5, 0, 0, 0.5, 0], "The first is token 1 plus the mean of tokens 2 and 5.")
check_equal(got.sum(1), [2, 2], "Target plus mean of the group: a row adds up to 2.")
mean_keys = probed["keys"].float().mean(0)
reference = visionzip.compress(scores, mean_keys, 54, 10).dense()
left = (reference[:54].sum(0) == 0).nonzero().flatten()
check_equal(contextual_rows(mean_keys, left, 10), reference[54:], "Real keys: the package has other rows.")
done("the rows of the package's matrix")

# %% [hint]
# Three steps: targets by stepping through `rest`; `argmax` over the cosine of sources and targets; then fill a zero matrix. `torch.bincount` counts the groups.


# %% [mistake] why="A true mean over target and group: the rows add up to 1. It is what the word average suggests, but not what was released."
def contextual_rows(keys, rest, contextual):
    target = rest[torch.arange(contextual) * max(1, len(rest) // contextual)]
    source = rest[~torch.isin(rest, target)]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    group = (unit[source] @ unit[target].T).argmax(1)
    rows = torch.zeros(contextual, len(keys))
    rows[torch.arange(contextual), target] = 1
    rows[group, source] = 1
    return rows / rows.sum(1, keepdim=True)


# %% [mistake] why="The keys are not normalised, so the target with the longest key wins."
def contextual_rows(keys, rest, contextual):
    target = rest[torch.arange(contextual) * max(1, len(rest) // contextual)]
    source = rest[~torch.isin(rest, target)]
    group = (keys[source] @ keys[target].T).argmax(1)
    rows = torch.zeros(contextual, len(keys))
    rows[torch.arange(contextual), target] = 1
    rows[group, source] = 1 / torch.bincount(group, minlength=contextual)[group]
    return rows


# %% [markdown]
# Which patches feed a contextual token? Here is the last of the ten rows. What a group has in common is a direction of the keys, not an object.

# %%
zipped = visionzip.compress(scores, probed["keys"].float().mean(0), *visionzip.split(64))
run = vtc.run(vlm, scene.image, question.text, method="visionzip", retention=BUDGET)
assert torch.equal(run.trace.product().dense(), zipped.dense())
assert visionzip.split(64) == (54, 10) and run.visual_tokens == 64
rows = zipped.dense()[:, 1:]  # without the column of CLS
weights = rows[63]
shown = weights.clamp(max=2 * weights.sort().values[-2])  # else the target would outshine its group
kit.heat(
    scene.image,
    {f"the last contextual token: {int((weights > 0).sum())} patches": shown},
    title="Weights (target brightest)",
)

# %%
features_norm = features.norm(dim=-1).mean().item()
longer = zipped.apply(states[-2][0])[54:].norm(dim=-1).mean().item() / features_norm
true_mean = visionzip.compress(scores, probed["keys"].float().mean(0), 54, 10, average=True)
shorter = true_mean.apply(states[-2][0])[54:].norm(dim=-1).mean().item() / features_norm
assert longer > shorter
say(f"""
Norm of the contextual tokens, as a multiple of an ordinary feature's: **{longer:.2f}** as released, {shorter:.2f} with true means. The projector has never seen
tokens of that length. Whether that hurts is a question for a measurement: `vtc.methods.VisionZip(average=True)` is the other way.
""")

# %% [quiz]
# In this package VisionZip shows "evidence kept 100 %" at 64 tokens, and random picking about 11 %. What does that tell?
#
# - [ ] VisionZip will answer nine times as many questions
#   Nothing says so. A patch that makes up a fiftieth of a mean counts as merged, and little of it is left.
# - [x] That no patch is dropped by merging; how much of a patch is left is another question
#   Pooling reaches 100 % too. So look at the patches that are kept *whole*, at the weights, and in the end at answers.
# - [ ] That the measure is wrong
#   It says what it says: share of evidence patches that are kept or merged. It is the reader who must not take it for accuracy.

# %% [markdown] minutes=11
# ## 5. The baselines
#
# None of the three has read the question. So one selection per picture serves all its questions, and so does that of the blind baselines: `random` and `uniform` pick, `pool` averages blocks, `downsample` shrinks the
# *picture* before the tower sees it. First one picture at 64 tokens:

# %%
blind = ["random", "uniform", "pool", "downsample"]
informed = ["fastervlm", "divprune", "visionzip"]
runs = vtc.compare(vlm, scene.image, question.text, [f"{name}@{BUDGET}" for name in informed + blind]).runs
kit.results(runs, question)

# %% [slide]
# ## The same 64 tokens
#
# Attention crowds, diversity spreads, merging blurs, chance does what chance does. Green: the evidence.

# %% slide
kit.masks(scene.image, runs[:4], question, "64 of 576 tokens before the decoder")

# %%
full = vtc.run(vlm, scene.image, question.text)
other = vtc.run(vlm, scene.image, scene.questions[0].text, method="divprune", retention=BUDGET)
assert torch.equal(other.trace.fate().status, runs[1].trace.fate().status)  # another question, the same patches
for run in runs:
    spared = run.flops["vision"] < full.flops["vision"] / 4
    assert spared == (run.method.card.name == "downsample")
    assert run.visual_tokens <= 64 and run.kv_bytes < full.kv_bytes / 4
own = {run.method.card.name: run.flops["compression"] / (full.flops["total"] - run.flops["total"]) for run in runs}
say(f"""
All come down to (at most) 64 tokens in every layer. Only the smaller picture saves work in the **tower**, too. The methods' overhead is small: DivPrune's distances cost
{100 * own["divprune"]:.1f} % of what the method saves, FasterVLM's row {100 * own["fastervlm"]:.1f} %.
""")

# %% [markdown]
# Now several held-out pictures. How much of the evidence do they keep *whole*? That depends on the tower and the picture alone; no question is answered here.

# %%
SCENES = 16
whole = {name: {} for name in (*informed, "random", "uniform")}
for seed in range(SCENES):
    picture = vtc.world.sample(seed, split="eval")
    for name, by_kind in whole.items():
        one = vtc.run(
            vlm, picture.image, picture.questions[0].text, method=name, retention=BUDGET, seed=seed, max_new_tokens=1
        )
        is_whole = one.trace.fate().status == 2  # [576]
        for q in picture.questions:
            if q.kind != "background":  # there the evidence is everything that is no object
                there = torch.from_numpy(q.evidence).flatten()
                by_kind.setdefault(q.kind, []).append(is_whole[there].float().mean().item())
kinds = [kind for kind in vtc.world.KINDS if kind in whole["random"]]
mean = {name: {kind: sum(v) / len(v) for kind, v in by_kind.items()} for name, by_kind in whole.items()}
asked = sum(len(v) for v in whole["random"].values())
overall = {name: sum(sum(v) for v in by_kind.values()) / asked for name, by_kind in whole.items()}
kit.table(
    [[name, *(f"{100 * mean[name][kind]:.0f} %" for kind in kinds), f"{100 * overall[name]:.0f} %"] for name in mean],
    ["evidence kept whole", *kinds, "all"],
)
assert overall["fastervlm"] > 2 * overall["random"] and mean["fastervlm"]["reading"] > 2 * mean["random"]["reading"]
assert overall["fastervlm"] > overall["divprune"] and overall["fastervlm"] > 2 * overall["uniform"]
say(f"""
{asked} questions on {SCENES} held-out pictures. FasterVLM keeps **{overall["fastervlm"] / overall["random"]:.1f} times** as much of the evidence as chance does. So CLS
attention *finds* the objects; of what is to be read it keeps {100 * mean["fastervlm"]["reading"]:.0f} %.
""")

# %% [markdown]
# By that measure the case is closed. Now the answers. Their measurement takes more questions than fit into a lesson, so it is recorded (`docs/accuracy.md` says with which command); the cell below reads the record.

# %%
record = json.loads(
    (Path(vtc.__file__).parents[1] / "assets/measurements/embedded_64_tokens.json").read_text(encoding="utf-8")
)
rows = {row["method"]["method"]: row for row in record["rows"]}
order = ["full", *informed, *blind]
table = []
for name in order:
    row = rows[name]
    total = row["all"]
    cells = [f"{100 * row['kinds'][kind]['accuracy']:.0f}" for kind in vtc.world.KINDS]
    table.append(
        [row["title"], f"{100 * total['accuracy']:.0f} ({100 * total['low']:.0f} to {100 * total['high']:.0f})", *cells]
    )
kit.table(table, ["right, in percent", "all (95 % interval)", *vtc.world.KINDS])
where = record["environment"]
say(
    f"Recorded on {where['date'][:10]}: {record['questions']} held-out questions, exact match, 64 of 576 tokens, {where['device']}, {where['dtype']}."
)

# %% [slide]
# ## Evidence found, answers lost?
#
# Horizontal: share of evidence patches kept or merged. Vertical: right answers. Recorded, with 95 % intervals.

# %% slide
chart = go.Figure()
for label, names, side in (
    ("methods", informed, "left"),
    ("blind baselines", blind, "right"),
    ("full", ["full"], "left"),
):
    shown = [rows[name] for name in names]
    y = [100 * row["all"]["accuracy"] for row in shown]
    chart.add_scatter(
        x=[100 * row["evidence_kept"] for row in shown],
        y=y,
        text=[row["title"] for row in shown],
        name=label,
        mode="markers+text",
        textposition=[f"{at} {side}" for at in ("top", "bottom", "top", "bottom")][: len(shown)],
        marker={"size": 11},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [100 * row["all"]["high"] - v for row, v in zip(shown, y)],
            "arrayminus": [v - 100 * row["all"]["low"] for row, v in zip(shown, y)],
            "thickness": 1,
        },
    )
kit.figures.layout(chart, "64 of 576 tokens: surviving evidence and right answers", height=430)
chart.update_xaxes(title="evidence kept or merged, %", range=[-8, 124])
chart.update_yaxes(title="right answers, %", rangemode="tozero")

# %%
best = max(blind, key=lambda name: rows[name]["all"]["accuracy"])
bar = rows[best]["all"]
clear = [name for name in informed if rows[name]["all"]["low"] > bar["high"]]
worse = [name for name in informed if rows[name]["all"]["high"] < bar["low"]]
alike = [name for name in informed if name not in clear + worse]


def titles(names):
    return ", ".join(rows[name]["title"] for name in names) or "none"


faster, chance = rows["fastervlm"]["kinds"], rows["random"]["kinds"]
gains = sorted(vtc.world.KINDS, key=lambda kind: faster[kind]["accuracy"] - chance[kind]["accuracy"])
lost, won = gains[0], gains[-1]
say(f"""
The best blind baseline of this record is **{rows[best]["title"]}** with {100 * bar["accuracy"]:.0f} %. With intervals that do not overlap, clearly above it: {titles(clear)}; clearly below it: {titles(worse)};
not to be told apart: {titles(alike)}.

By kind the picture is richer. Against random picking FasterVLM changes most on *{won}* ({100 * chance[won]["accuracy"]:.0f} % to {100 * faster[won]["accuracy"]:.0f} %) and
on *{lost}* ({100 * chance[lost]["accuracy"]:.0f} % to {100 * faster[lost]["accuracy"]:.0f} %). A mean over kinds hides such a pair of changes, and a benchmark of one kind shows half of it.
""")

# %% [markdown]
# How can a method keep more of the evidence and answer fewer questions? One guess, which is *not tested* here: the decoder was never trained on a picture whose background is gone, and a picture with objects alone is something new to it.
# Large models may or may not share this. What can be said without a guess: **surviving evidence and right answers are two measures, and neither stands for the other**. So a method has to be shown beside baselines, by kind of question.

# %% [instructor]
# Stop before the recorded table and take a vote: which of the seven rows is on top? Hardly anybody names a blind one. Then ask what a paper would have shown: usually full model, own method, two or three earlier methods.
# If the discussion turns to "but on CLIP-L it is different": yes, it may be. The point is that random, uniform, pooling and a smaller picture cost one line each and are missing from many tables.

# %% [quiz]
# A paper compares its method at 64 tokens with three earlier methods and wins on four benchmarks. Which row do you miss first?
#
# - [ ] A fourth earlier method
#   It would still be a comparison among relatives; all may lose to chance.
# - [x] Random picking, pooling or a smaller picture at 64 tokens
#   They tell whether looking at the picture was worth anything. The smaller picture also saves work in the tower, so it is the one to beat in time.
# - [ ] The full model with another prompt
#   The full model is the upper reference. It says nothing about which 64 tokens to keep.

# %% [markdown] minutes=5
# ## 6. What the papers report, and where to go on

# %%
for name in informed:
    kit.report(name)

# %% [markdown]
# For scale, LLaVA-1.5-7B at 64 of 576 tokens, as later papers reprint it. These are figures of third parties; between such tables single figures differ by a point or more, and they were not checked here.
#
# | | GQA | POPE | TextVQA |
# | --- | ---: | ---: | ---: |
# | all 576 tokens | 61.9 | 85.9 | 58.2 |
# | FasterVLM | 55.4 | 80.4 | 55.8 |
# | VisionZip | 55.1 | 77.0 | 55.5 |
# | DivPrune | 57.7 | 85.5 | 54.5 |
#
# POPE asks whether an object is there, TextVQA asks what is written. Coverage is ahead on the first, attention on the second. Compare with the columns *existence* and *reading* above.
#
# - `vtc_demo/methods/projector/fastervlm.py`, `divprune.py`, `visionzip.py`: each is a page.
# - Lesson 06 waits until the question has been read; lesson 08 merges what is dropped; lesson 11 is about honest evaluation; in lesson 12 you combine coverage and attention.

# %% [slide]
# ## Take home
#
# - Before the decoder a cut pays in every layer, but **the question is unread**.
# - Attention finds what CLS looked at and ignores what it has already. Diversity covers. Merging keeps a trace of everything.
# - **Surviving evidence is not accuracy.** Show random, uniform, pooling and a smaller picture in the same table.
