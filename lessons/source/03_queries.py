# /// lesson
# title = "Learned queries: Q-Former, Perceiver, gated cross-attention"
# objectives = [
#   "write cross-attention of learned queries, a Perceiver block and a gated block, build a Q-Former, and get the outputs of the trained ones",
#   "read the attention of queries as soft provenance, and test by occlusion how far it can be trusted",
#   "show that a closed gate leaves the language model as it was, to the last bit, and say what the first training step moves",
#   "count FLOPs and cache of K tokens in the sequence and of K tokens outside it, and say when which is cheaper",
# ]
# prerequisites = ["lesson 00"]
# methods = ["q-former", "perceiver-resampler", "gated-cross-attention", "pixel-shuffle"]
# papers = ["2301.12597 BLIP-2", "2204.14198 Flamingo", "2308.01390 OpenFlamingo", "2405.02246 Idefics2"]
# ///

# %% [slide]
# ## Tokens that belong to no place
#
# - A pruned token is a patch, a pooled one a block of patches. A **learned query** reads the whole picture and becomes a token.
# - K queries make K tokens of any number of patches. K is chosen before the picture is seen.
# - The K tokens stand **in** the sequence (Q-Former, Perceiver Resampler), or **outside** it, read by new layers (gated cross-attention).

# %%
import copy

import torch
from torch import nn

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.connectors import store
from vtc_demo.connectors.base import Dims
from vtc_demo.core import measures
from vtc_demo.evaluation.intervals import share
from vtc_demo.evaluation.questions import balanced

torch.set_grad_enabled(False)  # nothing is trained here; one cell of section 5 asks for gradients
vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=4)
question = next(q for q in scene.questions if q.kind == "counting")
KEEP, GRID = 64, vlm.shape.grid
BUDGET = KEEP / 576

# %% [markdown] minutes=12
# ## 1. A query reads the picture
#
# All three methods of this lesson begin alike: with $K$ vectors that are **parameters** of the model, the queries. They are the same for every picture. A query learns *what to look for*, and cross-attention fetches it.
# With queries $X \in \mathbb{R}^{K \times w}$, and the tower's output $Z \in \mathbb{R}^{N \times C}$ as context, head $h$ computes
#
# $$ A_h = \operatorname{softmax}\!\left( \frac{(X W^Q_h)(Z W^K_h)^\top}{\sqrt{d}} \right) \in \mathbb{R}^{K \times N}, \qquad \operatorname{read}(X, Z) = \big[\, A_1 Z W^V_1, \dots, A_H Z W^V_H \,\big] W^O $$
#
# Row $i$ of $A_h$ says how query $i$ shares out its attention over the tower's tokens; it adds up to 1. The output has $K$ rows, whatever $N$ is. The cost grows with $K N$ and not with $N^2$.
#
# Such a module must be trained, so it cannot be tried on borrowed weights. The package ships a **zoo**: connectors trained under one recipe, on the same tower, the same pictures and for the same number of steps, first with a frozen decoder and then together with it. Each was
# trained with a random number of queries per step, so that the first $K$ of its 144 queries serve any budget up to 144. We use 64.

# %%
fitted = {name: store.fit(vlm, vtc.registry.resolve(name)) for name in ("q-former", "perceiver-resampler", "gated-cross-attention")}  # fmt: skip
q_former, perceiver, gated = (each.connector for each in fitted.values())
tower = vlm.model.model.vision_tower
features = tower(vlm.inputs([scene.image]).pixels, output_hidden_states=True).hidden_states[
    -2
]  # [1, 1 + 576, C], CLS first

kit.table(
    [
        [
            vtc.registry.get(name).card.title,
            f"{sum(p.numel() for p in each.connector.parameters()) / 1e6:.2f} million",
            "outside the sequence" if each.connector.outside else "in the sequence",
        ]
        for name, each in fitted.items()
    ],
    ["connector", "parameters", "its tokens stand"],
)

# %% [exercise] difficulty=medium minutes=6
# Write cross-attention with the four projections of a trained module: `attention.q_proj`, `k_proj`, `v_proj`, `o_proj`, and `attention.heads` heads of equal width, one after another. Queries come from `x`, keys and values
# from `context`. There is no mask. Return the output and the weights of every head.


# %% [solution]
def cross_read(attention, x, context):
    """x [m, w], context [n, C] -> (output [m, w], weights [heads, m, n])."""
    # BEGIN SOLUTION
    q, k, v = (
        part.unflatten(-1, (attention.heads, -1)).transpose(0, 1)  # [heads, m or n, d]
        for part in (attention.q_proj(x), attention.k_proj(context), attention.v_proj(context))
    )
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # [heads, m, n]
    return attention.o_proj((weights @ v).transpose(0, 1).flatten(1)), weights
    # END SOLUTION


# %% [check]
cross = q_former.layers[0].cross
asked, shown = q_former.norm(q_former.queries[0, :KEEP]), q_former.feature_norm(features[0])
out, weights = cross_read(cross, asked, shown)
check(
    tuple(weights.shape) == (cross.heads, 64, 577),
    f"64 queries over 577 tokens (CLS and 576 patches) in {cross.heads} heads; your weights have the shape {tuple(weights.shape)}.",
)
check(
    torch.allclose(weights.sum(-1), torch.ones(cross.heads, 64), atol=1e-4),
    "Every query shares out one whole: softmax over the keys, the last axis. Over the queries, they would compete for patches.",
)
wanted, mean = cross(asked[None], shown[None])
check_equal(
    weights.mean(0), mean[0], "Other weights than the package's. Divide by the root of the width of *one head*.", 1e-4
)
check_equal(
    out,
    wanted[0],
    "The weights are right, the output is not. Heads stand side by side in each row before `o_proj`.",
    1e-4,
)
done("cross-attention as in the package, with trained weights")

# %% [hint]
# `y.unflatten(-1, (heads, -1)).transpose(0, 1)` makes `[heads, n, d]` of `[n, heads * d]`. The way back is `transpose(0, 1).flatten(1)`.


# %% [mistake] why="The softmax runs over the queries: they compete for each patch, as in slot attention."
def cross_read(attention, x, context):
    parts = (attention.q_proj(x), attention.k_proj(context), attention.v_proj(context))
    q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(0, 1) for part in parts)
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-2)
    return attention.o_proj((weights @ v).transpose(0, 1).flatten(1)), weights


