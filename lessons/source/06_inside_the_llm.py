# /// lesson
# title = "Pruning inside the LLM"
# objectives = [
#   "score visual tokens by one row of a decoder layer's attention, without the full map",
#   "drop tokens between two layers by hand, with their position ids, and get the package's hidden states",
#   "predict the length of every layer's KV cache, and say where the next word stands",
#   "compute PyramidDrop's schedule, and compare methods that cut at different depths at equal cost",
# ]
# prerequisites = ["lesson 00", "lesson 05: scores from the tower, blind baselines"]
# methods = ["fastv", "pyramiddrop", "fastervlm", "random"]
# papers = ["2403.06764 FastV", "2410.17247 PyramidDrop", "2104.09864 RoPE"]
# ///

# %% [slide]
# ## Wait until the question is read
#
# - Before the decoder nobody knows what will be asked.
# - After a few decoder layers the last prompt token has read picture **and** question: ask where it looks.
# - The price: the first layers run on all tokens, and their cache keeps them.

# %%
import json
from pathlib import Path

import torch

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.core.tokens import Site
from vtc_demo.methods.llm import fastv, pyramiddrop

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=2)
colour, thing = (next(q for q in scene.questions if q.kind == kind) for kind in ("colour", "object"))
decoder = vlm.model.model.language_model

# %% [markdown] minutes=16
# ## 1. One row of attention
#
# FastV lets layers $0 \dots K-1$ run as they are. Then it looks at layer $K-1$: the row of the **last prompt token** in the causal attention, averaged over the heads, at the columns of the visual tokens:
#
# $$ s_j = \frac{1}{H} \sum_{h} \operatorname{softmax}\!\left( \frac{q_h^{\text{last}} K_h^\top}{\sqrt{d}} \right)_{j}, \qquad j \in \text{visual} $$
#
# The last token is the only one that has read everything, and the one from which the answer starts. (The paper speaks of the attention received from all other tokens; all released code uses this row.)
# The best $m$ tokens stay; layers $K, K+1, \dots$ run on the shorter sequence. Layers count from 0 here; the paper's default is $K = 2$, so layers 0 and 1 see everything.
#
# Let us come to that point by hand: the prompt's text with the visual tokens in it, through layers 0 and 1.

# %%
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

K, KEEP = 2, 64


def prompt(question):
    """The sequence that enters layer 0, [S, D], and the places of the visual tokens in it, [n]."""
    pixels = vlm.inputs([scene.image]).pixels
    states = vlm.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    visual = vlm.model.model.multi_modal_projector(states[-2][:, 1:])[0]
    ids = vlm.tokenize(vlm.adapter.prompt(vlm.processor, question.text))
    at, words = ids.index(vlm.config.image_token_id), decoder.embed_tokens(torch.tensor(ids))
    return torch.cat([words[:at], visual, words[at + 1 :]]), torch.arange(at, at + len(visual))


def through(h, layers, positions, mask=None):
    """h [S, D] through some decoder layers; positions [S]; mask: bool [S, S], default causal."""
    rope = decoder.rotary_emb(h[None], positions[None])
    for k in layers:
        h = decoder.layers[k](
            h[None], position_embeddings=rope, attention_mask=None if mask is None else mask[None, None]
        )[0]
    return h


with torch.inference_mode():
    start, places = prompt(colour)
    positions = torch.arange(len(start))
    before = through(start, [0], positions)  # enters layer 1
    after = through(before, [1], positions)  # leaves it
    block = decoder.layers[1].self_attn
    normed = decoder.layers[1].input_layernorm(before)
    q, k = (
        project(normed).view(len(normed), -1, block.head_dim).transpose(0, 1)[None]
        for project in (block.q_proj, block.k_proj)
    )
    q, k = (x[0] for x in apply_rotary_pos_emb(q, k, *decoder.rotary_emb(before[None], positions[None])))
say(
    f"Queries and keys of layer 1 after RoPE: {tuple(q.shape)}, as heads, tokens, width of a head. The picture stands at {places[0]} to {places[-1]}."
)

# %% [exercise] difficulty=easy minutes=6
# Score the visual tokens. One query per head is enough; the row runs over *all* keys, and being last it needs no causal mask. Do not compute an $S \times S$ map.


