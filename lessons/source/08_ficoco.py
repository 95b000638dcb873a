# /// lesson
# title = "FiCoCo, and the matrix behind every reduction"
# objectives = [
#   "write filtering, sampling, pooling and merging as one matrix R, and say what its rows and columns add up to",
#   "multiply the matrices of a pass, and read fates and equivalent tokens off the result",
#   "write filter, correlate and compress, and get the discards, the targets and the R that the package gets",
#   "find out by running it what the released code does differently from the paper",
# ]
# prerequisites = ["lesson 00", "lesson 05: attention of the CLS token", "lesson 06: pruning inside the LLM"]
# methods = ["ficoco-v", "ficoco-l", "ficoco-vl", "random", "pool"]
# papers = ["2411.17686 FiCoCo", "2210.09461 ToMe"]
# ///

# %% [slide]
# ## Filter, correlate, compress
#
# - **Filter**: which tokens are redundant?
# - **Correlate**: to which of the others does each of them belong?
# - **Compress**: fold its content into them.
# - A reduction answers these three questions in one way or another, and its answer is a matrix **R**.

# %%
import json
from pathlib import Path

import torch
from plotly.subplots import make_subplots

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.core.operations import others
from vtc_demo.core.pooling import average
from vtc_demo.core.tokens import Reduction
from vtc_demo.methods.baselines.uniform import evenly
from vtc_demo.methods.encoder import ficoco_v
from vtc_demo.methods.llm import ficoco_l
from vtc_demo.methods.maths import ficoco

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=8)
question = next(q for q in scene.questions if q.kind == "reading")
evidence = torch.from_numpy(question.evidence)
BUDGET = 192 / 576

# %% [markdown] minutes=11
# ## 1. Every reduction is a matrix
#
# Stack the tokens as rows of $X \in \mathbb{R}^{n \times C}$. A reduction makes $m \le n$ new tokens out of them, and each new token is a weighted sum of old ones:
#
# $$ X' = R\,X, \qquad R \in \mathbb{R}^{m \times n} $$
#
# Row $t$ of $R$ says what new token $t$ is made of. Column $i$ says where old token $i$ went. Methods differ in how they *find* $R$; what they *do* is this product. The weights may depend on $X$ itself, so a method need not be linear;
# but once $R$ is found, the step is. A maximum per channel is the exception: it has no such matrix (lesson 01).
#
# Here are eight tokens, a grid of 2 × 4, in five ways made fewer. `sum` is the merge without a division.

# %%
toy = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
kept, source = torch.tensor([0, 2, 5, 7]), torch.tensor([1, 3, 4, 6])
target = torch.tensor([0, 1, 0, 2])  # places in `kept`
received = torch.bincount(target, minlength=4).float()
likeness = (toy[kept] @ toy.T).softmax(-1)
families = {
    "filter": Reduction.select(kept, 8),
    "sampling": Reduction.select(evenly((2, 4), 4), 8),
    "pooling": average((2, 4), 1, 4),
    "merge": Reduction.merge(kept, source, target, 8, source_weight=(1 / (1 + received))[target], anchor_weight=1 / (1 + received)),
    "sum": Reduction.merge(kept, source, target, 8, source_weight=torch.ones(4), anchor_weight=torch.ones(4)),
    "attention": Reduction.from_dense(likeness, kept, soft=True),
}  # fmt: skip
for reduction in families.values():
    torch.testing.assert_close(reduction.apply(toy), reduction.dense() @ toy)

# %% [slide]
# ## Six reductions, one kind of object
#
# Rows: what a new token is made of. Columns: where an old token went. An empty column is a dropped token.