# %% [mistake] why="The heads are flattened without bringing the queries to the front: rows mix queries."
def cross_read(attention, x, context):
    parts = (attention.q_proj(x), attention.k_proj(context), attention.v_proj(context))
    q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(0, 1) for part in parts)
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return attention.o_proj((weights @ v).reshape(len(x), -1)), weights


# %% [markdown]
# The formula has one property that pooling on a grid does not have. Shuffle the 576 patches and look at the 64 tokens:

# %%
shuffle = torch.randperm(576, generator=torch.Generator().manual_seed(0))
mixed = torch.cat([features[:, :1], features[:, 1:][:, shuffle]], 1)
straight, shuffled = q_former(features, GRID, KEEP), q_former(mixed, GRID, KEEP)
assert torch.allclose(straight.tokens, shuffled.tokens, atol=1e-4)  # the same tokens
moved_along = straight.weight[..., 1:][..., shuffle]
assert torch.allclose(moved_along, shuffled.weight[..., 1:], atol=1e-5)
pooled = nn.functional.avg_pool1d(features[:, 1:].transpose(1, 2), 9)  # 64 means of 9 patches in a row, for contrast
assert not torch.allclose(pooled, nn.functional.avg_pool1d(mixed[:, 1:].transpose(1, 2), 9), atol=1e-4)
say(
    "Shuffled patches, the same 64 tokens; means of neighbours become others. **Cross-attention sees a set, not a grid.**"
)

# %% [quiz]
# Then how can a model with such a connector answer "Is the star left of the cup?"
#
# - [ ] It cannot: the order of the patches is lost
#   The order in the list is lost. But a feature may say itself where it comes from.
# - [x] The tower has added a position to every patch, so place is part of the content that a query can read
#   The connector must learn to read it and to pass it on. The shuffled patches kept theirs: each still said its old place.
# - [ ] The queries are in raster order
#   Nothing ties a query to a place. If one has a favourite place, it has learned it.

# %% [instructor]
# People who come from object detection know this as DETR's object queries. The shuffle is worth a prediction by show of hands before the cell runs: most say the tokens change.
# The follow-up: shuffle the *pixels'* patches before the tower instead. Then the tower gives them new positions, and the tokens do change.

# %% [markdown] minutes=7
# ## 2. The Q-Former
#
# One read is not enough: queries should know what the others have found. BLIP-2's Q-Former is a BERT with learned queries in the place of words. A layer has three parts, each followed by adding and then normalising (post-norm):
#
# $$ X \leftarrow \operatorname{LN}\!\big(X + \operatorname{read}_{\text{self}}(X, X)\big), \qquad X \leftarrow \operatorname{LN}\!\big(X + \operatorname{read}_{\text{cross}}(X, Z)\big), \qquad X \leftarrow \operatorname{LN}\!\big(X + \operatorname{FFN}(X)\big) $$
#
# The middle part exists in every second layer alone: in layers 0, 2, ... (0-based; the released code begins with layer 0). BLIP-2 has 12 layers of width 768 and 32 queries; ours has 4 layers of the tower's width.
# After the last layer one linear map brings the queries to the width of the decoder.
#
# The whole connector from scratch. Its attention is yours of section 1 in another form: the fused kernel is faster, but returns no weights. (The package writes the softmax out, because it wants them as provenance.)


# %%
class Attention(nn.Module):
    def __init__(self, width, heads=4, bias=True):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias) for _ in range(4))

    def forward(self, x, context):
        """x [B, m, w], context [B, n, w] -> [B, m, w]"""
        parts = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def feed_forward(width, bias=True):
    return nn.Sequential(nn.Linear(width, 4 * width, bias), nn.GELU(), nn.Linear(4 * width, width, bias))


class QFormerLayer(nn.Module):
    def __init__(self, width, crosses):
        super().__init__()
        self.attention, self.attention_norm = Attention(width), nn.LayerNorm(width, eps=1e-12)
        self.cross = Attention(width) if crosses else None
        self.cross_norm = nn.LayerNorm(width, eps=1e-12) if crosses else None
        self.feed, self.feed_norm = feed_forward(width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, picture):
        x = self.attention_norm(x + self.attention(x, x))  # the queries read each other
        x = x if self.cross is None else self.cross_norm(x + self.cross(x, picture))  # and the picture
        return self.feed_norm(x + self.feed(x))


class QFormer(nn.Module):
    def __init__(self, width, hidden, queries=144, layers=4):
        super().__init__()
        self.feature_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-12)
        self.queries = nn.Parameter(torch.empty(1, queries, width))
        self.layers = nn.ModuleList(QFormerLayer(width, crosses=i % 2 == 0) for i in range(layers))
        self.out = nn.Linear(width, hidden)

    def forward(self, features, budget):
        """features [B, 1 + n, w] -> [B, budget, hidden]"""
        x, picture = self.norm(self.queries[:, :budget]).expand(len(features), -1, -1), self.feature_norm(features)
        for layer in self.layers:
            x = layer(x, picture)
        return self.out(x)


# %%
width = vlm.spec.vision_width
own = QFormer(width, vlm.spec.hidden)
own.load_state_dict(q_former.state_dict())  # the trained weights; a missing or a spare one would be refused
theirs = q_former(features, GRID, KEEP).tokens  # [1, 64, D]
assert torch.allclose(own(features, KEEP), theirs, atol=1e-4)
say(
    f"With the trained weights in it, ours gives the {theirs.shape[1]} tokens of width {theirs.shape[2]} that the package gives."
)

# %% [markdown]
# The queries read each other. So a token depends on how many others there are: the tokens of a small budget are **not** the first tokens of a larger one. With cross-attention alone they would be.

# %%
few, many = (q_former(features, GRID, budget).tokens[0] for budget in (16, KEEP))
reader, start, picture = q_former.layers[0].cross, q_former.norm(q_former.queries), q_former.feature_norm(features)
assert torch.allclose(reader(start[:, :16], picture)[0], reader(start[:, :KEEP], picture)[0][:, :16], atol=1e-4)
assert not torch.allclose(few, many[:16], atol=1e-4)
say(
    f"From budget 16 to 64, the first 16 tokens change by {100 * (few - many[:16]).norm() / many[:16].norm():.0f} % of their norm."
)

