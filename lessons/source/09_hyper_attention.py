# /// lesson
# title = "Hyper attention: the words read the picture"
# objectives = [
#   "say what a hyper attention layer shares with the layer it is built into, and what it adds",
#   "write the picture's keys with MI-RoPE, the gated and the fused version, and get what the trained connectors get",
#   "show that one softmax over words and picture is itself a gate, one for each word and head",
#   "count FLOPs and cache against the same picture in the sequence, and predict when each is cheaper",
# ]
# prerequisites = ["lesson 00", "lesson 03: gated cross-attention"]
# methods = ["hyper-gated", "hyper-fused", "llava-mlp", "trained-pool"]
# papers = ["2408.04840 mPLUG-Owl3", "2204.14198 Flamingo", "2104.09864 RoPE"]
# ///

# %% [slide]
# ## Compress to zero
#
# - Most methods make the visual sequence shorter. Here it has length **zero**: no visual token stands among the words.
# - In a few layers the words' own queries **also read the picture**: every patch, nothing dropped, nothing merged.
# - What is compressed is not the picture. It is the number of layers that work on it.

# %%
import copy

import torch
from PIL import Image
from torch.nn import functional as F

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.connectors import store
from vtc_demo.connectors.base import Dims
from vtc_demo.connectors.decoder import apply_rope
from vtc_demo.connectors.hyper_attention import HyperGatedConnector
from vtc_demo.core import measures
from vtc_demo.evaluation.intervals import share
from vtc_demo.evaluation.questions import balanced

torch.set_grad_enabled(False)  # nothing is trained here
vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=3)
question = next(q for q in scene.questions if q.kind in ("colour", "object", "existence"))
NAMES = ("hyper-gated", "hyper-fused")

# %% [markdown] minutes=9
# ## 1. Three places for a picture
#
# | | the picture's tokens stand | new weights | example |
# | --- | --- | --- | --- |
# | concatenation | in the sequence, as if they were words | none in the decoder | LLaVA |
# | cross-attention blocks | outside it, read by new blocks *between* the layers | whole blocks: queries, keys, values, output, MLP | Flamingo (lesson 03) |
# | hyper attention | outside it, read *inside* the self-attention of a few layers | keys and values of the picture, a gate | mPLUG-Owl3 |
#
# Hyper attention changes little. A layer of the decoder computes queries $Q$, keys $K$ and values $V$ of the words. The **same queries** now also ask the picture. The layer's norm in front, its query projection and its output projection are shared; only keys and values
# of the picture have a projection of their own:
#
# $$ O_t = \operatorname{softmax}\!\Big(\tfrac{Q K^\top}{\sqrt{d}} + \text{causal}\Big) V, \qquad O_v = \operatorname{softmax}\!\Big(\tfrac{Q K_v^\top}{\sqrt{d}}\Big) V_v, \qquad H' = H + \operatorname{mix}(O_t, O_v)\, W_o $$
#
# Everything else is the layer as it was. Two ways to mix were released: a **gate** (first release), and **one softmax** over both (second). The connectors of this lesson were trained for the embedded VLM, as those of lesson 03, in four of its eight layers; layers are 0-based here.

# %%
fitted = {name: store.fit(vlm, vtc.registry.resolve(name)) for name in NAMES}
gated, fused = (each.connector for each in fitted.values())
spec, dims = vlm.spec, Dims.of(vlm.config)
hyper_layers = sorted(int(k) for k in gated.layers)
assert hyper_layers == sorted(int(k) for k in fused.layers) == [0, 2, 4, 6]

count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
projections = sum(count(layer) for layer in gated.layers.values())
assert projections == 4 * (spec.hidden + 1) * 2 * spec.kv_heads * spec.head_dim  # with biases
decoder = fitted["hyper-gated"].model.model.language_model
kit.facts({
    "one decoder layer": f"{count(decoder.layers[0]):,} parameters",
    "keys and values of the picture, one layer": f"{count(gated.layers['0']):,}",
    "gate of one layer": f"{gated.gates['0'].numel():,}",
    "MLP that brings patches to the decoder's width": f"{count(gated.linear_1) + count(gated.linear_2):,}",
    "new in all four layers, share of the decoder": f"{100 * (projections + 4 * gated.gates['0'].numel()) / count(decoder):.1f} %",
})  # fmt: skip

# %% [markdown]
# What enters? The words of the prompt **without** the picture, and outside the sequence the 576 patches, each through LLaVA's two-layer MLP. The picture's **place** is the position of the first word behind it; words before it do not see it.

# %%
tower = vlm.model.model.vision_tower
features = tower(vlm.inputs([scene.image]).pixels, output_hidden_states=True).hidden_states[
    -2
]  # [1, 577, C], CLS first
ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, question.text))
place = ids.index(vlm.config.image_token_id)
ids = ids[:place] + ids[place + 1 :]
sees = torch.arange(len(ids)) >= place  # [S]
tokens = gated(features, vlm.shape.grid, 576).tokens[0]  # [576, D]
words = decoder.embed_tokens(torch.tensor(ids))  # [S, D]
say(
    f"{len(ids)} words, {place} of them before the picture, and {len(tokens)} patches outside the sequence. The sequence is {len(ids)} long."
)

# %% [markdown] minutes=14
# ## 2. The picture's keys and values
#
# **Rotary positions.** RoPE turns a query at position $i$ and a key at position $j$ by angles proportional to their positions; their product then depends on $i - j$ alone. Dimension $a$ of a head is turned together with dimension $a + d/2$.

# %%
heads, width = spec.heads, spec.head_dim


