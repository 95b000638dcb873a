# /// lesson
# title = "VLoRA: weights instead of tokens"
# objectives = [
#   "apply a low-rank update thinly or merged, and say which is cheaper when",
#   "write a block of the generator that turns a picture into such updates, and follow its factors into the decoder",
#   "say what is computed once per picture and what for each word, and count both in FLOPs and bytes",
#   "compare with visual tokens at equal FLOPs, and test whether the answers depend on the picture at all",
# ]
# prerequisites = ["lesson 00: FLOPs and the KV cache", "cross-attention"]
# methods = ["vlora", "llava-mlp", "trained-pool", "q-former"]
# papers = ["2405.20339 VLoRA", "2106.09685 LoRA"]
# ///

# %% [slide]
# ## What if no token stands for the picture?
#
# - All other lessons make the sequence shorter. VLoRA leaves the picture **out of the sequence**.
# - A generator turns the picture into low-rank changes of the decoder's **weights**. Then the decoder reads the question alone.
# - Prefill and cache are those of a dozen words. What does it cost, and does the model still see?

# %%
import copy
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.connectors import store
from vtc_demo.connectors.base import Dims
from vtc_demo.connectors.vlora import TYPES, GeneratorBlock, VLoRAConnector
from vtc_demo.core import measures
from vtc_demo.engine.shape_only import Cost
from vtc_demo.evaluation.intervals import wilson

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=2)
colour = next(q for q in scene.questions if q.kind == "colour")
fitted = store.fit(vlm, vtc.connectors.VLoRA())  # the trained generator, and the decoder that was tuned with it
connector, lm = fitted.connector, fitted.model.model.language_model


def encode(picture):
    """The tower's features of a picture, [1, 577, C]: CLS first."""
    pixels = vlm.inputs([picture]).pixels
    return vlm.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]


with torch.inference_mode():
    features = encode(scene.image)
L, D, R = len(lm.layers), vlm.spec.hidden, connector.rank

# %% [markdown] minutes=11
# ## 1. A picture as a change of weights
#
# LoRA tunes a matrix $W \in \mathbb{R}^{\text{out} \times \text{in}}$ by adding a product of two thin ones: $W + B A^\top$ with $A \in \mathbb{R}^{\text{in} \times r}$, $B \in \mathbb{R}^{\text{out} \times r}$ and $r$ small. Both are learned and then fixed.
#
# VLoRA keeps $B$ a learned constant and lets a network **compute $A$ from the picture** $F$:
#
# $$ y = W x + B\, A(F)^\top x $$
#
# Read it from the right. $A^\top x$ asks the word $x$ for $r$ numbers; *what* is asked depends on the picture. $B$ turns the numbers into a change of the output. $B$ starts at zero, so before training the decoder is the unmodified one.

# %% [markdown]
# The product can be had in two ways. **Thin**: two small products per word. **Merged**: add $B A^\top$ to $W$ once per picture; then a word costs nothing extra.

# %% [exercise] difficulty=easy minutes=5
# Apply the update thinly. Never form a matrix of the size of $W$.


# %% [solution]
def updated(x, W, A, B):
    """x [S, in], W [out, in], A [in, r], B [out, r] -> [S, out]."""
    # BEGIN SOLUTION
    return x @ W.T + (x @ A) @ B.T
    # END SOLUTION


# %% [check]
torch.manual_seed(0)
x, W, A, B = torch.randn(5, 64), torch.randn(64, 64), torch.randn(64, 4), torch.randn(64, 4)
with FlopCounterMode(display=False) as counter:
    got = updated(x, W, A, B)
check(isinstance(got, torch.Tensor) and got.shape == (5, 64), "The output of 5 words is [5, 64].")
check_equal(
    got, x @ (W + B @ A.T).T, "The merged matrix gives another output. Which factor meets the word first?", 1e-4
)
thin = 2 * 5 * (64 * 64 + 4 * 64 + 64 * 4)
check(
    counter.get_total_flops() == thin,
    f"That took {counter.get_total_flops()} FLOPs; thin products take {thin}. Did you form a 64 x 64 matrix?",
)
done("an update of rank 4 for 5 words, without a second large matrix")

# %% [hint]
# Words are rows: $W x$ is `x @ W.T`. First from `in` to `r`, then from `r` to `out`.


# %% [mistake] why="Merged first: right, but more work than thin for so few words."
def updated(x, W, A, B):
    return x @ (W + B @ A.T).T