# %% [markdown] minutes=9
# ## 3. What do the queries look at?
#
# A pruner's provenance is exact: a token *is* a patch. A query's is **soft**. The package takes the mean of the cross-attention weights over heads and layers, $R \in \mathbb{R}^{K \times (1 + N)}$, and marks it as soft. Rows add up to 1.
# How many patches does a query draw on? The exponential of the entropy of its row, $\exp(-\sum_j R_{ij} \log R_{ij})$, counts them: 1 if all weight lies on one patch, 577 if it is spread evenly.

# %%
run = vtc.run(vlm, scene.image, question.text, method="q-former", retention=BUDGET)
provenance = run.trace.product()
rows = provenance.dense()  # [64, 577]
assert provenance.soft and torch.allclose(rows.sum(1), torch.ones(KEEP), atol=1e-4)
other = vtc.run(vlm, scene.image, scene.questions[0].text, method="q-former", retention=BUDGET)
assert torch.equal(other.trace.product().dense(), rows)  # another question, the same tokens: nobody told the queries
breadth = torch.special.entr(rows).sum(1).exp()  # [64]
likeness = nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)[~torch.eye(KEEP, dtype=torch.bool)]
say(f"""
A query draws on **{breadth.median():.0f}** tokens of the tower (median; narrowest {breadth.min():.0f}, broadest {breadth.max():.0f} of 577). How alike are two queries? The median cosine of two rows is
{likeness.median():.2f} (1: they look alike). The {KEEP} queries have their strongest patch at {len(provenance.anchor.unique())} different places, and {100 * rows[:, 0].mean():.1f} % of the attention goes to CLS.
""")

# %% [slide]
# ## Four queries of 64
#
# The narrowest, two in between, the broadest. Every query reads the whole picture; no two tokens stand for disjoint parts of it.

# %% slide
order = breadth.argsort()
kit.heat(
    scene.image,
    {f"query {i}: draws on {breadth[i]:.0f}": rows[i, 1:].sqrt() for i in order[[0, 21, 42, 63]].tolist()},
    title="Q-Former: cross-attention per patch, mean of heads and layers (square root)",
)

# %% [markdown]
# Do queries look at *things*? In a generated scene we know which patches show an object or the tag. Compare the attention on them with their share of the picture: 1 means that objects get what any region of that size would get.

# %%
ratio = {"q-former": [], "perceiver-resampler": []}
for seed in range(12):
    picture = vtc.world.sample(seed, split="eval")
    labels = vtc.world.dense_labels(picture)
    things = torch.from_numpy((labels["thing"] > 0) | (labels["char"] > 0)).flatten()  # [576]
    hidden = tower(vlm.inputs([picture.image]).pixels, output_hidden_states=True).hidden_states[-2]
    for name, found in ratio.items():
        weight = fitted[name].connector(hidden, GRID, KEEP).weight[0][:, 1:]  # [64, 576]
        found.append((weight[:, things].sum() / weight.sum() / things.float().mean()).item())
means = {name: sum(found) / len(found) for name, found in ratio.items()}
say(f"""
On 12 held-out scenes, objects get **{means["q-former"]:.1f} times** their share of the Q-Former's attention and **{means["perceiver-resampler"]:.1f} times** their share of the Perceiver's.
""")

# %% [markdown]
# **Can the map be trusted?** A weight says how much is *read* at a patch, not how much that changes the token. What is read there may be little, it may be the same as elsewhere, and what queries tell each other is not in the map at all.
# So test it. Cover one square of 4 x 4 patches after another with the mean feature of the picture, and measure how far each token moves. Then compare with the attention on that square.
#
# A test needs a control. Squares with an object may move *every* token and be looked at by *every* query; then the two would agree without the map telling anything about this query. So we also compare each query's movement with the
# attention of all *other* queries.

# %%
squares = torch.arange(576).view(6, 4, 6, 4).transpose(1, 2).reshape(36, 16)  # the patches of each square
covered = features.repeat(36, 1, 1)
for i, square in enumerate(squares):
    covered[i, 1 + square] = features[0, 1:].mean(0)
moved = (q_former(covered, GRID, KEEP).tokens - many).norm(dim=-1).T  # [64, 36]
held = rows[:, 1 + squares].sum(-1)  # [64, 36]


def standard(maps):
    """Rows [64, 36] with mean 0 and norm 1: products of such rows are correlations."""
    return nn.functional.normalize(maps - maps.mean(1, keepdim=True), dim=1)


