# /// lesson
# title = "FocusLLaVA: learned sampling"
# objectives = [
#   "pool a window of patches at three scales, and say from which patch each number of a token came",
#   "build a router that picks a scale per window, say what trains it, and compute its balance loss",
#   "rank visual tokens by the question's words inside the decoder, and compute the schedule of the cuts",
#   "tell what is published about a method, what is second-hand, and what an implementer had to choose",
# ]
# prerequisites = ["lesson 00", "lesson 06: attention inside the LLM, PyramidDrop"]
# methods = ["focusllava", "llava-mlp", "trained-pool", "pyramiddrop"]
# papers = ["2411.14228 FocusLLaVA", "2101.03961 Switch Transformers", "2410.17247 PyramidDrop"]
# ///

# %% [slide]
# ## Coarse, then fine
#
# - A **learned** sampler before the decoder: each window of the picture gets 16 tokens, 4 or 1. The picture decides.
# - A second one **inside** the decoder: what the question's words hardly look at is dropped. The question decides.
# - No code is public. This lesson keeps apart what is known and what was chosen here.

# %%
import copy

import torch
from torch import nn

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.connectors import focusllava, store
from vtc_demo.connectors.decoder import states
from vtc_demo.core import measures
from vtc_demo.core.operations import boundaries, others, top
from vtc_demo.models.attention import softmax_rows

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=2)
colour, thing = (next(q for q in scene.questions if q.kind == kind) for kind in ("colour", "object"))
fitted = store.fit(vlm, vtc.connectors.FocusLLaVA())  # the trained connector, and the decoder that was tuned with it
lm = fitted.model.model.language_model


def encode(picture):
    """The tower's features of a picture, [577, C]: CLS first."""
    pixels = vlm.inputs([picture]).pixels
    return vlm.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0]


with torch.inference_mode():
    features = encode(scene.image)
patches = features[1:].clone()  # [576, C]
C, D = patches.shape[1], vlm.spec.hidden

# %% [markdown] minutes=6
# ## 1. Two samplers, and what is known of them
#
# Methods of lesson 05 rank patches before the decoder, without the question. Those of lesson 06 rank them inside, with it. FocusLLaVA does both, and *learns* the first part: a flat sky needs few tokens, a line of print many, and a small network
# looks at each region and decides. The decision is made per picture, so the **number** of tokens differs from picture to picture.
#
# For a method without public code, an honest account begins with its sources. Ours are the abstract and summaries by third parties.
#
# | part | abstract | summaries | chosen here |
# | --- | :---: | :---: | :---: |
# | a vision-guided sampler for regions of low information, then a text-guided one for what the instruction asks | ✓ | | |
# | each local block is max-pooled at 1 × 1, 2 × 2 and 4 × 4; a router as in a mixture of experts | | ✓ | |
# | an auxiliary balance loss; attention maps in the language model rank the tokens; stochastic training | | ✓ | |
# | 39 % of the visual tokens of LLaVA-NeXT | | ✓ | |
# | windows of 4 × 4 patches, one scale per window, a linear router on the mean, an MLP per scale, the gate as a factor | | | ✓ |
# | the form of the balance loss and its weight | | | ✓ |
# | cuts before the layers at 1/4, 1/2 and 3/4 of the depth, an even ratio from cut to cut, a budget drawn per training step | | | ✓ |
#
# So what you build is *in the style of* FocusLLaVA. It can show how such a sampler works. It cannot confirm or refute the paper's figures.

# %% [markdown] minutes=14
# ## 2. A window at three scales
#
# The map of 24 × 24 patches is cut into $6 \times 6$ windows of $4 \times 4$. In a window, a scale $s \in \{1, 2, 4\}$ means: the largest value of each channel in every block of $s \times s$ patches,
#
# $$ S_s[t, c] = \max_{j \in \text{block}_s(t)} x_{j, c}, \qquad t = 0 \dots \tfrac{16}{s^2} - 1 $$
#
# That makes 16, 4 or 1 tokens. The maximum is taken per channel, so a pooled token is a patchwork: this channel from one patch, that channel from another. Its **provenance** is the share of the channels that each patch supplied. The shares of a token add up to 1,
# as those of an average do, but they depend on the picture.

# %%
members = torch.arange(576).view(6, 4, 6, 4).transpose(1, 2).reshape(36, 16)  # window -> its patches, raster order
windows = patches[members]  # [36, 16, C]
print("window 0:", members[0].tolist())
print("window 1:", members[1].tolist())

# %% [exercise] difficulty=medium minutes=8
# Pool one window at one scale, and say where the numbers came from. The patches of a window stand row by row in a square of 4 × 4; tokens come out row by row, too.