# %% [mistake] why="The two factors change places; the shapes fit only because W is square."
def updated(x, W, A, B):
    return x @ W.T + (x @ B) @ A.T


# %%
def break_even(width):
    """Words from which on merging a square update is cheaper: forming it takes 2 r width^2, a word thinly 4 r width."""
    return width / 2


assert break_even(D) * 2 * R * (D + D) == 2 * R * D * D  # the words thinly, and forming it once
say(f"""
Merging a square matrix of width {D} pays from **{break_even(D):.0f}** words on, at 4,096 from {break_even(4096):.0f}; the rank does not matter. A question has a dozen words and an answer a few.
""")

# %% [quiz]
# A server answers 16 questions about 16 pictures in one batch. How should the updates be applied?
#
# - [ ] Merged: the decoder then runs at its usual speed
#   Each picture needs its own $W + BA^\top$. Merged, the 16 samples would need 16 copies of the matrices, and no product could be shared.
# - [x] Thin: one product with the common $W$ for all samples, and two small ones per sample
#   $W$ is read once for the whole batch; only $A$ differs, and it is small.
# - [ ] Either way, it is the same function
#   The outputs are the same. Memory and time are not.

# %% [markdown] minutes=17
# ## 2. The generator
#
# The **perceptual weights generator** makes the factors. Per type of matrix there is one generator with a learned *query* for every layer that is updated: the query asks the picture what this matrix in this layer should become.
#
# $$ F' = W_{\text{in}} F + P, \qquad q \leftarrow q + \operatorname{SA}(\operatorname{LN} q), \qquad q \leftarrow q + \operatorname{CA}(\operatorname{LN} q,\, F'), \qquad q \leftarrow q + \operatorname{MLP}(\operatorname{LN} q) $$
#
# $P$ are learned positions, SA is attention among the queries of the layers, CA attention from the queries to the picture. As released, $F'$ is **not** normed. After the blocks a linear head writes each query out as a whole factor: $A_\ell = \operatorname{reshape}(W_{\text{head}} \operatorname{LN} q_\ell) \in \mathbb{R}^{\text{in} \times r}$.
#
# The types are q, k, v, o and m. The first four are the projections of attention. `m` is a branch **around the whole MLP**: $\operatorname{MLP}(x) + B_m A_m^\top x$. It cannot be merged into a matrix of the MLP, since a nonlinearity lies between; it stays a matrix of its own.
#
# Let us take the first block of the generator for q apart. Its trained weights go into torch's own attention module.

# %%
block = connector.layers["q"].blocks[0]


def torch_attention(ours):
    """The package's attention module as torch's."""
    heads, width = ours.heads, ours.q_proj.out_features
    out = nn.MultiheadAttention(width, heads, batch_first=True)
    three = [ours.q_proj, ours.k_proj, ours.v_proj]
    out.load_state_dict(
        {
            "in_proj_weight": torch.cat([p.weight for p in three]),
            "in_proj_bias": torch.cat([p.bias for p in three]),
            "out_proj.weight": ours.o_proj.weight,
            "out_proj.bias": ours.o_proj.bias,
        }
    )
    return out.eval()


parts = SimpleNamespace(
    self_norm=block.self_norm,
    self_attention=torch_attention(block.self_attention),
    cross_norm=block.cross_norm,
    cross_attention=torch_attention(block.cross),
    feed_norm=block.feed_norm,
    feed=block.feed,
)
with torch.inference_mode():
    picture = connector.enter(features[:, 1:]) + connector.place  # F', [1, 576, d]
queries = connector.layers["q"].queries.detach()  # [1, L, d]
say(f"F' is {tuple(picture.shape)}, the queries are {tuple(queries.shape)}: one for each of the {L} layers.")

# %% [exercise] difficulty=medium minutes=7
# Write one block. `parts` holds its modules; torch's attention is called as `attention(queries, keys, values)` and returns a pair, the output first.


# %% [solution]
def generator_block(parts, x, picture):
    """x [1, L, d], picture [1, n, d] -> [1, L, d]."""
    # BEGIN SOLUTION
    normed = parts.self_norm(x)
    x = x + parts.self_attention(normed, normed, normed)[0]
    x = x + parts.cross_attention(parts.cross_norm(x), picture, picture)[0]
    return x + parts.feed(parts.feed_norm(x))
    # END SOLUTION


