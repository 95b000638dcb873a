# /// lesson
# title = "Merging on the grid: pooling and the patch merger"
# objectives = [
#   "write pooling on the grid as a matrix R, for any number of rows and columns, and read from R which patches count",
#   "find the matrix of any linear operator, and say why a maximum has none",
#   "predict whether pooling before or after the projector's MLP makes the same tokens, and what each costs",
#   "write Qwen2-VL's patch merger, and say in which sense pooling is a special case of it",
# ]
# prerequisites = ["lesson 00"]
# methods = ["patch-merger", "pool", "downsample", "uniform"]
# papers = ["2310.03744 LLaVA-1.5", "2408.03326 LLaVA-OneVision", "2405.20985 DeCo", "2409.12191 Qwen2-VL"]
# ///

# %% [slide]
# ## Neighbours become one token
#
# - A picture has neighbours that say nearly the same. The simplest compression joins **blocks of the grid**.
# - No attention, no question, no search: the same blocks for every picture.
# - Two families: **average** a block (pooling), or lay its patches **side by side** and learn what to keep (patch merger).

# %%
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.connectors.base import Dims
from vtc_demo.connectors.llava_mlp import MLPConnector
from vtc_demo.connectors.patch_merger import MergerConnector
from vtc_demo.connectors.pooling import PoolConnector, pool, winners
from vtc_demo.core.operations import grid_within
from vtc_demo.core.pooling import average
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.methods.baselines.uniform import evenly

torch.set_grad_enabled(False)  # nothing is trained in this lesson
vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=0)
question = next(q for q in scene.questions if q.kind == "reading")
tower, projector = vlm.model.model.vision_tower, vlm.model.model.multi_modal_projector


def look(image):
    """The tower's output that the projector reads, [1, 1 + 576, C], CLS first."""
    return tower(vlm.inputs([image]).pixels, output_hidden_states=True).hidden_states[-2]


features = look(scene.image)
patches = features[0, 1:]  # [576, C]

# %% [markdown] minutes=6
# ## 1. The reference: one token per patch
#
# LLaVA-1.5 joins nothing. Each patch feature $x_i \in \mathbb{R}^C$ goes **on its own** through an MLP of two layers and comes out at the decoder's width $D$:
#
# $$ f(x) = W_2\, \operatorname{GELU}(W_1 x + b_1) + b_2, \qquad W_1 \in \mathbb{R}^{D \times C},\; W_2 \in \mathbb{R}^{D \times D} $$
#
# GELU is the exact one, with the error function. The features are those of the second-last layer of the tower, CLS left out. As many tokens as patches: 576 for 336 pixels. Every ratio in
# this lesson is measured against that.
#
# The package has it as a module, `MLPConnector`. The projector of the embedded VLM is of the same kind and trained, so its weights fit.

# %%
dims = Dims.of(vlm.config)
mlp = MLPConnector(dims).eval()
mlp.load_state_dict(projector.state_dict())

by_hand = F.linear(
    F.gelu(F.linear(patches, mlp.linear_1.weight, mlp.linear_1.bias)), mlp.linear_2.weight, mlp.linear_2.bias
)
reference = mlp(features, (24, 24), 576).tokens[0]  # [576, D]
assert torch.allclose(by_hand, reference, atol=1e-4)
assert torch.allclose(projector(features[:, 1:])[0], reference, atol=1e-4)
say(f"{len(patches)} patches of width {dims.vision} become {len(reference)} tokens of width {dims.hidden}.")

# %% [markdown]
# Is the projector where the cost is? For LLaVA-1.5-7B, $C = 1024$ and $D = 4096$:

# %%
llava = vtc.cost.SPECS["llava-1.5-7b"]
flops = vtc.cost.run_flops(llava, [576] * llava.layers, text_tokens=40)
parameters = (1024 * 4096 + 4096) + (4096 * 4096 + 4096)
assert parameters == 20_979_712
kit.facts({
    "parameters of the MLP": f"{parameters:,}",
    "FLOPs of the MLP, 576 tokens": f"{flops['projector'] / 1e9:.0f} G",
    "FLOPs of the prefill": f"{flops['prefill'] / 1e9:,.0f} G",
})  # fmt: skip
assert flops["projector"] < flops["prefill"] / 100

# %% [markdown]
# Below one hundredth. So a connector may be several times as expensive as the MLP and still pay off, if it outputs fewer tokens.

# %% [markdown] minutes=14
# ## 2. Pooling is a matrix
#
# Let $B_t$ be the patches of block $t$. Average pooling replaces them by their mean:
#
# $$ y_t = \frac{1}{|B_t|} \sum_{i \in B_t} x_i \qquad\Longleftrightarrow\qquad Y = R X, \quad R_{ti} = \begin{cases} 1/|B_t| & i \in B_t \\ 0 & \text{else} \end{cases} $$
#
# $R$ has a row for each new token and a column for each patch. The whole course writes reductions like this: pruning keeps rows of the identity, merging writes several entries into a row.
# Rows add up to 1 here, so a block of equal patches comes out unchanged.
#
# Patches are counted row by row. That makes the one difficulty: the four patches of a $2 \times 2$ block are *not* four consecutive columns.

# %% [slide]
# ## Average pooling as R
#
# A grid of 4 × 6 in blocks of 2 × 2: a row per new token, a column per patch. The two patches of a block's second row lie 6 columns further.

# %% slide
kit.matrix(average((4, 6), 2, 3).dense(), "patch", "new token", "4 x 6 patches become 2 x 3 tokens")

# %% [exercise] difficulty=easy minutes=5
# Write $R$ for blocks of `side` × `side` patches. Both sides of the grid are multiples of `side`. The new tokens are counted row by row, too.