# %% [solution]
def pool_window(window, s):
    """window [16, C], s in 1, 2, 4 -> (tokens [16 / s^2, C], share of each patch in each token [16 / s^2, 16])."""
    # BEGIN SOLUTION
    side = 4 // s
    places = torch.arange(16).view(side, s, side, s).transpose(1, 2).reshape(-1, s * s)  # block -> its patches
    tokens, which = window[places].max(1)  # [t, C] each
    share = torch.zeros(len(places), 16)
    for t in range(len(places)):
        share[t] = torch.bincount(places[t][which[t]], minlength=16) / window.shape[1]
    return tokens, share
    # END SOLUTION


# %% [check]
square = torch.arange(16.0)[:, None]  # patch 5 holds the number 5
tokens, share = pool_window(square, 2)
check(tuple(tokens.shape) == (4, 1), f"At scale 2 a window makes 4 tokens; yours has the shape {tuple(tokens.shape)}.")
check_equal(tokens[:, 0], [5, 7, 13, 15], "Blocks are squares: the first holds patches 0, 1, 4 and 5 of the window.")
check_equal(share.argmax(1), [5, 7, 13, 15], "With one channel, the patch that won has the whole share.")
two = torch.zeros(16, 2)
two[0, 0], two[5, 1] = 1.0, 1.0
check_equal(pool_window(two, 4)[0], [[1, 1]], "Each channel has a maximum of its own.")
check_equal(pool_window(two, 4)[1][0, [0, 5]], [0.5, 0.5], "One of two channels came from patch 0, one from patch 5.")
for s in (1, 2, 4):
    tokens, share = pool_window(windows[7], s)
    wanted = nn.functional.max_pool2d(windows[7].T.reshape(1, C, 4, 4), s)[0].flatten(1).T
    check_equal(tokens, wanted, f"At scale {s} torch's max_pool2d finds other tokens.")
    check_equal(share.sum(1), torch.ones(len(share)), f"At scale {s} the shares of a token must add up to 1.")
theirs = focusllava.pooled(windows[None, 7:8])
for part, name in ((0, "tokens"), (1, "shares")):
    ours = torch.cat([pool_window(windows[7], s)[part] for s in (1, 2, 4)])
    check_equal(ours, theirs[part][0, 0], f"The package has other {name} for window 7.")
done("21 tokens of a window at three scales, each with its provenance")

# %% [hint]
# `torch.arange(16).view(4 // s, s, 4 // s, s)` has block row, row, block column, column. One transpose brings the two block axes to the front. `x.max(1)` returns values and places; a place within the block must still be turned into a patch of
# the window.


# %% [mistake] why="Blocks are strips of consecutive patches instead of squares."
def pool_window(window, s):
    places = torch.arange(16).view(-1, s * s)
    tokens, which = window[places].max(1)
    share = torch.stack([torch.bincount(p[w], minlength=16) / window.shape[1] for p, w in zip(places, which)])
    return tokens, share


# %% [mistake] why="The shares are those of an average."
def pool_window(window, s):
    side = 4 // s
    places = torch.arange(16).view(side, s, side, s).transpose(1, 2).reshape(-1, s * s)
    share = torch.zeros(len(places), 16).scatter(1, places, 1 / s**2)
    return window[places].max(1).values, share


# %% [slide]
# ## One window, 21 tokens
#
# Rows: 16 tokens at scale 1, four at scale 2, one at scale 4. Columns: the patches of the window. A max-pooled token takes each channel from one patch.

# %% slide
object_patches = torch.from_numpy((scene.owner > 0).reshape(24, 14, 24, 14).any((1, 3))).flatten()  # [576]
busy = object_patches[members].sum(1)  # object patches in each window, [36]
mixed = int((busy - 8).abs().argmin())  # a window that is half object, half background
values, shares = (x[0, 0] for x in focusllava.pooled(windows[None, mixed : mixed + 1]))  # [21, C], [21, 16]
kit.matrix(shares, "patch of the window", "token", f"Shares of the patches in the 21 tokens of window {mixed}")

# %%
assert torch.equal(shares[:16], torch.eye(16)) and torch.allclose(shares.sum(1), torch.ones(21))
say(f"""
Window {mixed} has {int(busy[mixed])} patches with an object in them. In its single token of scale 4, the strongest patch supplies {100 * shares[20].max():.0f} % of the {C} channels and the weakest {100 * shares[20].min():.0f} %;
an average would have 6 % of each.
""")

# %% [markdown] minutes=18
# ## 3. The router
#
# Which scale for which window? A linear layer looks at the mean of the window and gives a gate per scale; the largest wins:
#
# $$ g = \operatorname{softmax}\big(W_r\, \tfrac{1}{16} \textstyle\sum_{j} x_j + b_r\big) \in \mathbb{R}^3, \qquad \hat s = \arg\max_s g_s, \qquad T = g_{\hat s} \cdot \operatorname{MLP}_{\hat s}(S_{\hat s}) $$
#
# Every scale has an MLP of its own, its *expert*, which takes the place of LLaVA's projector. Only the winner is evaluated. Windows are laid out in raster order, so 36 to 576 tokens enter the decoder.
#
# In small steps, one window after another, with the trained weights:

# %%
SCALES = (1, 2, 4)


class Sampler(nn.Module):
    """A scale per window, for one picture."""

    def __init__(self, width, hidden):
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden)) for _ in SCALES
        )

    def forward(self, x, gated=True):
        """x [576, C] -> tokens [m, D], gates [36, 3], number of the scale of each window [36]."""
        windows = x[members]
        gate = self.router(windows.mean(1)).softmax(-1)
        chosen = gate.argmax(-1)
        tokens = []
        for w, i in enumerate(chosen.tolist()):
            square = windows[w].T.reshape(1, -1, 4, 4)
            pooled = nn.functional.max_pool2d(square, SCALES[i])[0].flatten(1).T  # [16 / s^2, C]
            tokens.append(self.layers[i](pooled) * (gate[w, i] if gated else 1))
        return torch.cat(tokens), gate, chosen


sampler = Sampler(C, D)
sampler.load_state_dict(fitted.connector.state_dict())  # the same names, the same shapes
with torch.inference_mode():
    made = fitted.connector(features[None], (24, 24), 0)  # the budget is not for the connector to spend
    visual, gate, chosen = sampler(patches)
m = len(visual)
assert made.tokens.shape == (1, m, D)
assert torch.allclose(visual, made.tokens[0], atol=1e-5 * visual.abs().max().item())
counts = torch.bincount(chosen, minlength=3).tolist()
assert m == sum(n * 16 // s**2 for n, s in zip(counts, SCALES))
say(f"""
The same tokens as the package's. The trained router gives **{counts[0]}** of the 36 windows 16 tokens, **{counts[1]}** windows 4 and **{counts[2]}** windows one: **{m}** tokens enter the decoder.
{"One scale for every window: on this picture the trained sampler is plain max pooling." if max(counts) == 36 else ""}
""")

# %% [markdown]
# A router that uses one scale alone would leave two thirds of this code untested. So compare once more with a router of **random weights**, its bias set so that no scale is preferred on average. Whatever the trained one does, this one mixes.

# %%
torch.manual_seed(0)
free, package = copy.deepcopy(sampler), copy.deepcopy(fitted.connector)
free.router = nn.Linear(C, 3)
with torch.no_grad():
    free.router.bias.copy_(-free.router.weight @ windows.mean((0, 1)))
package.load_state_dict(free.state_dict())
with torch.inference_mode():
    ours, _, mixed_up = free(patches)
    assert torch.allclose(ours, package(features[None], (24, 24), 0).tokens[0], atol=1e-5 * ours.abs().max().item())
mixture = torch.bincount(mixed_up, minlength=3).tolist()
assert sum(n > 0 for n in mixture) > 1
say(
    f"With random weights: {mixture[0]}, {mixture[1]} and {mixture[2]} windows at the three scales, {len(ours)} tokens, again the package's."
)

# %% [slide]
# ## What the router decided
#
# Tokens for each window (square root) and the gate of the coarsest scale, each on its own colour scale. Right: a router with random weights.

# %% slide
given = torch.tensor([16 / s**2 for s in SCALES])  # tokens of a window at each scale
maps = torch.stack([given[chosen].sqrt(), gate[:, 2], given[mixed_up].sqrt()], 1)  # [36, 3]
per_patch = torch.empty(576, 3)
per_patch[members] = maps[:, None].expand(36, 16, 3)
titles = ["trained: tokens for each window", "trained: gate of scale 4", "random weights: tokens"]
kit.heat(scene.image, dict(zip(titles, per_patch.T)), title="The router's decision, window by window")

# %% [markdown]
# Does the router do what the idea promises, more tokens where there is more to see? In generated scenes it is known which patches show an object. Count over held-out pictures. The control is a router with random weights: features of objects differ from those of
# the background, so even a router that has learned nothing may treat them differently, one way or the other.

# %%
means, shows = [], []
with torch.inference_mode():
    for seed in range(16):
        one = vtc.world.sample(seed, split="eval")
        means.append(encode(one.image)[1:][members].mean(1))  # [36, C]
        there = torch.from_numpy((one.owner > 0).reshape(24, 14, 24, 14).any((1, 3))).flatten()
        shows.append(there[members].any(1))  # [36]: is there an object in the window?
means, shows = torch.cat(means), torch.cat(shows)


def spent(router):
    """Tokens of a window with an object in it and of an empty one, means."""
    with torch.inference_mode():
        tokens = given[router(means).argmax(-1)]
    return tokens[shows].mean().item(), tokens[~shows].mean().item()


rich, poor = spent(sampler.router)
torch.manual_seed(0)
blind = [rich / poor for rich, poor in (spent(nn.Linear(C, 3)) for _ in range(40))]
ratio, above = rich / poor, sum(rich / poor > x for x in blind)
with torch.inference_mode():
    used = len(sampler.router(means).argmax(-1).unique())  # scales on all 16 pictures
if used == 1:
    verdict = "Every window of all these pictures gets the same scale: this router has **collapsed**, in spite of a balance loss in its training. Then FocusLLaVA is pooling with a fixed window"
elif ratio > 1.1:
    chance = "chance alone seldom does as much" if above >= 38 else "chance alone does as much now and then"
    verdict = f"More where there is something to see, as the idea promises. Of 40 routers with random weights, {above} have a smaller ratio: {chance}"
elif ratio < 0.9:
    verdict = "Less where there is something to see: not what the idea promises"
else:
    verdict = "Hardly a difference: not what the idea promises"
say(f"""
On 16 held-out pictures, windows with an object in them get **{rich:.1f}** tokens on average ({int(shows.sum())} windows), empty ones **{poor:.1f}** ({int((~shows).sum())} windows). {verdict}.
""")

# %% [markdown]
# What trains the router? The choice $\arg\max$ has no gradient. The gate has one, because it multiplies the tokens. Without this factor nothing would tell the router whether its choice was good.

# %%
for gated in (True, False):
    loss = sampler(patches, gated)[0].square().mean()  # any loss on the tokens
    (slope,) = torch.autograd.grad(loss, [sampler.router.weight], allow_unused=True)
    assert (slope is not None) == gated
    print(f"gate as a factor: {gated!s:5}  router has a gradient: {slope is not None}")

# %% [markdown]
# Even so the gradient reaches the router only through the scale that won: it can learn to trust it more or less, but it has not seen what another would have given. So routers tend to *collapse*: one expert wins early, is trained most, and wins for ever.
# Mixtures of experts answer with an auxiliary **balance loss**. For FocusLLaVA the summaries say that there is one, not which. Here it is that of Switch Transformers:
#
# $$ L_{\text{bal}} = a\, S \sum_{s} f_s\, P_s, \qquad f_s = \text{share of the windows routed to } s, \quad P_s = \text{mean gate of } s $$
#
# with $S = 3$ scales and $a = 0.1$. Spread evenly it is $a$, collapsed it is up to $3a$. Only $P_s$ has a gradient; $f_s$ says which gates to push down. In a first training with $a = 0.01$ every window went to one scale within 400 steps; that is why it is larger here.

# %% [exercise] difficulty=medium minutes=6
# Write the balance loss for the windows of one picture.


# %% [solution]
def balance(gate, chosen, weight=0.1):
    """gate [w, S]: rows sum to 1; chosen [w]: number of the scale that each window got -> the loss, a scalar tensor."""
    # BEGIN SOLUTION
    scales = gate.shape[1]
    f = torch.bincount(chosen, minlength=scales) / len(chosen)
    return weight * scales * (f * gate.mean(0)).sum()
    # END SOLUTION


# %% [check]
even = torch.full((6, 3), 1 / 3)
check_equal(balance(even, torch.tensor([0, 1, 2, 0, 1, 2])), 0.1, "Spread evenly, the loss is its weight, 0.1.")
certain = torch.tensor([[1.0, 0.0, 0.0]]).repeat(6, 1)
check_equal(
    balance(certain, torch.zeros(6, dtype=torch.long)), 0.3, "Collapsed with certainty, it is three times that."
)
unsure = torch.tensor([[0.4, 0.3, 0.3]]).repeat(6, 1).requires_grad_()
loss = balance(unsure, torch.zeros(6, dtype=torch.long))
check_equal(
    loss.detach(), 0.12, "All windows to scale 1, mean gate 0.4: 0.1 · 3 · (1 · 0.4). Mind that f counts windows."
)
(slope,) = torch.autograd.grad(loss, unsure)
check_equal(slope[0], [0.05, 0.0, 0.0], "Only the gate of the crowded scale is pushed down: f has no gradient.")
check_equal(balance(gate, chosen), made.loss, "On the real picture the package has another loss.")
done("the balance loss, and what it pushes at")

# %% [hint]
# `torch.bincount(chosen, minlength=3)` counts the windows of each scale. The gates are averaged over the windows.


# %% [mistake] why="The mean gate is taken for the share of the windows."
def balance(gate, chosen, weight=0.1):
    return weight * gate.shape[1] * gate.mean(0).square().sum()


# %% [mistake] why="Not scaled by the number of scales."
def balance(gate, chosen, weight=0.1):
    f = torch.bincount(chosen, minlength=gate.shape[1]) / len(chosen)
    return weight * (f * gate.mean(0)).sum()


# %% [instructor]
# Ask what an even spread means for a picture: a third of the windows at each scale. No picture "deserves" that; the balance loss pulls against the idea of the method, and its weight is a compromise.
# If the map of the trained router is one colour, do not hide it: that is collapse, and with the balance loss in place. The run says which it is.

# %% [quiz]
# The router sends a window to scale 4. What do the other two experts cost for this window, at inference and in training?
#
# - [ ] All three run in both: the gates must be computed
#   The gates come from the mean of the window. They need no expert.
# - [x] Nothing in both
#   The scale is known before any expert runs. In exchange the other two experts learn nothing from this window, and the router does not learn what they would have given.
# - [ ] Nothing at inference, but all three run in training
#   That would be a mixture with dense training. It is possible, costs three times as much, and is not what is done here.

# %% [markdown]
# One difficulty is left. In a batch every picture has another number of tokens. They are packed to the longest and a mask says which are real; in training the mask goes into attention, positions are counted over the real ones alone.

# %%
with torch.inference_mode():
    several = torch.stack([encode(vtc.world.sample(seed).image) for seed in (2, 3, 4)])
    batch = package(several, (24, 24), 0)  # with the random router, whose counts differ
    for f, tokens, real in zip(several, batch.tokens, batch.present):
        alone = free(f[1:])[0]
        assert torch.allclose(tokens[real], alone, atol=1e-4 * alone.abs().max().item())
lengths = batch.present.sum(1).tolist()
say(
    f"Three pictures: {lengths} tokens, packed in a tensor of {tuple(batch.tokens.shape)}. Each is what it would be alone."
)

# %% [markdown] minutes=18
# ## 4. The text-guided sampler
#
# The second sampler works inside the decoder. After some layers, score each visual token by how much the **words of the question** attend to it, averaged over heads and words:
#
# $$ s_j = \frac{1}{H\,|Q|} \sum_{h} \sum_{i \in Q} \operatorname{softmax}_{t \le i}\!\left( \frac{q_{h,i}^\top k_{h,t}}{\sqrt d} \right)_{j} $$
#
# FastV and PyramidDrop (lesson 06) use one row, that of the last token. Here there are several, so the causal mask matters: word $i$ sees itself and what stands before it. $Q$ is all text after the picture, in this prompt the question and the two tokens of `assistant:`.
#
# First the sequence, with the tokens of the sampler in it, through layers 0 and 1 of the decoder that was tuned with them.

# %%
cuts = boundaries(len(lm.layers))  # before these layers


def prompt(question):
    """(sequence that enters layer 0 [S, D], places of the visual tokens [m], places of the words after them)."""
    ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, question.text))
    at, words = ids.index(vlm.config.image_token_id), lm.embed_tokens(torch.tensor(ids))
    h = torch.cat([words[:at], visual, words[at + 1 :]])
    return h, torch.arange(at, at + m), torch.arange(at + m, len(h))