# %% slide
sheet = make_subplots(2, 3, subplot_titles=list(families), horizontal_spacing=0.06, vertical_spacing=0.2)
for i, reduction in enumerate(families.values()):
    picture = kit.matrix(reduction.dense()).data[0].update(zmax=1, showscale=i == 0)
    sheet.add_trace(picture, 1 + i // 3, 1 + i % 3)
kit.figures.layout(sheet, "R of six reductions from 8 tokens to 4", height=460, width=900)
sheet.update_yaxes(autorange="reversed", dtick=1, showgrid=False).update_xaxes(dtick=1, showgrid=False)

# %%
rows = []
for name, reduction in families.items():
    R = reduction.dense()
    span = [f"{a:.2f} to {b:.2f}" for a, b in ((s.min(), s.max()) for s in (R.sum(1), R.sum(0)))]
    rows.append([name, *span, int((R.sum(0) == 0).sum())])
kit.table(rows, ["reduction", "rows add up to", "columns add up to", "empty columns"])

# %% [markdown]
# **Rows that add up to 1** make weighted means: equal tokens stay as they are, and a new token lies between the old ones. Its length stays in the range that the next layer knows. A row of `sum` adds up to the number of tokens in it, and
# the new token is that much longer.
#
# **Columns that add up to 1** lose nothing of the sum: $\sum_t x'_t = \sum_i x_i$. A column below 1 gives only a part of its token on, an empty one nothing.

# %% [quiz]
# Can a reduction to fewer tokens have rows that all add up to 1 *and* columns that all add up to 1?
#
# - [ ] Yes, average pooling has both
#   Its columns add up to one over the size of a block: the mean of four tokens holds a quarter of each.
# - [x] No
#   Add up all entries of $R$. By rows that makes $m$, by columns $n$, and $m < n$. A method must choose what it keeps: the scale of a token, or the sum.
# - [ ] Yes, if the weights are those of a softmax
#   A softmax makes the rows add up to 1, and that already decides the sum of all entries.

# %% [exercise] difficulty=easy minutes=5
# What became of an old token? It is **kept** (2) if a new token stands at its place (`anchor[t]` is the old token at whose place new token $t$ stands) and draws on it; else **merged** (1) if any new token draws on it; else **dropped** (0).
# Read it off $R$.


# %% [solution]
def fate(R, anchor):
    """R [m, n], anchor [m] int64 -> 0 dropped, 1 merged, 2 kept, int64 [n]."""
    # BEGIN SOLUTION
    out = (R != 0).any(0).long()
    stands = R[torch.arange(len(R)), anchor] != 0
    out[anchor[stands]] = 2
    return out
    # END SOLUTION


# %% [check]
check_equal(fate(families["filter"].dense(), kept), [2, 0, 2, 0, 0, 2, 0, 2], "A filter keeps or drops.")
check_equal(fate(families["sum"].dense(), kept), [2, 1, 2, 1, 1, 2, 1, 2], "A merge drops nothing.")
swapped = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
check_equal(
    fate(swapped, torch.tensor([0, 2])),
    [1, 1, 0],
    "Nothing is kept here: no new token draws on the old one at whose place it stands. And 0.5 is enough to be merged.",
)
for name in ("ficoco-v", "random", "pool"):
    trace = vtc.run(vlm, scene.image, question.text, method=name, retention=BUDGET, max_new_tokens=1).trace
    whole = trace.product()
    check_equal(fate(whole.dense(), whole.anchor)[1:], trace.fate().status, f"The trace of {name} says otherwise.")
done("fates equal those of the trace, for three methods")

# %% [hint]
# `(R != 0).any(0)` tells for every column whether it has an entry. `R[torch.arange(m), anchor]` are the entries of the new tokens at their own places.


# %% [mistake] why="Whatever has an anchor counts as kept, drawn on or not."
def fate(R, anchor):
    out = (R != 0).any(0).long()
    out[anchor] = 2
    return out


# %% [mistake] why="A column must add up to 1 to count as alive."
def fate(R, anchor):
    out = (R.sum(0) >= 1).long()
    out[anchor[R[torch.arange(len(R)), anchor] != 0]] = 2
    return out


# %% [markdown] minutes=8
# ## 2. A pass is a product
#
# A method may act at several sites. Its matrices multiply, the later one on the left:
#
# $$ P = R_K \cdots R_2\, R_1 $$
#
# $P$ has a row for every token that is left at the end and a column for every patch (and one for CLS). If the rows of each factor add up to 1, so do those of $P$: $P\mathbf{1} = R_K \cdots R_1 \mathbf{1} = \mathbf{1}$.
#
# FiCoCo-VL is the method with the most sites here. It acts in layers of the encoder *and* of the language model. A small subclass stores what it sees; layers are 0-based.

# %%
seen = {}


class Watched(vtc.methods.FiCoCoVL):
    """FiCoCo-VL that stores what it is shown, and what it answers."""

    def reduce(self, context):
        before = context.memory.get("cells")
        reduction = super().reduce(context)
        if context.site.kind != "projector" and reduction is not None:
            seen[str(context.site)] = {
                "hidden": context.hidden.clone(),
                "pairs": context.attention("all", heads="mean"),  # after mask and softmax
                "logits": context.logits("all"),  # head mean before both
                "visual": context.visual,
                "text": context.text,
                "cells": before,
                "reduction": reduction,
            }
        return reduction


watched = vtc.run(vlm, scene.image, question.text, method=Watched(retention=BUDGET))
both = vtc.run(vlm, scene.image, question.text, method="ficoco-vl", retention=BUDGET)
assert both.token_ids == watched.token_ids and both.trace.schedule == watched.trace.schedule
kit.table([(str(s.site), s.reduction.n, s.reduction.m) for s in both.trace.steps], ["site", "tokens before", "after"])

# %% [exercise] difficulty=easy minutes=3
# Multiply the matrices of a pass. The list is in the order of the pass.


# %% [solution]
def chain(matrices):
    """matrices: [m1, n], [m2, m1], ... in the order of the pass -> their product [mK, n]."""
    # BEGIN SOLUTION
    product = matrices[0]
    for R in matrices[1:]:
        product = R @ product
    return product
    # END SOLUTION


# %% [check]
turn, swap = torch.eye(3)[[1, 2, 0]], torch.eye(3)[[1, 0, 2]]
check_equal(
    chain([turn, swap]) @ torch.tensor([10.0, 20.0, 30.0]),
    [30, 20, 10],
    "10, 20, 30 are turned to 20, 30, 10; then the first two are swapped. The later matrix stands on the left.",
)
factors = [step.reduction.dense() for step in both.trace.steps]
product = chain(factors)
check(tuple(product.shape) == (both.visual_tokens, 577), f"The product has the shape {tuple(product.shape)}.")
check_equal(product, both.trace.product().dense(), "The trace has another product.")
check_equal(product.sum(1), torch.ones(len(product)), "Rows of this pass add up to 1.")
done(f"{len(factors)} matrices, one product: {both.visual_tokens} tokens made of 576 patches")

# %% [hint]
# $X_1 = R_1 X$, then $X_2 = R_2 X_1 = R_2 R_1 X$.


# %% [mistake] why="The earlier matrix stands on the left."
def chain(matrices):
    product = matrices[0]
    for R in matrices[1:]:
        product = product @ R if product.shape[1] == R.shape[0] else R @ product
    return product


# %% [mistake] why="Weights are forgotten: only who feeds whom is left."
def chain(matrices):
    product = matrices[0]
    for R in matrices[1:]:
        product = ((R @ product) != 0).float()
    return product


# %% [markdown]
# **Equivalent tokens.** Methods that cut at different depths are compared by the mean over the $L$ decoder layers of the tokens that *enter* a layer. It can be read off the steps. FiCoCo cuts *inside* a layer, between attention and MLP, so the next layer is the first to see the
# shorter sequence; what is cut in the last layer would be seen by none.

# %%
entering, layers = [], vlm.shape.llm_layers
for layer in range(layers):
    before = [s for s in both.trace.steps if s.site.kind != "llm_layer" or s.site.layer + s.inside <= layer]
    entering.append(before[-1].reduction.m)
assert entering == both.trace.schedule and sum(entering) / layers == both.trace.equivalent_tokens
say(
    f"Tokens entering the layers: {', '.join(map(str, entering))}. Their mean is **{sum(entering) / layers:.1f}**, asked for were {BUDGET * 576:.0f}."
)

# %% [quiz]
# $P$ has a row with weight 0.4 at patch 100. Is the final hidden state of that token 0.4 times what was computed from patch 100, and other such parts?
#
# - [ ] Yes, it is a product of matrices
#   Between two reductions stand whole layers, and these are not linear.
# - [x] No, P is bookkeeping of the reductions alone
#   Between the sites, attention moves content between tokens, dropped ones included, and MLPs bend it. P says whose *places* were joined with which weights. It is exact for a single site, and an account for a pass.
# - [ ] Yes, because the rows add up to 1
#   That makes each reduction a mean. The layers in between are what they are.

# %% [markdown] minutes=11
# ## 3. Filter
#
# Now FiCoCo itself. In each of its layers it discards a fixed number of visual tokens. In the encoder (FiCoCo-V) a patch is **redundant** if it is much like the others and unimportant to the whole image. With $A$ the attention of this layer, mean over the heads,
# $N$ patches present, and $\lambda = 0.35$:
#
# $$ s_i = \lambda\, \underbrace{\tfrac{1}{N} \textstyle\sum_{j} A_{ji}}_{v_i:\ \text{attention from the other patches}} \;-\; (1 - \lambda)\, \underbrace{A_{\mathrm{CLS},\, i}}_{c_i} $$
#
# One index needs care. The formula of the paper sums $A_{ij}$ over $j$, the attention that $i$ **gives**; its prose speaks of attention **received**. The rows of a softmax add up to 1, so the first is nearly the same number for every patch:

# %%
state = seen["vision_layer(3)"]
pairs, n = state["pairs"], len(state["pairs"])  # [577, 577], CLS first
block, cls = pairs[1:, 1:], pairs[0, 1:]
given, visual = block.mean(1), block.mean(0)
spread = {"given": given.std() / given.mean(), "received": visual.std() / visual.mean()}
assert torch.allclose(given, (1 - pairs[1:, 0]) / 576, atol=1e-6)  # all that is not given to CLS
assert spread["received"] > 5 * spread["given"]
say(f"""
Spread of the {len(given)} values, standard deviation over mean: given **{spread["given"]:.3f}**, received **{spread["received"]:.2f}**. With the first, the score would be CLS attention alone. The package takes what is received.
""")

# %% [slide]
# ## Filter: alike and unimportant
#
# Bright on the right: discarded first. Attention from the patches counts for, attention from CLS against.

# %% slide
score = 0.35 * visual - 0.65 * cls
assert torch.equal(score, ficoco.redundancy_v(visual, cls, 0.35))
bright = {"attention from CLS, logarithm": cls.log(), "redundancy, rank": score.argsort().argsort().float()}
kit.heat(scene.image, bright, title="Encoder layer 3: what CLS looks at, and what goes first")

# %% [markdown]
# **Local penalty.** Redundant patches lie side by side, and a discarded area is gone as a whole. So in each window of 2 × 2 cells the *most* redundant token is made still more so: its score is doubled if positive, halved if negative. Relative to it, its
# neighbours are spared, and the discards spread. Cells whose token went earlier stay empty.

# %% [exercise] difficulty=medium minutes=6
# Write the penalty. `cells` are the patches at which the tokens stand, in any order, some missing. Loops are welcome. Among equal scores the first token of the window counts.


# %% [solution]
def penalise(score, cells, grid):
    """score [n], cells [n] int64 (numbers of patches, raster order), grid (rows, columns) -> new scores [n]."""
    # BEGIN SOLUTION
    best = {}
    for t, cell in enumerate(cells.tolist()):
        window = (cell // grid[1] // 2, cell % grid[1] // 2)
        if window not in best or score[t] > score[best[window]]:
            best[window] = t
    out = score.clone()
    for t in best.values():
        out[t] = 2 * score[t] if score[t] > 0 else score[t] / 2
    return out
    # END SOLUTION


# %% [check]
few = torch.tensor([3.0, 1.0, 2.0, -4.0, -2.0, -3.0, -2.0])
where = torch.tensor([4, 0, 1, 2, 3, 6, 7])  # a grid of 2 x 4, patch 5 is gone; windows {0, 1, 4} and {2, 3, 6, 7}
got = penalise(few.clone(), where, (2, 4))
check_equal(got[:3], [6, 1, 2], "In the left window the highest score is 3, of the token at patch 4: doubled.")
check_equal(
    got[3:], [-4, -1, -3, -2], "In the right window the highest is -2: halved, so that it rises, and only once."
)
check_equal(
    penalise(score.clone(), torch.arange(576), (24, 24)),
    ficoco.penalise(score, torch.arange(576), (24, 24)),
    "The package finds other scores in layer 3.",
)
later = seen["vision_layer(4)"]
check(len(later["cells"]) < 577, "Layer 4 has fewer tokens.")
other = later["pairs"][1:, 1:].mean(0) - later["pairs"][0, 1:]
check_equal(
    penalise(other.clone(), later["cells"][1:], (24, 24)),
    ficoco.penalise(other, later["cells"][1:], (24, 24)),
    "The package finds other scores in layer 4, where cells are empty.",
)
done("the penalty equals the package's, on a full grid and on one with holes")

# %% [hint]
# Patch $c$ lies in row `c // columns` and column `c % columns`; halve both for the window. Remember the best token of every window in a dictionary.


# %% [mistake] why="A negative score is doubled, too: the most redundant token is spared."
def penalise(score, cells, grid):
    out, best = score.clone(), {}
    for t, cell in enumerate(cells.tolist()):
        window = (cell // grid[1] // 2, cell % grid[1] // 2)
        if window not in best or score[t] > score[best[window]]:
            best[window] = t
    for t in best.values():
        out[t] = 2 * score[t]
    return out


# %% [mistake] why="Windows of four tokens in a row instead of 2 x 2 cells of the grid."
def penalise(score, cells, grid):
    out = score.clone()
    for start in range(0, len(score), 4):
        t = start + int(score[start : start + 4].argmax())
        out[t] = 2 * score[t] if score[t] > 0 else score[t] / 2
    return out


# %%
count = n - state["reduction"].m  # tokens to discard in this layer
penalised = ficoco.penalise(score, torch.arange(576), (24, 24))
discarded = 1 + penalised.argsort(descending=True, stable=True)[:count].sort().values
staying = others(discarded, n)
assert torch.equal(staying, state["reduction"].anchor)  # the package's choice
plain = 1 + score.argsort(descending=True, stable=True)[:count]
windows = lambda places: len({(p // 48, p % 24 // 2) for p in (places - 1).tolist()})  # noqa: E731
assert windows(discarded) >= windows(plain)
say(
    f"{count} of 576 patches are discarded in layer 3. They lie in **{windows(discarded)}** of 144 windows; without the penalty in {windows(plain)}."
)

# %% [markdown] minutes=7
# ## 4. Correlate
#
# A discarded token $i$ is not thrown away. Its **correlation** with each token that stays is the attention $C_{ij} = A_{ij}$. Targets are the tokens above a quantile of *its own row*, and the shares are normalised over them:
#
# $$ \tau_i = \operatorname{quantile}_{0.998}(C_{i\cdot}), \qquad J_i = \{\, j : C_{ij} \ge \tau_i \,\}, \qquad \alpha_{ij} = \frac{C_{ij}}{\sum_{j' \in J_i} C_{ij'}} $$
#
# No target would be pruning. One, as in ToMe, is a merge with the best partner. The quantile is to let the number of targets adapt to the token. Does it? Count.

# %%
correlation = pairs[discarded][:, staying[1:]]  # CLS is no target
threshold = correlation.quantile(0.998, dim=1, keepdim=True)
chosen = correlation >= threshold
fan = chosen.sum(1)
assert int(fan.min()) == int(fan.max()) == ficoco.fan_out(correlation.shape[1], 0.998)
alpha = torch.where(chosen, correlation, 0.0)
alpha = alpha / alpha.sum(1, keepdim=True)  # [discarded, candidates]

sizes = [100, 400, 500, 501, 502, 576, 1000, 1001]
by_count = [int((row >= row.quantile(0.998)).sum()) for row in (torch.randperm(s).double() for s in sizes)]
assert by_count == [ficoco.fan_out(s, 0.998) for s in sizes]
kit.table([[str(s), k] for s, k in zip(sizes, by_count)], ["tokens in the row", "targets"])
say(
    f"All {count} discarded tokens have the same number of targets here: **{int(fan[0])}**, with {correlation.shape[1]} candidates."
)

# %% [quiz]
# Why has every discarded token of a layer the same number of targets?
#
# - [ ] Because attention is alike in all rows
#   The rows differ as they like. Ranks do not care.
# - [x] Because a quantile of a row leaves a fixed number of its entries above it
#   The 0.998-quantile of $n$ different values has $n - \lceil 0.998\,(n - 1) \rceil$ of them at or above it, whatever they are. Only a threshold in units of attention could adapt.
# - [ ] Because the released code takes a maximum over the rows
#   It does, but over equal numbers.

# %% [markdown] minutes=10
# ## 5. Compress
#
# Each token that stays takes in what was sent to it, and is divided by the total weight:
#
# $$ x'_j = \frac{x_j + \sum_{i} \alpha_{ij}\, x_i}{1 + \sum_i \alpha_{ij}} $$
#
# CLS is neither discarded nor a target: its row is one of the identity. New tokens keep the order of the old ones. Then the MLP of the layer runs on the shorter sequence.

# %% [exercise] difficulty=hard minutes=6
# Write $R$ of this layer. `alpha` has a row for each discarded token and a column for each token that stays; it holds zeros where there is no target.


# %% [solution]
def fold(staying, discarded, alpha, n):
    """staying [m], discarded [r]: places among n tokens; alpha [r, m] -> R [m, n]."""
    # BEGIN SOLUTION
    R = torch.zeros(len(staying), n)
    R[torch.arange(len(staying)), staying] = 1.0
    R[:, discarded] = alpha.T
    return R / (1 + alpha.sum(0))[:, None]
    # END SOLUTION


# %% [check]
small = fold(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([[0.0, 1.0], [0.25, 0.75]]), 4)
check(tuple(small.shape) == (2, 4), f"Two of four tokens stay, so R is [2, 4]; yours is {tuple(small.shape)}.")
check_equal(small[0], [0.8, 0, 0, 0.2], "Token 0 takes in a quarter of token 3: weights 1 and 0.25, divided by 1.25.")
check_equal(small[1], [0, 1 / 2.75, 1 / 2.75, 0.75 / 2.75], "Token 2 takes in token 1 whole and 3/4 of token 3.")
with_cls = torch.nn.functional.pad(alpha, (1, 0))  # nothing for CLS
R = fold(staying, discarded, with_cls, n)
check_equal(R, state["reduction"].dense(), "The package has another R in layer 3.")
check_equal(R @ state["hidden"], state["reduction"].apply(state["hidden"]), "And other tokens.", 1e-4)
done("R of encoder layer 3 equals the package's")

# %% [hint]
# `R[torch.arange(m), staying] = 1` puts a one for each token that stays. The columns of the discarded tokens are `alpha`, transposed. Then divide each row by its sum.


# %% [mistake] why="The token itself is not divided, only what it received."
def fold(staying, discarded, alpha, n):
    R = torch.zeros(len(staying), n)
    R[:, discarded] = (alpha / (1 + alpha.sum(0))).T
    R[torch.arange(len(staying)), staying] = 1.0
    return R


# %% [mistake] why="Nothing is divided: rows add up to more than 1."
def fold(staying, discarded, alpha, n):
    R = torch.zeros(len(staying), n)
    R[torch.arange(len(staying)), staying] = 1.0
    R[:, discarded] = alpha.T
    return R


# %% [slide]
# ## One layer of FiCoCo as a matrix
#
# Twelve patches behind a CLS token, five of them folded in, two targets each. Rows add up to 1; no column is empty.

# %% slide
draw = torch.Generator().manual_seed(3)
toy_pairs = (2 * torch.randn(13, 13, generator=draw)).softmax(-1)
toy_layer = ficoco.reduce(torch.randn(12, generator=draw), lambda s, t: toy_pairs[s][:, t], 1, 5, eps=0.7)
assert torch.allclose(toy_layer.dense().sum(1), torch.ones(8)) and bool((toy_layer.dense().sum(0) > 0).all())
kit.matrix(toy_layer.dense(), title="R of one layer; row and column 0 are CLS")

# %% [markdown]
# How much of itself does a token keep? With a total of at most 1 received, at least half. But several discarded tokens may choose the same target.

# %%
real = state["reduction"].dense()
own = real[torch.arange(len(real)), state["reduction"].anchor]
crowd = real[own.argmin()]
assert torch.allclose(real.sum(1), torch.ones(len(real)), atol=1e-5)
untouched, below = int((own > 1 - 1e-6).sum()) - 1, int((own < 0.5 - 1e-6).sum())  # without CLS
say(f"""
Of the {len(real) - 1} patches that stay, {untouched} take in nothing, and **{below}** keep less than half of themselves. The one in greatest demand takes in {int((crowd > 0).sum()) - 1} others and keeps 1/{1 / own.min():.0f} of itself: its place in the picture
is now held by a mean of patches from elsewhere.
""")

# %% [instructor]
# The count of targets is the moment of the lesson: let the participants believe in the adaptive number first, then run the cell. The same for "at least half of itself". Both are claims that one line of code settles.
# For exercise 4 draw R on the board: identity columns for those that stay, alpha transposed for those that go, then divide rows.

# %% [markdown] minutes=13
# ## 6. In the language model: FiCoCo-L
#
# Same skeleton, but now the question is there, and unimportant means: unimportant to the $M$ tokens of text. With $\beta = \gamma = 0.6$:
#
# $$ s_i = \beta\, \tfrac{1}{N} \sum_j A_{ij} - (1 - \beta)\, \tfrac{1}{M} \sum_{k} A_{ik}, \qquad C_{ij} = \gamma\, A_{ij} + (1 - \gamma)\, \tfrac{1}{M} \sum_{k} A_{ik} A_{kj} $$
#
# where $k$ runs over the text. The second part of $C$ is a **bridge**: two patches belong together if the same words connect them. There is a catch. The decoder is causal, and the question stands *behind* the picture:

# %%
level = seen["llm_layer(1)"]
picture, text = level["visual"], level["text"]
looks = level["pairs"][picture][:, text].sum(0)  # what all visual tokens together give to each text token
behind = text > picture[-1]
assert bool((looks[behind] == 0).all()) and bool((looks[~behind] > 0).all())
say(f"""
From the picture to the {int(behind.sum())} text tokens behind it, attention is **exactly 0**; only the {int((~behind).sum())} before it can be seen. So $A_{{ik}}$ says nothing about the question.
""")

# %% [markdown]
# The released code takes the scores $q \cdot k / \sqrt{d}$ **before** mask and softmax, mean over heads. These exist in both directions. The package does so, too (`scores="logits"`), and turns a row of $C$ over the tokens that stay into shares by a softmax. From scratch, on what the method saw in decoder layer 1:

# %%
logits = level["logits"]
among, out, back = logits[picture][:, picture], logits[picture][:, text], logits[text][:, picture]
redundant = 0.6 * among.mean(1) - 0.4 * out.mean(1)

go = level["reduction"].n - level["reduction"].m
gone = redundant.argsort(descending=True, stable=True)[:go].sort().values
left = others(gone, len(picture))
bridge = out[gone] @ back[:, left] / len(text)  # [gone, left]
linked = (0.6 * among[gone][:, left] + 0.4 * bridge).softmax(-1)
top = linked >= linked.quantile(0.998, dim=1, keepdim=True)
shares = torch.where(top, linked, 0.0)
shares = shares / shares.sum(1, keepdim=True)
ours = ficoco.compress(left, gone, left.new_tensor(range(len(left))).expand_as(shares), shares, len(picture))[0].dense()

assert torch.equal(left, level["reduction"].anchor)
torch.testing.assert_close(ours, level["reduction"].dense())
say(
    f"{go} of {len(picture)} visual tokens leave inside decoder layer 1, folded into those that stay. R equals the package's."
)

# %% [markdown]
# **How many per layer?** The same number $r$ at each layer from `start` on; the last layer is left out, because nothing reads what it does to visual tokens. Asked for is the mean $\bar n$ of the tokens *entering* the $L$ layers. With $n$ tokens at first and $K$ reduced layers, layers
# $0$ to `start` see all $n$, the next ones $n - r$, $n - 2r$ and so on to $n - Kr$.

# %% [exercise] difficulty=medium minutes=5
# Solve for $r$. It need not be whole, and no layer falls below one token here.


# %% [solution]
def per_layer(n, mean, start, layers):
    """Tokens to discard inside each of the layers start .. layers - 2, so that the mean entering a layer is `mean`."""
    # BEGIN SOLUTION
    reduced = layers - 1 - start
    return layers * (n - mean) / (reduced * (reduced + 1) / 2)
    # END SOLUTION


# %% [check]
r = per_layer(576, 400, 4, 32)
enter = [576] * 5 + [576 - r * i for i in range(1, 28)]
check_equal(
    sum(enter) / 32, 400, "32 layers, first cut inside layer 4: layers 0 to 4 see 576 tokens, and the mean is not 400."
)
first = both.trace.schedule[0]
r = per_layer(first, BUDGET * 576, 1, 8)
check_equal(
    [round(first - r * i) for i in range(7)],
    both.trace.schedule[1:],
    f"FiCoCo-VL above: {first} tokens enter a decoder of 8 layers, first cut inside layer 1, mean {BUDGET * 576:.0f}.",
    0.01,
)
done(f"{r:.1f} tokens per layer: the schedule of the run")

# %% [hint]
# All layers together lose $r + 2r + \dots + Kr = r\,K(K+1)/2$ against $L\,n$.


# %% [mistake] why="The reduced layer itself is counted as if it entered with fewer tokens."
def per_layer(n, mean, start, layers):
    reduced = layers - start
    return layers * (n - mean) / (reduced * (reduced + 1) / 2)


# %% [mistake] why="The mean is taken over the reduced layers alone."
def per_layer(n, mean, start, layers):
    return 2 * (n - mean) / (layers - start)


# %%
alone = vtc.run(vlm, scene.image, question.text, method="ficoco-l", retention=BUDGET)
vision = vtc.run(vlm, scene.image, question.text, method="ficoco-v", retention=BUDGET)
lowest = vtc.run(vlm, scene.image, question.text, method="ficoco-l", retention=0.01, max_new_tokens=1)
assert lowest.trace.schedule == [576, 576, 1, 1, 1, 1, 1, 1]
say(f"""
FiCoCo-L alone starts with 576 tokens. A mean of {BUDGET * 576:.0f} forces it down to **{alone.visual_tokens}** at the end, and below {lowest.trace.equivalent_tokens:.0f} it cannot come: two of eight layers see everything. With 32 layers and five of them whole, the floor is {(5 * 576 + 27) / 32:.0f}.
FiCoCo-VL lets the encoder make a part of the cut, here to {both.trace.schedule[0]}; no source says how the authors split it, so `split` is ours.
""")

# %% [slide]
# ## The same mean, three schedules
#
# V has done its work before the decoder; L starts with everything and must fall deep; VL shares it out.

# %% slide
kit.lines(
    {
        run.method.card.title: (range(layers), run.trace.schedule)
        for run in (vision, alone, both)
    },
    "decoder layer",
    "visual tokens entering it",
    f"192 tokens on average, three ways (V {vision.trace.equivalent_tokens:.0f}, L {alone.trace.equivalent_tokens:.0f}, VL {both.trace.equivalent_tokens:.0f})",
)  # fmt: skip

# %% [markdown] minutes=9
# ## 7. What the released code does differently
#
# The authors' code and their paper do not compute the same. `released=True` does as the code does; outputs of one layer were compared with it. The pure functions are `released_layer` in `ficoco_v.py` and `ficoco_l.py`. We ask them on the tensors of this pass.
#
# **Encoder.** The weights of the filter are swapped (0.65 for likeness, 0.35 for CLS). Targets may be any token, discarded ones included. And places are counted *before* the discard but used *after* it: content is sent to the wrong address.

# %%
released, went, wanted, portion = ficoco_v.released_layer(state["logits"], count, torch.arange(-1, 576), (24, 24))
receiver = released.anchor[released.new[released.m :]].view_as(wanted)  # in which token the content really landed
arrived = (portion * (receiver == wanted)).sum() / portion.sum()
to_gone = (portion * torch.isin(wanted, went)).sum() / portion.sum()
same = len(set(went.tolist()) & set(discarded.tolist())) / count
assert released.anchor[-1] == 0 and int(released.anchor[0]) != 0
assert arrived < 0.5
say(f"""
Of what was sent, **{100 * arrived:.0f} %** landed in the token that it was meant for; {100 * to_gone:.0f} % was addressed to tokens that are discarded themselves. {100 * same:.0f} % of the discards are the paper's. New tokens come in the order of their score, and CLS
comes *last*. The next layer takes the first token for CLS. That is patch {int(released.anchor[0]) - 1}, and LLaVA, which drops "CLS" at the end, drops a patch and hands CLS on.
""")

# %% [markdown]
# **Language model.** The visual term is a *sum* over $N$ tokens beside a *mean* over the text, so it weighs $N$ times as much. The bridge has no $1/M$. Discarded tokens may be targets; what they receive is lost. And nothing is divided: rows of $R$ do not add up to 1.

# %%
raw, went, wanted, portion = ficoco_l.released_layer(logits, picture, text, go)
lost = (portion * torch.isin(wanted, went)).sum() / portion.sum()
heavy = raw.dense().sum(1)
divided = level["reduction"].dense()
length = {
    name: r.apply(level["hidden"]).norm(dim=1).max() for name, r in (("paper", level["reduction"]), ("code", raw))
}
torch.testing.assert_close(raw.dense().sum() - raw.m, go * (1 - lost))  # whatever is not lost makes rows heavier
kit.table(
    [
        ["rows add up to, at most", f"{divided.sum(1).max():.2f}", f"{heavy.max():.2f}"],
        ["longest token after the layer, norm", f"{length['paper']:.0f}", f"{length['code']:.0f}"],
        ["content of discarded tokens that is lost", "0 %", f"{100 * lost:.0f} %"],
        ["discards in common with the other", f"{len(set(went.tolist()) & set(gone.tolist()))} of {go}", ""],
    ],
    ["FiCoCo-L, decoder layer 1", "paper", "released code"],
)

# %% [markdown]
# Is a heavy row harmful? A layer normalises its input, so what it *adds* to a token has the same size however long the token is. So a token that is ten times as long is changed a tenth as much, relative to its length. Over several layers rows multiply. The column "product" shows them for the whole pass:

# %%
table = []
for name in ("ficoco-v", "ficoco-l", "ficoco-vl"):
    for flag in (False, True):
        one = vtc.run(vlm, scene.image, question.text, method=name, retention=0.6, released=flag)
        P = one.trace.product()
        table.append([
            one.method.card.title, "code" if flag else "paper", f"{P.dense().sum(1).min():.2f} to {P.dense().sum(1).max():.2f}",
            "yes" if bool((P.anchor == 0).any()) else "no", one.trace.fate().counts["dropped"], one.answer,
        ])  # fmt: skip
kit.table(table, ["60 % kept", "as in", "product: rows add up to", "CLS handed on", "patches without trace", "answer"])
assert all(row[4] == 0 for row in table if row[1] == "paper")
say(f"Truth: {question.answer}. One question; it says what differs, not which is better.")

# %% [markdown]
# One defect is left out even with the flag: in the released encoder the grid of windows is a variable of the module. It is never reset, so encoding the same picture twice gives different discards, and a picture depends on the one before it. Here every picture has its own grid.
#
# What follows for a reader of tables? The figures of a paper come from *some* code. Whether from this one is not known here. So a card says which of the two is computed, and the `released` flag lets you compare.

# %% [quiz]
# The released L code does not divide by $1 + \sum_i \alpha_{ij}$. Which property of $R$ does it give up, and which one would it gain if no discarded token were a target?
#
# - [x] It gives up rows that add up to 1, and would gain columns that add up to 1
#   Every discarded token hands on shares that add up to 1, and every token that stays counts itself once. As it is, columns of tokens whose targets are discarded fall below 1.
# - [ ] It gives up the order of tokens, and would gain speed
#   Order is no matter of the weights, and one division per token costs nothing.
# - [ ] It gives up columns that add up to 1, and would gain rows that do
#   The other way round: undivided sums keep the total and let a token grow.

# %% [markdown] minutes=7
# ## 8. In the VLM
#
# The three variants at an average of 192 tokens, with random picking and pooling beside them:

# %%
rivals = vtc.compare(vlm, scene.image, question.text, [f"pool@{BUDGET}", f"random@{BUDGET}"]).runs
runs = [vision, alone, both, *rivals]
kit.results(runs, question)

# %% [slide]
# ## Merging leaves a trace of everything
#
# Amber: folded into a token elsewhere. Dark: dropped. "Kept or merged" is 100 % for every merge, so it cannot rank them.

# %% slide
kit.masks(scene.image, [vision, both, rivals[1]], question, "192 of 576 tokens on average; green: the evidence")

# %% [markdown]
# "Evidence kept" counts patches that are kept *or merged*. A merge drops nothing, so it has 100 % by definition, even with a single token left. Finer: how many patches of the evidence still stand at their own place, and what is the largest share that a patch of the evidence has in any token?

# %%
rows = []
for run in runs:
    status, weight = run.trace.fate().status[evidence.flatten()], run.trace.fate().weight[evidence.flatten()]
    rows.append([run.method.card.title, f"{int((status == 2).sum())} of {len(status)}", f"{weight.mean():.2f}"])
assert all(run.trace.evidence_kept(evidence) == 1.0 for run in (vision, alone, both))
kit.table(rows, ["method", "evidence at its place", "largest share, mean"])
work = {run.method.card.title: {k: v / 1e9 for k, v in run.flops.items() if k != "total"} for run in runs}
assert vision.flops["vision"] < alone.flops["vision"]

# %%
kit.bars(work, "GFLOPs", "Work of one answer on the embedded VLM, by stage")

# %% [markdown]
# FiCoCo-V saves work in the later encoder layers; L in none of them. The method's own part (`compression`) is the full attention map of each reduced layer, which a fused kernel never writes down: a map of logits is one product of queries and keys, but it is one, in each of these layers.
#
# One question proves nothing. Recorded on held-out questions of all kinds:

# %%
folder = Path(vtc.__file__).parents[1] / "assets" / "measurements"
record = json.loads((folder / "embedded_sweep.json").read_text(encoding="utf-8"))
names = ("ficoco-v", "ficoco-l", "ficoco-vl", "random", "pool")
recorded = {name: [r for r in record["rows"] if r["method"]["method"] == name] for name in names}
at = {name: min(rows, key=lambda r: abs(r["equivalent_tokens"] - 192)) for name, rows in recorded.items()}
title = {name: vtc.registry.get(name).card.title for name in names}
kit.table(
    [
        [
            title[name],
            f"{row['equivalent_tokens']:.0f}",
            f"{100 * row['all']['accuracy']:.0f}",
            f"{100 * row['all']['low']:.0f} to {100 * row['all']['high']:.0f}",
        ]
        for name, row in at.items()
    ],
    ["method", "mean tokens", "right, %", "95 % interval"],
)
bar = at["random"]["all"]
steep = (8 * 384 / 21) / (32 * 384 / 378)  # tokens per layer, by the formula of section 6
above = [title[n] for n in names[:3] if at[n]["all"]["low"] > bar["high"]]
under = [title[n] for n in names[:3] if at[n]["all"]["high"] < bar["low"]]
level_with = [title[n] for n in names[:3] if title[n] not in above + under]
say(f"""
Against random picking, with intervals that do not overlap: above it {", ".join(above) or "none"}; below it {", ".join(under) or "none"}; not told apart {", ".join(level_with) or "none"}.
Recorded on {record["environment"]["date"][:10]}, {record["questions"]} questions, {record["environment"]["device"]}. None of these methods is trained. The decoder is shallow: for a mean of 192, FiCoCo-L must discard {steep:.1f} times as many tokens per layer with 8 layers as with 32.
""")

# %% [instructor]
# If time is short, leave out the exercise on tokens per layer and show the schedules. Do not leave out section 7: reading a released code against its paper is the habit that this lesson is for. Ask who has ever compared a table of a paper with the code next to it.

# %% [markdown] minutes=4
# ## 9. What the paper reports, and how faithful this is

# %%
for name in ("ficoco-v", "ficoco-l", "ficoco-vl"):
    kit.report(name)

# %% [markdown]
# Not verified: the tokens per layer behind the paper's budgets, and how VL was split (it stands in the first version of the paper alone). The first and the fourth version disagree on some results of L at the smallest budget.
#
# - `vtc_demo/core/tokens.py`: `Reduction`, `Trace` and their algebra, one page; `vtc_demo/methods/maths/ficoco.py`: the maths of a layer.
# - In the app: FiCoCo-V with the switch *released* on and off, same picture. Look at where the tokens that are left stand.
# - Lesson 09 leaves R behind: there, no visual token enters the sequence at all.

# %% [slide]
# ## Take home
#
# - A reduction is a matrix. **Rows** that add up to 1 keep the scale, **columns** that add up to 1 keep the sum. Not both.
# - A pass is a **product**; equivalent tokens are a mean over layers. Both can be read off the steps.
# - Filter, correlate, compress: one score, one row of targets, one division. Run the code before you believe the sentence.