correlation = standard(moved) @ standard(held).T  # [64, 64]: movement of query i with attention of query j
agreement = correlation.diagonal()
foreign = correlation[~torch.eye(KEEP, dtype=torch.bool)].view(KEEP, KEEP - 1)  # with the attention of the others
typical = agreement.argsort()[KEEP // 2].item()
kit.heat(
    scene.image,
    {"attention on the square": held[typical], "how far the token moves": moved[typical]},
    grid=(6, 6),
    title=f"Query {typical}, whose two maps agree as well as the median query's",
)

# %%
closer = (agreement[:, None] > foreign).float().mean()
verdict = (
    "So the map says something about the query itself."
    if closer > 0.75
    else "So much of the agreement is about the picture, and little of it about the query."
)
say(f"""
Correlation over the 36 squares, median of the queries: **{agreement.median():.2f}** with a query's own attention (from {agreement.min():.2f} to {agreement.max():.2f}), and {foreign.median():.2f} with the attention of another query. The own map is the better one in
{100 * closer:.0f} % of the pairs. {verdict} Neither number says *what* the token holds of that place.
""")

# %% [quiz]
# For every query-based method the app reports "evidence kept 100 %". Why does that say so little?
#
# - [ ] Because the methods are perfect
#   They keep a weight above zero on every patch. That is all that 100 % says.
# - [x] A softmax is never zero, so every patch counts as merged into some token, however small its share
#   The measure was made for pruning and merging. For soft rows look at the weights, at an occlusion test, and at the answers.
# - [ ] Because there are 64 tokens
#   With one query it would be 100 % as well.

# %% [markdown] minutes=10
# ## 4. The Perceiver Resampler
#
# Flamingo's connector does the same with fewer parts. There is no self-attention of its own. Instead the **latents** (that is what the queries are called here) stand among the keys and values:
#
# $$ L \leftarrow L + \operatorname{read}\!\big(\hat L,\; [\hat Z ; \hat L]\big), \qquad L \leftarrow L + \operatorname{FFN}(\operatorname{LN}(L)), \qquad \hat L = \operatorname{LN}_L(L), \quad \hat Z = \operatorname{LN}_Z(Z) $$
#
# $[\cdot\,;\cdot]$ puts one list of tokens after the other. So in one softmax a latent decides how much to read of the picture and how much of the other latents. Norms stand before the parts (pre-norm), linear maps have no bias, and every block has
# two norms of its own for its two inputs. The picture $Z$ is the same in each block; it is never updated.

# %% [exercise] difficulty=medium minutes=5
# Write the block. Its parts: `block.context_norm` for the picture, `block.latent_norm`, `block.attention` (called as before, returns a pair), `block.feed_norm`, `block.feed`.


# %% [solution]
def perceiver_block(block, latents, picture):
    """latents [1, m, C], picture [1, n, C] -> [1, m, C]."""
    # BEGIN SOLUTION
    normed = block.latent_norm(latents)
    latents = latents + block.attention(normed, torch.cat([block.context_norm(picture), normed], 1))[0]
    return latents + block.feed(block.feed_norm(latents))
    # END SOLUTION


# %% [check]
first, start, shown = perceiver.resampler.blocks[0], perceiver.resampler.latents[:, :KEEP], features[:, 1:]
got, wanted = perceiver_block(first, start, shown), first(start, shown)[0]
alone = start + first.attention(first.latent_norm(start), first.context_norm(shown))[0]
check(
    tuple(got.shape) == (1, 64, features.shape[2]),
    f"64 latents go in and 64 come out, [1, 64, C]; yours has the shape {tuple(got.shape)}.",
)
check(
    not torch.allclose(got, alone + first.feed(first.feed_norm(alone)), atol=1e-5),
    "Your latents read the picture alone. They must stand among the keys, after the patches.",
)
check_equal(
    got,
    wanted,
    "Block 0 gives something else. Which of the two norms is whose? Latents are normed as keys, too; what is added to are the latents before the norm.",
    1e-4,
)
second = perceiver.resampler.blocks[1]
check_equal(perceiver_block(second, wanted, shown), second(wanted, shown)[0], "Block 0 is right, block 1 is not.", 1e-4)
done("two blocks of the trained resampler")

# %% [hint]
# `torch.cat([a, b], 1)` joins two lists of tokens `[1, n, C]` and `[1, m, C]`. Norm the latents once and use the result twice.


# %% [mistake] why="The latents are missing among the keys: many re-implementations forget them."
def perceiver_block(block, latents, picture):
    latents = latents + block.attention(block.latent_norm(latents), block.context_norm(picture))[0]
    return latents + block.feed(block.feed_norm(latents))


# %% [mistake] why="The latents are normed as queries, but not as keys."
def perceiver_block(block, latents, picture):
    both = torch.cat([block.context_norm(picture), latents], 1)
    latents = latents + block.attention(block.latent_norm(latents), both)[0]
    return latents + block.feed(block.feed_norm(latents))


# %% [markdown]
# The whole resampler from scratch, out of the attention and the feed-forward network of section 2:


# %%
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.context_norm, self.latent_norm, self.feed_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.feed = Attention(width, bias=False), feed_forward(width, bias=False)

    def forward(self, latents, picture):
        normed = self.latent_norm(latents)
        latents = latents + self.attention(normed, torch.cat([self.context_norm(picture), normed], 1))
        return latents + self.feed(self.feed_norm(latents))


class Resampler(nn.Module):
    def __init__(self, width, latents=144, depth=3):
        super().__init__()
        self.latents, self.norm = nn.Parameter(torch.empty(1, latents, width)), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, picture, budget):
        """picture [B, n, w], any n -> [B, budget, w]"""
        latents = self.latents[:, :budget].expand(len(picture), -1, -1)
        for block in self.blocks:
            latents = block(latents, picture)
        return self.norm(latents)


own = Resampler(width)
own.load_state_dict(perceiver.resampler.state_dict())
assert torch.allclose(perceiver.out(own(features[:, 1:], KEEP)), perceiver(features, GRID, KEEP).tokens, atol=1e-4)
assert own(torch.cat([features[:, 1:]] * 2, 1), KEEP).shape[1] == KEEP  # twice as many patches, still 64 tokens

# %%
latents, shares = perceiver.resampler.latents[:, :KEEP], []
for block in perceiver.resampler.blocks:
    latents, weight = block(latents, features[:, 1:])  # [1, 64, C], [1, 64, 576 + 64]
    shares.append(weight[0, :, 576:].sum(-1).mean().item())
say(f"""
How much of its attention does a latent give to latents? In blocks 0 to {len(shares) - 1}: {", ".join(f"{100 * s:.0f} %" for s in shares)}. Spread evenly over all 640 keys it would be 10 %.
The package's provenance leaves this part out and scales the rest to add up to 1.
""")

# %% [markdown]
# Side by side, as they are here. The work is counted in FLOPs for 64 tokens of 576 patches. *Reading* is the share of it that goes into keys and values of the picture, which is the same for any $K$: a quarter of the tokens costs more than a quarter of the work.

# %%
counts = []
for name, connector, readers in (
    ("Q-Former", q_former, [layer.cross for layer in q_former.layers if layer.cross is not None]),
    ("Perceiver resampler", perceiver, [block.attention for block in perceiver.resampler.blocks]),
):
    total, small = connector.flops(576, KEEP), connector.flops(576, 16)
    reading = sum(vtc.cost.linear_flops(576, width, 2 * width) for _ in readers)
    counts.append(
        [name, len(readers), f"{total / 1e6:.0f} M", f"{small / 1e6:.0f} M", f"{100 * reading / total:.0f} %"]
    )
    assert small > total / 4  # a quarter of the tokens costs more than a quarter
kit.table(
    counts, ["connector", "times it reads the picture", "FLOPs for 64 tokens", "for 16", "reading, of the former"]
)

# %% [instructor]
# The slip of the second mistake (latents not normed as keys) trains well and shows in no loss curve. It only shows when somebody loads published weights. This is why the check compares with trained weights and not with shapes.

