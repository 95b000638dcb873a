# /// lesson
# title = "Pixel shuffle: resolution into channels"
# objectives = [
#   "write space-to-depth and its inverse, and say where a connector that uses it loses information",
#   "predict the token order of both versions of InternVL's pixel shuffle, and what a wrong one does to masks and answers",
#   "show that InternVL, Idefics3, Qwen2-VL, pixel_unshuffle and a strided convolution gather the same numbers",
#   "say what a norm before the gather forgets and a norm after it keeps",
# ]
# prerequisites = ["lesson 00", "lesson 01: the patch merger"]
# methods = ["pixel-shuffle", "patch-merger", "pool"]
# papers = ["2404.16821 InternVL 1.5", "2408.12637 Idefics3", "2409.12191 Qwen2-VL", "2504.05299 SmolVLM"]
# ///

# %% [slide]
# ## Fewer tokens, each of them deeper
#
# - Pixel shuffle turns a block of 2 × 2 patches into **one token with four times the channels**. Nothing is averaged, nothing dropped.
# - InternVL, Idefics3 and SmolVLM use it; Qwen2-VL's patch merger gathers the same numbers.
# - What can go wrong is **order**: of the tokens, and of the channels inside a token.

# %%
from typing import ClassVar

import plotly.graph_objects as go
import torch
from torch.nn import functional as F

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.connectors.base import Dims, blocks
from vtc_demo.connectors.patch_merger import MergerConnector
from vtc_demo.connectors.pixel_shuffle import ShuffleConnector, pixel_shuffle
from vtc_demo.core import measures
from vtc_demo.core.operations import grid_within
from vtc_demo.core.tokens import Reduction
from vtc_demo.figures.pictures import data_url, square

torch.set_grad_enabled(False)  # nothing is trained in this lesson
vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=0)
tower = vlm.model.model.vision_tower


def look(image):
    """The tower's output that a connector reads, [1, 1 + 576, C], CLS first."""
    return tower(vlm.inputs([image]).pixels, output_hidden_states=True).hidden_states[-2]


def side_by_side(pictures, title, side=260):
    """A figure of pictures, name -> PIL image."""
    figure = go.Figure()
    for i, (name, image) in enumerate(pictures.items()):
        place = {"xref": "x", "yref": "y", "x": 1.04 * i, "y": 1, "sizex": 1, "sizey": 1}
        figure.add_layout_image(source=data_url(square(image, side), quality=85), **place, sizing="stretch")
        figure.add_annotation(x=1.04 * i + 0.5, y=1.08, text=name, showarrow=False)
    size = {
        "width": round(1.04 * side * len(pictures)) + 40,
        "height": side + 110,
        "margin": {"l": 20, "r": 20, "t": 60, "b": 20},
    }
    kit.figures.layout(figure, title, **size)
    figure.update_xaxes(range=[0, 1.04 * len(pictures) - 0.04], visible=False)
    return figure.update_yaxes(range=[0, 1.14], visible=False)


features = look(scene.image)
patches = features[0, 1:]  # [576, C]
width = patches.shape[1]

# %% [markdown] minutes=15
# ## 1. Space to depth
#
# Take a grid of $h \times w$ vectors of $C$ numbers. **Space-to-depth** with side $s$ lays the $s^2$ vectors of each block one behind the other:
#
# $$ Y\big[i,\, j,\, (\delta_r\, s + \delta_c)\, C + c\big] = X\big[i s + \delta_r,\; j s + \delta_c,\; c\big], \qquad 0 \le \delta_r, \delta_c < s $$
#
# The grid becomes $h/s \times w/s$ and each vector $s^2 C$ long. The number of numbers stays. A projector with its first matrix $[D \times s^2 C]$ follows and makes one visual token of each.
#
# The literature calls this *pixel shuffle*. In image super-resolution, where the name comes from, pixel shuffle is the opposite direction (channels into space), and `torch.nn.PixelShuffle` is that one.
#
# On an ordinary picture, $C = 3$ colours, side 2 gives four small pictures, one for each place $(\delta_r, \delta_c)$ in the block:

# %% [slide]
# ## One picture, four quarter pictures
#
# Space-to-depth on the pixels themselves: place (row, column) in each 2 × 2 block. Put together they are the whole picture again.

# %% slide
from PIL import Image

pixels = torch.frombuffer(bytearray(scene.image.convert("RGB").tobytes()), dtype=torch.uint8)
pixels = pixels.view(scene.image.height, scene.image.width, 3)
small = pixel_shuffle(pixels[None], 2)[0]  # [168, 168, 4 x 3]
quarters = {f"({place // 2}, {place % 2})": small[..., 3 * place : 3 * place + 3] for place in range(4)}
side_by_side(
    {name: Image.fromarray(x.numpy()) for name, x in quarters.items()}, "Space to depth, side 2, on pixels", side=200
)

# %% [exercise] difficulty=easy minutes=5
# Write it for a grid of vectors. One `reshape` splits the axes, one `permute` orders them, one `reshape` joins them.


