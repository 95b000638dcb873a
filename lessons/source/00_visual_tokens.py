# /// lesson
# title = "Visual tokens, and where the time goes"
# objectives = [
#   "say what a visual token is and follow one from the pixels to the answer",
#   "run a vision-language model by hand, stage by stage, and get the same answer as the package",
#   "count the FLOPs and the KV-cache bytes of a pass on paper, and check the count",
#   "predict with a roofline which stage gains from fewer visual tokens, then measure it",
# ]
# prerequisites = ["PyTorch tensors and modules", "how a transformer decoder works"]
# methods = ["full", "uniform", "random", "pool"]
# papers = ["2310.03744 LLaVA-1.5", "2010.11929 ViT", "2305.13245 grouped-query attention"]
# ///

# %% [slide]
# ## A picture is 576 words
#
# - A vision-language model reads a picture as a **sequence of vectors**, the visual tokens.
# - 336 × 336 pixels in patches of 14 × 14 make 24 × 24 = **576 tokens**; a question has a dozen.
# - So almost all of the prompt is picture. This course makes it shorter, and looks at what that costs.

# %%
import torch

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=0)
question = next(q for q in scene.questions if q.kind == "reading")

# %% [markdown] minutes=12
# ## 1. From pixels to visual tokens
#
# A vision-language model (VLM) has three parts: a **vision tower** that encodes the picture, a **projector** that
# translates its output into the space of word embeddings, and a **decoder**, an ordinary language model. The model of this course is
# small, but it has the geometry of LLaVA-1.5 and the same classes of `transformers`, so what you do here is what you would do with 7 billion parameters.
#
# The tower cuts the picture of $H \times W$ pixels into square **patches** of side $P$. Each is flattened and multiplied by one matrix:
#
# $$ x_i = E\, p_i + b_i, \qquad p_i \in \mathbb{R}^{3P^2},\; E \in \mathbb{R}^{C \times 3P^2},\; i = 0 \dots \tfrac{H}{P}\tfrac{W}{P} - 1 $$
#
# where $b_i$ is a learned vector that says where patch $i$ lies. Patches are counted row by row from the top left, from 0, everywhere in this course.
# Move the pointer over the picture: every cell becomes one visual token.

# %% [instructor]
# Open with the picture and let the participants guess how many tokens it becomes before the grid is drawn. Most guess far too few.
# If the projector is poor, hover a few cells and read the patch numbers aloud: the raster order matters in every later lesson.

# %% slide
kit.picture(scene.image, grid=vlm.shape.grid, title="24 x 24 patches, each of them one visual token")

# %% [markdown]
# In the code of a tower the multiplication is written as a convolution whose stride equals its kernel. Your first exercise shows that this is the same thing.

# %% [exercise] difficulty=easy minutes=5
# Cut a picture into patches. The result is later multiplied by the tower's own matrix, so the order inside a patch
# matters: all rows of the red channel first, then green, then blue, as the picture itself is stored.


# %% [solution]
def patchify(pixels, patch):
    """pixels [3, H, W] -> flattened patches in raster order, [(H / patch) * (W / patch), 3 * patch * patch]."""
    # BEGIN SOLUTION
    channels, height, width = pixels.shape
    cut = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)
    # END SOLUTION


# %% [check]
pixels = vlm.inputs([scene.image]).pixels[0]  # [3, 336, 336], normalised as the tower wants it
conv = vlm.model.model.vision_tower.embeddings.patch_embedding  # a convolution with stride 14
ours = patchify(pixels, 14)
check(
    tuple(ours.shape) == (576, 588),
    f"336 x 336 pixels make 576 patches of 588 numbers; yours has the shape {tuple(ours.shape)}.",
)
check_equal(ours[1], pixels[:, :14, 14:28].flatten(), "Patch 1 is the second of the top row, channel by channel.")
theirs = conv(pixels[None])[0].flatten(1).T  # [576, C]
check_equal(
    ours @ conv.weight.flatten(1).T, theirs, "Patches times matrix differ from the tower's convolution.", tolerance=1e-4
)
done("patches times matrix equal the tower's convolution")