# %% [solution]
def visual_scores(last_query, keys, visual):
    """last_query [heads, d], keys [heads, S, d], visual [n]: places -> the score of each visual token, [n]."""
    # BEGIN SOLUTION
    logits = (keys @ last_query[:, :, None])[:, :, 0] / last_query.shape[-1] ** 0.5  # [heads, S]
    return logits.softmax(-1).mean(0)[visual]
    # END SOLUTION


# %% [check]
two = torch.tensor([[1.0], [1.0]])  # two heads of width 1
three = torch.tensor([[[0.0], [0.0], [0.0]], [[0.0], [0.0], [9.0]]])
check_equal(
    visual_scores(two, three, torch.tensor([1])),
    (torch.tensor([1 / 3]) + torch.tensor([0.0, 0.0, 9.0]).softmax(0)[1]) / 2,
    "Two heads, three tokens, the second one visual. Each head's softmax runs over all three; then the mean over the heads.",
)
seen = {}


class Row(vtc.methods.FastV):
    """Remembers the row that the package shows to FastV."""

    def reduce(self, context):
        seen["scores"] = context.attention("last")[:, 0].mean(0)[context.visual].clone()


vtc.run(vlm, scene.image, colour.text, method=Row(layer=K), max_new_tokens=1)
with torch.inference_mode():
    got = visual_scores(q[:, -1], k, places)
check(tuple(got.shape) == (576,), f"One score per visual token, [576]; yours has the shape {tuple(got.shape)}.")
check_equal(got, seen["scores"], "The package finds other scores in layer 1.", 1e-3)
done("one row of one layer, and FastV's ranking is there")

# %% [hint]
# `keys @ last_query[:, :, None]` is `[heads, S, 1]`. Divide by the root of the head's width, softmax over the tokens, mean over the heads, then pick the columns.


# %% [mistake] why="The softmax runs over the visual tokens alone: a head that looks at the text counts as much as one that looks at the picture."
def visual_scores(last_query, keys, visual):
    logits = (keys[:, visual] @ last_query[:, :, None])[:, :, 0] / last_query.shape[-1] ** 0.5
    return logits.softmax(-1).mean(0)


# %% [mistake] why="The mean over the heads is taken before the softmax."
def visual_scores(last_query, keys, visual):
    logits = (keys @ last_query[:, :, None])[:, :, 0] / last_query.shape[-1] ** 0.5
    return logits.mean(0).softmax(-1)[visual]


# %% [markdown]
# The scores depend on the question. A probe reads them at every layer, for two questions on the same picture.


# %%
class Layers(vtc.methods.FastV):
    """Looks at every layer and drops nothing."""

    def sites(self, shape):
        return tuple(Site("llm_layer", k) for k in range(1, shape.llm_layers))

    def reduce(self, context):
        rows[context.site.layer - 1] = context.attention("last")[:, 0].mean(0)[context.visual].clone()


by_question = {}
for question in (colour, thing):
    rows = by_question[question.text] = {}
    vtc.run(vlm, scene.image, question.text, method=Layers(), max_new_tokens=1)
layers = len(decoder.layers)
first, second = (fastv.select(rows[K - 1][None], torch.arange(576), KEEP) for rows in by_question.values())
common = len(set(first.tolist()) & set(second.tolist()))
assert common < KEEP  # the question has a say
say(f"Of the 64 tokens that FastV would keep for each of the two questions, **{common}** are the same.")

# %% [slide]
# ## The question has a say
#
# Attention of the last prompt token in layer 1, for two questions on the same picture.

# %% slide
kit.heat(
    scene.image,
    {text: rows[K - 1].sqrt() for text, rows in by_question.items()},
    title="Last token's attention in layer 1 (square root)",
)