def turn(x, positions):
    """x [heads, n, d], positions [n] -> the same with rotary positions."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * decoder.rotary_emb.inv_freq  # [n, d / 2]
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1)


def split(x, n_heads):
    """[n, heads * d] -> [heads, n, d]"""
    return x.unflatten(-1, (n_heads, -1)).transpose(0, 1)


def text_states(layer, h):
    """Queries, keys and values of the words h [S, D], [heads, S, d] each."""
    x, at = layer.input_layernorm(h), torch.arange(len(h))
    q, k, v = (split(getattr(layer.self_attn, f"{name}_proj")(x), heads) for name in "qkv")
    return turn(q, at), turn(k, at), v


q, k, v = text_states(decoder.layers[0], words)
rope = decoder.rotary_emb(words[None], torch.arange(len(words))[None])
torch.testing.assert_close(turn(v, torch.arange(len(words)))[None], apply_rope(v[None], rope))  # as the package turns

# %% [markdown]
# **MI-RoPE.** Which position has a patch that stands nowhere? All patches of a picture share one: the place of the picture in the text. (mPLUG-Owl3 puts a marker there, one token for each picture; here the first word behind the picture marks it.) So a word knows how far back a picture lies, and which of several it is. Where a patch lies *in* the picture, it
# does not learn from there.
#
# The new projection makes key and value in one go, **interleaved by head**: key of head 0, value of head 0, key of head 1, and so on. In front of it stands the layer's own `input_layernorm`, the one that the words pass.

# %% [exercise] difficulty=medium minutes=6
# Write keys and values of the picture for one layer. `project` is the new linear layer, `norm` the layer's norm, `place` a whole number. `split` and `turn` from above may help.


# %% [solution]
def picture_states(project, norm, tokens, place, heads):
    """tokens [m, D] -> keys, values, [heads, m, d] each."""
    # BEGIN SOLUTION
    pairs = project(norm(tokens)).unflatten(-1, (heads, 2, -1))  # [m, heads, 2, d]
    key, value = pairs[:, :, 0].transpose(0, 1), pairs[:, :, 1].transpose(0, 1)
    return turn(key, torch.full((len(tokens),), place)), value
    # END SOLUTION


# %% [check]
numbers = torch.arange(4.0 * width).repeat(3, 1)  # a "projection" that tells where its numbers land: 2 heads
got = picture_states(lambda x: numbers, lambda x: x, torch.zeros(3, 8), 0, 2)
check(
    len(got) == 2 and tuple(got[0].shape) == (2, 3, width),
    f"Two tensors of the shape [heads, m, d], please: here [2, 3, {width}].",
)
check_equal(
    got[1][:, 0, 0],
    [width, 3 * width],
    f"With d = {width}, numbers {width} to {2 * width - 1} are the value of head 0, and the last {width} that of head 1.",
)
check_equal(
    got[0][:, 0, 0],
    [0, 2 * width],
    f"Keys at place 0 are not turned: the first {width} numbers are the key of head 0, numbers {2 * width} to {3 * width - 1} that of head 1.",
)
for layer_number in hyper_layers:
    wanted = gated.layer_memory(decoder, tokens[None], place)[layer_number]
    layer_norm = decoder.layers[layer_number].input_layernorm
    got = picture_states(gated.layers[str(layer_number)], layer_norm, tokens, place, spec.kv_heads)
    check_equal(
        got[0],
        wanted[0][0],
        f"Layer {layer_number}: the trained connector has other keys. All stand at place {place}.",
        1e-4,
    )
    check_equal(got[1], wanted[1][0], f"Layer {layer_number}: the trained connector has other values.", 1e-4)
done("keys and values equal those of the trained connector, in all four layers")  # fmt: skip

# %% [hint]
# `unflatten(-1, (heads, 2, -1))` splits the last axis into head, key or value, and dimension. `turn` wants one position per token.


# %% [mistake] why="Keys first and values after them, instead of interleaved by head."
def picture_states(project, norm, tokens, place, heads):
    key, value = (split(part, heads) for part in project(norm(tokens)).chunk(2, -1))
    return turn(key, torch.full((len(tokens),), place)), value


# %% [mistake] why="Patches get positions of their own, one after another, as in a sequence."
def picture_states(project, norm, tokens, place, heads):
    pairs = project(norm(tokens)).unflatten(-1, (heads, 2, -1))
    return turn(pairs[:, :, 0].transpose(0, 1), place + torch.arange(len(tokens))), pairs[:, :, 1].transpose(0, 1)


# %% [mistake] why="The norm is left out."
def picture_states(project, norm, tokens, place, heads):
    pairs = project(tokens).unflatten(-1, (heads, 2, -1))
    return turn(pairs[:, :, 0].transpose(0, 1), torch.full((len(tokens),), place)), pairs[:, :, 1].transpose(0, 1)


# %% [markdown]
# Two consequences, which can be tested. First, scores depend on the *distance* between word and picture: shift both, and nothing changes. Second, patches have no order: permute them, and nothing changes.

# %%
held = gated.layer_memory(decoder, tokens[None], place)  # layer -> keys, values [1, heads, m, d]
further = gated.layer_memory(decoder, tokens[None], place + 50)[0][0][0]
moved = turn(
    split(decoder.layers[0].self_attn.q_proj(decoder.layers[0].input_layernorm(words)), heads),
    torch.arange(len(words)) + 50,
)
torch.testing.assert_close(q @ held[0][0][0].transpose(1, 2), moved @ further.transpose(1, 2), atol=1e-3, rtol=1e-3)


def layer_zero(patches):
    """Layer 0 of the package on the words, with these patches outside the sequence."""
    memory = gated.layer_memory(decoder, patches[None], place)
    return gated.run(0, decoder.layers[0], words[None], memory, sees, attention_mask=None, position_embeddings=rope)[0]


shuffle = torch.randperm(576, generator=torch.Generator().manual_seed(0))
torch.testing.assert_close(layer_zero(tokens), layer_zero(tokens[shuffle]), atol=1e-4, rtol=1e-3)
say("Shifted by 50 positions: the same scores. Patches in another order: the same output.")  # fmt: skip

# %% [quiz]
# The order of the patches does not matter to a hyper layer. Can the model still answer "left or right of"?
#
# - [ ] No, it sees a bag of patches
#   A bag, but of patches that carry their place with them.
# - [x] Yes: the tower has added a position to every patch, and its features may carry it
#   The vision tower's position embedding went in before its first layer. Whether enough of it is left in the features, training decides. With a projector that averages away places it would be lost for good.
# - [ ] Yes, because of MI-RoPE
#   MI-RoPE gives all patches of a picture one position. It tells pictures apart, not patches.

# %% [markdown]
# **Several pictures.** Each has its place, and a word sees the pictures whose place is not behind it. Here with two pictures at places 3 and 6:

# %%
places = torch.tensor([3, 6])
mask = torch.arange(9)[:, None] >= places.repeat_interleave(4)  # [words, 2 x 4 patches]
kit.matrix(mask.float(), "patches: four of each picture", "word", "Which words see which patches: places 3 and 6")

# %% [markdown] minutes=13
# ## 3. First release: a gate
#
# Both attentions run side by side, with the heads concatenated. A learned vector $G$ blends them channel by channel, before the shared output projection:
#
# $$ O = (1 - g) \odot O_t + g \odot O_v, \qquad g = \sigma(G), \quad G \in \mathbb{R}^{D} $$
#
# Words before the picture have nothing to read: for them $g$ is 0 and $O = O_t$. The gate starts at $G = 0$, that is $g = 0.5$.

# %%


def attend(q, k, v, mask=None):
    """q [heads, S, d], k, v [heads, n, d], mask bool [S, n] -> heads side by side [S, heads * d]."""
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


causal = torch.ones(len(words), len(words), dtype=torch.bool).tril()
key, value = (part[0] for part in held[0])
o_text, o_picture = attend(q, k, v, causal), attend(q, key, value)  # [S, D] each
torch.testing.assert_close(
    o_picture,
    F.scaled_dot_product_attention(q, key, value).transpose(0, 1).flatten(1),  # the kernel that the package uses
    atol=1e-4,
    rtol=1e-3,
)  # fmt: skip

# %% [exercise] difficulty=easy minutes=5
# Blend the two. `gate` is the learned vector $G$ as it is stored, `sees` tells which words may see the picture.


# %% [solution]
def blend(o_text, o_picture, gate, sees):
    """o_text, o_picture [S, D], gate [D], sees bool [S] -> [S, D]."""
    # BEGIN SOLUTION
    g = gate.sigmoid() * sees[:, None]
    return (1 - g) * o_text + g * o_picture
    # END SOLUTION


# %% [check]
check_equal(
    blend(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(1), torch.tensor([False, True])),
    [[0.0], [0.5]],
    "A stored 0 is a gate of one half; a word that does not see the picture keeps its text.",
)
opened = copy.deepcopy(gated)  # with gates that differ from channel to channel, so that everything shows
for parameter in opened.gates.values():
    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
mixed = blend(o_text, o_picture, opened.gates["0"], sees)
check(
    tuple(mixed.shape) == tuple(o_text.shape), f"The shape stays {tuple(o_text.shape)}; yours is {tuple(mixed.shape)}."
)
first_layer = decoder.layers[0]
ours = words + first_layer.self_attn.o_proj(mixed)
ours = ours + first_layer.mlp(first_layer.post_attention_layernorm(ours))
theirs = opened.run(0, first_layer, words[None], held, sees, attention_mask=None, position_embeddings=rope)[0]
check_equal(ours[:place], theirs[:place], "Words before the picture come out otherwise: they must not read it.", 1e-4)
check_equal(ours, theirs, "The package's layer 0 with these gates gives another output.", 1e-4)
done("a whole layer of gated hyper attention equals the package's")  # fmt: skip

# %% [hint]
# `sees[:, None]` has the shape [S, 1]; times the gate it is 0 in the rows of words that do not see.


# %% [mistake] why="The stored vector is taken for the gate itself."
def blend(o_text, o_picture, gate, sees):
    g = gate * sees[:, None]
    return (1 - g) * o_text + g * o_picture


# %% [mistake] why="All words read the picture, those before it, too."
def blend(o_text, o_picture, gate, sees):
    g = gate.sigmoid()
    return (1 - g) * o_text + g * o_picture


# %% [mistake] why="The picture is added; the text is not taken back by as much."
def blend(o_text, o_picture, gate, sees):
    return o_text + gate.sigmoid() * sees[:, None] * o_picture


# %% [slide]
# ## What the gates learned
#
# One value for each channel of each of four layers, sorted. All began at 0.5. Above: more picture, below: more text.

# %% slide
values = {f"layer {k}": gated.gates[str(k)].sigmoid().sort().values.tolist() for k in hyper_layers}
kit.lines(
    {name: (range(len(g)), g) for name, g in values.items()},
    "channels, sorted",
    "gate",
    "Gates of the trained connector",
)

# %%
every = torch.cat([gated.gates[str(k)].sigmoid() for k in hyper_layers])
say(f"""
The {len(every)} gates lie between **{every.min():.2f}** and **{every.max():.2f}**, with a mean of {every.mean():.2f}. A gate moves by about the learning rate per step at most, so how far they get is also a matter of how long the training was: little movement does not prove that the gate is of no use.
""")

# %% [markdown]
# **Is 0.5 a gentle start?** Flamingo's gates start closed, and the language model is at first what it was, to the last bit (lesson 03). Here half of every channel is replaced on the first day. The layer's own output, with fresh projections, changes:

# %%
torch.manual_seed(0)
fresh = HyperGatedConnector(dims).eval()
original = vlm.model.model.language_model.layers[0]  # the decoder before any tuning
plain_words = vlm.model.model.language_model.embed_tokens(torch.tensor(ids))
untouched = original(plain_words[None], attention_mask=None, position_embeddings=rope)[0]
beside = fresh.layer_memory(vlm.model.model.language_model, fresh(features, vlm.shape.grid, 576).tokens, place)
touched = fresh.run(0, original, plain_words[None], beside, sees, attention_mask=None, position_embeddings=rope)[0]
change = [(touched[i] - untouched[i]).norm() / untouched[i].norm() for i in range(len(ids))]
assert max(change[:place]) < 1e-5 < min(change[place:])
say(
    f"Words before the picture: no change. Words behind it: their states after layer 0 change by {100 * min(change[place:]):.0f} to **{100 * max(change):.0f} %** of their norm. Training must repair that first."
)

# %% [markdown]
# **An adaptive gate.** The paper describes a gate that is computed from the state of the word, $g_i = \sigma(h_i W_g + b_g)$, so that each word decides how much it needs to look. In the code of the first release, as far as it could be read (in two ports), the gate is the vector $G$, the same for every word. The first contains the second:

# %%
states = decoder.layers[0].input_layernorm(words)
W_gate, b_gate = torch.zeros(spec.hidden, spec.hidden), gated.gates["0"]
adaptive = (states @ W_gate + b_gate).sigmoid()  # [S, D]
assert torch.equal(adaptive, gated.gates["0"].sigmoid().expand(len(words), -1))
W_gate = 0.3 * torch.randn(spec.hidden, spec.hidden, generator=torch.Generator().manual_seed(2))
adaptive = (states @ W_gate + b_gate).sigmoid()
assert adaptive.std(0).mean() > 0  # with any other W, words differ
say(f"With $W_g = 0$ the adaptive gate is the vector. It would cost {spec.hidden * spec.hidden:,} more parameters per layer here, and {3584 * 3584 / 1e6:.1f} million in the 7B model. No weights for it are known, so the package has none.")  # fmt: skip

# %% [quiz]
# Two words ask the same layer: "what" and "colour". Which part of the gated hyper layer can make one of them look more at the picture than the other?
#
# - [ ] The gate: it is learned
#   It is learned, but it is one vector for all words. For both of them channel 7 has the same share of picture.
# - [x] Only what comes out of the two attentions
#   $O_t$ and $O_v$ depend on the word, the shares do not. A word that finds nothing in the picture still gets $g \odot O_v$: a softmax always adds up to 1.
# - [ ] The query projection of the picture
#   There is none: the words' own queries are used.

# %% [markdown] minutes=16
# ## 4. Second release: one softmax
#
# No gate. Keys and values of picture and words are put side by side, and **one** softmax shares the attention out over both:
#
# $$ O = \operatorname{softmax}\!\Big(\tfrac{Q\,[K_v;\, K]^\top}{\sqrt{d}} + \text{mask}\Big)\,[V_v;\, V] $$

# %%
lm = fitted["hyper-fused"].model.model.language_model  # the decoder that was tuned with it
own_words = lm.embed_tokens(torch.tensor(ids))
memory = fused.layer_memory(lm, fused(features, vlm.shape.grid, 576).tokens, place)
q2, k2, v2 = text_states(lm.layers[0], own_words)
key2, value2 = (part[0] for part in memory[0])

both = torch.cat([sees[:, None].expand(-1, 576), causal], 1)  # [S, 576 + S]
joint = attend(q2, torch.cat([key2, k2], 1), torch.cat([value2, v2], 1), both)  # [S, D]
rope2 = lm.rotary_emb(own_words[None], torch.arange(len(ids))[None])
after = own_words + lm.layers[0].self_attn.o_proj(joint)
after = after + lm.layers[0].mlp(lm.layers[0].post_attention_layernorm(after))
package = fused.run(0, lm.layers[0], own_words[None], memory, sees, attention_mask=None, position_embeddings=rope2)[0]
torch.testing.assert_close(after, package, atol=1e-3, rtol=1e-3)
say("Layer 0 with one softmax equals the package's.")

# %% [markdown]
# The gate is gone, or so it seems. Let $s$ be the scores of a word in one head. A softmax over two groups of keys is a blend of the softmax over each of them:
#
# $$ O = (1 - g)\, O_t + g\, O_v, \qquad g = \frac{\sum_{j \in \text{picture}} e^{s_j}}{\sum_{j \in \text{picture}} e^{s_j} + \sum_{j \in \text{words}} e^{s_j}} $$
#
# So it *is* a gate: one number for each **word and head**, computed from the state of the word. That is adaptive, and it costs no parameter.

# %% [exercise] difficulty=hard minutes=6
# Compute that $g$. Words before the picture have $g = 0$; a word sees the words up to itself. Mind that $e^{s}$ overflows for large $s$.


# %% [solution]
def implied_gate(q, k, key, sees):
    """q, k [heads, S, d] of the words, key [heads, m, d] of the picture, sees bool [S] -> g [heads, S]."""
    # BEGIN SOLUTION
    scale, n = q.shape[-1] ** -0.5, q.shape[1]
    words = (q @ k.transpose(1, 2) * scale).masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
    picture = q @ key.transpose(1, 2) * scale
    difference = picture.logsumexp(-1) - words.logsumexp(-1)
    return difference.sigmoid() * sees
    # END SOLUTION


# %% [check]
zero = torch.zeros(1, 3, 4)
even = implied_gate(zero, zero, torch.zeros(1, 6, 4), torch.tensor([False, True, True]))
check_equal(even, [[0, 6 / 8, 6 / 9]], "All scores equal: word 1 sees 6 patches and 2 words, word 2 sees 3 words.")
large = implied_gate(40 * torch.ones(1, 1, 4), 40 * torch.ones(1, 1, 4), 40 * torch.ones(1, 3, 4), torch.tensor([True]))
check_equal(large, [[0.75]], "Scores of 3,200 each, 3 patches and 1 word: use logsumexp.")
g = implied_gate(q2, k2, key2, sees)
check(
    tuple(g.shape) == (heads, len(ids)),
    f"One number per head and word: [{heads}, {len(ids)}]; yours is {tuple(g.shape)}.",
)
wide = g.T.repeat_interleave(width, 1)  # [S, D], the same for all channels of a head
rebuilt = (1 - wide) * attend(q2, k2, v2, causal) + wide * attend(q2, key2, value2)
check_equal(rebuilt, joint, "Blended with your gate, the two attentions are not what one softmax gives.", 1e-4)
done("one softmax = two softmaxes and this gate")  # fmt: skip

# %% [hint]
# With $a$ and $b$ the logarithms of the two sums (`torch.logsumexp`), $g = e^a / (e^a + e^b) = \sigma(a - b)$.


# %% [mistake] why="Exponentials without logsumexp: infinity over infinity."
def implied_gate(q, k, key, sees):
    n = q.shape[1]
    words = ((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).exp() * torch.ones(n, n).tril()).sum(-1)
    picture = (q @ key.transpose(1, 2) / q.shape[-1] ** 0.5).exp().sum(-1)
    return picture / (picture + words) * sees


# %% [mistake] why="Words see later words: the causal mask is missing."
def implied_gate(q, k, key, sees):
    scale = q.shape[-1] ** -0.5
    picture, words = (q @ x.transpose(1, 2) * scale for x in (key, k))
    return (picture.logsumexp(-1) - words.logsumexp(-1)).sigmoid() * sees


# %% [markdown]
# If all scores were equal, $g$ would be $m / (m + i + 1)$ for word $i$ with $m$ patches: the many patches outvote the few words by number alone. So look at what the trained layers do, too.

# %%
gates, h = [], own_words[None]
how = {"attention_mask": None, "position_embeddings": rope2}
for number, layer in enumerate(lm.layers):
    if number in memory:
        query, text_key, _ = text_states(layer, h[0])
        scale = width**-0.5
        on_words = (query @ text_key.transpose(1, 2) * scale).masked_fill(~causal, -torch.inf).logsumexp(-1)
        on_picture = (query @ memory[number][0][0].transpose(1, 2) * scale).logsumexp(-1)
        gates.append(((on_picture - on_words).sigmoid() * sees).mean(0))  # [S]
    h = fused.run(number, layer, h, memory, sees, **how)
gates = torch.stack(gates)  # [4, S], mean over the heads
by_number = 576 / (576 + torch.arange(len(ids)) + 1) * sees

# %% [slide]
# ## One softmax is a gate per word
#
# Share of a word's attention that goes to the picture, mean over the heads. Trained weights, one question.

# %% slide
names = [vlm.tokenizer.decode([i]).strip() or "·" for i in ids]
shown = kit.matrix(
    torch.cat([gates, by_number[None]]),
    "word",
    "layer",
    "Share of attention on the picture; last row: if all scores were equal",
)
shown.update_xaxes(tickvals=list(range(len(ids))), ticktext=names)
shown.update_yaxes(tickvals=list(range(5)), ticktext=[*map(str, hyper_layers), "equal"])

# %%
behind = gates[:, sees]
say(f"""
Over the words behind the picture, the share is {behind.mean():.2f} on average and runs from **{behind.min():.2f}** to **{behind.max():.2f}**; equal scores would give {by_number[sees].mean():.2f}. Between words of one layer it differs by up to {(behind.amax(1) - behind.amin(1)).max():.2f}: that is what the vector of the first release cannot do.
""")

# %% [markdown]
# **Own or shared projections?** Suppose the picture had no $W^{vis}_{kv}$ and used the layer's own $W_k$ and $W_v$. Then one softmax over both is something known: the rows of the *words* in an ordinary layer, over a sequence that contains the picture, with all patches at one position.

# %%
patches = fused(features, vlm.shape.grid, 576).tokens[0]
attention, norm = lm.layers[0].self_attn, lm.layers[0].input_layernorm
shared_key = turn(split(attention.k_proj(norm(patches)), heads), torch.full((576,), place))
shared_value = split(attention.v_proj(norm(patches)), heads)
shared = attend(q2, torch.cat([shared_key, k2], 1), torch.cat([shared_value, v2], 1), both)
shared = own_words + attention.o_proj(shared)
shared = shared + lm.layers[0].mlp(lm.layers[0].post_attention_layernorm(shared))

position = torch.cat([torch.arange(place), torch.full((576,), place), torch.arange(place, len(ids))])
sequence = torch.cat([own_words[:place], patches, own_words[place:]])  # the picture in the sequence
lower = torch.ones(len(sequence), len(sequence), dtype=torch.bool).tril()
ordinary = lm.layers[0](
    sequence[None],
    attention_mask=lower[None, None],
    position_embeddings=lm.rotary_emb(sequence[None], position[None]),
)[0]
torch.testing.assert_close(shared, torch.cat([ordinary[:place], ordinary[place + 576 :]]), atol=1e-3, rtol=1e-3)
say("With shared projections, layer 0 gives the words what concatenation gives them.")

# %% [markdown]
# So the fused version differs from concatenation in three points: keys and values of the picture have projections of their own; all patches stand at one position; and the patches stay **as they came**. In a sequence each layer rewrites them, and the words of layer 4 read what layer 3 made of them.
# Outside the sequence, layers 0 and 6 read the same 576 vectors. That is where the work is saved, and what the new projections may have to make up for.

# %% [instructor]
# The derivation of section 4 is short and worth the board: split the softmax into two sums, factor out. Ask first whether the second release is "without a gate", and let them vote. Ask then what happens to the share if the picture is given at 1,152 patches instead of 576: it grows although
# nothing new is to be seen. With the vector gate it would not. For those who know them: the same arithmetic is behind flash attention's merging of blocks.

# %% [markdown] minutes=8
# ## 5. A whole pass by hand
#
# Four layers read the picture, the others are left alone. Keys and values of the picture are computed once and **held**; the answer's words read them again at every step.

# %%
h, how = words[None], {"attention_mask": None, "position_embeddings": rope}
looked = {}
for number, layer in enumerate(decoder.layers):
    if number in held:
        query, text_key, text_value = text_states(layer, h[0])
        key, value = (part[0] for part in held[number])
        g = gated.gates[str(number)].sigmoid() * sees[:, None]
        mixed = (1 - g) * attend(query, text_key, text_value, causal) + g * attend(query, key, value)
        x = h[0] + layer.self_attn.o_proj(mixed)
        h = (x + layer.mlp(layer.post_attention_layernorm(x)))[None]
        looked[f"layer {number}"] = (query[:, -1:] @ key.transpose(1, 2) / width**0.5).softmax(-1).mean(0)[0]
    else:
        h = layer(h, **how)
by_hand = fitted["hyper-gated"].model.lm_head(decoder.norm(h[0, -1])).argmax().item()

run = vtc.run(vlm, scene.image, question.text, method="hyper-gated")
assert by_hand == run.token_ids[0]
assert run.trace.schedule == [0] * 8 and run.kv_lengths == [len(ids) + len(run.token_ids) - 1] * 8
say(
    f"**{question.text}** By hand the answer begins with the same token as the package's: {run.answer}. Truth: {question.answer}. Visual tokens in every layer: 0. Entries in every layer's cache: {run.kv_lengths[0]}, all of them words."
)

# %% [slide]
# ## Where the last word looks
#
# Attention from the last word of the prompt to the patches, in the four hyper layers. Mean over the heads.

# %% slide
kit.heat(
    scene.image,
    {name: (a + 1e-6).log() for name, a in looked.items()},
    title=f"Gated hyper attention: “{question.text}” (logarithm)",
)

# %%
inside = torch.from_numpy(question.evidence).flatten()
rows = [
    [name, f"{100 * a[inside].sum():.1f} %", f"{a[inside].mean() / a.mean():.1f} times"] for name, a in looked.items()
]
assert all(abs(float(a.sum()) - 1) < 1e-4 for a in looked.values())
kit.table(rows, ["last word", "attention on the evidence", "per patch, against the average patch"])
say(
    f"The evidence is {int(inside.sum())} of 576 patches, {100 * inside.float().mean():.1f} %. A map shows where a query looked, not what the answer used: lesson 03 tests such maps by occlusion."
)

# %% [markdown] minutes=14
# ## 6. What it costs
#
# With $T$ words, $m$ patches, $L$ layers of which $B$ are hyper layers, width $d$, keys of all heads together of width $d_{kv}$, inner width $f$:
#
# | | in the sequence | hyper attention |
# | --- | --- | --- |
# | once per picture, matrices | $2 m L\,(2d^2 + 2 d\, d_{kv} + 3 d f)$ | $2 m B\,(2 d\, d_{kv})$ |
# | attention in the prefill | patches with patches and words with patches, in $L$ layers | $4\, T m B\, d$: words with patches, in $B$ layers |
# | held for the picture, numbers | $2 m L\, d_{kv}$ | $2 m B\, d_{kv}$ |
# | each decode step | $4 m L\, d$ | $4 m B\, d$ |
# | weights that a decode step reads | as before | as before |
#
# A patch passes no query, no output projection and no MLP of the decoder. And $B$ is small.

# %% [exercise] difficulty=medium minutes=5
# Count what hyper attention adds to a pass of `text` words with `patches` outside the sequence: keys and values once, then scores and their use for every word. No mask saves anything: words before the picture are computed, too, and discarded. 2 FLOPs per multiply-add. `spec` has `hidden`, `heads`, `kv_heads`, `head_dim`.


# %% [solution]
def hyper_flops(spec, blocks, text, patches):
    """FLOPs that `blocks` hyper layers add to a prefill."""
    # BEGIN SOLUTION
    keys = 2 * patches * spec.hidden * 2 * spec.kv_heads * spec.head_dim
    attention = 2 * 2 * text * patches * spec.heads * spec.head_dim
    return blocks * (keys + attention)
    # END SOLUTION


# %% [check]
for name in NAMES:
    one = vtc.run(vlm, scene.image, question.text, method=name, max_new_tokens=1)
    text_tokens = one.kv_lengths[0]
    alone = vtc.cost.run_flops(vlm.spec, [0] * 8, text_tokens)
    added = one.flops["prefill"] - alone["prefill"] + one.flops["projector"] - alone["projector"]  # without the MLP
    check_equal(
        hyper_flops(vlm.spec, 4, text_tokens, 576),
        added,
        f"{name}, {text_tokens} words: the run counts otherwise.",
        1e-9,
    )
owl = vtc.cost.SPECS["qwen2.5-vl-7b"]  # its decoder is of the size of Qwen2-7B: grouped keys
check_equal(
    hyper_flops(owl, 4, 0, 729) / 1e9,
    4 * 2 * 729 * 3584 * 1024 / 1e9,
    "mPLUG-Owl3: 4 layers, 729 patches, 3584 to 2 x 4 x 128 = 1024 numbers. Keys have fewer heads than queries.",
    1e-9,
)
done("the same count as in the runs, and 21 GFLOPs per picture for the size of mPLUG-Owl3")  # fmt: skip

# %% [hint]
# Key and value of a patch: from `hidden` numbers to `2 * kv_heads * head_dim`. A score is a product over `head_dim`, in each of `heads` heads; the use of the weights costs the same again.


# %% [mistake] why="Queries and output projection are counted for the patches, too."
def hyper_flops(spec, blocks, text, patches):
    keys = 2 * patches * (2 * spec.hidden**2 + 2 * spec.hidden * spec.kv_heads * spec.head_dim)
    return blocks * (keys + 4 * text * patches * spec.heads * spec.head_dim)


# %% [mistake] why="Keys as wide as queries: wrong with grouped heads."
def hyper_flops(spec, blocks, text, patches):
    return blocks * (4 * patches * spec.hidden**2 + 4 * text * patches * spec.hidden)


# %% [markdown]
# Now at the size of mPLUG-Owl3: a decoder of 28 layers, four of them hyper layers ($0, 8, 16, 24$; the paper counts 1, 9, 17, 25), 729 patches per picture. Only the decoder is counted: tower and MLP are the same for both.

# %%
owl_spec, BLOCKS, PATCHES, TEXT = vtc.cost.SPECS["qwen2.5-vl-7b"], 4, 729, 100


def in_sequence(pictures):
    """Prefill FLOPs with all patches in the sequence."""
    return vtc.cost.run_flops(owl_spec, [PATCHES * pictures] * owl_spec.layers, TEXT)["prefill"]


def outside_it(pictures):
    """Prefill FLOPs with all patches outside the sequence, keys and values included."""
    m, kv = PATCHES * pictures, owl_spec.kv_heads * owl_spec.head_dim
    added = vtc.cost.linear_flops(m, owl_spec.hidden, 2 * kv) + vtc.cost.attention_flops(
        TEXT * m, owl_spec.heads, owl_spec.head_dim
    )
    return vtc.cost.run_flops(owl_spec, [0] * owl_spec.layers, TEXT)["prefill"] + BLOCKS * added


def cache_mb(pictures, layers):
    """Megabytes of keys and values of the pictures in so many layers, bfloat16."""
    return 2 * 2 * layers * owl_spec.kv_heads * owl_spec.head_dim * PATCHES * pictures / 1e6


several = [1, 2, 4, 8, 16, 32]
assert cache_mb(1, owl_spec.layers) * 1e6 == vtc.cost.kv_bytes(owl_spec, [PATCHES] * owl_spec.layers, 0)
assert in_sequence(1) > outside_it(1) and in_sequence(32) / outside_it(32) > in_sequence(1) / outside_it(1)

# %% [slide]
# ## Pictures in the sequence, or outside it
#
# Prefill of a 7B decoder with 100 words, 729 patches per picture: counted, not measured.

# %% slide
kit.lines(
    {
        "in the sequence": (several, [in_sequence(p) / 1e12 for p in several]),
        "hyper attention in 4 of 28 layers": (several, [outside_it(p) / 1e12 for p in several]),
    },
    "pictures",
    "TFLOPs of the prefill",
    "Decoder of the size of mPLUG-Owl3 (counted, both axes logarithmic)",
).update_xaxes(type="log", tickvals=several).update_yaxes(type="log", tickvals=[1, 2, 5, 10, 20, 50, 100, 200, 500])

# %%
reach = next(
    n for n in range(1, 10000) if vtc.cost.run_flops(owl_spec, [n] * owl_spec.layers, TEXT)["prefill"] > outside_it(1)
)
weights, new = vtc.cost.weight_bytes(owl_spec)["prefill"] / 2, BLOCKS * (3584 * 1024 + 1024 + 3584)
block = (
    2 * owl_spec.hidden**2 + 3 * owl_spec.hidden * owl_spec.intermediate + 2 * owl_spec.hidden * owl_spec.vision_width
)
kit.table(
    [
        [
            p,
            f"{in_sequence(p) / 1e12:.1f}",
            f"{outside_it(p) / 1e12:.1f}",
            f"{cache_mb(p, owl_spec.layers):.0f}",
            f"{cache_mb(p, BLOCKS):.0f}",
            PATCHES * p + TEXT,
            TEXT,
        ]
        for p in (1, 8, 32)
    ],
    [
        "pictures",
        "TFLOPs, in sequence",
        "TFLOPs, hyper",
        "held MB, in sequence",
        "held MB, hyper",
        "length, in sequence",
        "length, hyper",
    ],
)
say(f"""
In FLOPs of the decoder, one picture outside the sequence costs as much as **{reach} tokens** in it; in cache as much as **{PATCHES * BLOCKS / owl_spec.layers:.0f}** ({cache_mb(1, BLOCKS):.1f} MB). No patch is dropped for that: what is saved are layers, and in those four the picture's queries and MLPs.