# %% [check]
with torch.inference_mode():
    got = generator_block(parts, queries, picture)
    wanted = block(queries, picture)[0]
    check(got.shape == wanted.shape, f"The queries go on as {tuple(wanted.shape)}; yours are {tuple(got.shape)}.")
    fresh = GeneratorBlock(32, 4).eval()  # random weights: what training may have left small shows here
    loose = SimpleNamespace(
        self_norm=fresh.self_norm, self_attention=torch_attention(fresh.self_attention),
        cross_norm=fresh.cross_norm, cross_attention=torch_attention(fresh.cross), feed_norm=fresh.feed_norm, feed=fresh.feed,
    )  # fmt: skip
    some = [5 * torch.randn(1, n, 32, generator=torch.Generator().manual_seed(n)) + 2 for n in (3, 10)]
    check_equal(
        generator_block(loose, *some),
        fresh(*some)[0],
        "With random weights the package's block differs. Which inputs are normed, and what is added to what?",
        1e-4,
    )
check_equal(got, wanted, "On the real picture the package's block differs.", 1e-4)
done("one block of the generator")

# %% [hint]
# Pre-norm: the norm stands inside the branch, and the branch is added to what came in, un-normed. The picture is used as it is, for keys and values.


# %% [mistake] why="The picture is normed, too."
def generator_block(parts, x, picture):
    normed, picture = parts.self_norm(x), parts.cross_norm(picture)
    x = x + parts.self_attention(normed, normed, normed)[0]
    x = x + parts.cross_attention(parts.cross_norm(x), picture, picture)[0]
    return x + parts.feed(parts.feed_norm(x))


# %% [mistake] why="The branches are added to the normed queries."
def generator_block(parts, x, picture):
    x = parts.self_norm(x)
    x = x + parts.self_attention(x, x, x)[0]
    x = parts.cross_norm(x)
    x = x + parts.cross_attention(x, picture, picture)[0]
    x = parts.feed_norm(x)
    return x + parts.feed(x)


# %% [markdown]
# Stack the blocks, add the heads, cut the output into factors: that is the whole generator.

# %%
with torch.inference_mode():
    factors = {}  # type -> A of all layers, [L, in, r]
    for kind in TYPES:
        generator = connector.layers[kind]
        x = generator.queries
        for step in generator.blocks:
            x, _ = step(x, picture)
        factors[kind] = generator.head(generator.norm(x))[0].view(L, -1, R)
    made = connector(features, (24, 24), 576)
    held = connector.layer_memory(lm, made.tokens, 0)  # layer -> A of each type, [1, in, r]
for k in range(L):
    for kind, theirs in zip(TYPES, held[k]):
        assert torch.allclose(factors[kind][k], theirs[0], atol=1e-4 * theirs.abs().max().item())
numbers = sum(a.numel() for a in factors.values())
total = sum(p.numel() for p in connector.parameters())
heads = sum(g.head.weight.numel() for g in connector.layers.values())
say(f"""
{len(TYPES)} types × {L} layers × ({D} × {R}): **{numbers:,}** numbers stand for the picture, {numbers / (576 * D):.2f} times as many as in its 576 visual tokens. The generator has {total:,} parameters, {100 * heads / total:.0f} % of them in the heads.
""")

# %% [instructor]
# Ask where the picture could be lost. Each query must say in d numbers (64 here) what its whole factor should be; the head only writes them out. So per type and layer no more than d numbers about the picture get through, however large the factor.

# %%
dims = Dims(vision=1024, hidden=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008, layers=8, patches=576)
with torch.device("meta"):  # shapes without memory: the released fine-tuning, 8 of 32 layers
    paper = VLoRAConnector(dims, width=512, heads=16, depth=8, rank=64)
all_of_it = sum(p.numel() for p in paper.parameters())
in_heads = sum(p.numel() for g in paper.layers.values() for p in g.head.parameters())
kit.table(
    [
        ["embedded VLM", L, R, f"{total / 1e6:.2f} M", f"{100 * heads / total:.0f} %"],
        ["LLaVA-1.5-7B, as released", 8, 64, f"{all_of_it / 1e6:.0f} M", f"{100 * in_heads / all_of_it:.0f} %"],
    ],
    ["model", "layers updated", "rank", "parameters of the generator", "of them in the heads"],
)
assert 0.84e9 < all_of_it < 0.86e9