# %% [hint]
# `reshape` splits an axis into two: `[3, H, W]` becomes `[3, H / P, P, W / P, P]`. Then one `permute` puts the two patch axes first.


# %% [mistake] why="The axes inside a patch are in the order row, column, channel instead of channel, row, column."
def patchify(pixels, patch):
    channels, height, width = pixels.shape
    cut = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return cut.permute(1, 3, 2, 4, 0).reshape(-1, channels * patch * patch)


# %% [mistake] why="Patches are counted column by column."
def patchify(pixels, patch):
    channels, height, width = pixels.shape
    cut = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return cut.permute(3, 1, 0, 2, 4).reshape(-1, channels * patch * patch)


# %% [markdown] minutes=14
# ## 2. One pass by hand
#
# From here the pass has four stages. We run each with the plain modules of `transformers`, then let the package do the same and compare.
#
# 1. **Encode.** The tower puts one more token, CLS, before the patches and runs its layers. LLaVA takes the output of the
#    second-last layer, without CLS.
# 2. **Project.** A small MLP maps every patch feature from the tower's width $C$ to the decoder's width $d$. These vectors are the *visual tokens*.
# 3. **Prefill.** The prompt's text is embedded, the visual tokens stand in the place of the image, and the whole sequence runs
#    through the decoder at once. Every layer leaves its keys and values in the **KV cache**. The last position gives the first word of the answer.
# 4. **Decode.** Each further word is one pass of a single token that attends to the cache.

# %%
with torch.inference_mode():
    tower = vlm.model.model.vision_tower
    states = tower(vlm.inputs([scene.image]).pixels, output_hidden_states=True).hidden_states
    features = states[-2][0, 1:]  # the second-last layer, without CLS: [576, C]
    visual = vlm.model.model.multi_modal_projector(features[None])[0]  # [576, d]
say(f"{len(states) - 1} layers in the tower; features {tuple(features.shape)}, visual tokens {tuple(visual.shape)}")

# %% [markdown]
# The prompt is text around a marker for the image. The marker's id is replaced by the 576 visual tokens.

# %%
text = vlm.adapter.prompt(vlm.processor, question.text)
ids = vlm.tokenize(text)
at = ids.index(vlm.config.image_token_id)
print(repr(text))

decoder = vlm.model.model.language_model
with torch.inference_mode():
    words = decoder.embed_tokens(torch.tensor(ids))
    sequence = torch.cat([words[:at], visual, words[at + 1 :]])  # [S, d]
say(
    f"**{len(ids) - 1}** text tokens and **{len(visual)}** visual tokens: {100 * len(visual) / len(sequence):.0f} % of the sequence is picture."
)
assert len(visual) / len(sequence) > 0.9

# %%
with torch.inference_mode():
    out = decoder(inputs_embeds=sequence[None], use_cache=True)  # prefill
    answer = [vlm.model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)]
    while answer[-1].item() not in vlm.eos_ids and len(answer) < 16:  # decode
        out = decoder(answer[-1][None], past_key_values=out.past_key_values, use_cache=True)
        answer.append(vlm.model.lm_head(out.last_hidden_state[:, -1]).argmax(-1))
by_hand = [token.item() for token in answer]

run = vtc.run(vlm, scene.image, question.text)
assert by_hand == run.token_ids  # the package does the same, to the last token
say(
    f"**{question.text}** By hand: {vlm.tokenizer.decode(by_hand, skip_special_tokens=True)}. The package: {run.answer}. Truth: {question.answer}."
)

# %% [instructor]
# Ask before running the last cell: which of the four stages will see fewer tokens if we drop half of them *after* the projector? (Prefill, and every decode step through the cache; not the tower.)
# The tower's layers after the feature layer never run in the package; in the cell above `transformers` runs them for nothing.