# %% [solution]
def average_matrix(rows, columns, side):
    """R of average pooling, [rows / side * columns / side, rows * columns]."""
    # BEGIN SOLUTION
    across = columns // side
    matrix = torch.zeros(rows // side * across, rows * columns)
    for row in range(rows):
        for column in range(columns):
            matrix[row // side * across + column // side, row * columns + column] = 1 / side**2
    return matrix
    # END SOLUTION


# %% [check]
got = average_matrix(4, 6, 2)
check(
    tuple(got.shape) == (6, 24),
    f"24 patches in blocks of 4 make 6 tokens: [6, 24]; yours has the shape {tuple(got.shape)}.",
)
check_equal(
    got[1].nonzero().flatten(), [2, 3, 8, 9], "Token 1 is made of columns 2 and 3 of rows 0 and 1. Its patches:"
)
check_equal(got.sum(1), torch.ones(6), "A mean: the weights of a row add up to 1.")
picture = torch.arange(24.0).view(4, 6) ** 2
check_equal(got @ picture.flatten(), F.avg_pool2d(picture[None, None], 2).flatten(), "torch pools to other values.")
check_equal(average_matrix(24, 24, 3), average((24, 24), 8, 8).dense(), "24 x 24 in blocks of 3: the package differs.")
done("the matrix of the package, and what torch's avg_pool2d does")

# %% [hint]
# Patch (row, column) has the number `row * columns + column`. Its block is (row // side, column // side), and there are `columns // side` blocks in a row.


# %% [mistake] why="Four consecutive patches: strips of 1 x 4 in place of blocks."
def average_matrix(rows, columns, side):
    tokens = rows * columns // side**2
    return torch.eye(tokens).repeat_interleave(side**2, dim=1) / side**2


# %% [mistake] why="A sum, not a mean: tokens four times too long."
def average_matrix(rows, columns, side):
    across = columns // side
    matrix = torch.zeros(rows // side * across, rows * columns)
    for row in range(rows):
        for column in range(columns):
            matrix[row // side * across + column // side, row * columns + column] = 1
    return matrix


# %% [mistake] why="Rows and columns exchanged: right for a square grid alone."
def average_matrix(rows, columns, side):
    down = rows // side
    matrix = torch.zeros(down * (columns // side), rows * columns)
    for row in range(rows):
        for column in range(columns):
            matrix[column // side * down + row // side, column * rows + row] = 1 / side**2
    return matrix


# %% [markdown]
# In the VLM: the method `pool` acts on the visual tokens before the decoder. The product of all reductions of the pass is that matrix.

# %%
quarter = vtc.run(vlm, scene.image, question.text, method="pool", retention=0.25)
assert torch.equal(quarter.trace.product().dense()[:, -576:], average((24, 24), 12, 12).dense())
print(quarter.visual_tokens, "tokens:", quarter.answer, "| truth:", question.answer)

# %% [markdown]
# ### Any number of rows and columns
#
# 24 does not divide by 10. *Adaptive* pooling to $m$ parts of an axis of $n$ patches lets part $i$ run
#
# $$ \text{from } \left\lfloor \frac{i\,n}{m} \right\rfloor \quad\text{up to, but not including,}\quad \left\lceil \frac{(i+1)\,n}{m} \right\rceil $$
#
# The lower end is rounded down and the upper end up. So no patch is left out, and where $m$ does not divide $n$ neighbouring parts **overlap**.

# %% [exercise] difficulty=medium minutes=4
# Write the parts as Python ranges.


# %% [solution]
def parts_of(size, parts):
    """The ranges over which adaptive pooling averages along one axis, a list of `parts` ranges."""
    # BEGIN SOLUTION
    return [range(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]
    # END SOLUTION


# %% [check]
check(len(parts_of(24, 12)) == 12, "12 parts are asked for.")
check([list(r) for r in parts_of(6, 3)] == [[0, 1], [2, 3], [4, 5]], "6 in 3 parts: pairs, 0 and 1, 2 and 3, 4 and 5.")
check(
    [list(r) for r in parts_of(5, 2)] == [[0, 1, 2], [2, 3, 4]],
    f"5 in 2 parts: 0 to 2 and 2 to 4, so both hold the patch in the middle. Yours: {[list(r) for r in parts_of(5, 2)]}.",
)
for size, parts in ((24, 7), (24, 10), (27, 14)):
    line = torch.arange(float(size)) ** 2
    ours = torch.stack([line[r.start : r.stop].mean() for r in parts_of(size, parts)])
    theirs = F.adaptive_avg_pool1d(line[None], parts)[0]
    check_equal(ours, theirs, f"{size} patches in {parts} parts: torch averages other ranges.")
done("the ranges of torch's adaptive pooling")

# %% [hint]
# `a // b` rounds down; `-(-a // b)` rounds up.


# %% [mistake] why="Both ends are rounded down: parts no longer overlap, and have other means."
def parts_of(size, parts):
    return [range(i * size // parts, (i + 1) * size // parts) for i in range(parts)]


# %% [mistake] why="A fixed stride: what is left at the end of the axis is never seen."
def parts_of(size, parts):
    step = size // parts
    return [range(i * step, (i + 1) * step) for i in range(parts)]


# %% [markdown]
# What does the overlap do? A **column** of $R$ tells how much a patch weighs in all new tokens together. If all blocks are alike, all columns have the same sum. Else they have not:

# %%
wanted = 100
rows, columns = grid_within((24, 24), wanted)
uneven = average((24, 24), rows, columns).dense()
assert torch.allclose(uneven, pool(torch.eye(576).view(1, 576, 24, 24), (rows, columns), "average")[0].flatten(1).T)
weigh = uneven.sum(0) / uneven.sum(0).mean()
say(f"""
For a budget of {wanted} tokens the nearest grid is {rows} x {columns}. There the heaviest patch weighs {weigh.max() / weigh.min():.1f} times as much as the lightest. At 144 and 64 tokens
the blocks are all alike and so are the weights.
""")
assert weigh.max() > weigh.min()

# %% [quiz]
# The app asks the method `pool` for 192 of 576 tokens and shows 182. Why?
#
# - [ ] Ten tokens were dropped because they are alike
#   Pooling looks at no token. It is the same for every picture.
# - [x] Pooled tokens form a grid, and of the grids within 192 tokens the one of the best shape has 182
#   14 × 13 is as square as it gets within 192. A count such as 191, a prime, would be a single row of the picture or nothing.
# - [ ] The blocks overlap, and doubles are counted once
#   Overlapping changes which patches a token is made of. The number of tokens is rows times columns.

# %% [markdown] minutes=12
# ## 3. Which patches count? Average, bilinear, maximum
#
# The released code of LLaVA-NeXT offers three ways to shrink the grid: `average`, `max` and `bilinear`; LLaVA-OneVision uses bilinear with stride 2. `F.interpolate` does not tell a matrix. But every **linear** operator has one, and
# it can be asked for: column $i$ of $R$ is the operator's answer to a picture that is 1 at patch $i$ and 0 elsewhere,
#
# $$ R\, e_i = \text{operator}(e_i). $$
#
# All $n$ of these pictures can be given at once, as $n$ channels of one picture.

# %% [exercise] difficulty=medium minutes=5
# Find the matrix of a linear operator on grids.


# %% [solution]
def matrix_of(operator, grid):
    """operator: [1, channels, *grid] -> [1, channels, rows, columns], linear and alike in all channels.

    Returns R [rows * columns, n], n = number of patches of the grid.
    """
    # BEGIN SOLUTION
    n = grid[0] * grid[1]
    answers = operator(torch.eye(n).view(1, n, *grid))  # channel i: the answer to patch i
    return answers[0].flatten(1).T
    # END SOLUTION


# %% [check]
got = matrix_of(lambda x: F.avg_pool2d(x, (2, 3)), (4, 6))
check(
    tuple(got.shape) == (4, 24),
    f"24 patches become 4 tokens: R is [4, 24], a row per token; yours is {tuple(got.shape)}.",
)
check_equal(got[1].nonzero().flatten(), [3, 4, 5, 9, 10, 11], "Token 1 averages the upper right block. Its patches:")
check_equal(matrix_of(lambda x: 5 * x, (2, 3)), 5 * torch.eye(6), "Five times the picture: five times the identity.")
noise = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
for to in ((12, 12), (8, 8), (7, 10)):
    shrink = lambda x, to=to: F.interpolate(x, size=to, mode="bilinear")  # noqa: E731
    check_equal(
        matrix_of(shrink, (24, 24)) @ noise.flatten(), shrink(noise).flatten(), "R times a picture is not its answer."
    )
done("the matrix of any linear operator on a grid")

# %% [hint]
# `torch.eye(n)` has $e_i$ in row $i$. As a picture with $n$ channels it is `torch.eye(n).view(1, n, rows, columns)`.


# %% [mistake] why="The answers are the columns of R, not its rows."
def matrix_of(operator, grid):
    n = grid[0] * grid[1]
    return operator(torch.eye(n).view(1, n, *grid))[0].flatten(1)


# %% [mistake] why="Rows are scaled to add up to 1. Pooling has that of itself; not every operator does."
def matrix_of(operator, grid):
    n = grid[0] * grid[1]
    matrix = operator(torch.eye(n).view(1, n, *grid))[0].flatten(1).T
    return matrix / matrix.sum(1, keepdim=True)


# %% [markdown]
# Now look at bilinear shrinking. The centre of new cell $i$ lies at $(i + \tfrac12)\, s - \tfrac12$ on the old axis, $s$ being the stride, and the value there is taken from the **two nearest** patches of each axis, no matter how far apart
# the new cells are. With an even $s$ the centre lies half-way between two patches, with an odd $s$ right on one:


# %%
def shares(side, mode):
    """R of a linear mode from 24 x 24 to side x side: [side^2, 576]."""
    return pool(torch.eye(576).view(1, 576, 24, 24), (side, side), mode)[0].flatten(1).T


used = {
    (mode, side): int((shares(side, mode).sum(0) > 0).sum()) for mode in ("average", "bilinear") for side in (12, 8, 6)
}
kit.table(
    [
        [f"{side * side} tokens, stride {24 // side}", used["average", side], used["bilinear", side]]
        for side in (12, 8, 6)
    ],
    ["of 576 patches these count", "average", "bilinear"],
)
assert torch.allclose(shares(12, "bilinear"), shares(12, "average"))  # stride 2: the same
assert set(shares(8, "bilinear").unique().tolist()) == {0.0, 1.0}  # stride 3: each token is one patch
assert torch.equal(shares(8, "bilinear").argmax(1), evenly((24, 24), 64))
assert used == {("average", s): 576 for s in (12, 8, 6)} | {
    ("bilinear", 12): 576,
    ("bilinear", 8): 64,
    ("bilinear", 6): 144,
}

# %% [slide]
# ## Bilinear is not pooling
#
# How much each patch weighs in the new tokens. At stride 2 bilinear is the average; at stride 3 it **picks the centre** of each block; at stride 4 it averages the inner four of sixteen.

# %% slide
kit.heat(
    scene.image,
    {
        f"bilinear, {24 // side} x {24 // side} to one": shares(side, "bilinear").sum(0) * (side / 24) ** 2
        for side in (12, 8, 6)
    },
    title="Weight of a patch in all new tokens (dark: none)",
)

# %% [markdown]
# At stride 3 it equals the baseline `uniform`, patch for patch. With `antialias=True` the operator would widen with the stride; the released code leaves it off, and at the stride 2 that it is used with there is no difference.
#
# The odd sides differ too. A SigLIP tower of 384 pixels has $27 \times 27 = 729$ patches. Stride 2:

# %%
odd = torch.zeros(1, 1, 27, 27)
sizes = {
    "bilinear to ceil(27 / 2)": F.interpolate(odd, size=(14, 14), mode="bilinear"),
    "average, stride 2": F.avg_pool2d(odd, 2),
    "average, adaptive to 14": F.adaptive_avg_pool2d(odd, 14),
}
kit.table(
    [[name, f"{x.shape[2]} x {x.shape[3]}", x.shape[2] * x.shape[3]] for name, x in sizes.items()],
    ["729 patches by", "grid", "tokens"],
)
last = F.avg_pool2d(torch.eye(729).view(1, 729, 27, 27), 2)[0].flatten(1).T.sum(0).view(27, 27)
assert last[26].sum() == 0 and last[:, 26].sum() == 0  # a fixed stride never sees the last row and column

# %% [markdown]
# 196 tokens per frame is LLaVA-OneVision's number for video. With `average` in its place the count would be 169, and the right and lower edge would be lost.
#
# **The maximum** has no matrix: $\max(a + b) \ne \max(a) + \max(b)$. It works channel by channel, so a pooled token may take channel 5 from one patch and channel 6 from another: a vector that no patch had.
# What can be said is who *won*: the share of channels in which a patch was the largest of its block.

# %%
maps = reference.T.reshape(1, -1, 24, 24)  # the visual tokens as a picture with D channels
won = winners(maps, (24, 24), (12, 12))[0, :, 1:]  # [144, 576]
assert torch.allclose(won.sum(1), torch.ones(144))
biggest = won.max(1).values
mean_norm = average((24, 24), 12, 12).apply(reference).norm(dim=-1).mean()
max_norm = pool(maps, (12, 12), "max")[0].norm(dim=0).mean()
say(f"""
On real tokens the strongest of the four patches wins {100 * biggest.mean():.0f} % of the channels of its block, on average; an even share would be 25 %. Pooled tokens are {max_norm / reference.norm(dim=-1).mean():.2f} times as long
as an ordinary token for the maximum, {mean_norm / reference.norm(dim=-1).mean():.2f} times for the average.
""")

# %% [quiz]
# Someone wants 64 tokens from LLaVA's 24 × 24 grid and sets the stride of the bilinear mode to 3. What reaches the decoder?
#
# - [ ] Means of 3 × 3 blocks
#   That would be `average`. Bilinear looks at two patches of each axis at most.
# - [x] Every third patch of every third row, unchanged
#   The centre of each block lies on a patch, which gets weight 1. The other eight have no influence at all.
# - [ ] A smooth mixture in which the centre counts most
#   This is what `antialias=True` would do.

# %% [markdown] minutes=14
# ## 4. Before the MLP or after it?
#
# LLaVA-OneVision pools the *output* of the projector, DeCo pools its *input*. Average pooling is linear, and so are both matrices of the MLP. Only the GELU between them is not:
#
# $$ \underbrace{R\,\big(\operatorname{GELU}(X W_1^\top + b_1)\, W_2^\top + b_2\big)}_{\text{after}} \;\ne\; \underbrace{\operatorname{GELU}(R X\, W_1^\top + b_1)\, W_2^\top + b_2}_{\text{before}} $$
#
# Since the rows of $R$ add up to 1, $R\,(Z W^\top + b) = (R Z)\, W^\top + b$ for each linear layer. So $R$ may be moved through a linear layer in either direction, and only the GELU stops it.

# %% [exercise] difficulty=medium minutes=5
# Get the tokens of "after" for less: the second matrix needs to be multiplied with the $m$ pooled vectors only. `reduction.apply(x)` is $R x$; `mlp` has `linear_1` and `linear_2`.


# %% [solution]
def pool_within(patches, reduction, mlp):
    """The tokens of pooling after the MLP, [m, D], with m rows in the second layer. patches [n, C]."""
    # BEGIN SOLUTION
    return mlp.linear_2(reduction.apply(F.gelu(mlp.linear_1(patches))))
    # END SOLUTION


# %% [check]
from torch.utils.flop_counter import FlopCounterMode

blocks_of_4 = average((24, 24), 12, 12)
got = pool_within(patches, blocks_of_4, mlp)
after = PoolConnector(dims).eval()
after.load_state_dict(mlp.state_dict())  # pooling has no weights of its own
theirs = after(features, (24, 24), 144).tokens[0]
check(tuple(got.shape) == (144, dims.hidden), f"144 tokens are wanted; yours have the shape {tuple(got.shape)}.")
check_equal(
    got,
    theirs,
    "The package's PoolConnector makes other tokens. On which side of the GELU do you pool?",
    tolerance=1e-4,
)
with FlopCounterMode(display=False) as counter:
    pool_within(patches, blocks_of_4, mlp)
least = vtc.cost.linear_flops(576, dims.vision, dims.hidden) + vtc.cost.linear_flops(144, dims.hidden, dims.hidden)
check_equal(
    counter.get_total_flops(),
    least,
    "Right tokens, but at another price. 576 rows in the first layer, 144 in the second. FLOPs:",
)
done("the same tokens as pooling after the MLP, for less work")

# %% [hint]
# Three places are possible: before `linear_1`, between it and the GELU, after the GELU. Two of them are the same.


# %% [mistake] why="Before the GELU: that equals pooling before the MLP."
def pool_within(patches, reduction, mlp):
    return mlp.linear_2(F.gelu(reduction.apply(mlp.linear_1(patches))))


# %% [mistake] why="After the MLP: the right tokens, and all of the work."
def pool_within(patches, reduction, mlp):
    return reduction.apply(mlp.linear_2(F.gelu(mlp.linear_1(patches))))


# %% [markdown]
# How different are "before" and "after" on real features? Where all patches of a block are alike, not at all. Elsewhere it is the GELU's curvature that acts on the spread of the block.

# %%
fourfold = average((24, 24), 12, 12)
pooled_after = fourfold.apply(projector(patches[None])[0])  # [144, D]
pooled_before = projector(fourfold.apply(patches)[None])[0]
difference = (pooled_after - pooled_before).norm(dim=-1) / pooled_after.norm(dim=-1)
members = torch.arange(576).view(12, 2, 12, 2).transpose(1, 2).reshape(144, 4)  # the patches of each block
spread = (patches[members] - fourfold.apply(patches)[:, None]).norm(dim=-1).mean(1)  # mean distance to the block's mean
alike = patches[:1].expand(576, -1)  # a picture whose patches are all the same
assert torch.allclose(projector(fourfold.apply(alike)[None])[0], fourfold.apply(projector(alike[None])[0]), atol=1e-4)
unit_after, unit_before = (F.normalize(x, dim=-1) for x in (pooled_after, pooled_before))
say(f"""
The median difference is **{100 * difference.median():.0f} %** of the token's length, up to {100 * difference.max():.0f} %; the median cosine similarity is {(unit_after * unit_before).sum(-1).median():.2f}. "Before" makes tokens that are
{pooled_before.norm(dim=-1).mean() / pooled_after.norm(dim=-1).mean():.2f} times as long. Over the blocks,
difference and spread of the features have a correlation of {torch.corrcoef(torch.stack([difference, spread]))[0, 1]:.2f}.
""")
assert difference.median() > 0.01

# %% [slide]
# ## Before the MLP ≠ after the MLP
#
# Only the GELU stands between the two. Left: their difference, block by block, as a share of the token's length. Right: how much the four features of the block differ.

# %% slide
kit.heat(
    scene.image,
    {"|after - before| / |after|": difference, "spread of the features in a block": spread},
    grid=(12, 12),
    title="Does the order of pooling and MLP matter?",
)

# %% [markdown]
# `pool` of the package pools after. For the other order only the site changes. The tower's CLS token still stands in front there, so patch $i$ is old token $i + 1$.


# %%
class PoolBefore(vtc.methods.Pool):
    """Average pooling of the tower's features, before the projector."""

    def sites(self, shape):
        return (Site("projector"),)

    def reduce(self, context):
        grid = context.shape.grid
        b = average(grid, *grid_within(grid, self.keep(context.shape.patches)))
        return Reduction(b.new, b.old + context.extra, b.weight, b.m, b.n + context.extra, b.anchor + context.extra)


counts = (144, 64)
settings = {"all tokens": vtc.methods.Full()}
for count in counts:
    settings[f"after, {count}"] = vtc.methods.Pool(retention=count / 576)
    settings[f"before, {count}"] = PoolBefore(retention=count / 576)
runs = [vtc.run(vlm, scene.image, question.text, method=method) for method in settings.values()]
cheap = runs[2]  # before, 144
assert cheap.flops["projector"] < runs[1].flops["projector"] / 3 and cheap.visual_tokens == runs[1].visual_tokens
assert torch.equal(cheap.trace.product().dense()[:, 1:], runs[1].trace.product().dense()[:, -576:])  # the same R
kit.table(
    [[name, run.answer, run.visual_tokens, f"{run.flops['projector'] / 1e6:.1f} M", f"{run.flops['total'] / 1e6:,.0f} M"] for name, run in zip(settings, runs)],
    [f"“{question.text}”", f"truth: {question.answer}", "tokens", "FLOPs, projector", "FLOPs, all"],
)  # fmt: skip

# %% [markdown]
# One answer says little. All questions of a few held-out pictures say a little more:

# %%
from vtc_demo.core import measures

right = {name: [] for name in settings}
for seed in range(5):
    picture = vtc.world.sample(seed, split="eval")
    for asked in picture.questions:
        for name, method in settings.items():
            answer = vtc.run(vlm, picture.image, asked.text, method=method).answer
            right[name].append((asked.kind, measures.right(answer, asked.answer)))
total = {name: 100 * sum(ok for _, ok in rows) / len(rows) for name, rows in right.items()}
kit.table(
    [[name, f"{percent:.0f} %"] for name, percent in total.items()], ["pooled", f"right of {len(right['all tokens'])}"]
)
gap = {count: total[f"after, {count}"] - total[f"before, {count}"] for count in counts}
half = max(1.96 * (p * (100 - p) / len(right["all tokens"])) ** 0.5 for p in total.values())
verdict = " and ".join(f"{abs(gap[n]):.0f} points {'more' if gap[n] > 0 else 'fewer'} at {n} tokens" for n in counts)
say(f"""
In this sample pooling after the MLP has {verdict}. With {len(right["all tokens"])} questions the 95 % interval of a single share is about ±{half:.0f} points. Neither was trained: this projector and this decoder have never seen a pooled
feature, so this compares two ways to use *borrowed* weights. Of a model that is trained with its pooling it says nothing.
""")

# %% [instructor]
# Ask for a vote before the difference is shown: is pooling before the MLP the same as after it? Many say yes "because both are linear". Point at the GELU; then let them find the two places that *are* the same (before the first matrix, before the GELU).
# The table of answers depends on the weights. The point to make is the sample size, not the winner.

# %% [markdown] minutes=15
# ## 5. The patch merger
#
# A mean keeps one number of four, whatever the picture. **Qwen2-VL** lays the four patches of a $2 \times 2$ block side by side and lets an MLP choose:
#
# $$ z_t = \big[\operatorname{LN}(x_{t,00});\, \operatorname{LN}(x_{t,01});\, \operatorname{LN}(x_{t,10});\, \operatorname{LN}(x_{t,11})\big] \in \mathbb{R}^{4C}, \qquad y_t = W_2 \operatorname{GELU}(W_1 z_t + b_1) + b_2 $$
#
# $W_1$ is $4C \times 4C$, $W_2$ is $D \times 4C$. LN normalises each patch **before** they are joined (lesson 02 looks at the other order). Nothing is lost up to $W_1$. From scratch:


# %%
class Merger(nn.Module):
    """A patch merger. x [n, C] in raster order of a grid -> [n / side^2, D]."""

    def __init__(self, width, hidden, side=2):
        super().__init__()
        self.side = side
        self.ln_q = nn.LayerNorm(width, eps=1e-6)
        wide = side**2 * width
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, hidden))

    def forward(self, x, grid):
        rows, columns = grid
        s = self.side
        x = self.ln_q(x).view(rows // s, s, columns // s, s, -1)  # block row, row in it, block column, column in it
        joined = x.transpose(1, 2).reshape(rows // s * (columns // s), -1)  # [m, s^2 C]
        return self.mlp(joined)


torch.manual_seed(0)
theirs = MergerConnector(dims).eval()
mine = Merger(dims.vision, dims.hidden).eval()
mine.load_state_dict(theirs.state_dict())  # the same names, the same shapes
made = theirs(features, (24, 24), 144)
assert torch.allclose(mine(patches, (24, 24)), made.tokens[0], atol=1e-5)

# %% [markdown]
# The weights are random here (with a fixed seed); equal outputs of equal weights prove the arithmetic, whatever the weights. Against the class in `transformers` as well. It wants the patches
# in **block order**: Qwen2-VL's image processor cuts the picture so that the four patches of a block follow one another, and the merger then needs no more than a `view`.

# %%
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger as QwenMerger

qwen = QwenMerger(dims.hidden, dims.vision).eval()
qwen.load_state_dict(theirs.state_dict())
block_order = torch.arange(576).view(12, 2, 12, 2).transpose(1, 2).flatten()  # patch numbers, block by block
assert torch.allclose(qwen(patches[block_order]), made.tokens[0], atol=1e-5)
wrong = qwen(patches)  # raster order: no error
assert wrong.shape == made.tokens[0].shape and not torch.allclose(wrong, made.tokens[0], atol=1e-2)

# %% [markdown]
# The last two lines are a trap. Features in raster order give the right shapes, no error, and tokens made of $1 \times 4$ strips:

# %% [slide]
# ## A silent mistake
#
# Which patches become one token. Left: the merger with patches in block order. Right: the same code fed row by row. All shapes are right.

# %% slide
token = torch.empty(576)
token[block_order] = torch.arange(576.0) // 4
strips = torch.arange(576.0) // 4
kit.heat(
    scene.image,
    {"2 x 2 blocks": token * 5 % 13, "fed in raster order: 1 x 4 strips": strips * 5 % 13},
    title="Patches of one token have one colour",
)

# %% [markdown]
# ### Pooling is a merger with equal weights
#
# $W_1 z$ is a sum over the four places, each with a matrix of its own: $W_1 z = \sum_p W_1^{(p)} x_p$. If all four are the same, $W_1^{(p)} = \tfrac14 A$, then $W_1 z = A\, \bar x$ with the mean $\bar x$ of the block. So the merger
# *contains* "pool, then MLP", and starts from more: it can weigh the upper left patch otherwise than the lower right.

# %% [exercise] difficulty=hard minutes=7
# Write merger weights with which the merger gives exactly what LLaVA's MLP gives on averaged features. The MLP has `linear_1` ($D \times C$) and `linear_2` ($D \times D$); the merger's first layer has $4C$ outputs, of which you need $D$.
# What is left over must not disturb.


# %% [solution]
def merger_weights(mlp, width, side=2):
    """State of Sequential(Linear(side^2 C, side^2 C), GELU, Linear(side^2 C, D)): 0.weight, 0.bias, 2.weight, 2.bias."""
    # BEGIN SOLUTION
    wide, hidden = side**2 * width, mlp.linear_1.out_features
    state = {"0.weight": torch.zeros(wide, wide), "0.bias": torch.zeros(wide)}
    state |= {"2.weight": torch.zeros(hidden, wide), "2.bias": mlp.linear_2.bias.clone()}
    state["0.weight"][:hidden] = mlp.linear_1.weight.repeat(1, side**2) / side**2
    state["0.bias"][:hidden] = mlp.linear_1.bias
    state["2.weight"][:, :hidden] = mlp.linear_2.weight
    return state
    # END SOLUTION


# %% [check]
built = MergerConnector(dims).eval()
state = merger_weights(mlp, dims.vision)
wide = 4 * dims.vision
check(
    tuple(state["0.weight"].shape) == (wide, wide) and tuple(state["2.weight"].shape) == (dims.hidden, wide),
    f"0.weight is [4C, 4C] = [{wide}, {wide}] and 2.weight [D, 4C]; yours are {tuple(state['0.weight'].shape)} and {tuple(state['2.weight'].shape)}.",
)
built.mlp.load_state_dict(state)  # its norm is as built: scale 1, shift 0
normed = F.layer_norm(patches, (dims.vision,), eps=1e-6)
wanted = mlp.linear_2(F.gelu(mlp.linear_1(average((24, 24), 12, 12).apply(normed))))
got = built(features, (24, 24), 144).tokens[0]
check(
    not torch.allclose(got, built.mlp[2].bias.expand_as(got)),
    "All tokens equal the last bias: nothing of the picture arrives.",
)
check_equal(got, wanted, "The merger with your weights does not give MLP(mean of the block).", tolerance=1e-4)
done("average pooling and LLaVA's MLP, as the weights of a patch merger")

# %% [hint]
# The joined vector is patch after patch: channels 0 to $C-1$ are those of the upper left one. So $A$ stands four times side by side, and `weight.repeat(1, 4)` does that. Rows that are not needed are 0: GELU(0) = 0.


# %% [mistake] why="The sum of the four patches in place of the mean."
def merger_weights(mlp, width, side=2):
    wide, hidden = side**2 * width, mlp.linear_1.out_features
    state = {"0.weight": torch.zeros(wide, wide), "0.bias": torch.zeros(wide)}
    state |= {"2.weight": torch.zeros(hidden, wide), "2.bias": mlp.linear_2.bias.clone()}
    state["0.weight"][:hidden] = mlp.linear_1.weight.repeat(1, side**2)
    state["0.bias"][:hidden] = mlp.linear_1.bias
    state["2.weight"][:, :hidden] = mlp.linear_2.weight
    return state


# %% [mistake] why="Each channel four times in a row: as if the joined vector were sorted by channel, not by patch."
def merger_weights(mlp, width, side=2):
    wide, hidden = side**2 * width, mlp.linear_1.out_features
    state = {"0.weight": torch.zeros(wide, wide), "0.bias": torch.zeros(wide)}
    state |= {"2.weight": torch.zeros(hidden, wide), "2.bias": mlp.linear_2.bias.clone()}
    state["0.weight"][:hidden] = mlp.linear_1.weight.repeat_interleave(side**2, 1) / side**2
    state["0.bias"][:hidden] = mlp.linear_1.bias
    state["2.weight"][:, :hidden] = mlp.linear_2.weight
    return state


# %% [markdown]
# What does the larger first layer cost? In Qwen2-VL-7B $C = 1280$ and $D = 3584$:

# %%
wide = 4 * 1280
merger_parameters = 2 * 1280 + (wide * wide + wide) + (wide * 3584 + 3584)
assert merger_parameters == 44_575_744
assert theirs.flops(576, 144) == vtc.cost.linear_flops(144, 4 * dims.vision, 4 * dims.vision) + vtc.cost.linear_flops(
    144, 4 * dims.vision, dims.hidden
)
per_token = 2 * (wide * wide + wide * 3584)
kit.facts({
    "parameters of Qwen2-VL-7B's merger": f"{merger_parameters:,}",
    "FLOPs per output token": f"{per_token / 1e9:.2f} G",
    "here: FLOPs of LLaVA's MLP, 576 tokens": f"{mlp.flops(576, 576) / 1e6:.0f} M",
    "here: FLOPs of the merger, 144 tokens": f"{theirs.flops(576, 144) / 1e6:.0f} M",
})  # fmt: skip

# %% [quiz]
# You port a model with a patch merger. Shapes are right, nothing fails, yet it confuses neighbouring objects and cannot read. What do you check first?
#
# - [ ] Whether GELU is the exact one or the tanh approximation
#   That changes the tokens in the third digit. It does not move neighbours.
# - [x] Whether the four features joined in one token come from a 2 × 2 block
#   Raster order joins strips of 1 × 4. Feed a grid of patch numbers through everything but the weights and look at the first token.
# - [ ] Whether the learning rate was too high
#   Nothing is trained in a port. The weights are the published ones.

# %% [markdown] minutes=8
# ## 6. What is lost
#
# Joining blocks does not look at the picture. So a small number is joined with the card around it, and then with its surroundings. Count it: how many tokens hold a part of the evidence, and how much of what went into
# these tokens *is* evidence?

# %%
regions = {q.kind: torch.from_numpy(q.evidence).flatten().float() for q in scene.questions}
table = []
for kind in ("reading", "object", "background"):
    row = [kind, int(regions[kind].sum())]
    for side in (12, 8, 6):
        share = average((24, 24), side, side).apply(regions[kind][:, None])[:, 0]  # evidence in each token
        row.append(f"{int((share > 0).sum())}, {100 * share[share > 0].mean():.0f} %")
    table.append(row)
kit.table(table, ["evidence of", "patches", "144 tokens", "64 tokens", "36 tokens"])
reading = [float(average((24, 24), s, s).apply(regions["reading"][:, None]).max()) for s in (24, 12, 6)]
assert reading[0] == 1 and reading[-1] <= reading[0]
say(
    "Each cell: tokens that hold a part of the evidence, and how much of them is evidence on average. No patch is dropped, so the app calls the evidence kept; the shares tell how thin it has become."
)

# %% [markdown]
# What follows for the answers was recorded on more questions than fit into a lesson (`docs/accuracy.md` tells with which command). No weights were trained for pooling there.

# %%
folder = Path(vtc.__file__).parents[1] / "assets" / "measurements"
record = json.loads((folder / "embedded_sweep.json").read_text(encoding="utf-8"))
swept = {name: [r for r in record["rows"] if r["method"]["method"] == name] for name in ("pool", "downsample", "full")}
curve = {}
for kind in ("existence", "colour", "counting", "reading"):
    line = sorted(swept["pool"] + swept["full"], key=lambda r: r["final_tokens"])
    curve[kind] = ([r["final_tokens"] for r in line], [100 * r["kinds"][kind]["accuracy"] for r in line])
smallest = min(swept["pool"], key=lambda r: abs(r["final_tokens"] - 64))
complete = swept["full"][0]

# %% [slide]
# ## Pooling without training, by kind of question
#
# Right answers of the embedded VLM. Recorded on held-out scenes; the last point is the full model.

# %% slide
kit.lines(curve, "visual tokens", "right answers, %", "Average pooling after the MLP, no training")

# %%
drop = {
    kind: 100 * (complete["kinds"][kind]["accuracy"] - smallest["kinds"][kind]["accuracy"]) for kind in vtc.world.KINDS
}
order = sorted(drop, key=drop.get)
share = smallest["kinds"][order[-1]]
smaller = min(swept["downsample"], key=lambda r: abs(r["final_tokens"] - 64))
same_budget = f"""Making the picture smaller before the tower, to {smaller["final_tokens"]:.0f} tokens, has {100 * smaller["all"]["accuracy"]:.0f} % right of all questions,
pooling {100 * smallest["all"]["accuracy"]:.0f} %, the full model {100 * complete["all"]["accuracy"]:.0f} %."""
say(f"""
At {smallest["final_tokens"]:.0f} tokens *{order[-1]}* has lost most: {drop[order[-1]]:.0f} points, to {share["right"]} of {share["n"]} questions (95 % interval {100 * share["low"]:.0f} to {100 * share["high"]:.0f} %). Least has
*{order[0]}* lost, {drop[order[0]]:.0f} points. {same_budget}

Recorded on {record["environment"]["date"][:10]}, {record["questions"]} held-out questions, {record["environment"]["device"]}.
""")

# %% [markdown]
# Be careful with the reason. Averaging blurs, and it also hands the decoder vectors of a kind that it was never trained on. The curve cannot tell the two apart; a model that was *trained* with pooling would. That is why published models train with it,
# and why "pooling without training" is a baseline here and no verdict on pooling.

# %% [instructor]
# If time is short, skip the odd sides of section 3 and the table of answers in section 4. Do not skip the strips of section 5: whoever has once fed a grid of patch numbers through a connector finds this mistake in a minute.

# %% [markdown] minutes=6
# ## 7. Trained with it
#
# What if connector and decoder are *trained* with fewer tokens? The package has connectors that are, all on the same frozen tower, with the same pictures and the same number of steps (`docs/zoo.md`). The merger of section 5 is one of them. Your arithmetic must
# fit its trained weights, too:

# %%
from vtc_demo.connectors import store

learned = store.fit(vlm, vtc.registry.get("patch-merger")()).connector
mine.load_state_dict(learned.state_dict())
assert torch.allclose(mine(patches, (24, 24)), learned(features, (24, 24), 144).tokens[0], atol=1e-3)

first = learned.mlp[0].weight.unflatten(1, (4, -1))  # [4C outputs, place in the block, C]
common = 4 * first.mean(1).square().sum() / first.square().sum()  # 1: four equal matrices; 1/4: independent ones
assert 0 <= common <= 1
say(f"""
How much of a pooling has the trained merger become? Split $W_1$ into its four places. The part that all four share holds **{100 * common:.0f} %** of the weights' squared size. Pooling would be 100 %; four matrices drawn independently, as they are
before the training, 25 %.
""")

# %%
trained = {
    "the embedded VLM, 576": vtc.methods.Full(),
    "average pooling, not trained, 144": vtc.methods.Pool(retention=0.25),
    "patch merger, trained, 144": vtc.registry.get("patch-merger")(),
}
scored = {name: {} for name in trained}
for seed in range(4):
    picture = vtc.world.sample(seed, split="eval")
    for asked in picture.questions:
        for name, method in trained.items():
            run = vtc.run(vlm, picture.image, asked.text, method=method)
            scored[name].setdefault(asked.kind, []).append(measures.right(run.answer, asked.answer))
of_kind = {kind: len(ok) for kind, ok in scored["the embedded VLM, 576"].items()}
kinds = [kind for kind in vtc.world.KINDS if kind in of_kind]
sums = {name: [sum(by_kind[kind]) for kind in kinds] for name, by_kind in scored.items()}
n = sum(of_kind.values())
rows = [[name, *values, sum(values)] for name, values in sums.items()]
kit.table([["questions", *(of_kind[kind] for kind in kinds), n], *rows], ["right answers", *kinds, "all"])

# %%
percent = {name: 100 * sum(values) / n for name, values in sums.items()}
say(f"""
With a quarter of the tokens, the trained merger has {percent["patch merger, trained, 144"]:.0f} % right and pooling with borrowed weights {percent["average pooling, not trained, 144"]:.0f} %; the full model has {percent["the embedded VLM, 576"]:.0f} %. Two things differ
between the first two: the connector and the training. Which of them makes the difference is a question for pooling that was trained in the same way. `docs/zoo.md` has that table, with more questions and with intervals.
""")

# %% [slide]
# ## Trained with a quarter of the tokens
#
# - The trained merger starts from more than a mean: four patches side by side.
# - Against pooling *without* training, connector and training differ both. A fair comparison trains both.

# %% [markdown] minutes=3
# ## 8. What the papers say, and where to go on

# %%
kit.report("pool")
kit.report("patch-merger")

# %% [markdown]
# - Qwen2-VL accepts any picture size: both sides are rounded to multiples of 28 pixels, two patches, so blocks always fit. Qwen2.5-VL has an RMSNorm in place of the LayerNorm; Qwen3-VL has further mergers, for features of earlier layers,
#   which normalise after joining.
# - LLaVA-OneVision spends the same order of tokens on a picture and on a video: 729 tokens per view, or 196 per frame of 32 frames.
# - `vtc_demo/methods/baselines/pool.py` and `vtc_demo/connectors/patch_merger.py`, `pooling.py`: a page each. `docs/zoo.md` tells how connectors are trained here.
# - Lesson 02 moves resolution into channels: the same gather as the merger's, under another name. Lesson 05 chooses patches by what is in them.

# %% [slide]
# ## Take home
#
# - Pooling is a matrix R on the tokens. **Rows** tell what a token is made of, **columns** what became of a patch.
# - "Bilinear" above stride 2 skips patches; "maximum" has no matrix; "before the MLP" is not "after".
# - The patch merger contains pooling as the case of equal weights. Its input must be in **block order**, and nothing tells you if it is not.