# %%
received = [rows.sum().item() for rows in by_question[colour.text].values()]
there = torch.from_numpy(colour.evidence).flatten()
found = [(rows[there].sum() / rows.sum()).item() for rows in by_question[colour.text].values()]
kit.table(
    [
        ["to the picture", *(f"{100 * x:.0f} %" for x in received)],
        ["of that, to the evidence", *(f"{100 * x:.0f} %" for x in found)],
    ],
    ["the last token's attention in layer", *map(str, range(layers - 1))],
)
deep = received[K:]
little = max(deep) < 0.5
say(f"""
{colour.text} FastV started from an observation on LLaVA: from the third layer on, image tokens receive very little of the attention. In this small decoder, for this question, the picture
receives {100 * min(deep):.0f} to {100 * max(deep):.0f} % in layers {K} to {layers - 2}: the observation {"holds here too" if little else "does **not** carry over"}. The mechanics below do not depend on it.

The evidence are {100 * there.float().mean():.0f} % of the patches. The layer before the cut gives them {100 * found[K - 1]:.0f} % of what the picture receives. Compare the other layers: where to cut is a hyper-parameter.
""")

# %% [instructor]
# Ask why the last token and not the question's words. The words see the picture too, but each one only what stands before it; only the last has read all of the question.
# Then ask what happens if the prompt ends in a fixed phrase ("ASSISTANT:"): the row is still of that fixed token, but its state has read the question through layers 0 and 1.

# %% [markdown] minutes=19
# ## 2. Dropping, and position ids
#
# Now drop. Three things must shrink together: the hidden states, the positions that RoPE turns queries and keys by, and the cache of all later layers.
#
# RoPE turns the query at position $p$ and the key at position $t$ so that their product depends on the **difference** $p - t$ alone:
#
# $$ \langle R_p\, q,\; R_t\, k \rangle = \langle q,\; R_{t - p}\, k \rangle $$
#
# After a cut there are two choices. *Keep*: every survivor keeps the position it had; gaps stay vacant, and all differences are what they were (FastV). *Renumber*: positions count through from 0,
# so survivors move together and nearer to the question (PyramidDrop).

# %% [exercise] difficulty=medium minutes=8
# Cut a sequence. The kept visual tokens and all of the text stay, in the order of the sequence.


# %% [solution]
def cut(h, visual, kept, renumber):
    """h [S, D]; visual [n]: places of the visual tokens; kept [m]: which of the n stay. Returns (h [S', D], positions [S'])."""
    # BEGIN SOLUTION
    stays = torch.ones(len(h), dtype=torch.bool)
    stays[visual] = False
    stays[visual[kept]] = True
    old = stays.nonzero().flatten()
    return h[old], torch.arange(len(old)) if renumber else old
    # END SOLUTION


# %% [check]
toy, picture = torch.arange(8.0)[:, None], torch.tensor([2, 3, 4, 5])  # two words, four visual tokens, two words
got, where = cut(toy, picture, torch.tensor([0, 3]), renumber=False)
check(got.shape == (6, 1), f"Four words and two of four visual tokens make 6; yours has the shape {tuple(got.shape)}.")
check_equal(
    got[:, 0], [0, 1, 2, 5, 6, 7], "Visual tokens 0 and 3 stand at places 2 and 5; text before and after stays."
)
check_equal(where, [0, 1, 2, 5, 6, 7], "Without renumbering each keeps the position that it had.")
check_equal(
    cut(toy, picture, torch.tensor([0, 3]), renumber=True)[1], [0, 1, 2, 3, 4, 5], "Renumbered: counted through."
)
check_equal(
    cut(toy, picture, torch.tensor([3, 0]), renumber=False)[0][:, 0],
    [0, 1, 2, 5, 6, 7],
    "The order of `kept` does not matter.",
)


class Witness(vtc.methods.FastV):
    """FastV, which also remembers what enters the layer after the first short one."""

    def sites(self, shape):
        return Site("llm_layer", K), Site("llm_layer", K + 1)

    def reduce(self, context):
        if context.site.layer == K:
            return super().reduce(context)
        seen["short"] = context.sequence.clone()


vtc.run(vlm, scene.image, colour.text, method=Witness(layer=K, retention=KEEP / 576), max_new_tokens=1)
with torch.inference_mode():
    short, where = cut(after, places, first, renumber=False)
    got = through(short, [K], where)
check_equal(got, seen["short"], "On the real sequence, one layer later: the package's hidden states differ.", 1e-3)
done("one layer after the cut, your hidden states are the package's")