# %% [quiz]
# A method drops half of the visual tokens at the input of the decoder. Which part of the pass does as much work as before?
#
# - [ ] Prefill
#   Prefill runs the whole sequence through every decoder layer; with half of the visual tokens it has nearly half of the work.
# - [x] The vision tower
#   It has finished when the tokens are dropped. Only methods that act inside the tower, or that shrink the picture itself, spare it work.
# - [ ] The attention of a decode step
#   A decode step reads the keys and values of every token in the cache. Dropped tokens are not in it.

# %% [markdown] minutes=16
# ## 3. Counting FLOPs
#
# One multiply-add counts as 2 FLOPs. For a decoder layer of width $d$ with a gated MLP of inner width $m$ and $n$ tokens:
#
# $$ \underbrace{2n\,(4d^2)}_{q,\,k,\,v,\,o} \;+\; \underbrace{2n\,(3dm)}_{\text{gated MLP}} \;+\; \underbrace{2 \cdot 2\,\tfrac{n(n+1)}{2}\,d}_{\text{causal attention}} $$
#
# The first two terms grow with $n$, the third with $n^2$. Row $i$ of causal attention sees $i + 1$ keys, hence $n(n+1)/2$ pairs, and each
# pair is used twice: for the score and for the weighted sum of values. Norms, softmax and activations are left out; they are small.
# Keys and values may have fewer heads than queries (grouped-query attention); then the $k$ and $v$ matrices are narrower.

# %% [exercise] difficulty=medium minutes=8
# Count the prefill of a whole decoder. `spec` has `.layers`, `.hidden` ($d$), `.intermediate` ($m$), `.heads`, `.kv_heads` and `.head_dim`; `tokens` is
# the whole sequence, visual and text.