def rope_of(h, positions):
    return lm.rotary_emb(h[None], positions[None])


def through(k, h, rope, mask=None):
    """h [S, D] through decoder layer k. mask: bool [S, S], default causal."""
    mask = None if mask is None else mask[None, None]
    return lm.layers[k](h[None], position_embeddings=rope, attention_mask=mask)[0]


with torch.inference_mode():
    start, places, asked = prompt(colour)
    positions = torch.arange(len(start))
    rope = rope_of(start, positions)
    before = through(0, start, rope)  # enters layer 1
    after = through(1, before, rope)  # leaves it
    block = lm.layers[1]
    q, k, _ = (x[0] for x in states(block.self_attn, block.input_layernorm(before[None]), rope))
say(f"""
Cuts before layers {", ".join(map(str, cuts))}. Queries and keys of layer 1 with RoPE: {tuple(q.shape)}. The picture stands at {places[0]} to {places[-1]}, the question and `assistant:` at {asked[0]} to {asked[-1]}.
""")

# %% [exercise] difficulty=medium minutes=7
# Score the visual tokens by the rows `asked`. The softmax of each row runs over everything that this row may see.


# %% [solution]
def question_scores(q, k, asked, visual):
    """q, k [heads, S, d]; asked [t], visual [n]: places in the sequence -> the score of each visual token, [n]."""
    # BEGIN SOLUTION
    logits = q[:, asked] @ k.transpose(1, 2) / q.shape[-1] ** 0.5  # [heads, t, S]
    future = torch.arange(k.shape[1]) > asked[:, None]  # [t, S]
    weights = logits.masked_fill(future, float("-inf")).softmax(-1)
    return weights.mean((0, 1))[visual]
    # END SOLUTION