# %% [slide]
# ## What the layers ask about
#
# Attention of the generator's queries to the picture, mean over types and blocks, for three of the decoder's layers.

# %% slide
kit.heat(
    scene.image,
    {f"for decoder layer {k}": made.weight[0, k, 1:] for k in (0, L // 2, L - 1)},
    title="Where the weights of a layer come from",
)

# %% [markdown] minutes=11
# ## 3. Into the decoder
#
# Now merge. In a copy of the decoder, $W$ becomes $W + B A^\top$ in q, k, v and o of every layer, and a parallel branch stands beside each MLP. What comes out is an ordinary Llama, for this one picture. It is given the question, and **nothing else**.


# %%
class Beside(nn.Module):
    """An MLP and a branch around it."""

    def __init__(self, mlp, branch):
        super().__init__()
        self.mlp, self.branch = mlp, branch  # branch [out, in]

    def forward(self, x):
        return self.mlp(x) + x @ self.branch.T


with torch.inference_mode():
    merged = copy.deepcopy(lm)
    for k, layer in enumerate(merged.layers):
        delta = {kind: connector.constant[kind][k] @ factors[kind][k].T for kind in TYPES}  # [out, in] each
        for kind in "qkvo":
            getattr(layer.self_attn, f"{kind}_proj").weight.add_(delta[kind])
        layer.mlp = Beside(layer.mlp, delta["m"])

    ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, colour.text))
    ids = [i for i in ids if i != vlm.config.image_token_id]  # the place of the picture is simply left out
    out = merged(input_ids=torch.tensor([ids]), use_cache=True)
    answer = [fitted.model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)]
    while answer[-1].item() not in vlm.eos_ids and len(answer) < 16:
        out = merged(input_ids=answer[-1][None], past_key_values=out.past_key_values, use_cache=True)
        answer.append(fitted.model.lm_head(out.last_hidden_state[:, -1]).argmax(-1))
run = vtc.run(vlm, scene.image, colour.text, method="vlora")
assert [token.item() for token in answer] == run.token_ids  # merged by hand, thin in the package
assert run.trace.schedule == [0] * L and run.kv_lengths == [len(ids) + len(answer) - 1] * L
say(f"""
**{colour.text}** The merged decoder answers "{vlm.tokenizer.decode([t.item() for t in answer], skip_special_tokens=True)}", as the package does with thin products; truth: {colour.answer}. {len(ids)} tokens were in the prompt, none of them visual.
""")

# %% [markdown]
# How large are the updates, and how much of the rank do they use? The first: the norm of $BA^\top$ as a share of that of $W$. The second: the share of the update's energy in its strongest direction; with all directions alike it would be $1/r$.

# %%
size, peak = torch.zeros(4, L), torch.zeros(len(TYPES), L)
with torch.inference_mode():
    for k, layer in enumerate(lm.layers):
        for i, kind in enumerate(TYPES):
            change = connector.constant[kind][k] @ factors[kind][k].T
            if kind != "m":
                size[i, k] = change.norm() / getattr(layer.self_attn, f"{kind}_proj").weight.norm()
            energy = torch.linalg.svdvals(change).square()
            assert (energy[R:] <= 1e-6 * energy[0]).all()  # the rank is at most r
            peak[i, k] = energy[0] / energy.sum().clamp(min=1e-30)
say(f"""
Size: {100 * size.min():.0f} to {100 * size.max():.0f} % of the matrix's norm. Share of the strongest direction: {100 * peak.min():.0f} to {100 * peak.max():.0f} %, on average {100 * peak.mean():.0f} % (all alike: {100 / R:.1f} %). The other {D - R} of {D} directions are exactly zero.
""")

# %% [slide]
# ## How large the updates are
#
# Norm of the update as a share of the matrix. Rows: q, k, v, o. Columns: the decoder's layers.

# %% slide
figure = kit.matrix(size, "decoder layer", "type", "Size of the update, share of the matrix")
figure.update_yaxes(tickvals=list(range(4)), ticktext=list("qkvo"))

# %% [quiz]
# In training $B$ starts at zero, and the generator at random. What does the very first step change?
#
# - [ ] Both: every parameter has a gradient
#   The gradient of $A$ is multiplied by $B$. While $B$ is zero, so is that of $A$ and of the whole generator.
# - [x] $B$ alone
#   Its gradient needs $A^\top x$, which is not zero. From the second step on the generator learns, too, slowly as long as $B$ is small.
# - [ ] Nothing: the product is zero
#   The product is zero, not its derivative with respect to $B$. If both began at zero, nothing would ever move.