# %% [solution]
def space_to_depth(x, side):
    """x [rows, columns, C] -> [rows / side, columns / side, side^2 C]; channels ordered (row in block, column, c)."""
    # BEGIN SOLUTION
    rows, columns, channels = x.shape
    split = x.reshape(rows // side, side, columns // side, side, channels)
    return split.permute(0, 2, 1, 3, 4).reshape(rows // side, columns // side, side * side * channels)
    # END SOLUTION


# %% [check]
numbers = torch.arange(24.0).view(4, 6, 1)  # each patch holds its own number
got = space_to_depth(numbers, 2)
check(
    tuple(got.shape) == (2, 3, 4), f"4 x 6 vectors of 1 number become 2 x 3 vectors of 4; yours are {tuple(got.shape)}."
)
check_equal(
    got[0, 1], [2, 3, 8, 9], "Token (0, 1) is made of patches 2 and 3 in row 0, 8 and 9 below them, in this order."
)
coordinates = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij"), -1)  # (row, column)
check_equal(
    space_to_depth(coordinates, 3)[0, 1, :8],
    [0, 3, 0, 4, 0, 5, 1, 3],
    "With two channels (row, column): the vectors stay whole, one behind the other. Token (0, 1) begins with",
)
check_equal(
    space_to_depth(patches.view(24, 24, -1), 2),
    pixel_shuffle(patches.view(1, 24, 24, -1), 2)[0],
    "The package differs.",
)
done("the package's pixel shuffle, version 2")

# %% [hint]
# `x.reshape(rows // side, side, columns // side, side, channels)` has the axes (block row, row in block, block column, column in block, c). The two block axes must come first.


# %% [mistake] why="Axes are joined without being ordered: strips along a row in place of blocks."
def space_to_depth(x, side):
    rows, columns, channels = x.shape
    return x.reshape(rows // side, columns // side, side * side * channels)


# %% [mistake] why="Channels first: the order of torch's pixel_unshuffle, in which the four vectors are interleaved."
def space_to_depth(x, side):
    rows, columns, channels = x.shape
    split = x.reshape(rows // side, side, columns // side, side, channels)
    return split.permute(0, 2, 4, 1, 3).reshape(rows // side, columns // side, side * side * channels)


# %% [markdown]
# **Nothing is lost**, as the inverse shows. Compare it with pooling: its matrix $R$ has $m$ rows, so its rank is at most $m$ and $n - m$ directions are gone for good, whatever follows.

# %% [exercise] difficulty=medium minutes=5
# Write the inverse, depth to space.


# %% [solution]
def depth_to_space(y, side):
    """y [rows, columns, side^2 C] -> [rows * side, columns * side, C]."""
    # BEGIN SOLUTION
    rows, columns, deep = y.shape
    split = y.reshape(rows, columns, side, side, deep // side**2)
    return split.permute(0, 2, 1, 3, 4).reshape(rows * side, columns * side, deep // side**2)
    # END SOLUTION


# %% [check]
whole = torch.randn(6, 12, 5, generator=torch.Generator().manual_seed(0))
for side in (2, 3):
    got = depth_to_space(pixel_shuffle(whole[None], side)[0], side)
    check(tuple(got.shape) == (6, 12, 5), f"The grid was 6 x 12 with 5 channels; yours is {tuple(got.shape)}.")
    check_equal(got, whole, f"Side {side}: there and back again is not the same.")
done("there and back: not a number is lost")

# %% [hint]
# Split the channels into (row in block, column in block, c); then the order of axes is block row, row in block, block column, column in block, c.


# %% [mistake] why="The blocks are laid out side by side: rows and places in a block are not interleaved."
def depth_to_space(y, side):
    rows, columns, deep = y.shape
    return y.reshape(rows * side, columns * side, deep // side**2)


# %% [mistake] why="Row and column in the block are exchanged: every block is transposed."
def depth_to_space(y, side):
    rows, columns, deep = y.shape
    split = y.reshape(rows, columns, side, side, deep // side**2)
    return split.permute(0, 3, 1, 2, 4).reshape(rows * side, columns * side, deep // side**2)


# %% [quiz]
# A connector is pixel shuffle with side 2, then one matrix from 4C to D. Where is information lost?
#
# - [ ] In the shuffle: there are four times fewer tokens
#   The numbers are all there, in longer vectors. The inverse gets them back.
# - [x] In the matrix, if D is below 4C, and only there
#   A matrix keeps at most D directions of each 4C-vector. *Which* ones is learned.
# - [ ] In the decoder, since it has fewer positions
#   Fewer positions are the purpose. What the decoder makes of the vectors is not a loss of the connector.

# %% [markdown] minutes=17
# ## 2. The released code, and its transposition
#
# InternVL's code reaches the formula in steps, on a grid of 4 rows and 6 columns for instance. Every patch holds its own number:
#
# 1. view the columns in pairs: `[4, 3, 2]`,
# 2. exchange the first two axes: `[3, 4, 2]`,
# 3. view the *rows* in pairs: `[3, 2, 4]`. Each vector now has its four patches,
# 4. exchange the first two axes again: `[2, 3, 4]`.
#
# After step 3 axis 0 counts **columns** of blocks and axis 1 rows. **Version 1 of the code stops there** and flattens. Its tokens come out column by column. Version 2 does step 4; the code warns if version 1 is chosen.

# %%
number = torch.arange(24).view(4, 6)
step_1 = number.reshape(4, 3, 2)
step_2 = step_1.transpose(0, 1)
step_3 = step_2.reshape(3, 2, 4)
step_4 = step_3.transpose(0, 1)
for version, end in ((1, step_3), (2, step_4)):
    assert torch.equal(end, pixel_shuffle(number.view(1, 4, 6, 1), 2, version)[0])
kit.table(
    [[t, *(" ".join(map(str, end.reshape(6, 4)[t].tolist())) for end in (step_3, step_4))] for t in range(6)],
    ["token", "patches in version 1", "patches in version 2"],
)
assert torch.equal(step_3, step_4.transpose(0, 1))

# %% [markdown]
# Inside a token both versions are the same; only the *places* of the tokens are exchanged. A picture shows the difference best. We let every patch carry its own pixels, shuffle, and hang the tokens up
# where a reader who expects rows would: token 0 in the upper left corner, token 1 to its right.

# %%
side = 14 * 24
carried = torch.frombuffer(bytearray(square(scene.image, side).convert("RGB").tobytes()), dtype=torch.uint8)
carried = pixel_shuffle(carried.view(1, side, side, 3), 14)  # [1, 24, 24, 14 x 14 x 3]: patches with their pixels
assert carried.shape[1:3] == (24, 24)


def laid_out(version):
    """The picture made of tokens of a version, read row by row."""
    tokens = pixel_shuffle(carried, 2, version)[0].flatten(0, 1)  # [144, 4 x 588], the sequence that the decoder gets
    grid = tokens.view(12, 12, 2, 2, 14, 14, 3)  # block row, block column, row and column in it, pixels of a patch
    return Image.fromarray(grid.permute(0, 2, 4, 1, 3, 5, 6).reshape(side, side, 3).contiguous().numpy())


assert laid_out(2).tobytes() == square(scene.image, side).convert("RGB").tobytes()

# %% [slide]
# ## What version 1 outputs
#
# The tokens of both versions, laid out row by row. Blocks are mirrored along the diagonal; **inside a block nothing is transposed**, so edges no longer meet.

# %% slide
side_by_side(
    {"version 2": laid_out(2), "version 1": laid_out(1)},
    "144 tokens, each with the pixels of its 2 x 2 patches",
    side=300,
)

# %% [exercise] difficulty=medium minutes=5
# Where in the picture does token `t` lie? Give the row and column of its block. The grid of patches need not be square.


# %% [solution]
def block_of_token(t, grid, side, version):
    """(block row, block column) of the t-th token of pixel shuffle. grid: rows and columns of patches."""
    # BEGIN SOLUTION
    down, across = grid[0] // side, grid[1] // side
    if version == 1:
        return t % down, t // down
    return t // across, t % across
    # END SOLUTION


# %% [check]
check_equal(block_of_token(1, (4, 6), 2, 2), [0, 1], "Version 2, row by row: token 1 is right of token 0.")
check_equal(block_of_token(1, (4, 6), 2, 1), [1, 0], "Version 1, column by column: token 1 is below token 0.")
for grid, side in (((4, 6), 2), ((6, 12), 3), ((24, 24), 2)):
    places = torch.stack(
        torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"), -1
    )  # (row, column)
    for version in (1, 2):
        tokens = pixel_shuffle(places[None], side, version).flatten(1, 2)[0]  # [m, side^2 * 2]
        wanted = tokens[:, :2] // side  # of the first patch in each
        ours = [list(block_of_token(t, grid, side, version)) for t in range(len(tokens))]
        check_equal(ours, wanted, f"Grid {grid}, side {side}, version {version}: the package has other places.")
done("every token of both versions is found")

# %% [hint]
# There are `grid[0] // side` rows of blocks and `grid[1] // side` columns of blocks. Counting row by row, a row has as many blocks as there are *columns* of blocks.


# %% [mistake] why="Version 1 is divided by the number of columns: right for a square grid alone."
def block_of_token(t, grid, side, version):
    across = grid[1] // side
    return (t % across, t // across) if version == 1 else (t // across, t % across)


# %% [mistake] why="The two versions are exchanged."
def block_of_token(t, grid, side, version):
    down, across = grid[0] // side, grid[1] // side
    return (t % down, t // down) if version == 2 else (t // across, t % across)


# %% [markdown]
# Who is harmed? First, **every figure**: a mask over the picture, an attention map, a box. Here are the tokens that hold the number of the scene, drawn by someone who knows of the order and by someone who does not.

# %%
reading = next(q for q in scene.questions if q.kind == "reading")
evidence = torch.from_numpy(reading.evidence).float().view(1, 24, 24, 1)
held = pixel_shuffle(evidence, 2, version=1).flatten(1, 2)[0].mean(-1)  # share of evidence in each token, version 1
right_place = held.view(12, 12).T  # tokens came column by column
assert right_place.flatten().gt(0).sum() == held.gt(0).sum() and not torch.equal(right_place, held.view(12, 12))
assert torch.equal(right_place, pixel_shuffle(evidence, 2)[0].mean(-1))

# %% [slide]
# ## The same mask, drawn twice
#
# Tokens of version 1 that hold the written number. Left: placed column by column, as they came. Right: read row by row.

# %% slide
kit.heat(
    scene.image,
    {"placed column by column": right_place.flatten(), "read row by row": held},
    grid=(12, 12),
    title="Version 1: where are the tokens with the number?",
)

# %% [markdown]
# Second, **a model that was trained with the other version**. A decoder learns from the training which position means which place. InternVL 1.2 was trained with version 1 and has learned its order; 1.5 and later pass version 2. So the
# version belongs to the checkpoint, and "repairing" it in a running model is a mistake.
#
# How much does a decoder rely on the order? That can be tried without any training. The embedded decoder knows visual tokens row by row. We hand it *the same tokens* column by column, once all 576 and once the 144 means of $2 \times 2$ blocks.
# Nothing else differs, so a difference in the answers is due to the order.


# %%
class RowByRow(vtc.methods.Pool):
    """Average pooling that can output its tokens column by column."""

    by_column: ClassVar[bool] = False

    def reduce(self, context):
        plain = super().reduce(context)
        rows, columns = grid_within(context.shape.grid, self.keep(context.hidden.shape[0]))
        order = torch.arange(rows * columns).view(rows, columns)
        order = order.T.flatten() if self.by_column else order.flatten()
        return Reduction.from_dense(plain.dense()[order], plain.anchor[order])


class ColumnByColumn(RowByRow):
    by_column = True


settings = {
    f"{count} tokens, {name}": kind(retention=count / 576)
    for count in (576, 144)
    for name, kind in (("row by row", RowByRow), ("column by column", ColumnByColumn))
}
turned = vtc.run(vlm, scene.image, reading.text, method=settings["144 tokens, column by column"])
usual = vtc.run(vlm, scene.image, reading.text, method=settings["144 tokens, row by row"])
there, here = turned.trace.product(), usual.trace.product()
assert torch.equal(there.dense().view(12, 12, -1).transpose(0, 1).flatten(0, 1), here.dense())  # the same rows of R
assert turned.flops == usual.flops

right = {name: {} for name in settings}
for seed in range(5):
    picture = vtc.world.sample(seed, split="eval")
    for asked in picture.questions:
        for name, method in settings.items():
            answer = vtc.run(vlm, picture.image, asked.text, method=method).answer
            right[name].setdefault(asked.kind, []).append(measures.right(answer, asked.answer))
kinds = [kind for kind in vtc.world.KINDS if kind in right["576 tokens, row by row"]]
counted = {name: [sum(by_kind[kind]) for kind in kinds] for name, by_kind in right.items()}
asked_of = [len(right["576 tokens, row by row"][kind]) for kind in kinds]
rows = [[name, *values, sum(values)] for name, values in counted.items()]
kit.table([["questions", *asked_of, sum(asked_of)], *rows], ["right answers", *kinds, "all"])

# %%
rowwise, turned_all = counted["576 tokens, row by row"], counted["576 tokens, column by column"]
changes = {kind: b - a for kind, a, b in zip(kinds, rowwise, turned_all) if b != a}
listed = ", ".join(f"*{kind}* {change:+d}" for kind, change in sorted(changes.items(), key=lambda c: c[1])) or "none"
say(f"""
With all 576 tokens and only the order changed, {sum(turned_all)} of {sum(asked_of)} answers are right in place of {sum(rowwise)}. Changes by kind: {listed}. Order is not all that a token tells of its place: the tower
has added a position to every patch, so features may carry theirs (how much of it is used here was not tested). Questions are few; what is certain is the mechanics above.
""")

# %% [quiz]
# A checkpoint trained with version 1 is served with version 2, "because version 1 has a bug". What is to be expected?
#
# - [ ] Better answers, since the picture now stands upright
#   It stood upright before, in the order that this decoder has learned.
# - [x] Worse answers to an extent that must be measured: the decoder was trained on the other order
#   The tokens are the same and their order is unfamiliar. The experiment above is the mirror image of this case.
# - [ ] A failure: the shapes do not fit
#   Shapes are equal for square grids. This is why such a mistake survives.

# %% [instructor]
# Let participants predict the table before it is run: many expect total failure, some expect no change at all. The tower's position embedding is one reason why the answer may lie between; ask how one would test that.
# A favourite question: "why is version 1 not simply rotated back after the projector?" It could be, in a figure. In the sequence it must stay, since the decoder was trained on it.

# %% [markdown] minutes=13
# ## 3. One gather, five names
#
# Five pieces of code in use, and how their outputs relate on the *same* real features:

# %%
from types import SimpleNamespace

from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel

grid = patches.view(1, 24, 24, width)
ours = pixel_shuffle(grid, 2).flatten(1, 2)[0]  # [144, 4C], the formula of section 1

no_model = SimpleNamespace()  # both functions use no weights
internvl = InternVLModel.pixel_shuffle(no_model, grid, 0.5).flatten(1, 2)[0]
idefics = Idefics3Connector.pixel_shuffle(no_model, patches[None], 2)[0]
qwen = patches[blocks((24, 24), 2)].flatten(1)  # block order, then a view: the patch merger's input, without its norm
unshuffled = F.pixel_unshuffle(grid.permute(0, 3, 1, 2), 2)[0].flatten(1).T
assert torch.equal(internvl, ours) and torch.equal(idefics, ours) and torch.equal(qwen, ours)
assert not torch.equal(unshuffled, ours)
assert torch.equal(unshuffled.sort(1).values, ours.sort(1).values)  # the same numbers in another order
kit.table(
    [
        ["InternVL, version 2", "raster", "row in block, column in block, c", "norm, linear, GELU, linear"],
        ["InternVL, version 1", "column by column", "the same", "the same"],
        ["Idefics3, SmolVLM", "raster", "the same", "one linear without bias"],
        [
            "Qwen2-VL's patch merger",
            "raster (input in block order)",
            "the same",
            "linear, GELU, linear; norm before the gather",
        ],
        ["torch's pixel_unshuffle", "raster", "c, row in block, column in block", ""],
    ],
    ["code", "order of tokens", "order of channels", "what follows"],
)

# %% [markdown]
# So weights of a first layer may be carried from one to the other, with `pixel_unshuffle` after their columns were reordered. And a linear layer on the gathered vector is a **convolution** whose kernel and stride are both $s$. That is also how
# the tower itself cut the picture into patches in lesson 00: `patchify` was space-to-depth on pixels.

# %% [exercise] difficulty=hard minutes=6
# Reorder the columns of a linear layer, so that it gives on the vectors of `F.pixel_unshuffle` what the old one gives on ours.


# %% [solution]
def for_unshuffle(weight, side):
    """weight [D, side^2 C] for channels (row in block, column in block, c) -> the same for (c, row in block, column)."""
    # BEGIN SOLUTION
    out = weight.shape[0]
    return weight.reshape(out, side, side, -1).permute(0, 3, 1, 2).reshape(out, -1)
    # END SOLUTION


# %% [check]
drawn = torch.Generator().manual_seed(0)
for side, grid_of in ((2, (4, 6)), (3, (6, 6))):
    maps = torch.randn(1, 5, *grid_of, generator=drawn)  # [1, C, rows, columns]
    weight = torch.randn(7, side * side * 5, generator=drawn)
    wanted = pixel_shuffle(maps.permute(0, 2, 3, 1), side).flatten(1, 2)[0] @ weight.T
    deep = F.pixel_unshuffle(maps, side)[0].flatten(1).T
    got = for_unshuffle(weight, side)
    check(
        tuple(got.shape) == tuple(weight.shape), f"The shape stays {tuple(weight.shape)}; yours is {tuple(got.shape)}."
    )
    check(not torch.equal(got, weight), "The columns are still in the old order.")
    check_equal(deep @ got.T, wanted, f"Side {side}: the layer gives other tokens on pixel_unshuffle's vectors.", 1e-4)
    kernel = got.view(7, 5, side, side)  # and this is what a convolution calls its weight
    check_equal(F.conv2d(maps, kernel, stride=side)[0].flatten(1).T, wanted, "As a kernel it differs, too.", 1e-4)
done("the same layer for pixel_unshuffle, and as the kernel of a convolution")

# %% [hint]
# Give the column axis its three meanings: `weight.reshape(D, side, side, C)` is [D, row, column, c]. Wanted is [D, c, row, column].


# %% [mistake] why="The opposite direction: columns are taken for (c, row, column) already."
def for_unshuffle(weight, side):
    out = weight.shape[0]
    return weight.reshape(out, -1, side, side).permute(0, 2, 3, 1).reshape(out, -1)


# %% [mistake] why="Row and column in the block are exchanged on the way."
def for_unshuffle(weight, side):
    out = weight.shape[0]
    return weight.reshape(out, side, side, -1).permute(0, 3, 2, 1).reshape(out, -1)


# %% [markdown] minutes=13
# ## 4. Norm before or after
#
# Two connectors with the same gather and the same two linear layers still differ in where they normalise:
#
# $$ \text{Qwen2-VL:}\quad \big[\operatorname{LN}(x_{00});\, \operatorname{LN}(x_{01});\, \operatorname{LN}(x_{10});\, \operatorname{LN}(x_{11})\big] \qquad\qquad \text{InternVL:}\quad \operatorname{LN}\big([x_{00};\, x_{01};\, x_{10};\, x_{11}]\big) $$
#
# LN takes the mean from a vector, divides by its standard deviation, then scales and shifts each channel. **Before** the gather each patch is brought to the same length, and how long it was is forgotten. **After** it the block is brought to a common length:
# the four keep their lengths relative to one another. Idefics3 does neither.

# %%
dims = Dims.of(vlm.config)
torch.manual_seed(0)
before, after = MergerConnector(dims).eval(), ShuffleConnector(dims).eval()  # weights at random, with a fixed seed
louder = features.clone()
louder[0, 1] *= 10  # the patch in the upper left corner, which belongs to token 0
moved = {}
for name, connector in (("norm before the gather (patch merger)", before), ("norm after it (InternVL)", after)):
    was, now = (connector(x, (24, 24), 144).tokens[0] for x in (features, louder))
    moved[name] = ((now - was).norm(dim=-1) / was.norm(dim=-1)).tolist()
assert max(moved["norm before the gather (patch merger)"]) < 1e-3
assert moved["norm after it (InternVL)"][0] > 0.1 and max(moved["norm after it (InternVL)"][1:]) == 0
kit.table([[name, f"{100 * values[0]:.0f} %", f"{100 * max(values[1:]):.0f} %"] for name, values in moved.items()],
          ["one patch ten times as long", "token of its block changes by", "other tokens at most"])  # fmt: skip

# %% [markdown]
# Does it matter? Only if lengths differ within blocks. On real features:

# %%
lengths = patches.norm(dim=-1)[blocks((24, 24), 2)]  # [144, 4]
ratio = lengths.max(1).values / lengths.min(1).values
say(f"""
The longest patch of a block is {ratio.median():.2f} times as long as the shortest in the median block, and {ratio.max():.2f} times in the extreme one. So what a norm before the gather forgets is, for this tower, mostly a factor below {ratio.quantile(0.9):.2f}.
Large towers are reported to have single patches of very large norm (arXiv 2309.16588); with such patches the two orders would differ more. Which of the two trains better is not settled by this.
""")
assert ratio.median() >= 1

# %% [exercise] difficulty=medium minutes=5
# Write InternVL's connector from the gather on: LN over the joined vector, linear, GELU (exact), linear. `weights` has the modules `layer_norm`, `linear_1`, `linear_2`.


# %% [solution]
def internvl_tokens(patches, grid, weights):
    """patches [n, C] in raster order of grid (rows, columns) -> visual tokens [n / 4, D]."""
    # BEGIN SOLUTION
    deep = pixel_shuffle(patches.view(1, *grid, -1), 2).flatten(1, 2)[0]
    return weights.linear_2(F.gelu(weights.linear_1(weights.layer_norm(deep))))
    # END SOLUTION


# %% [check]
torch.manual_seed(1)
package = ShuffleConnector(dims).eval()
torch.nn.init.normal_(package.layer_norm.weight, 1, 0.3)  # a norm that was trained is not all ones
torch.nn.init.normal_(package.layer_norm.bias, 0, 0.3)
got = internvl_tokens(patches, (24, 24), package)
check(
    tuple(got.shape) == (144, dims.hidden),
    f"576 patches make 144 tokens of width {dims.hidden}; yours are {tuple(got.shape)}.",
)
theirs = package(features, (24, 24), 144).tokens[0]
check(
    not torch.allclose(got.view(12, 12, -1).transpose(0, 1).flatten(0, 1), theirs, atol=1e-4),
    "These are the tokens column by column: version 1.",
)
check_equal(got, theirs, "The package's connector makes other tokens from the same weights.", tolerance=1e-4)
done("InternVL's connector")

# %% [hint]
# Three lines are enough: `pixel_shuffle(patches.view(1, *grid, -1), 2)`, flatten the grid, then the modules in their order.


# %% [mistake] why="Each patch is normalised on its own: the patch merger's order."
def internvl_tokens(patches, grid, weights):
    normed = F.layer_norm(patches, patches.shape[-1:])
    deep = pixel_shuffle(normed.view(1, *grid, -1), 2).flatten(1, 2)[0]
    return weights.linear_2(F.gelu(weights.linear_1(deep * weights.layer_norm.weight + weights.layer_norm.bias)))


# %% [mistake] why="Version 1 of the shuffle: the tokens of InternVL 1.2."
def internvl_tokens(patches, grid, weights):
    deep = pixel_shuffle(patches.view(1, *grid, -1), 2, version=1).flatten(1, 2)[0]
    return weights.linear_2(F.gelu(weights.linear_1(weights.layer_norm(deep))))


# %% [markdown]
# What the two cost differs, because the merger's first layer is $4C \to 4C$ and InternVL's is $4C \to D$. Parameters of three published connectors, from their widths alone:

# %%


def linear(inputs, outputs):
    """Parameters of a linear layer with bias."""
    return inputs * outputs + outputs


published = {
    "LLaVA-1.5-7B, MLP": linear(1024, 4096) + linear(4096, 4096),
    "InternVL2-8B, norm and MLP after the shuffle": 2 * 4096 + linear(4096, 4096) + linear(4096, 4096),
    "Qwen2-VL-7B, patch merger": 2 * 1280 + linear(5120, 5120) + linear(5120, 3584),
}
assert list(published.values()) == [20_979_712, 33_570_816, 44_575_744]
for connector in (before, after):
    parts = [m for m in connector.modules() if isinstance(m, torch.nn.Linear)]
    assert connector.flops(576, 144) == sum(vtc.cost.linear_flops(144, m.in_features, m.out_features) for m in parts)
kit.table([[name, f"{count:,}"] for name, count in published.items()], ["connector", "parameters"])

# %% [quiz]
# A tower gives a few patches a norm a hundred times that of the others. Which connector lets such a patch drown its three neighbours at the input of the first linear layer?
#
# - [ ] The one that normalises each patch before the gather
#   There all four enter with the same length.
# - [x] The one that normalises the joined vector
#   Its standard deviation is set by the one long patch; the other three become small.
# - [ ] Both, since both have the same linear layers
#   The layers see other inputs.

# %% [markdown] minutes=10
# ## 5. What the linear layer must throw away
#
# The shuffle loses nothing, then a matrix maps $s^2 C$ numbers to $D$. If $D$ is smaller, at most $D$ directions survive. In published models the squeeze differs a lot:

# %%
squeeze = [
    ["LLaVA-1.5-7B", "no shuffle", 1024, 4096],
    ["InternVL2-8B", "side 2", 4 * 1024, 4096],
    ["Idefics3-8B", "side 2", 4 * 1152, 4096],
    ["Qwen2-VL-7B", "side 2", 4 * 1280, 3584],
    ["SmolVLM-256M", "side 4", 16 * 768, 576],
    ["the embedded VLM, with side 2", "side 2", 4 * dims.vision, dims.hidden],
]
kit.table(
    [[*row, f"{row[2] / row[3]:.1f}"] for row in squeeze],
    ["model", "gather", "numbers into the token", "width of the token", "ratio"],
)

# %% [markdown]
# How much can a matrix keep at best? Take the vectors of many pictures. For a given number of directions $D$, the linear map from which they can be restored with the least squared error is known: the first $D$ **principal components**.
# We find them on training scenes and ask on held-out ones which share of the variance is restored. Pooling is one particular map to $C$ numbers (here $C = D$), so it cannot do better on the scenes where the components were found.


# %%
def deep_of(images, side):
    """Shuffled features of several pictures, [tokens of all, side^2 C]."""
    return torch.cat([pixel_shuffle(x.view(1, 24, 24, width), side).flatten(1, 2)[0] for x in images])


def kept_by(restored, deep, centre):
    """Share of the squared deviation from the centre that is restored."""
    return 1 - ((deep - restored) ** 2).sum().item() / ((deep - centre) ** 2).sum().item()


def mean_of_block(deep, side):
    """Every patch of a block replaced by their mean: what pooling leaves."""
    return deep.view(len(deep), side**2, width).mean(1).repeat(1, side**2)


training = [look(vtc.world.sample(seed).image)[0, 1:] for seed in range(24)]
held_out = [vtc.world.sample(seed, split="eval") for seed in range(8)]
seen = [look(picture.image)[0, 1:] for picture in held_out]
regions = {"reading": [], "object": [], "background": []}  # of each picture: bool [24, 24], or none
for kind, masks in regions.items():
    for picture in held_out:
        masks.append(next((torch.from_numpy(q.evidence) for q in picture.questions if q.kind == kind), None))

kept = {}
for side in (2, 3, 4):
    known = deep_of(training, side)
    centre = known.mean(0)
    directions = torch.linalg.svd(known - centre, full_matrices=False).Vh[: dims.hidden]
    best = lambda deep, c=centre, v=directions: (deep - c) @ v.T @ v + c  # noqa: E731
    assert kept_by(best(known), known, centre) > kept_by(mean_of_block(known, side), known, centre)
    deep = deep_of(seen, side)
    kept[side] = {"all": kept_by(best(deep), deep, centre), "pooling": kept_by(mean_of_block(deep, side), deep, centre)}
    for kind, masks in regions.items():
        chosen = torch.cat([
            deep_of([x], side)[pixel_shuffle(mask.view(1, 24, 24, 1), side).flatten(1, 2)[0].float().mean(1) > 0.5]
            for x, mask in zip(seen, masks) if mask is not None
        ])  # fmt: skip
        kept[side][kind] = kept_by(best(chosen), chosen, centre)
names = {
    "background": "background",
    "object": "objects",
    "reading": "written text",
    "all": "all",
    "pooling": "all, by pooling",
}
kit.table(
    [
        [f"side {side}: {side**2 * width} to {dims.hidden}", *(f"{100 * kept[side][key]:.0f} %" for key in names)]
        for side in kept
    ],
    ["restored variance, held-out scenes", *names.values()],
)

# %% [slide]
# ## The best linear layer, and who pays
#
# Share of the variance that 128 directions can restore, by what the block shows. Blocks count as text if more than half of their patches are.

# %% slide
sides = list(kept)
curves = {names[key]: (sides, [100 * kept[side][key] for side in sides]) for key in names}
kit.lines(
    curves, "side of the block", "restored, %", "At best restored after a linear layer to 128 numbers"
).update_xaxes(dtick=1)

# %%
text, ground = kept[2]["reading"], kept[2]["background"]
written = [pixel_shuffle(m.view(1, 24, 24, 1), 2).float().mean(-1) > 0.5 for m in regions["reading"] if m is not None]
rare = sum(m.sum().item() for m in written) / (144 * len(held_out))
say(f"""
At side 2 the best 128 directions restore {100 * kept[2]["all"]:.0f} % of the variance, pooling {100 * kept[2]["pooling"]:.0f} %. Blocks of written text keep {100 * text:.0f} %, blocks of background {100 * ground:.0f} %; at side 4 it is {100 * kept[4]["reading"]:.0f} % and
{100 * kept[4]["background"]:.0f} %. The directions were chosen for the sum over *all* blocks, and of the held-out blocks {100 * rare:.1f} % are text.
""")
assert kept[2]["all"] > kept[2]["pooling"]

# %% [markdown]
# Two limits of this figure. Squared error is not what a decoder minds: a *trained* layer is free to keep what the questions need, and may serve text better than these directions do. And 128 numbers are few; InternVL2-8B outputs as many numbers as it
# gathers. The SmolVLM report finds that small language models do well with a larger side.
#
# One more limit is plain arithmetic: the sides of the grid must divide. 27 patches do not go in pairs. The package says so:

# %%
try:
    blocks((27, 27), 2)
except ValueError as error:
    print(error)
tiles = {
    "InternVL: 448 px, patch 14, side 2": (448 // 14 // 2) ** 2,
    "Idefics3: 364 px, patch 14, side 2": (364 // 14 // 2) ** 2,
}
tiles |= {"this VLM's grid: 336 px, patch 14, side 2": (336 // 14 // 2) ** 2}
assert list(tiles.values()) == [256, 169, 144]
kit.table(tiles.items(), ["grid", "tokens per tile"])

# %% [instructor]
# Section 5 can be given as homework. The question to ask afterwards: which experiment would show that text suffers *in answers*? (Train the connector at sides 2, 3, 4 under one recipe and compare the reading questions, with intervals.)

# %% [markdown] minutes=6
# ## 6. The trained ones
#
# The package has a trained pixel shuffle and a trained patch merger: the same frozen tower, the same pictures, the same number of steps; first the connector alone is trained, then connector and decoder (`docs/zoo.md`). First the arithmetic of section 4 again, with trained weights.

# %%
from vtc_demo.connectors import store

learned = {name: store.fit(vlm, vtc.registry.get(name)()).connector for name in ("pixel-shuffle", "patch-merger")}
shuffled = learned["pixel-shuffle"]
by_steps = shuffled.linear_2(F.gelu(shuffled.linear_1(shuffled.layer_norm(ours))))  # ours: the gathered features
assert torch.allclose(by_steps, shuffled(features, (24, 24), 144).tokens[0], atol=1e-3)

firsts = {"pixel-shuffle": shuffled.linear_1.weight, "patch-merger": learned["patch-merger"].mlp[0].weight}
common = {}
for name, weight in firsts.items():
    places = weight.unflatten(1, (4, -1))  # [outputs, place in the block, C]
    common[name] = (4 * places.mean(1).square().sum() / places.square().sum()).item()
    assert 0 <= common[name] <= 1
say(f"""
Did they learn to average? The part of the first matrix that is the same for all four places of a block holds **{100 * common["pixel-shuffle"]:.0f} %** of the weights' squared size in pixel shuffle and **{100 * common["patch-merger"]:.0f} %** in the merger.
Averaging would be 100 %, four matrices drawn independently (as they are before the training) 25 %.
""")

# %%
trained = {
    "the embedded VLM, 576": vtc.methods.Full(),
    "average pooling, not trained, 144": vtc.methods.Pool(retention=0.25),
    "pixel shuffle, trained, 144": vtc.registry.get("pixel-shuffle")(),
    "patch merger, trained, 144": vtc.registry.get("patch-merger")(),
}
scored = {name: {} for name in trained}
for seed in range(5):
    picture = vtc.world.sample(seed, split="eval")
    for asked in picture.questions:
        for name, method in trained.items():
            run = vtc.run(vlm, picture.image, asked.text, method=method)
            scored[name].setdefault(asked.kind, []).append(measures.right(run.answer, asked.answer))
of_kind = {kind: len(ok) for kind, ok in scored["the embedded VLM, 576"].items()}
shown = [kind for kind in vtc.world.KINDS if kind in of_kind]
sums = {name: [sum(by_kind[kind]) for kind in shown] for name, by_kind in scored.items()}
n = sum(of_kind.values())
rows = [[name, *values, sum(values)] for name, values in sums.items()]
kit.table(
    [["questions", *(of_kind[kind] for kind in shown), n], *rows], ["right answers, by visual tokens", *shown, "all"]
)

# %%
percent = {name: 100 * sum(values) / n for name, values in sums.items()}
half = max(1.96 * (p * (100 - p) / n) ** 0.5 for p in percent.values())
at = shown.index("reading")
read = {name: values[at] for name, values in sums.items()}
say(f"""
With 144 tokens, pixel shuffle has {percent["pixel shuffle, trained, 144"]:.0f} % right, the merger {percent["patch merger, trained, 144"]:.0f} %, pooling without training {percent["average pooling, not trained, 144"]:.0f} %; the full model has
{percent["the embedded VLM, 576"]:.0f} %. Of {of_kind["reading"]} questions of reading they have {read["pixel shuffle, trained, 144"]}, {read["patch merger, trained, 144"]} and {read["average pooling, not trained, 144"]}. A share of {n} questions has a 95 % interval of
about ±{half:.0f} points.

The two trained ones differ in the norm *and* in the width of the first layer, so a difference between them is not the norm's alone. And pooling here has no training for it at all; lesson 01 and `docs/zoo.md` go on with that.
""")

# %% [slide]
# ## Trained, at a quarter of the tokens
#
# - Same frozen tower, same pictures, same number of steps.
# - Same gather, another norm and another first layer: a difference in answers has more than one possible reason.

# %% [markdown] minutes=4
# ## 7. What the papers say, and where to go on

# %%
kit.report("pixel-shuffle")

# %% [markdown]
# - InternVL 1.5 and later cut a large picture into tiles of 448 pixels, add a small version of the whole as the last tile, and output 256 tokens for each. The shuffle acts tile by tile.
# - `vtc_demo/connectors/pixel_shuffle.py`: a page. `tests/connectors/test_connectors.py` compares it with the classes of `transformers`.
# - Lesson 01 has the patch merger and pooling. Lesson 03 replaces the fixed blocks by learned queries.

# %% [slide]
# ## Take home
#
# - Pixel shuffle loses nothing. **The linear layer after it does**, and it may learn what.
# - Version 1 hands tokens over column by column. The version belongs to the checkpoint; figures must know it.
# - InternVL, Idefics3 and Qwen2-VL gather the same numbers. They differ in the **norm** and in the layers that follow.