It adds {new / 1e6:.1f} million parameters, {100 * new / weights:.2f} % of the decoder. A block of Flamingo's kind has {block / 1e6:.0f} million at these widths. And in a decode step the new projections are not even read: keys and values are at hand.
""")

# %% [quiz]
# The cache of the *words* has the same size in both layouts. Which claim about a long **answer** at batch 1 holds?
#
# - [ ] Hyper attention makes each decode step several times faster
#   At batch 1 a step is bound by reading the weights (lesson 00), and these are the same.
# - [x] A step reads less cache, and is otherwise the same
#   $4 m B d$ instead of $4 m L d$ of attention, and the bytes to go with it. Where weights rule, that shows little; at large batch or with dozens of pictures, where the cache rules, much.
# - [ ] Hyper attention is slower, as Flamingo's blocks are
#   Flamingo's blocks have MLPs and projections for every word. Here no word passes a new matrix.

# %% [markdown] minutes=7
# ## 7. In the embedded VLM
#
# Beside the two stand `llava-mlp`, all 576 patches in the sequence with the same training, and `trained-pool` at 64 tokens. As a control, the gated one is also asked about a plain grey picture: what it gets right there, it guesses from the question.

# %%
chosen = ["llava-mlp", f"trained-pool@{64 / 576}", *NAMES]
runs = vtc.compare(vlm, scene.image, question.text, chosen).runs
kit.results(runs, question)
reference, pooled, gated_run, fused_run = runs
assert gated_run.flops["prefill"] == fused_run.flops["prefill"] < pooled.flops["prefill"] < reference.flops["prefill"]
assert gated_run.flops["projector"] > reference.flops["projector"]
held_bytes = 4 * 4 * 2 * 576 * spec.kv_heads * spec.head_dim  # float32, four layers, keys and values
assert gated_run.kv_bytes == held_bytes + 4 * 2 * spec.kv_heads * spec.head_dim * sum(gated_run.kv_lengths)
say(
    f"No visual token, but {held_bytes / 1e6:.2f} MB are held for the picture: half of what 576 tokens take in eight layers. The stage `projector` contains keys and values of the picture."
)

# %% [markdown]
# "Evidence kept" is 100 % by construction: every patch is there to be read. Whether it *is* read, only answers tell. On held-out scenes, each kind of question equally often:

# %%
grey = Image.new("RGB", scene.image.size, (128, 128, 128))
asked = [(held_out.image, q_) for _, held_out, questions in balanced(64) for q_ in questions]
hits = {name: [] for name in (*chosen, "grey")}
for image, q_ in asked:
    for name in chosen:
        hits[name].append(measures.right(vtc.run(vlm, image, q_.text, method=name).answer, q_.answer))
for _, q_ in asked:  # on its own, so that the tower sees the grey picture once
    hits["grey"].append(measures.right(vtc.run(vlm, grey, q_.text, method="hyper-gated").answer, q_.answer))
accuracy = {name: share(found) for name, found in hits.items()}
title = {name: vtc.registry.get(name.partition("@")[0]).card.title for name in chosen}
title["grey"] = "Hyper attention, gated, on grey"
kit.table(
    [
        [title[name], f"{100 * a['accuracy']:.0f}", f"{100 * a['low']:.0f} to {100 * a['high']:.0f}"]
        for name, a in accuracy.items()
    ],
    ["64 questions", "right, %", "95 % interval"],
)

# %%
bar, blind = accuracy["llava-mlp"], accuracy["grey"]
verdict = lambda a, b: "above" if a["low"] > b["high"] else "below" if a["high"] < b["low"] else "not told apart from"  # noqa: E731
say(f"""
The gated version is {verdict(accuracy["hyper-gated"], blind)} its own guesses on a grey picture. Against all patches in the sequence, the gated version is {verdict(accuracy["hyper-gated"], bar)} them, the fused one {verdict(accuracy["hyper-fused"], bar)} them. Gated against fused: {verdict(accuracy["hyper-gated"], accuracy["hyper-fused"])}.
"Above" and "below" mean intervals that do not overlap; with 64 questions only large differences show.
""")

# %% [markdown]
# One small model, one short training on answers alone, one seed. mPLUG-Owl3 trains in three stages on far more data, at 28 layers. The starting points are not alike either: the decoder has learned to read patches *in* its sequence, and hyper attention asks it for something new. Whether that
# explains any difference found here is a guess; it was not tested.

# %% [instructor]
# Someone will ask why hyper attention is in a course on compression. Answer with section 6: the FLOPs of a few tokens in all layers, or the cache of a hundred, buy *all* patches in four layers. A method that keeps few tokens and this one solve the same problem, and neither table says which answers better.

# %% [markdown] minutes=4
# ## 8. What the paper reports, and how faithful this is

# %%
for name in NAMES:
    kit.report(name)

# %% [markdown]
# The algorithm follows two ports of the released code; the original modelling files were not at hand, and the abstract is what was read of the paper. How the new projections were initialised is not known. Not built here: several pictures per question, crops of a large picture, the adaptive gate of the paper's text.
#
# - `vtc_demo/connectors/hyper_attention.py`: both versions, a page and a half. `tests/connectors/test_connectors.py` holds them against loops over words and heads.
# - In the app: Compare, *Hyper attention, gated* beside *MLP projector*. Look at the cache and at the stage *prefill*.
# - Lesson 10 goes one step further: nothing is read by attention at all, the picture changes the weights.

# %% [slide]
# ## Take home
#
# - Shared: norm, queries, output projection. New: keys and values of the picture, and a gate, or one softmax.
# - One softmax **is** a gate: per word and head, without a parameter, and the number of patches votes.
# - Layers, queries and MLPs are saved, not patches: cheap in FLOPs, more expensive in cache.