# %% [slide]
# ## Two ways to the decoder
#
# - **In the sequence**: K tokens stand before the question and pass every layer, as words do. (BLIP-2, Idefics2)
# - **Outside it**: the sequence is text alone. New blocks between the layers let the words read the K tokens. (Flamingo, Idefics1)
# - A new block opens through a gate: h + tanh(g) · read, with **g = 0 at the start**.

# %% [markdown] minutes=14
# ## 5. Gated cross-attention
#
# Flamingo keeps a large language model frozen and lets it see. The resampled tokens $V \in \mathbb{R}^{K \times C}$ do not enter its sequence. Before some of its layers stands a new block, which changes the states $h$ of the *words*:
#
# $$ h \leftarrow h + \tanh(g_a)\, \operatorname{read}\!\big(\operatorname{norm}(h),\, V\big), \qquad h \leftarrow h + \tanh(g_f)\, \operatorname{MLP}\!\big(\operatorname{norm}(h)\big) $$
#
# $g_a$ and $g_f$ are single numbers, learned, and 0 at the start. The direction of reading is reversed: now the **words** are the queries and the $K$ tokens are the context. $V$ has no norm here, because the resampler ended with one. Words that stand before
# the picture read nothing. In the released model a word reads the picture last before it, and no other. The block here is the variant of Idefics: RMSNorm, and the gated MLP of the decoder, $\operatorname{MLP}(x) = W_d\,(\operatorname{silu}(W_g x) \odot W_u x)$.
# (The gate $W_g$ of the MLP has nothing to do with $g_f$.)

# %% [exercise] difficulty=medium minutes=7
# Write the block. Its parts: `block.norm`, `q_proj`, `k_proj`, `v_proj`, `o_proj`, `heads`, `gate` ($g_a$); then `feed_norm`, `gate_proj`, `up_proj`, `down_proj`, `feed_gate` ($g_f$). `sees` says for each word whether it
# comes after the picture; the others read nothing, but the MLP acts on all. You may use `nn.functional.scaled_dot_product_attention`.


# %% [solution]
def gated_block(block, h, tokens, sees):
    """h [1, S, D], tokens [1, m, C], sees [S] bool -> [1, S, D]."""
    # BEGIN SOLUTION
    parts = block.q_proj(block.norm(h)), block.k_proj(tokens), block.v_proj(tokens)
    q, k, v = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in parts)
    seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    h = h + block.gate.tanh() * block.o_proj(seen) * sees[:, None]
    y = block.feed_norm(h)
    return h + block.feed_gate.tanh() * block.down_proj(nn.functional.silu(block.gate_proj(y)) * block.up_proj(y))
    # END SOLUTION


# %% [check]
trained = next(iter(gated.layers.values()))  # the first of the trained blocks
opened = copy.deepcopy(trained)
opened.gate.fill_(0.7), opened.feed_gate.fill_(-0.4)  # wide open, so that everything shows
words_in = fitted["gated-cross-attention"].model.model.language_model.embed_tokens(
    torch.arange(5, 12)[None]
)  # [1, 7, D]
tokens, sees = gated(features, GRID, KEEP).tokens, torch.arange(7) >= 2
wanted = opened(words_in, *opened.keys(tokens), sees)
got = gated_block(opened, words_in, tokens, sees)
check(
    tuple(got.shape) == tuple(wanted.shape),
    f"The words keep their shape, {tuple(wanted.shape)}; yours is {tuple(got.shape)}.",
)
check(
    torch.allclose(got[:, :2], wanted[:, :2], atol=1e-4),
    "The first two words stand before the picture. They read nothing (`sees` is False), and only the MLP changes them.",
)
check_equal(
    got,
    wanted,
    "Words after the picture differ. Is each part alone behind the tanh of its gate, and h itself in front of it?",
    1e-4,
)
wanted = trained(words_in, *trained.keys(tokens), sees)
check_equal(
    gated_block(trained, words_in, tokens, sees),
    wanted,
    "With gates at 0.7 and -0.4 it was right, with the trained gates it is not.",
    1e-4,
)
done("the trained block, and the same block wide open")

# %% [hint]
# Section 1 is inside: queries from `block.norm(h)`, keys and values from `tokens`. `sees[:, None]` has the shape `[S, 1]` and multiplies a row of `[1, S, D]` per word.


# %% [mistake] why="Words before the picture read it, too."
def gated_block(block, h, tokens, sees):
    parts = block.q_proj(block.norm(h)), block.k_proj(tokens), block.v_proj(tokens)
    q, k, v = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in parts)
    seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    h = h + block.gate.tanh() * block.o_proj(seen)
    y = block.feed_norm(h)
    return h + block.feed_gate.tanh() * block.down_proj(nn.functional.silu(block.gate_proj(y)) * block.up_proj(y))


# %% [mistake] why="The gate is used without its tanh. At 0 both are the same, so a test of closed gates alone would not find it."
def gated_block(block, h, tokens, sees):
    parts = block.q_proj(block.norm(h)), block.k_proj(tokens), block.v_proj(tokens)
    q, k, v = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in parts)
    seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    h = h + block.gate * block.o_proj(seen) * sees[:, None]
    y = block.feed_norm(h)
    return h + block.feed_gate * block.down_proj(nn.functional.silu(block.gate_proj(y)) * block.up_proj(y))


# %% [markdown]
# The whole pass by hand. The prompt has no placeholder for the picture; the blocks stand before layers 1, 3, 5 and 7 of 0 to 7.

# %%
ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, question.text))
place = ids.index(vlm.config.image_token_id)
words = torch.tensor([ids[:place] + ids[place + 1 :]])  # [1, S]
after = torch.arange(words.shape[1]) >= place  # which words come after the picture


def through(model, blocks, held):
    """Last hidden states of the words, [1, S, D]. blocks: decoder layer -> the block before it; held [1, m, C]."""
    lm = model.model.language_model
    states = lm.embed_tokens(words)
    rope = lm.rotary_emb(states, torch.arange(words.shape[1])[None])
    for k, layer in enumerate(lm.layers):
        if k in blocks:
            states = blocks[k](states, *blocks[k].keys(held), after)
        states = layer(states, attention_mask=None, position_embeddings=rope)
    return lm.norm(states)


def blocks_of(connector):
    return {int(k): block for k, block in connector.layers.items()}