# %% [check]
ones, keys = torch.ones(1, 3, 1), torch.tensor([[[0.0], [0.0], [9.0]]])  # one head: a visual token and two words
last = torch.tensor([0.0, 0.0, 9.0]).softmax(0)[0]
check_equal(
    question_scores(ones, keys, torch.tensor([1, 2]), torch.tensor([0])),
    (torch.tensor([0.5]) + last) / 2,
    "Word 1 sees tokens 0 and 1, word 2 all three. The visual token gets 1/2 from the first and almost nothing from the second.",
)
seen = {}


class Scores(vtc.connectors.FocusLLaVA):
    """Remembers what the package ranks by at the first cut."""

    def reduce(self, context):
        if context.site.layer == cuts[0]:
            seen["scores"] = context.attention("after", heads="mean").mean(0)[context.visual].clone()
        return super().reduce(context)


vtc.run(vlm, scene.image, colour.text, method=Scores(), max_new_tokens=1)
with torch.inference_mode():
    got = question_scores(q, k, asked, places)
check(tuple(got.shape) == (m,), f"One score per visual token, [{m}]; yours has the shape {tuple(got.shape)}.")
check_equal(got, seen["scores"], "The package finds other scores at the first cut.", 1e-3)
done("the question's words have ranked the tokens")