# %% [solution]
def prefill_flops(spec, tokens):
    """FLOPs of all decoder layers over a sequence of `tokens`, causal attention, without the LM head."""
    # BEGIN SOLUTION
    q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    projections = 2 * tokens * spec.hidden * (2 * q_width + 2 * kv_width)
    mlp = 2 * tokens * 3 * spec.hidden * spec.intermediate
    attention = 2 * 2 * (tokens * (tokens + 1) // 2) * q_width
    return spec.layers * (projections + mlp + attention)
    # END SOLUTION


# %% [check]
for name in ("llava-1.5-7b", "qwen2.5-vl-7b"):
    spec = vtc.cost.SPECS[name]
    for tokens in (1, 640):
        wanted = vtc.cost.run_flops(spec, [tokens] * spec.layers, text_tokens=0)["prefill"]
        got = prefill_flops(spec, tokens)
        check(got == wanted, f"{name}, {tokens} tokens: {got / wanted:.4f} times what the package counts ({wanted}).")
done("equal to vtc_demo.cost for both models")

# %% [hint]
# Write one line per matrix: $q$ and $o$ are `hidden` × `heads * head_dim`, $k$ and $v$ are `hidden` × `kv_heads * head_dim`, and the MLP has three matrices of
# `hidden` × `intermediate`. If Qwen is wrong and LLaVA right, look at the heads of $k$ and $v$.


# %% [mistake] why="Attention without the causal half: n * n pairs."
def prefill_flops(spec, tokens):
    q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    linear = 2 * tokens * spec.hidden * (2 * q_width + 2 * kv_width + 3 * spec.intermediate)
    return spec.layers * (linear + 4 * tokens * tokens * q_width)


# %% [mistake] why="Keys and values counted as wide as queries: wrong for grouped-query attention."
def prefill_flops(spec, tokens):
    linear = 2 * tokens * spec.hidden * (4 * spec.hidden + 3 * spec.intermediate)
    return spec.layers * (linear + 2 * tokens * (tokens + 1) * spec.hidden)


# %% [markdown]
# Now look at LLaVA-1.5-7B with 40 tokens of text. Which part of the pass is the largest, and how much of the prefill is the term that everybody warns about, the quadratic one?

# %% slide
llava, text_tokens = vtc.cost.SPECS["llava-1.5-7b"], 40
shown = ("vision", "projector", "prefill", "lm_head")
counted = {
    f"{n} visual tokens": {
        stage: value / 1e12
        for stage, value in vtc.cost.run_flops(llava, [n] * llava.layers, text_tokens).items()
        if stage in shown
    }
    for n in (576, 192, 64)
}
kit.bars(counted, "TFLOPs", "LLaVA-1.5-7B up to the first token: counted, not measured")

# %%
n = 576 + text_tokens
quadratic = llava.layers * vtc.cost.attention_flops(vtc.cost.causal_pairs(n), llava.heads, llava.head_dim)
share = quadratic / vtc.cost.run_flops(llava, llava.full_schedule, text_tokens)["prefill"]
total = {name: sum(row.values()) for name, row in counted.items()}
ratio = total["576 visual tokens"] / total["64 visual tokens"]
say(f"""
The quadratic term is **{100 * share:.1f} %** of the prefill at {n} tokens: what hurts is the *number* of tokens in the matrix products, not the square.
From 576 to 64 visual tokens is a factor of {576 / 64:.0f} in tokens and of **{ratio:.1f}** in FLOPs: text and tower stay.
""")
assert share < 0.05 and ratio < 9

# %% [quiz]
# Attention is quadratic in the sequence length. Why does dropping visual tokens save FLOPs almost *linearly* here?
#
# - [ ] Because fused attention kernels are linear
#   Fused kernels save memory traffic. They still compute every pair of query and key.
# - [x] Because at some hundred tokens the matrix products with the weights dominate
#   A layer costs about $2n(4d^2 + 3dm)$ for its matrices and $2n^2d$ for causal attention; the second overtakes the first only when $n$ is several times $d$.
# - [ ] Because the KV cache makes attention linear
#   The cache spares a decode step the computation of old keys and values. Prefill fills it and computes all pairs.

# %% [markdown] minutes=8
# ## 4. The KV cache
#
# For every token, each layer stores a key and a value for each of its key-value heads: $2 \cdot L \cdot h_{kv} \cdot d_h \cdot s$ bytes per token with $L$ layers and
# $s$ bytes per number (2 for bfloat16). With many users on one GPU it is this memory that runs out first, not the weights.

# %% [exercise] difficulty=easy minutes=4
# Count the bytes that the cache holds at the end of an answer. The last word of an answer is never fed back, so it has no entry.


# %% [solution]
def cache_bytes(spec, prompt_tokens, answer_tokens, bytes_per_number):
    """Bytes of keys and values of all layers after an answer of `answer_tokens` tokens."""
    # BEGIN SOLUTION
    entries = prompt_tokens + answer_tokens - 1
    return entries * spec.layers * 2 * spec.kv_heads * spec.head_dim * bytes_per_number
    # END SOLUTION


# %% [check]
got = cache_bytes(vlm.spec, len(sequence), len(by_hand), 4)
check(
    got == run.kv_bytes,
    f"The run above left {run.kv_bytes} bytes in its cache (float32: 4 bytes per number); you count {got}.",
)
got = cache_bytes(vtc.cost.SPECS["qwen2.5-vl-7b"], 100, 1, 2)
check(
    got == 5_734_400,
    f"Qwen2.5-VL with 100 tokens in bfloat16 holds 5734400 bytes; you count {got}. It has fewer heads for keys than for queries.",
)
done("the bytes that the cache really holds")

# %% [hint]
# Keys *and* values: a factor of 2. Prompt tokens all have an entry; of the answer all but the last.


# %% [mistake] why="The last answer token is counted, too."
def cache_bytes(spec, prompt_tokens, answer_tokens, bytes_per_number):
    return (prompt_tokens + answer_tokens) * spec.layers * 2 * spec.kv_heads * spec.head_dim * bytes_per_number


# %%
per_image = {n: vtc.cost.kv_bytes(llava, [n] * llava.layers, text_tokens=0) / 1e6 for n in (576, 192, 64)}
say(
    f"LLaVA-1.5-7B in bfloat16: **{per_image[576]:.0f} MB** of cache for one picture of 576 tokens, {per_image[64]:.0f} MB for 64."
)

# %% [markdown] minutes=16
# ## 5. FLOPs are not time
#
# A device does $F$ floating-point operations per second and reads $B$ bytes per second. A stage with $f$ FLOPs that moves $b$ bytes takes at least
#
# $$ t \ge \max\left(\frac{f}{F},\; \frac{b}{B}\right) $$
#
# This is the **roofline**. Prefill reads the weights once for hundreds of tokens: it is bound by computing. A decode step at batch 1 reads *all* weights for *one* token: it is bound
# by memory, and the FLOPs hardly matter. Take a device of 300 TFLOP/s and 2 TB/s; these are round numbers of the order of a large data-centre GPU, not a measurement.

# %% [instructor]
# Let them predict first, on paper: (a) time of the prefill at 576 and at 64 tokens, (b) time of one decode step at both. Then run the figure.
# The typical surprise is (b): nothing changes. Say plainly that a paper's "3x faster" on long answers at batch 1 deserves a second look.

# %% [exercise] difficulty=medium minutes=5
# Write the roofline of a decode step: one token through the decoder, reading all weights and the whole cache once.


# %% [solution]
def decode_step_seconds(spec, cached_tokens, peak_flops, bandwidth):
    """Least seconds of one decode step at batch 1 in bfloat16, the LM head included."""
    # BEGIN SOLUTION
    weights = vtc.cost.weight_bytes(spec)
    moved = weights["prefill"] + weights["lm_head"] + vtc.cost.kv_bytes(spec, [cached_tokens] * spec.layers, 0)
    attention = 4 * (cached_tokens + 1) * spec.heads * spec.head_dim * spec.layers
    matrices = weights["prefill"] + weights["lm_head"]  # 2 bytes per number, 2 FLOPs per number: the same figure
    return max((matrices + attention) / peak_flops, moved / bandwidth)
    # END SOLUTION


# %% [check]
PEAK, BANDWIDTH = 300e12, 2e12
got = decode_step_seconds(llava, 616, PEAK, BANDWIDTH)
check(
    got > 0.006,
    f"The weights alone are {vtc.cost.weight_bytes(llava)['prefill'] / 1e9:.1f} GB; you find {1000 * got:.3f} ms to read them.",
)
check(got < 0.0075, f"You find {1000 * got:.2f} ms. The tower and the projector do not run in a decode step.")
check_equal(
    got - decode_step_seconds(llava, 616 - 512, PEAK, BANDWIDTH),
    512 * 524288 / BANDWIDTH,
    "A token in the cache is 512 kB to read.",
    1e-3,
)
check(
    decode_step_seconds(llava, 616, 1e9, BANDWIDTH) > 10,
    "On a device with hardly any FLOP/s the computing bounds, not the memory.",
)
done("both roofs are there")

# %% [hint]
# `vtc.cost.weight_bytes(spec)` tells the bytes by stage; the decoder's layers are called `prefill` there. `vtc.cost.roofline(flops, bytes, peak, bandwidth)` is the formula above.


# %% [mistake] why="Only the FLOPs are counted: two hundred times too fast."
def decode_step_seconds(spec, cached_tokens, peak_flops, bandwidth):
    return vtc.cost.weight_bytes(spec)["prefill"] / peak_flops


# %% [mistake] why="The cache is forgotten: no gain at all from fewer tokens."
def decode_step_seconds(spec, cached_tokens, peak_flops, bandwidth):
    weights = vtc.cost.weight_bytes(spec)
    return vtc.cost.roofline(weights["prefill"], weights["prefill"] + weights["lm_head"], peak_flops, bandwidth)


# %% slide
grid = [576, 432, 288, 192, 128, 64, 16]
peak, bandwidth = 300e12, 2e12


def bound(visual_tokens, stage):
    """Milliseconds at the roofline, in bfloat16: the prefill, or a decode step (read all weights and the cache)."""
    schedule = [visual_tokens] * llava.layers
    weights, cache = vtc.cost.weight_bytes(llava), vtc.cost.kv_bytes(llava, schedule, text_tokens)
    moved = weights["prefill"] + weights["lm_head"] + cache
    parts = vtc.cost.run_flops(llava, schedule, text_tokens, new_tokens=2)
    flops = parts["prefill"] if stage == "prefill" else parts["decode"] + parts["lm_head"] / 2
    return 1000 * vtc.cost.roofline(flops, moved, peak, bandwidth)


expected = {stage: (grid, [bound(n, stage) for n in grid]) for stage in ("prefill", "one decode step")}
kit.lines(
    expected,
    "visual tokens",
    "ms, lower bound",
    "Expected by the roofline: LLaVA-1.5-7B at batch 1 on 300 TFLOP/s and 2 TB/s",
)

# %%
(_, prefill_ms), (_, step_ms) = expected.values()
low = prefill_ms[grid.index(64)] / step_ms[grid.index(64)]
say(f"""
From 576 to 64 visual tokens the bound of the prefill falls by a factor of **{prefill_ms[0] / prefill_ms[grid.index(64)]:.1f}**, that of a decode step by {step_ms[0] / step_ms[grid.index(64)]:.2f}.
At 64 tokens the prefill has come down to {low:.1f} times a decode step: below that, reading the weights is all there is, and pruning more buys nothing.
""")
assert prefill_ms[0] / prefill_ms[grid.index(64)] > 3 and step_ms[0] / step_ms[grid.index(64)] < 1.1

# %% [markdown]
# Now measure. A figure can be believed if it says: how many repeats after how many warm-ups, which middle and spread, on which device, with which versions. The package's
# `measure.repeat` does that; every run has its own stopwatch for each stage. Here the tokens are thinned out evenly (`uniform`) before the decoder.

# %% volatile slide
from vtc_demo import measure

prompt = scene.questions[0].text
measured = {}
for n in (576, 192, 64):

    def once(n=n):
        vlm.recent = None  # else the vision pass of the same image would be shared
        return vtc.run(vlm, scene.image, prompt, method="uniform", retention=n / 576).timings

    measured[f"{n} visual tokens"] = measure.repeat(once, warmups=2, repeats=5)
stages = {name: {s: row[s]["median"] for s in measure.STAGES if s != "decode"} for name, row in measured.items()}
kit.bars(stages, "ms", "Embedded VLM up to the first token: measured, median of 5")

# %% volatile
device = measure.environment(vlm.device, vlm.dtype)
full, few = measured["576 visual tokens"], measured["64 visual tokens"]
kit.table(
    [(s, full[s]["median"], full[s]["iqr"], few[s]["median"], few[s]["iqr"], full[s]["median"] / max(few[s]["median"], 1e-3))
     for s in ("vision", "prefill", "ttft", "decode_per_token")],
    ["stage", "576: ms", "IQR", "64: ms", "IQR", "ratio"],
)  # fmt: skip
say(
    f"Measured with {device['threads']} thread(s) on {device['device']}, {device['dtype']}, torch {device['torch']}, {device['date'][:10]}."
)

# %% [markdown]
# Compare the ratio of `prefill` with the ratio of `ttft` (time to first token). The tower has done its work before the tokens are dropped. In this small model tower and decoder are of
# a size, so the tower soon rules; in LLaVA-1.5-7B the decoder is by far the larger part, as the figure of section 3 shows.

# %% [markdown] minutes=8
# ## 6. What do we lose?
#
# Fewer tokens are cheaper in any way you pick them. The question of the whole course is *which*. Beside the full model, three ways to come down to (at most) 64 of 576 tokens that look at neither picture nor question:

# %%
retention = 64 / 576
chosen = ["full", f"uniform@{retention}", f"random@{retention}", f"pool@{retention}"]
runs = vtc.compare(vlm, scene.image, question.text, chosen).runs
kit.results(runs, question)

# %% slide
kit.masks(scene.image, runs, question, "The same question with 64 of 576 tokens; green: the evidence")

# %%
evidence = torch.from_numpy(question.evidence)
kept = {run.method.card.name: run.trace.evidence_kept(evidence) for run in runs}
assert kept["full"] == 1.0 and kept["pool"] == 1.0  # pooling blurs every patch, but drops none
assert kept["random"] < 1.0 and kept["uniform"] < 1.0
say(f"""
The evidence are the {int(evidence.sum())} patches that carry the answer; in a generated scene they are known exactly. Random picking kept {100 * kept["random"]:.0f} % of them,
even spacing {100 * kept["uniform"]:.0f} %. Pooling keeps a share of everything and blurs it.
""")

# %% [markdown]
# Try other questions of the scene (`scene.questions`), other scenes (`vtc.world.sample(seed=1)`), other budgets. Colour of a big object survives
# almost anything; a number does not. One picture proves nothing, though: lesson 11 is about how many it takes.
#
# These are **baselines**. Every later method is shown beside them, because several published ones do not beat them.

# %% [exercise] difficulty=hard minutes=6
# *Equivalent tokens* make methods comparable that cut at different depths: the mean over the decoder's layers of the visual tokens that **enter** the layer. FastV lets all tokens through the layers before
# `layer` and keeps `keep` from there on. What is the smallest mean that it can reach with at least one token kept?


# %% [solution]
def equivalent_tokens(layers, cut_at, tokens, keep):
    """Mean number of visual tokens entering a layer, if `tokens` enter layers 0 to cut_at - 1 and `keep` the others."""
    # BEGIN SOLUTION
    return (cut_at * tokens + (layers - cut_at) * keep) / layers
    # END SOLUTION


# %% [check]
for layer, retention in ((2, 0.25), (5, 0.5)):
    cut = vtc.run(vlm, scene.image, question.text, method="fastv", layer=layer, retention=retention)
    got = equivalent_tokens(8, layer, 576, round(retention * 576))
    check_equal(
        got, cut.trace.equivalent_tokens, f"FastV at layer {layer}, retention {retention}: the run has another mean."
    )
done(f"and the floor of FastV at layer 2 of 8 is {equivalent_tokens(8, 2, 576, 1):.1f} tokens")

# %% [hint]
# Layers are counted from 0. A cut at layer 2 means that layers 0 and 1 have seen everything.


# %% [mistake] why="The cut layer itself is counted among those that see everything."
def equivalent_tokens(layers, cut_at, tokens, keep):
    return ((cut_at + 1) * tokens + (layers - cut_at - 1) * keep) / layers


# %% [quiz]
# A paper keeps 64 tokens from layer 16 of 32 on and compares itself with a method that keeps 64 tokens before layer 0. What is wrong?
#
# - [ ] Nothing, both end with 64 tokens
#   They end alike, but the first one has run half of its layers on 576 tokens.
# - [x] The first one has five times as many tokens on average
#   (16 · 576 + 16 · 64) / 32 = 320 against 64. At equal average, equal FLOPs or equal time the comparison would be fair.
# - [ ] Late layers matter less, so the first one is at a disadvantage
#   It is at an advantage: its early layers see the whole picture, and it has paid for that.

# %% [markdown] minutes=4
# ## 7. What the papers say, and where to go on
#
# The geometry is that of LLaVA-1.5: 336 pixels, patches of 14, features of the second-last layer, a two-layer MLP. Only width and depth of the model here are smaller, and
# it was trained on generated scenes alone; it knows nothing of photographs. So trust the *mechanics* you see here, and take accuracies as those of a small model in a small world.
#
# - `docs/performance.md`: how speed is measured in the package, and what was found.
# - `vtc_demo/cost/counts.py`: the whole cost model, one page.
# - Lesson 01 merges tokens on the grid; lesson 05 asks the tower which patches matter; lesson 06 asks the question.

# %% [slide]
# ## Take home
#
# - Visual tokens are most of the prompt; their **number in the matrix products** is what costs, not the square.
# - Fewer tokens shorten the **prefill** and shrink the **cache**. They spare neither the tower nor, at batch 1, the decode steps.
# - FLOPs are counted, time is measured. Show both, and the baselines beside them.

# %% [instructor]
# With ten minutes to spare, run the app next to the notebook (`python app.py`) and repeat section 6 there: same scene, same baselines, budget slider.
# Known trouble: on a shared machine the measured ratios wander. That is a lesson of its own; point to the IQR column.