model = fitted["gated-cross-attention"].model
held = gated(features, GRID, KEEP).tokens  # [1, 64, C]
last = through(model, blocks_of(gated), held)[:, -1]
run = vtc.run(vlm, scene.image, question.text, method="gated-cross-attention", retention=BUDGET)
assert model.lm_head(last).argmax(-1).item() == run.token_ids[0]  # the first word of the answer, as in the package
assert run.trace.schedule == [0] * 8 and run.visual_tokens == 0  # no visual token in any layer
say(
    f"**{question.text}** The pass by hand and the package begin the answer with the same word: {run.answer}. Truth: {question.answer}."
)

# %% [markdown]
# **Closed gates change nothing.** With $g = 0$ a block computes $h + 0 \cdot \text{something} = h$. That is no approximation: it holds to the last bit. So on the first day of training the model *is* the language model that it was built from.

# %%
torch.manual_seed(0)
fresh = type(gated)(Dims.of(vlm.config))  # random weights, gates at zero
looked = fresh(features, GRID, KEEP).tokens
plain = vlm.model.model.language_model(
    inputs_embeds=vlm.model.model.language_model.embed_tokens(words)
).last_hidden_state
assert torch.equal(through(vlm.model, {}, None), plain)  # the loop above is the language model of transformers
assert torch.equal(through(vlm.model, blocks_of(fresh), looked), plain)  # new blocks, closed: equal, bit by bit

ajar = copy.deepcopy(fresh)
for block in ajar.layers.values():
    block.gate.fill_(0.5), block.feed_gate.fill_(0.5)
assert not torch.allclose(through(vlm.model, blocks_of(ajar), looked), plain, atol=1e-2)
noise = (through(vlm.model, blocks_of(ajar), looked) - plain).norm() / plain.norm()
say(
    f"With closed gates: equal, bit by bit. The same random blocks with gates at 0.5 change the last states by {100 * noise:.0f} % of their norm."
)

# %% [markdown]
# What then starts the learning? For the output $h + \tanh(g)\, r$ the gradients are
#
# $$ \frac{\partial \mathcal{L}}{\partial g} = (1 - \tanh^2 g)\, \Big\langle \frac{\partial \mathcal{L}}{\partial h},\, r \Big\rangle, \qquad \frac{\partial \mathcal{L}}{\partial r} = \tanh(g)\, \frac{\partial \mathcal{L}}{\partial h} $$
#
# At $g = 0$ the first is not zero, and the second is. Let us ask autograd:

# %%
target = torch.tensor(vtc.run(vlm, scene.image, question.text).token_ids[:1])  # the full model's first word
names, parameters = zip(*fresh.named_parameters())
with torch.enable_grad():
    states = through(vlm.model, blocks_of(fresh), fresh(features, GRID, KEEP).tokens)
    loss = nn.functional.cross_entropy(vlm.model.lm_head(states[:, -1]), target)
    gradients = torch.autograd.grad(loss, parameters)
alive = [name for name, gradient in zip(names, gradients) if gradient.any()]
assert len(alive) == 2 * len(fresh.layers) and all(name.endswith("gate") for name in alive)
say(f"""
Of {sum(p.numel() for p in parameters):,} parameters, **{len(alive)}** have a gradient in the first step: the gates. Everything else (latents, blocks, projections) has a gradient of exactly zero until they have moved.
""")

# %% [quiz]
# To be twice as safe, somebody starts with closed gates *and* with output projections of zeros. What will training do?
#
# - [ ] The same as with gates alone, a little later
#   Something has to make the first move. Which of the two could?
# - [x] Nothing, ever
#   The read is r = Wo a. The gradient of the gate has Wo as a factor, that of Wo has tanh(g): each waits for the other, and both stay at zero.
# - [ ] It disturbs the language model
#   It leaves it untouched for good.

# %% [markdown]
# How far did the gates of the zoo open? And how much do the blocks say?

# %%
lm = model.model.language_model
states, told = lm.embed_tokens(words), []
rope = lm.rotary_emb(states, torch.arange(words.shape[1])[None])
for k, layer in enumerate(lm.layers):
    if (block := blocks_of(gated).get(k)) is not None:
        changed = block(states, *block.keys(held), after)
        moves = 100 * (changed - states)[0, -1].norm() / states[0, -1].norm()
        told.append(
            [
                f"before layer {k}",
                f"{block.gate.tanh().item():.3f}",
                f"{block.feed_gate.tanh().item():.3f}",
                f"{moves:.0f} %",
            ]
        )
        states = changed
    states = layer(states, attention_mask=None, position_embeddings=rope)
kit.table(
    told, ["trained block", "tanh of the gate: reading", "tanh of the gate: MLP", "changes the last word's state by"]
)

closed = copy.deepcopy(gated)
for block in closed.layers.values():
    block.gate.zero_(), block.feed_gate.zero_()
blind, seeing = (model.lm_head(through(model, blocks_of(one), held)[:, -1])[0].softmax(-1) for one in (closed, gated))
assert not torch.equal(blind, seeing)
say(f"""
The probabilities of the answer's first word, with the gates as trained and with all of them closed, differ by **{(seeing - blind).abs().sum() / 2:.2f}** (half of the sum of the absolute differences; 0: the same, 1: nothing in common).
""")

# %% [instructor]
# Llama-3.2-Vision has such gates, too, and zero convolutions and ReZero are the same idea elsewhere. Ask what a gate costs at the other end: a block that starts silent learns late, because at first its gradients are tiny.
# One nuance for those who ask: Flamingo's decoder is frozen throughout and had never seen a picture. That of the zoo learned with visual tokens *in* its sequence, is frozen in the first stage and tuned in the second.

# %% [markdown] minutes=12
# ## 6. In the sequence or outside it: the cost
#
# Take the same $K$ tokens and $T$ words. The decoder has $L$ layers of width $d$ and MLPs of inner width $m$; $B$ blocks were inserted; the tokens have width $C$. For a decoder whose keys are as wide as its queries (no grouped queries):
#
# | | in the sequence | outside it |
# | --- | --- | --- |
# | tokens through each layer | $T + K$ | $T$ |
# | added to the prefill of the words | $2 K L\,(4d^2 + 3dm)$ and attention | $2 T B\,(2d^2 + 3dm) + 4 T K B d$, and once $4 K B C d$ for keys and values |
# | KV cache of the picture, numbers | $2 K L d$ | $2 K B d$ |
# | added to each decode step | $4 K L d$: attention to the picture | $2 B\,(2d^2 + 3dm) + 4 K B d$: all blocks, for each word |
#
# In the sequence, every *visual token* pays for every layer. Outside it, every *word* pays for the blocks. So it depends on which there are more of.