# %% [hint]
# A boolean mask over the sequence: true for text, false for visual, true again at `visual[kept]`. The indices where it is true are the old positions.


# %% [mistake] why="The indices of visual tokens are taken for places in the sequence: off by the text before the picture."
def cut(h, visual, kept, renumber):
    stays = torch.ones(len(h), dtype=torch.bool)
    stays[visual] = False
    stays[kept] = True
    old = stays.nonzero().flatten()
    return h[old], torch.arange(len(old)) if renumber else old


# %% [mistake] why="Always renumbered."
def cut(h, visual, kept, renumber):
    stays = torch.ones(len(h), dtype=torch.bool)
    stays[visual] = False
    stays[visual[kept]] = True
    return h[stays], torch.arange(int(stays.sum()))


# %% [markdown]
# The rest of the pass by hand, three times: dropped with positions kept, dropped and renumbered, and **masked**. Masking is what some code does instead of dropping: all tokens stay, and from layer $K$
# on a mask hides the unwanted ones.

# %%
with torch.inference_mode():
    text = torch.tensor([i for i in range(len(after)) if i not in set(places.tolist())])
    old = torch.cat([text, places[first]]).sort().values  # what stays, as positions of the whole sequence
    later = range(K, layers)
    dropped = through(after[old], later, old)
    renumbered = through(after[old], later, torch.arange(len(old)))
    visible = torch.zeros(len(after), dtype=torch.bool).index_fill_(0, old, True)
    itself = torch.eye(len(after), dtype=torch.bool)  # a hidden token still sees itself: a softmax needs something
    mask = torch.ones_like(itself).tril() & (visible[None] | itself)
    masked = through(after, later, positions, mask)[old]


def logits(h):
    return vlm.model.lm_head(decoder.norm(h[-1]))


run = vtc.run(vlm, scene.image, colour.text, method="fastv", layer=K, retention=KEEP / 576)
assert logits(dropped).argmax().item() == run.token_ids[0]  # the package's answer begins alike
assert torch.allclose(masked, dropped, atol=1e-3 * dropped.abs().max())
away = (logits(renumbered) - logits(dropped)).abs().max().item()
noise = (logits(masked) - logits(dropped)).abs().max().item()
assert away > 10 * noise
say(f"""
Masked and dropped agree in every survivor, up to rounding. But masking ran **{len(after)}** tokens through layers {K} to {layers - 1} and dropping **{len(dropped)}**: it is a way to *study* a method, not to save anything.
Renumbering is another computation: the logits of the first word move by up to {away:.2g}.
""")


# %%
class Renumbered(vtc.methods.FastV):
    """FastV with positions that count through after the cut."""

    positions = "renumber"


same, asked = 0, 0
for seed in range(8):
    other = vtc.world.sample(seed, split="eval")
    for q_ in other.questions[:3]:
        pair = [
            vtc.run(vlm, other.image, q_.text, method=m(layer=K, retention=KEEP / 576))
            for m in (vtc.methods.FastV, Renumbered)
        ]
        same, asked = same + (pair[0].answer == pair[1].answer), asked + 1
say(
    f"With positions kept and with positions renumbered, **{same} of {asked}** answers are the same. So few questions can show that it matters, not that it does not."
)

# %% [quiz]
# A repository offers a method that "prunes inside the LLM" by an attention mask. It reports the accuracy of the full model minus little, and FLOPs computed from the number of visible tokens. What is right?
#
# - [ ] Accuracy and FLOPs
#   The FLOPs were not saved: hidden tokens still go through every matrix product of every layer.
# - [x] The accuracy
#   Masked and dropped tokens give the survivors the same values, as you have just seen. The FLOPs are those of another program.
# - [ ] Neither
#   The accuracy can be trusted, if positions are treated as in the real method.

# %% [markdown] minutes=11
# ## 3. The cache after a cut
#
# Every layer's cache has the length of the sequence that ran through it. After a cut at $K$ they differ: long before, short after. A decode step feeds one token to all of them, so it must know its position *in each layer*:
#
# - positions kept (FastV): the next word stands at $S$ in every layer, though later caches are shorter than $S$;
# - renumbered (PyramidDrop): in each layer at the length of that layer's cache.
#
# Editing a cache after the prefill to the same lengths would not be the same: the survivors would have attended to the dropped tokens in the layers after $K$, and the prefill would have cost everything.