# %% [markdown] minutes=17
# ## 4. Once per picture, once per word
#
# Three kinds of work. **Once per picture**: the tower and the generator. **For each word**, of question and answer: the decoder, plus the thin products. **Never**: anything per visual token in the decoder.
#
# In memory: the cache holds words alone, but the factors must be held as long as the conversation about the picture lasts.

# %% [exercise] difficulty=easy minutes=5
# What do the thin products add for each word, over all updated layers? `inputs` and `outputs` give the widths of each type of matrix.


# %% [solution]
def extra_per_word(inputs, outputs, layers, rank):
    """inputs, outputs: widths by type, for example {"q": 128, "k": 128} -> FLOPs, 2 per multiply-add."""
    # BEGIN SOLUTION
    return layers * sum(2 * rank * (inputs[kind] + outputs[kind]) for kind in inputs)
    # END SOLUTION


# %% [check]
check_equal(extra_per_word({"q": 10}, {"q": 30}, 1, 2), 160, "2 · 10 · 2 FLOPs to two numbers, 2 · 2 · 30 from them.")
wide = dict.fromkeys(TYPES, 4096)
check_equal(
    extra_per_word(wide, wide, 8, 64), 41943040, "As released, 8 layers of a 7B model: 42 MFLOPs for each word."
)
grouped = VLoRAConnector(Dims(16, 32, 4, 2, 8, 64, 3, 9), rank=5)  # two key heads for four query heads
widths = {kind: grouped.constant[kind].shape[1] for kind in TYPES}
check_equal(
    extra_per_word(grouped.inputs, widths, 3, 5),
    grouped.layer_flops(1, 3),
    "With fewer key heads than query heads the package counts differently: k and v are narrower.",
)
own = dict.fromkeys(TYPES, D)
long, short = (vtc.run(vlm, scene.image, colour.text, method="vlora", max_new_tokens=n) for n in (3, 1))
steps = len(long.token_ids) - 1
plain = vtc.cost.run_flops(vlm.spec, [0] * L, short.kv_lengths[0], steps + 1)["decode"]
check_equal(
    steps * extra_per_word(own, own, L, R), long.flops["decode"] - plain, "The run's decode steps cost otherwise."
)
done("42 MFLOPs for each word in a 7B model, three parts in a thousand of its forward pass")

# %% [hint]
# A product of a row of `in` numbers with an `in` × `r` matrix is $2 \cdot \text{in} \cdot r$ FLOPs.


# %% [mistake] why="Only the way down to r numbers is counted."
def extra_per_word(inputs, outputs, layers, rank):
    return layers * sum(2 * rank * inputs[kind] for kind in inputs)


# %% [mistake] why="A merged update is counted: a full matrix per type."
def extra_per_word(inputs, outputs, layers, rank):
    return layers * sum(2 * inputs[kind] * outputs[kind] for kind in inputs)


# %%
reference = vtc.run(vlm, scene.image, colour.text, method="llava-mlp")
stages = {}
for name, one in (("576 visual tokens", reference), ("VLoRA", run)):
    stages[name] = {s: one.flops[s] / 1e6 for s in ("vision", "projector", "prefill", "decode", "lm_head")}
texts, fixed = len(ids), connector.flops(576, L)
assert run.flops["projector"] == fixed
assert run.flops["prefill"] < 0.1 * reference.flops["prefill"]
held_bytes = numbers * 4
assert run.kv_bytes == held_bytes + sum(run.kv_lengths) * 2 * vlm.spec.kv_heads * vlm.spec.head_dim * 4
say(f"""
The generator takes the projector's place: **{fixed / 1e6:.0f}** MFLOPs instead of {reference.flops["projector"] / 1e6:.0f}. The prefill falls from {reference.flops["prefill"] / 1e6:.0f} to **{run.flops["prefill"] / 1e6:.0f}** MFLOPs.
The memory for this conversation falls from {reference.kv_bytes / 1e6:.2f} to {run.kv_bytes / 1e6:.2f} MB (float32), of which {held_bytes / 1e6:.2f} MB are the factors.
""")

# %% [slide]
# ## Where the FLOPs go
#
# The tower is the same. Under "projector" stands what is made of its output: an MLP per patch, or the generator.