# %% [exercise] difficulty=hard minutes=7
# Count what gated blocks add to a prefill of `text` words: keys and values of the `held` tokens in each block once, then for each word the query and output projections, the scores and their use, and the gated MLP with its three matrices.
# 2 FLOPs per multiply-add. `spec.hidden` is $d$, `spec.intermediate` is $m$.


# %% [solution]
def outside_flops(spec, blocks, text, held, context):
    """FLOPs that `blocks` gated blocks add to a prefill; held: tokens outside the sequence, of width `context`."""
    # BEGIN SOLUTION
    d, m = spec.hidden, spec.intermediate
    keys = 2 * 2 * held * context * d
    projections, attention, mlp = 2 * 2 * text * d * d, 2 * 2 * text * held * d, 3 * 2 * text * d * m
    return blocks * (keys + projections + attention + mlp)
    # END SOLUTION


# %% [check]
for kept in (KEEP, 16):
    one = vtc.run(
        vlm, scene.image, question.text, method="gated-cross-attention", retention=kept / 576, max_new_tokens=1
    )
    text_tokens = one.kv_lengths[-1]  # the cache of the layers holds words alone
    text_only = vtc.cost.run_flops(vlm.spec, [0] * vlm.spec.layers, text_tokens)["prefill"]
    counted = one.flops["prefill"] + one.flops["projector"] - gated.resampler.flops(576, kept) - text_only
    check_equal(
        outside_flops(vlm.spec, 4, text_tokens, kept, width),
        counted,
        f"{text_tokens} words, {kept} tokens outside the sequence, 4 blocks: the run has counted something else.",
        1e-9,
    )
done("the same count as in the run")

# %% [hint]
# A product of `[a, b]` and `[b, c]` costs 2abc. Every word attends to all `held` tokens: no causal half. The `held` tokens pass neither the MLP nor the query projection.


# %% [mistake] why="The tokens outside the sequence are sent through the MLP, too."
def outside_flops(spec, blocks, text, held, context):
    d, m = spec.hidden, spec.intermediate
    return blocks * (4 * held * context * d + 4 * text * d * d + 4 * text * held * d + 6 * (text + held) * d * m)


# %% [mistake] why="Half of the pairs are counted, as if the mask were causal."
def outside_flops(spec, blocks, text, held, context):
    d, m = spec.hidden, spec.intermediate
    return blocks * (4 * held * context * d + 4 * text * d * d + 2 * text * held * d + 6 * text * d * m)


# %% [markdown]
# Now at the size of LLaVA-1.5-7B, with a block before every fourth layer (as in the 9B models of Flamingo and OpenFlamingo; the blocks here have the decoder's width). Connectors are left out: they are the same for both.

# %%
llava = vtc.cost.SPECS["llava-1.5-7b"]
BLOCKS = llava.layers // 4


def in_sequence(text, tokens):
    """Prefill FLOPs with the tokens before the words."""
    return vtc.cost.run_flops(llava, [tokens] * llava.layers, text)["prefill"]


def block_flops(text, tokens):
    """Of one gated block on `text` words, keys and values not included."""
    return (
        2 * vtc.cost.linear_flops(text, llava.hidden, llava.hidden)
        + vtc.cost.attention_flops(text * tokens, 1, llava.hidden)
        + vtc.cost.mlp_flops(text, llava.hidden, llava.intermediate, gated=True)
    )


def outside(text, tokens):
    """Prefill FLOPs with the tokens outside the sequence."""
    keys = 2 * vtc.cost.linear_flops(tokens, llava.vision_width, llava.hidden)
    return in_sequence(text, 0) + BLOCKS * (block_flops(text, tokens) + keys)


sizes = [0, 16, 32, 64, 96, 128, 192, 256]
even = {text: next(k for k in range(1, 2000) if in_sequence(text, k) > outside(text, k)) for text in (40, 400)}
assert even[40] < KEEP < even[400]

# %% [slide]
# ## Prefill: who is more numerous?
#
# Decoder of LLaVA-1.5-7B, counted. In the sequence every visual token pays for all layers; outside it every word pays for 8 new blocks.

# %% slide
kit.lines(
    {
        f"{name}, {text} words": (sizes, [cost(text, k) / 1e12 for k in sizes])
        for text in (40, 400)
        for name, cost in (("in the sequence", in_sequence), ("outside it", outside))
    },
    "visual tokens K",
    "TFLOPs of the prefill",
    "The same K tokens in the sequence and outside it (counted)",
)

# %%
weights_of_decoder = vtc.cost.weight_bytes(llava)["prefill"] + vtc.cost.weight_bytes(llava)["lm_head"]
weights_of_blocks = (
    2 * BLOCKS * (2 * llava.hidden**2 + 3 * llava.hidden * llava.intermediate)
)  # bfloat16; k and v are not read again
cache = vtc.cost.kv_bytes(llava, [KEEP] * llava.layers, 0)
outside_cache = 2 * 2 * BLOCKS * KEEP * llava.hidden
assert outside_cache * llava.layers == cache * BLOCKS
step = vtc.cost.run_flops(llava, [KEEP] * llava.layers, 40, 2)["decode"]
outside_step = vtc.cost.run_flops(llava, [0] * llava.layers, 40, 2)["decode"] + BLOCKS * block_flops(1, KEEP)
assert outside_step > step
kit.table(
    [
        ["prefill, TFLOPs", f"{in_sequence(40, KEEP) / 1e12:.2f}", f"{outside(40, KEEP) / 1e12:.2f}"],
        ["cache of the picture, MB", f"{cache / 1e6:.1f}", f"{outside_cache / 1e6:.1f}"],
        ["one decode step, GFLOPs", f"{step / 1e9:.2f}", f"{outside_step / 1e9:.2f}"],
        [
            "weights that a decode step reads, GB",
            f"{weights_of_decoder / 1e9:.1f}",
            f"{(weights_of_decoder + weights_of_blocks) / 1e9:.1f}",
        ],
    ],
    [f"7B decoder, 40 words, K = {KEEP}, bfloat16", "in the sequence", "outside it"],
)
say(f"""
With 40 words the sequence is the more expensive place from K = {even[40]} on, with 400 words only from K = {even[400]} on. The cache of the picture is {cache / outside_cache:.0f} times smaller outside it. **Decoding is where the blocks cost**: at batch 1 a step is bound by the
weights that it reads (lesson 00), and there are {100 * weights_of_blocks / weights_of_decoder:.0f} % more of them. The {(cache - outside_cache) / 1e6:.0f} MB of cache that were saved are {100 * (cache - outside_cache) / weights_of_blocks:.1f} % of that.
""")