# %% [hint]
# `q[:, asked] @ k.transpose(1, 2)` is `[heads, t, S]`. The column numbers compared with `asked[:, None]` say what lies in the future of each row; fill it with minus infinity before the softmax.


# %% [mistake] why="No causal mask: the first words look at the last ones."
def question_scores(q, k, asked, visual):
    logits = q[:, asked] @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return logits.softmax(-1).mean((0, 1))[visual]


# %% [mistake] why="The softmax runs over the visual tokens alone."
def question_scores(q, k, asked, visual):
    logits = q[:, asked] @ k[:, visual].transpose(1, 2) / q.shape[-1] ** 0.5
    return logits.softmax(-1).mean((0, 1))


# %% [markdown]
# How many stay? The budget $F$ is the count after the last cut; how many enter, $m$, the router has decided. Each of the three cuts keeps the same share, so that the counts fall evenly:
#
# $$ n_i = \operatorname{round}\!\big( m \, (F / m)^{\,i/3} \big), \qquad i = 0 \dots 3 $$
#
# If no more than $F$ tokens entered, nothing is dropped. This rule is a choice of ours. In training $F$ was drawn again for each step, from 36 to 576, so that one set of weights serves the whole slider.

# %% [exercise] difficulty=easy minutes=5
# Write the schedule. Cuts come before layers $\lfloor L/4 \rfloor$, $\lfloor L/2 \rfloor$ and $\lfloor 3L/4 \rfloor$ of $L$.