# %% slide
kit.bars(stages, "MFLOPs", "One answer on the embedded VLM, counted")

# %% [markdown]
# So a fair question is not "576 tokens or none?" but: **how many visual tokens could be had for the price of the generator?**

# %% [exercise] difficulty=hard minutes=7
# Find the largest number of visual tokens whose projector and prefill together cost at most `flops`. `vtc.cost.run_flops(spec, schedule, text, projector_tokens=n)` counts by stage; `schedule` is the number of visual tokens in each layer.


# %% [solution]
def tokens_for(spec, flops, text):
    """The most visual tokens n such that projector (n rows) and prefill (n + text tokens) cost at most `flops`; 0 if none."""

    # BEGIN SOLUTION
    def price(n):
        parts = vtc.cost.run_flops(spec, [n] * spec.layers, text, projector_tokens=n)
        return parts["projector"] + parts["prefill"]

    low, high = 0, 1
    while price(high) <= flops:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price(middle) <= flops else (low, middle)
    return low
    # END SOLUTION


# %% [check]
llava = vtc.cost.SPECS["llava-1.5-7b"]
for spec in (vlm.spec, llava):
    for n in (1, 37, 576, 4000):
        stage = vtc.cost.run_flops(spec, [n] * spec.layers, 20, projector_tokens=n)
        price = stage["projector"] + stage["prefill"]
        check_equal(tokens_for(spec, price, 20), n, f"{n} tokens cost exactly this much, so {n} can be had.")
        check_equal(
            tokens_for(spec, price - 1, 20), n - 1, f"One FLOP less than {n} tokens cost, and {n} are too many."
        )
check_equal(tokens_for(vlm.spec, 1000, 20), 0, "Not even the text can be had for 1000 FLOPs: no visual token.")
done("tokens for the price of anything")

# %% [hint]
# The price grows with $n$: double until it is too much, then halve the interval. Text and visual tokens attend to each other, so the price is not a fixed amount per token.