# %% [quiz]
# A service shows 30 pictures per request (K = 64 each, 1,920 in all) and answers with one word. Another shows one picture and answers with 500 words, at batch 1. Which layout is cheaper for which?
#
# - [x] Outside the sequence for the first, in the sequence for the second
#   The first is nearly all prefill with many visual tokens and few words. The second is nearly all decode steps, and each reads the added blocks.
# - [ ] Outside the sequence for both: no visual token in the sequence is always less work
#   The work has moved to the words. Every generated word runs through the blocks.
# - [ ] In the sequence for both: no new weights
#   1,920 tokens through 32 layers are far more work than a few words through 8 blocks.

# %% [markdown] minutes=6
# ## 7. All of them in the embedded VLM
#
# Which rival is fair? One of the same recipe and with the same number of tokens. `pixel-shuffle` makes 144 tokens of 576 by putting 2 x 2 neighbours side by side and an MLP behind it: no query, no attention. So all get 144 here, which is every query
# that they have. First the cost on one picture; `full` is the embedded model as it is, with 576 tokens.

# %%
rivals = ["pixel-shuffle", *(f"{name}@0.25" for name in fitted)]
runs = vtc.compare(vlm, scene.image, question.text, ["full", *rivals]).runs
kit.results(runs, question)
_, shuffle_run, q_run, p_run, g_run = runs
assert shuffle_run.visual_tokens == q_run.visual_tokens == p_run.visual_tokens == 144 and g_run.visual_tokens == 0
assert q_run.kv_bytes > g_run.kv_bytes and q_run.flops["prefill"] > g_run.flops["prefill"]
assert q_run.flops["projector"] > 3 * shuffle_run.flops["projector"]
say(f"""
The connector alone, in FLOPs: pixel shuffle {shuffle_run.flops["projector"] / 1e6:.0f} M, Q-Former {q_run.flops["projector"] / 1e6:.0f} M, Perceiver {p_run.flops["projector"] / 1e6:.0f} M. With gated cross-attention no visual token enters the decoder,
but its cache is not empty: keys and values of 144 tokens in 4 blocks are {4 * 2 * 144 * vlm.spec.hidden * 4 / 1e3:.0f} kB in float32, half of what 144 tokens take in 8 layers.
""")

# %% [markdown]
# Then answers, on held-out scenes; each kind of question is asked equally often. 64 questions can tell large differences apart, and no small ones. For more: `python -m vtc_demo evaluate pixel-shuffle q-former@0.25 --questions 1000`.

# %%
hits = {name: [] for name in rivals}
for _, held_out, several in balanced(64):
    for q in several:
        for name, found in hits.items():
            found.append(measures.right(vtc.run(vlm, held_out.image, q.text, method=name).answer, q.answer))
accuracy = {name: share(found) for name, found in hits.items()}
title = {name: vtc.registry.get(name.partition("@")[0]).card.title for name in rivals}
kit.table(
    [
        [title[name], f"{100 * a['accuracy']:.0f}", f"{100 * a['low']:.0f} to {100 * a['high']:.0f}"]
        for name, a in accuracy.items()
    ],
    ["144 tokens, 64 questions", "right, %", "95 % interval"],
)

# %%
bar = accuracy[rivals[0]]
better = [title[name] for name in rivals[1:] if accuracy[name]["low"] > bar["high"]]
worse = [title[name] for name in rivals[1:] if accuracy[name]["high"] < bar["low"]]
alike = [title[name] for name in rivals[1:] if title[name] not in better + worse]
say(f"""
Against pixel shuffle with as many tokens and the same training, by intervals that do not overlap: above it {", ".join(better) or "none"}; below it {", ".join(worse) or "none"}; not told apart {", ".join(alike) or "none"}.
""")

# %% [markdown]
# Read this as what it is: one small model, one short training on answers alone, one seed. Pixel shuffle has the patches in their order from the first step; a query must learn *where to look*, and the decoder what a token of no place means.
# BLIP-2 gives its Q-Former a stage of its own for that, before any language model is there, with three losses (contrastive, matching, captioning). So a short training may rank connectors otherwise than a long one. Whether that is at work here is a guess;
# it was not tested.

# %% [markdown] minutes=4
# ## 8. What the papers say, and where to go on

# %%
for name in ("q-former", "perceiver-resampler", "gated-cross-attention"):
    kit.report(name)

# %% [markdown]
# In the sequence or outside it? Idefics2 compared the two at the scale of 7 billion parameters: with frozen backbones, cross-attention was ahead; once the backbones were trained as well, the sequence was ahead, with fewer parameters.
# The same paper keeps a Perceiver Resampler for the 64 tokens and puts them into the sequence. Llama-3.2-Vision took the other road: cross-attention layers and no resampler, because the cost there grows with the number of visual tokens only linearly.
#
# - `vtc_demo/connectors/q_former.py`, `perceiver.py`, `gated_attention.py`: each is a page. `tests/connectors/test_connectors.py` compares them with the classes of `transformers`.
# - `docs/zoo.md`: the recipe, and what else was trained with it.
# - None of the three has read the question. InstructBLIP puts its words into the Q-Former's self-attention, so that the queries know it; lesson 06 prunes by it.
# - Lessons 00 and 05 have the counts and the baselines that any of this should be held against.

# %% [slide]
# ## Take home
#
# - K learned queries make K tokens of **any** number of patches; they see a set, not a grid. Keys and values of the picture cost the same for any K.
# - Their provenance is **soft**: a map of attention says what was read, not what it changed. Test it by covering.
# - A gate at zero leaves the language model **exactly** as it was, and is the only thing that learns in the first step.
# - Outside the sequence: short prefill, small cache, more expensive words.