# %% [exercise] difficulty=easy minutes=5
# Predict the length of every layer's cache at the end of an answer. Mind the last token of the answer: once it is known, nobody feeds it any more.


# %% [solution]
def cache_lengths(schedule, text, answer):
    """schedule: visual tokens entering each layer; text: text tokens of the prompt; answer: tokens of the answer."""
    # BEGIN SOLUTION
    return [visual + text + answer - 1 for visual in schedule]
    # END SOLUTION


# %% [check]
check_equal(
    cache_lengths([576, 64], 11, 1), [587, 75], "One word of answer comes from the prefill: nothing was fed after it."
)
words = len(after) - 576
for spec in ({"method": "fastv", "layer": 3}, {"method": "pyramiddrop"}, {"method": "random"}):
    one = vtc.run(vlm, scene.image, colour.text, **spec)
    check_equal(
        cache_lengths(one.trace.schedule, words, len(one.token_ids)),
        one.kv_lengths,
        f"{spec['method']} has other caches.",
    )
    a, b = cache_lengths(one.trace.schedule, words, 1), cache_lengths(one.trace.schedule, words, 9)
    check(b[0] - a[0] == 8, "Eight more words of answer are eight more entries in each layer.")
done("the lengths of every layer's cache")

# %% [hint]
# The prefill leaves text and visual tokens in the cache. Each decode step feeds one token and adds one entry; an answer of $a$ tokens takes $a - 1$ steps.


# %% [mistake] why="The last token of the answer is counted, though it is never fed."
def cache_lengths(schedule, text, answer):
    return [visual + text + answer for visual in schedule]


# %% [mistake] why="Every layer is given the length of the last one."
def cache_lengths(schedule, text, answer):
    return [schedule[-1] + text + answer - 1] * len(schedule)


# %% [quiz]
# After a first answer with FastV the user asks a second question about the same picture. The caches are kept. What is the catch?
#
# - [ ] None: the first layers still hold all visual tokens
#   They do, and only they. From layer $K$ on there is nothing left to look at but what mattered to the first question.
# - [x] From layer $K$ on, tokens that the second question needs may be gone
#   They were dropped for the first question. A method that cuts before the decoder has chosen without either question, for better and worse.
# - [ ] The positions clash
#   They do not: the second question goes on from the position that the first turn has reached.

# %% [markdown] minutes=12
# ## 4. PyramidDrop: a cut per quarter
#
# One early cut must be right at once. PyramidDrop cuts three times, at a quarter, half and three quarters of the $L$ layers, and keeps the share $\lambda$ each time. With $N$ visual tokens, stage $k = 0 \dots 3$ runs on
#
# $$ n_k = \lfloor N \lambda^k \rfloor, \qquad \bar n = \tfrac{N}{4}\,(1 + \lambda + \lambda^2 + \lambda^3) $$
#
# where $\bar n$ is the mean over the layers, the *equivalent tokens*. Each count is taken from the initial $N$, so rounding does not pile up. The ranking is FastV's, with one difference: the row is computed
# with the weights of the layer **about to run** on what has just come out, so that layer's keys are needed of all tokens.

# %% [exercise] difficulty=medium minutes=6
# Write the schedule: visual tokens entering each layer. The first layer of stage $k$ is number $\lfloor L k / 4 \rfloor$; at least one token stays.