# %% [solution]
def focus_schedule(layers, entered, final):
    """Visual tokens entering each layer, a list of `layers` numbers."""
    # BEGIN SOLUTION
    if final >= entered:
        return [entered] * layers
    starts = [layers * i // 4 for i in range(1, 4)]
    stages = [sum(layer >= start for start in starts) for layer in range(layers)]
    return [round(entered * (final / entered) ** (i / 3)) for i in stages]
    # END SOLUTION


# %% [check]
check_equal(
    focus_schedule(8, 512, 64), [512, 512, 256, 256, 128, 128, 64, 64], "From 512 to 64 in three cuts: half each time."
)
check_equal(focus_schedule(4, 50, 64), [50] * 4, "Fewer than the budget entered: nothing is dropped.")
check_equal(
    focus_schedule(32, 125, 1), [125] * 8 + [25] * 8 + [5] * 8 + [1] * 8, "32 layers: cuts before 8, 16 and 24."
)
for retention in (0.03, 0.05, 0.3):
    one = vtc.run(vlm, scene.image, colour.text, method="focusllava", retention=retention, max_new_tokens=1)
    check_equal(
        focus_schedule(8, m, round(retention * 576)), one.trace.schedule, f"Retention {retention}: the run has another."
    )
done("the schedule of every budget")

# %% [hint]
# The stage of a layer is the number of cuts that have come before it: 0, 1, 2 or 3.


# %% [mistake] why="Equal numbers are dropped at each cut, not equal shares."
def focus_schedule(layers, entered, final):
    stages = [4 * layer // layers for layer in range(layers)]
    return [entered - max(0, entered - final) * i // 3 for i in stages]


# %% [mistake] why="The shares are taken of all 576 patches instead of the tokens that entered."
def focus_schedule(layers, entered, final):
    stages = [4 * layer // layers for layer in range(layers)]
    return [min(entered, round(576 * (final / 576) ** (i / 3))) for i in stages]


# %% [markdown]
# Now the whole pass by hand: three cuts, survivors keep their positions. The answer's first token and the survivors must be the package's.

# %%
FINAL = 29  # retention 0.05: below the 36 tokens that any picture has at least, so there is always something to cut


def by_hand(question):
    """The last hidden state [D] and which of the m tokens are left."""
    h, at, asked = prompt(question)
    positions, left = torch.arange(len(h)), torch.arange(m)
    entered, rope = h, rope_of(h, positions)
    for k in range(len(lm.layers)):
        if k in cuts:
            keep = focusllava.keep_count(m, FINAL, 1 + cuts.index(k), len(cuts))
            layer = lm.layers[k - 1]  # the one that has just run, on what entered it
            q, keys, _ = states(layer.self_attn, layer.input_layernorm(entered[None]), rope)
            looks = softmax_rows(q[0][:, asked], keys[0], layer.self_attn.scaling, asked, mean=True).mean(0)  # [S]
            best = top(looks[at], keep)
            stays = torch.ones(len(h), dtype=torch.bool)
            stays[at[others(best, len(at))]] = False
            h, positions, left = h[stays], positions[stays], left[best]
            at, asked = at[:keep], torch.arange(at[0] + keep, len(h))
        entered, rope = h, rope_of(h, positions)
        h = through(k, h, rope)
    return lm.norm(h[-1]), left


runs, kept = {}, {}
for question in (colour, thing):
    with torch.inference_mode():
        hidden, kept[question] = by_hand(question)
        first = fitted.model.lm_head(hidden).argmax().item()
    runs[question] = vtc.run(vlm, scene.image, question.text, method="focusllava", retention=0.05)
    theirs = runs[question].trace.steps
    product = theirs[3].reduction.after(theirs[2].reduction).after(theirs[1].reduction)
    assert torch.equal(product.old, kept[question])  # the same survivors
    assert first == runs[question].token_ids[0]
common = len(set(kept[colour].tolist()) & set(kept[thing].tolist()))
assert torch.equal(runs[colour].trace.steps[0].reduction.dense(), runs[thing].trace.steps[0].reduction.dense())
say(f"""
By hand and by the package: the same {FINAL} survivors, the same first token. For both questions the same {m} tokens enter, since the router has not read them; of the {FINAL} that are left, **{common}** are the same.
{"Only 36 tokens enter, the least that the budget could be in training. A router like this one leaves the second sampler nothing to do there, so the decoder has not learned with such cuts." if m == 36 else ""}
""")

# %% [slide]
# ## The picture decides, then the question
#
# The same tokens enter for both questions; cuts follow the question. A pooled token stands at the upper left patch of its block, the others of the block are amber.

# %% slide
figures = [runs[colour], runs[thing]]
kit.masks(
    scene.image,
    figures,
    None,
    "Left after the last cut",
    names=[q.text for q in (colour, thing)],
)

# %% [markdown]
# ### Training is not quite inference
#
# In training several questions share one picture in one sequence, and each wants other tokens. So nothing can be dropped; a token is **hidden** from the words of the question that does not want it. But the later visual tokens still see it. Compare at the first cut:
# dropped; hidden from everyone, as in lesson 06; hidden from the words alone, as in training.

# %%
with torch.inference_mode():
    looks = softmax_rows(q[:, asked], k, block.self_attn.scaling, asked, mean=True).mean(0)[places]
    gone = places[others(top(looks, FINAL), m)]  # all at the first cut, to see an effect
    stays = torch.ones(len(after), dtype=torch.bool).index_fill_(0, gone, False)
    causal, itself = (
        torch.ones(len(after), len(after), dtype=torch.bool).tril(),
        torch.eye(len(after), dtype=torch.bool),
    )
    everyone = causal & (stays[None] | itself)
    words_only = causal & (stays[None] | (torch.arange(len(after)) < asked[0])[:, None])
    ends = {}
    for name, mask in (("hidden from everyone", everyone), ("hidden from the words", words_only), ("dropped", None)):
        h, where = (after[stays], positions[stays]) if mask is None else (after, positions)
        for layer in range(cuts[0], len(lm.layers)):
            h = through(layer, h, rope_of(h, where), mask)
        ends[name] = fitted.model.lm_head(lm.norm(h[-1]))
scale = ends["dropped"].abs().max().item()
far = {name: (end - ends["dropped"]).abs().max().item() / scale for name, end in ends.items()}
assert far["hidden from everyone"] < 1e-3
same_word = ends["hidden from the words"].argmax() == ends["dropped"].argmax()
say(f"""
Hidden from everyone equals dropped, up to rounding. Hidden from the words alone moves the logits of the first word by up to {100 * far["hidden from the words"]:.2g} % of the largest; the likeliest word is {"the same" if same_word else "**another**"}.
So the decoder is used a little differently from how it was trained. How much accuracy that costs has not been measured here.
""")

# %% [quiz]
# A paper trains a pruner with masks and prunes at inference. What should you ask first?
#
# - [ ] Which accelerator it was measured on
#   Good to know, but first: is it the same function?
# - [x] Who still sees a masked token
#   If any survivor does, masking and dropping compute different things, and figures measured with masks are those of another model than the one that is fast.
# - [ ] Whether the mask is boolean or additive
#   The softmax comes out the same.

# %% [markdown] minutes=9
# ## 5. In the VLM
#
# The fair reference is `llava-mlp`: LLaVA's own projector, trained from scratch under the same recipe, on the same tower and data, for as many steps. And `trained-pool` at the same mean number of tokens per layer: an even grid that asks neither router nor question.

# %%
own = vtc.run(vlm, scene.image, colour.text, method="focusllava", retention=0.05)
mean = own.trace.equivalent_tokens
even = vtc.compare(vlm, scene.image, colour.text, ["trained-pool"], match="equivalent tokens", target=mean).runs[0]
reference = vtc.run(vlm, scene.image, colour.text, method="llava-mlp")
kit.results([reference, own, even], colour)

# %% [slide]
# ## At the same mean per layer
#
# LLaVA's projector on every patch, the two learned samplers, and an even grid. All trained under one recipe.

# %% slide
kit.masks(scene.image, [reference, own, even], colour, "What the last layer sees")

# %%
routed = 36 * 2 * C * 3  # the router, on 36 means
experts = 2 * m * (C * D + D * D)  # one expert per token
assert own.flops["projector"] == routed + experts
tower_width, decoder_width = 1024, 4096  # LLaVA-1.5-7B
projector = tower_width * decoder_width + decoder_width**2
ranking = own.flops["compression"]
say(f"""
The sampler costs {own.flops["projector"] / 1e6:.2f} MFLOPs, of which the router {100 * routed / own.flops["projector"]:.2g} %. LLaVA's projector costs {reference.flops["projector"] / 1e6:.2f}: it runs on every patch. Ranking by the question costs {ranking / 1e6:.2f} MFLOPs.
In parameters the sampler is the larger: three experts, in a 7B model {3 * projector / 1e6:.0f} M instead of {projector / 1e6:.0f} M.
""")

# %%
from vtc_demo.evaluation.intervals import wilson

FOCUS, CUT, POOL = "focusllava", "focusllava, 29 at the end", "trained-pool"
tally = {name: [] for name in ("llava-mlp", FOCUS, CUT, POOL)}
tokens = {name: [] for name in tally}
for seed in range(8):
    one = vtc.world.sample(seed, split="eval")
    for question in one.questions[:4]:
        spent_by = {}
        for name in tally:
            method = {"method": name.partition(",")[0]}
            if name == CUT:
                method |= {"retention": 0.05}
            if name == POOL:  # as many per layer as FocusLLaVA had
                method |= {"retention": spent_by[FOCUS] / 576}
            run = vtc.run(vlm, one.image, question.text, method)
            spent_by[name] = run.trace.equivalent_tokens
            tally[name].append(measures.right(run.answer, question.answer))
            tokens[name].append(spent_by[name])
asked_in_all = len(tally[FOCUS])
rows = []
for name, hits in tally.items():
    low, high = wilson(sum(hits), len(hits))
    mean_tokens = sum(tokens[name]) / len(hits)
    rows.append([name, f"{mean_tokens:.0f}", f"{sum(hits)} of {len(hits)}", f"{100 * low:.0f} to {100 * high:.0f} %"])
kit.table(rows, ["method", "tokens per layer, mean", "right", "95 % interval"])
a, b = (wilson(sum(tally[name]), asked_in_all) for name in (FOCUS, POOL))
apart = a[0] > b[1] or b[0] > a[1]
say(f"""
{asked_in_all} questions on 8 held-out pictures. {"The intervals of FocusLLaVA and the even grid lie apart." if apart else "The intervals of FocusLLaVA and the even grid overlap: so few questions do not tell them apart."}
For more, run `python -m vtc_demo sweep focusllava trained-pool llava-mlp`.
""")

# %% [instructor]
# The comparison most people ask for is with FastV or PyramidDrop at the same tokens. Those run on the embedded model's own decoder, which was trained far longer than those of the zoo. So a difference would be one of training as well. Inside the zoo the recipe is one.

# %% [quiz]
# A summary says: better than LLaVA-NeXT with 39 % of its visual tokens. What follows?
#
# - [ ] Compression improves the answers
#   The model was also trained further, with two new modules. Without LLaVA-NeXT trained on in the same way, compression is only one of the differences.
# - [ ] It beats FastV at 39 %
#   FastV needs no training, so it is another comparison; and "39 %" may be a mean over layers, a count before the decoder or one at the end.
# - [x] Little, before you know what 39 % counts and what the baseline was trained on
#   Entered, left at the end, or on average: for a method with two samplers these differ. And the number is second-hand here: look it up before you use it.

# %% [markdown] minutes=4
# ## 6. What is reported, and where to go on

# %%
kit.report("focusllava")

# %% [markdown]
# - `vtc_demo/connectors/focusllava.py`: sampler, balance loss and cuts. `vtc_demo/training/zoo.py`: the recipe, and the mask of section 4.
# - `docs/zoo.md`: all trained connectors. In the app, choose *FocusLLaVA-style* and step through its sites with two questions on one picture.
# - Lesson 06 has the training-free cuts inside the decoder; lesson 10 leaves the tokens out altogether.

# %% [slide]
# ## Take home
#
# - A router gives each window **its own scale**; the gate as a factor is all that trains it, and a balance loss keeps it from collapsing.
# - The picture decides what enters, the question what **stays**. Count both: entered, left, and the mean per layer.
# - Without code, say what is **published**, what is **second-hand** and what is **yours**.