# %% [mistake] why="A fixed price per token: attention grows faster than that."
def tokens_for(spec, flops, text):
    none, one = (vtc.cost.run_flops(spec, [n] * spec.layers, text, projector_tokens=n) for n in (0, 1))
    base = none["projector"] + none["prefill"]
    return max(0, int((flops - base) // (one["projector"] + one["prefill"] - base)))


# %% [mistake] why="The text is forgotten: it must be read in either case."
def tokens_for(spec, flops, text):
    n = 0
    while True:
        parts = vtc.cost.run_flops(spec, [n + 1] * spec.layers, 0, projector_tokens=n + 1)
        if parts["projector"] + parts["prefill"] > flops:
            return n
        n += 1


# %% [markdown]
# The package solves the same for whole passes (`match="flops"`): the budget at which a method costs as much as VLoRA up to the first word, tower and all.

# %%
target = Cost.of(run).flops
equal = vtc.compare(vlm, scene.image, colour.text, ["trained-pool", "q-former"], match="flops", target=target).runs
kit.table(
    [[one.method.card.title, one.visual_tokens, one.flops["total"] / 1e9, f"{one.kv_bytes / 1e3:.0f} kB"] for one in (run, *equal)],
    ["at equal FLOPs", "visual tokens", "GFLOPs of the answer", "memory"],
)  # fmt: skip
big = vtc.cost.SPECS["llava-1.5-7b"]
words = 40
made_once, per_word = paper.flops(576, 8), paper.layer_flops(1, 8)
bare = vtc.cost.run_flops(big, [0] * big.layers, words)["prefill"]
one_more = vtc.cost.run_flops(big, [100] * big.layers, words, projector_tokens=100)
each = (one_more["prefill"] - bare) / 100
cache = vtc.cost.kv_bytes(big, [576] * big.layers, 0)
factors_7b = 2 * 8 * len(TYPES) * 4096 * 64
assert each > 1e10 and made_once < 5e10
say(f"""
Here the generator costs as much as **{equal[0].visual_tokens}** pooled tokens, whose MLP runs on every patch. In a 7B model as released it is much cheaper in comparison: {made_once / 1e9:.0f} GFLOPs for the picture and {words * per_word / 1e9:.1f} for the {words} words of a prompt, at {each / 1e9:.0f} GFLOPs
for each visual token: about **{(made_once + words * per_word) / each:.0f} tokens**. The decoder has grown by a factor of {each / ((reference.flops["prefill"] - run.flops["prefill"]) / 576):.0f}, the generator by {made_once / fixed:.0f}.
In memory: {cache / 1e6:.0f} MB for 576 tokens in float16, {factors_7b / 1e6:.0f} MB for the factors.
""")

# %% [markdown]
# And the second question about the same picture? Neither way looks at it again: one goes on from a long cache, the other from the factors and a short cache.

# %%
turns = {}
for name in ("llava-mlp", "vlora"):
    chat = vtc.Chat(vlm, scene.image, name)
    turns[name] = [chat.ask(q.text, max_new_tokens=1) for q in scene.questions[:2]]
kit.table(
    [
        [name, *(f"{turn.flops['total'] / 1e6:.0f}" for turn in both), both[1].kv_lengths[0]]
        for name, both in turns.items()
    ],
    ["method", "first question, MFLOPs", "second question, MFLOPs", "entries in the cache after it"],
)
assert turns["vlora"][1].flops["total"] < turns["llava-mlp"][1].flops["total"]

# %% [instructor]
# The table is a good moment to ask what VLoRA is *for*. Prefill at long text and few pictures: little to gain. Many pictures, short questions: the tower dominates. The strong case in the paper is training, where a short caption comes with 576 visual tokens, which are most of the work.

# %% [markdown] minutes=10
# ## 5. Does it see?
#
# A model without visual tokens may have learned to answer without looking: "yes" or "red" is often right. Test it. The same question three times: with the factors of its own picture, with those of **another** picture, and with $A = 0$, the decoder alone. If seeing
# matters, the first is ahead.


# %%
def reply(question, held, most=6):
    """Greedy answer with the factors `held`: layer -> A of each type."""
    ids = [i for i in vlm.tokenize(vlm.adapter.prompt(vlm.processor, question.text)) if i != vlm.config.image_token_id]
    start = len(ids)
    while len(ids) - start < most:
        h = lm.embed_tokens(torch.tensor([ids]))
        how = {"attention_mask": None, "position_embeddings": lm.rotary_emb(h, torch.arange(len(ids))[None])}
        for k, layer in enumerate(lm.layers):
            h = connector.run(k, layer, h, held, None, **how)
        ids = [*ids, fitted.model.lm_head(lm.norm(h[0, -1])).argmax().item()]
        if ids[-1] in vlm.eos_ids:
            break
    return vlm.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


scenes = [vtc.world.sample(seed, split="eval") for seed in range(16)]
with torch.inference_mode():
    assert reply(colour, held) == run.answer
    of = [connector.layer_memory(lm, connector(encode(one.image), (24, 24), 576).tokens, 0) for one in scenes]
    none = {k: tuple(torch.zeros_like(a) for a in theirs) for k, theirs in held.items()}
    replies, truth = {"own picture": [], "another picture": [], "no picture": []}, []
    for i, one in enumerate(scenes):
        for question in one.questions[:4]:
            truth.append(question.answer)
            for name, used in zip(replies, (of[i], of[i - 1], none)):
                replies[name].append(reply(question, used))
right = {name: sum(measures.right(a, b) for a, b in zip(answers, truth)) for name, answers in replies.items()}

# %%
pooled = equal[0].method
tally = {name: [] for name in ("llava-mlp", "trained-pool")}
for one in scenes:
    for question in one.questions[:4]:
        for name, method in (("llava-mlp", "llava-mlp"), ("trained-pool", pooled)):
            answer = vtc.run(vlm, one.image, question.text, method).answer
            tally[name].append(measures.right(answer, question.answer))
counted = {f"VLoRA, {name}": n for name, n in right.items()}
counted |= {"llava-mlp, 576 tokens": sum(tally["llava-mlp"])}
counted |= {f"trained-pool, {equal[0].visual_tokens} tokens (equal FLOPs)": sum(tally["trained-pool"])}
bounds = {name: wilson(n, len(truth)) for name, n in counted.items()}
kit.table(
    [[name, f"{n} of {len(truth)}", f"{100 * low:.0f} to {100 * high:.0f} %"]
     for (name, n), (low, high) in zip(counted.items(), bounds.values())],
    ["factors or tokens", "right", "95 % interval"],
)  # fmt: skip

# %%
changed = sum(a != b for a, b in zip(replies["own picture"], replies["another picture"]))
seeing, blind = ([a == b for a, b in zip(replies[name], truth)] for name in ("own picture", "no picture"))
gained, lost = (sum(a and not b for a, b in zip(*pair)) for pair in ((seeing, blind), (blind, seeing)))
(own_low, _), (_, other_high), (_, none_high) = (bounds[f"VLoRA, {name}"] for name in replies)
sees = own_low > max(other_high, none_high)
(pool_low, pool_high), (vlora_low, vlora_high) = (
    list(bounds.values())[-1],
    bounds["VLoRA, own picture"],
)
ahead = "ahead" if vlora_low > pool_high else "behind" if pool_low > vlora_high else "not told apart"
say(f"""
Another picture's factors change **{changed}** of {len(truth)} answers. With its own picture VLoRA has {right["own picture"]} right, with another's {right["another picture"]}, with none {right["no picture"]} ({gained} only with the picture, {lost} only without):
{"the picture is used" if sees else "these intervals overlap, so this sample does not show that the picture helps the answers"}. Beside pooled tokens at equal FLOPs, under the same recipe, it is **{ahead}** on these questions.
The recipe gives every method the same number of steps. Whether VLoRA would need more, this cannot say; the released model was first trained on 30 million captions.
""")

# %% [markdown]
# A second look, without answers: how much do the factors depend on the picture? Split them over these pictures into their mean, which is a plain LoRA, and what differs from picture to picture.

# %%
share = {}
for i, kind in enumerate(TYPES):
    every = torch.stack([torch.stack([h[k][i][0] for k in range(L)]) for h in of])  # [pictures, L, in, r]
    share[kind] = ((every - every.mean(0)).square().sum((0, 2, 3)) / every.square().sum((0, 2, 3))).tolist()
assert all(0 <= x <= 1 for row in share.values() for x in row)
low, high = min(map(min, share.values())), max(map(max, share.values()))
say(
    f"Between **{100 * low:.0f}** and **{100 * high:.0f} %** of the factors' energy differs from picture to picture, depending on type and layer."
)

# %% [slide]
# ## How much of the factors is picture?
#
# Share of the energy that differs between 16 held-out pictures; the rest is the same for all, a plain LoRA.

# %% slide
kit.lines(
    {f"type {kind}": (list(range(L)), [100 * x for x in row]) for kind, row in share.items()},
    "decoder layer",
    "% of the energy",
    "What differs between pictures",
)

# %% [quiz]
# A model answers 55 % of yes/no questions right with VLoRA, and 54 % with $A = 0$. What has been shown?
#
# - [ ] That weights cannot carry a picture
#   One model under one training budget has not learned to use them. That is less.
# - [x] That its answers, on these questions, do not come from the picture
#   The words alone do as well. Without this control, 55 % would have looked like seeing.
# - [ ] Nothing, 55 is more than 54
#   Look at the intervals: with a few hundred questions they overlap almost entirely.

# %% [markdown] minutes=4
# ## 6. Paper, code, and where to go on

# %%
kit.report("vlora")

# %% [markdown]
# The README of the released code has this table (not checked here):
#
# | | MMBench | MME | ScienceQA | HallusionBench | MMMU | CCBench |
# | --- | ---: | ---: | ---: | ---: | ---: | ---: |
# | LLaVA-1.5-7B, 576 tokens | 64.3 | 1510.7 | 66.8 | 27.6 | 35.7 | 27.5 |
# | VLoRA-7B, none | 63.4 | 1311.3 | 66.4 | 26.4 | 33.7 | 28.6 |
#
# Three things to know when you read paper and code side by side:
#
# - The paper speaks of a shared linear layer and $k$ independent ones. In the code the shared one is the head for $A$, and the independent ones are the constants $B$.
# - The script for pre-training sets the width 1024, that for fine-tuning 512: a checkpoint of one does not fit the other. The defaults of the code (depth 4, rank 2, no m) are neither.
# - The marker of the image stays in the prompt as a masked token, and its position counts. Here it is left out.
#
# Further: `vtc_demo/connectors/vlora.py`, two pages; `docs/zoo.md` for the recipe. Lesson 11 is about what equal cost means.

# %% [slide]
# ## Take home
#
# - The picture becomes **A**, computed once; **B** is learned. Thin for few words or mixed batches, merged for long texts.
# - No visual token: prefill and cache are those of the words. The generator and its factors are the price, so compare at **equal FLOPs**.
# - Swap the picture and take it away: a score without that control does not show seeing.