# %% [solution]
def pyramid(layers, tokens, factor):
    """Visual tokens entering each of the layers, [layers]."""
    # BEGIN SOLUTION
    starts = [layers * k // 4 for k in range(4)]
    stage = [sum(layer >= start for start in starts) - 1 for layer in range(layers)]
    return [max(1, int(tokens * factor**k)) for k in stage]
    # END SOLUTION


# %% [check]
check_equal(pyramid(4, 8, 0.5), [8, 4, 2, 1], "Four layers, eight tokens, half each time: one layer per stage.")
check_equal(
    pyramid(4, 11, 0.9), [11, 9, 8, 8], "11 tokens, 0.9: 9.9, 8.91 and 8.02, each of the initial 11 and rounded down."
)
check_equal(
    torch.tensor(pyramid(32, 576, 0.5)).float().mean(), 270.0, "32 layers, 576 tokens, half each time: 270 on average."
)
check_equal(pyramid(4, 3, 0.1), [3, 1, 1, 1], "At least one token stays.")
for factor in (0.5, 0.7):
    one = vtc.run(vlm, scene.image, colour.text, method="pyramiddrop", retention=factor**3, max_new_tokens=1)
    check_equal(
        pyramid(8, 576, factor), one.trace.schedule, f"The package's schedule with the factor {factor} differs."
    )
done("the package's schedule, and 270 tokens on average for LLaVA")

# %% [hint]
# The stage of a layer is the number of stages that have begun, less one. `int()` rounds down.


# %% [mistake] why="Rounded at each stage from the stage before: 11 tokens become 9, 8, 7."
def pyramid(layers, tokens, factor):
    out, count = [], tokens
    for layer in range(layers):
        if layer and layer in [layers * k // 4 for k in range(1, 4)]:
            count = max(1, int(count * factor))
        out.append(count)
    return out


# %% [mistake] why="The first cut comes before layer 0."
def pyramid(layers, tokens, factor):
    return [max(1, int(tokens * factor ** (1 + 4 * layer // layers))) for layer in range(layers)]


# %%
lowest = {
    "FastV at layer 2 of 32": (2 * 576 + 30 * 1) / 32,
    "FastV at layer 2 of 8": (2 * 576 + 6 * 1) / 8,
    "PyramidDrop": (576 + 1 + 1 + 1) / 4,
}
assert pyramiddrop.boundaries(32) == (8, 16, 24)  # the released cuts
kit.table(lowest.items(), ["method", "fewest equivalent tokens, with one token left at the end"])
say("""
A quarter of the depth runs on everything. So PyramidDrop with its own cuts cannot come down to 128 equivalent tokens, let alone 64. Tables that list it there have changed its cuts or its shares, and different papers have
done so differently.
""")

# %% [markdown] minutes=8
# ## 5. At equal cost
#
# "64 tokens" of FastV are not 64 tokens of FasterVLM. The package can solve each method's retention for a given cost: here the mean over the layers is to be 192.

# %%
names = ["fastv", "pyramiddrop", "fastervlm", "random"]
runs = vtc.compare(vlm, scene.image, colour.text, names, match="equivalent tokens", tokens=192).runs
assert all(abs(run.trace.equivalent_tokens - 192) < 2 for run in runs)
kit.results(runs, colour)
kit.table(
    [[run.method.card.title, *run.trace.schedule] for run in runs],
    ["visual tokens entering layer", *map(str, range(layers))],
)

# %% [slide]
# ## Equal cost, different shape
#
# Each has 192 visual tokens per layer on average. What is left at the end differs; green: the evidence.

# %% slide
kit.masks(scene.image, runs[:3], colour, "192 equivalent tokens: what the last layer sees")

# %%
whole = vtc.run(vlm, scene.image, colour.text)
late, early = runs[0], runs[2]
assert late.flops["prefill"] < 0.5 * whole.flops["prefill"] and early.flops["prefill"] < 0.5 * whole.flops["prefill"]
assert late.kv_lengths[0] > early.kv_lengths[0] and late.kv_lengths[-1] < early.kv_lengths[-1]
assert runs[1].flops["compression"] > 10 * runs[0].flops["compression"]
say(f"""
Prefill: {whole.flops["prefill"] / 1e9:.2f} GFLOPs in full, {late.flops["prefill"] / 1e9:.2f} with FastV, {early.flops["prefill"] / 1e9:.2f} with FasterVLM. The work of ranking: FastV {late.flops["compression"] / 1e6:.2f} MFLOPs (one row, keys
taken from the cache), PyramidDrop {runs[1].flops["compression"] / 1e6:.1f} (three rows, and the next layer's keys again).
""")

# %% [markdown]
# The column *evidence kept* counts what is left at the **end**. For a cut before the decoder that is what every layer saw. For a late cut it says little: earlier layers have seen the patches, and what they passed on to
# the text tokens is not dropped with them. A right answer without any evidence left is no contradiction. The trace can be asked at each cut:

# %%
evidence = torch.from_numpy(colour.evidence)
kit.table(
    [
        [str(step.site), step.reduction.m, f"{100 * runs[1].trace.evidence_kept(evidence, upto=step.site):.0f} %"]
        for step in runs[1].trace.steps
        if step.site.kind == "llm_layer"
    ],
    ["PyramidDrop at", "tokens left", "evidence kept"],
)

# %% [markdown]
# One question proves nothing. The record of the sweep has more: methods at several budgets on the same held-out questions, over equivalent tokens.

# %%
record = json.loads(
    (Path(vtc.__file__).parents[1] / "assets/measurements/embedded_sweep.json").read_text(encoding="utf-8")
)
curves = {}
for name in names:
    points = sorted((r for r in record["rows"] if r["method"]["method"] == name), key=lambda r: r["equivalent_tokens"])
    curves[name] = (
        [r["equivalent_tokens"] for r in points],
        [100 * r["all"]["accuracy"] for r in points],
        [100 * r["all"]["low"] for r in points],
        [100 * r["all"]["high"] for r in points],
    )
where = record["environment"]
say(f"""
Recorded on {where["date"][:10]}, {where["device"]}, {where["dtype"]}: {record["questions"]} questions on {record["scenes"]} held-out pictures. The bands are 95 % intervals; where they overlap, this record does not tell the methods apart.
""")

# %% [slide]
# ## Accuracy over equivalent tokens
#
# The axis is the mean over layers, not the count after the cut. Bands: 95 % intervals.

# %% slide
kit.lines(curves, "equivalent tokens", "right answers, %", "Recorded sweep on the embedded VLM")

# %%
count = {name: len(x) for name, (x, *_) in curves.items()}
floors = {name: min(x) for name, (x, *_) in curves.items()}
assert min(floors["fastv"], floors["pyramiddrop"]) > 2 * 576 / layers  # both let everything through the first layers
say(f"""
The curves inside the decoder begin at {floors["fastv"]:.0f} (FastV) and {floors["pyramiddrop"]:.0f} (PyramidDrop) equivalent tokens, those before it at {min(floors["fastervlm"], floors["random"]):.0f}. To the left of that, only a cut before the
decoder has anything to offer. Where all have points, read off which is ahead, and whether `random` is beaten.
""")

# %% [instructor]
# Show the curve twice: first with the tokens after the cut on the axis (the curves of FastV and PyramidDrop move far to the left), then with equivalent tokens. Nothing was changed but the axis.

# %% [quiz]
# In which setting does a cut inside the decoder have its strongest case?
#
# - [ ] One token is left, and the decoder has 8 layers
#   The two layers on all tokens are a quarter of the decoder. A cut before it costs a fraction of that.
# - [x] The questions ask for a small detail that nothing in the picture makes stand out, and the decoder is deep
#   The question decides what is kept, and two layers of 32 are a small price. The tower could not have known.
# - [ ] Many questions in a row about one picture
#   What the first question did not need is gone from the later layers when the second one comes.

# %% [markdown] minutes=4
# ## 6. What the papers report, and where to go on

# %%
for name in ("fastv", "pyramiddrop"):
    kit.report(name)

# %% [markdown]
# A warning about tables. Two papers reprint FastV on LLaVA-1.5-7B at "128 tokens": one has POPE 59.6 and MMBench 56.1, the other 67.6 and 63.1. Settings differ and are not always told. (Figures of third parties, not checked here.)
#
# - `vtc_demo/methods/llm/fastv.py`, `pyramiddrop.py`: a page each. `vtc_demo/engine/language.py`, `prefill`: where tokens leave the sequence, the positions and the cache.
# - `docs/accuracy.md`: how methods are compared at equal cost, with the command.
# - Lesson 07 prunes at all stages, the cache included; lesson 11 is about what "equal cost" means in FLOPs and in time.

# %% [slide]
# ## Take home
#
# - **One row** of one layer ranks all visual tokens; no full map, no slow kernel.
# - Dropping means hidden states, positions **and** caches. A mask computes the same and saves nothing.
# - Compare at equal **equivalent tokens** (or FLOPs): early layers on the whole picture are part of the price.
