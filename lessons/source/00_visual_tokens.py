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
# [zh]
# title = "视觉 token，以及时间花在哪里"
# objectives = [
#   "说清什么是视觉 token，并跟着一个 token 从像素走到答案",
#   "逐阶段手动运行一个视觉语言模型，得到与程序包完全相同的答案",
#   "在纸上算出一次推理的 FLOPs 与 KV 缓存字节数，并验证结果",
#   "用 roofline 预测哪个阶段会因视觉 token 变少而加快，然后实测",
# ]
# prerequisites = ["PyTorch 张量与模块", "Transformer 解码器的工作原理"]
# ///

# %% [slide]
# ## A picture is 576 words
#
# - A vision-language model reads a picture as a **sequence of vectors**, the visual tokens.
# - 336 × 336 pixels in patches of 14 × 14 make 24 × 24 = **576 tokens**; a question has a dozen.
# - So almost all of the prompt is picture. This course makes it shorter, and looks at what that costs.

# %% [slide] lang=zh
# ## 一张图就是 576 个“词”
#
# - 视觉语言模型把图像读成**一串向量**，即视觉 token。
# - 336 × 336 像素，切成 14 × 14 的图像块，得到 24 × 24 = **576 个 token**；而一个问题只有十来个。
# - 所以提示词几乎全是图像。本课程要把它变短，并考察为此付出的代价。

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

# %% [markdown] lang=zh
# ## 1. 从像素到视觉 token
#
# 视觉语言模型（VLM）由三部分组成：编码图像的**视觉塔**（vision tower）、把其输出变换到词嵌入空间的**投影器**（projector），以及**解码器**，也就是普通的语言模型。
# 本课程的模型很小，但几何结构与 LLaVA-1.5 相同，用的也是 `transformers` 里同样的类，所以这里的每一步都与 70 亿参数的模型一样。
#
# 视觉塔把 $H \times W$ 像素的图像切成边长为 $P$ 的正方形**图像块**（patch），把每一块展平后乘以同一个矩阵：
#
# $$ x_i = E\, p_i + b_i, \qquad p_i \in \mathbb{R}^{3P^2},\; E \in \mathbb{R}^{C \times 3P^2},\; i = 0 \dots \tfrac{H}{P}\tfrac{W}{P} - 1 $$
#
# 其中 $b_i$ 是学到的位置向量，说明第 $i$ 块在哪里。在整个课程里，图像块都从左上角开始逐行编号，从 0 数起。把鼠标移到图上：每一格都会成为一个视觉 token。

# %% [instructor]
# Open with the picture and let the participants guess how many tokens it becomes before the grid is drawn. Most guess far too few.
# If the projector is poor, hover a few cells and read the patch numbers aloud: the raster order matters in every later lesson.

# %% [instructor] lang=zh
# 先给学员看图，在画出网格之前让大家猜会变成多少个 token。多数人猜得太少。
# 如果投影效果差，就悬停几个格子，把编号读出来：后面每一课都依赖这个光栅顺序。

# %% [slide]
# ## From pixels to tokens
#
# Every cell is one patch, flattened and multiplied by one matrix. Patches are counted row by row, from 0.

# %% [slide] lang=zh
# ## 从像素到 token
#
# 每一格是一个图像块，展平后乘以同一个矩阵。图像块逐行编号，从 0 开始。

# %% slide
kit.picture(scene.image, grid=vlm.shape.grid, title="24 x 24 patches, each of them one visual token")

# %% [markdown]
# In the code of a tower the multiplication is written as a convolution whose stride equals its kernel. Your first exercise shows that this is the same thing.

# %% [markdown] lang=zh
# 在视觉塔的代码里，这个乘法写成步长等于卷积核大小的卷积。第一个练习说明两者是一回事。

# %% [exercise] difficulty=easy minutes=5
# Cut a picture into patches. The result is later multiplied by the tower's own matrix, so the order inside a patch
# matters: all rows of the red channel first, then green, then blue, as the picture itself is stored.

# %% [exercise] lang=zh
# 把图像切成图像块。结果随后要乘以视觉塔自己的矩阵，所以块内的顺序很重要：先是红色通道的所有行，然后绿色，最后蓝色，与图像本身的存储顺序一致。


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

# %% [hint] lang=zh
# `reshape` 把一个轴拆成两个：`[3, H, W]` 变成 `[3, H / P, P, W / P, P]`。再用一次 `permute` 把两个块轴移到最前面。


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

# %% [markdown] lang=zh
# ## 2. 手动走完一次推理
#
# 从这里起，一次推理分为四个阶段。我们用 `transformers` 的普通模块逐一运行，再让程序包做同样的事并比较结果。
#
# 1. **编码**（encode）。视觉塔在图像块之前加一个 CLS token，然后运行各层。LLaVA 取倒数第二层的输出，不含 CLS。
# 2. **投影**（project）。一个小 MLP 把每个图像块的特征从视觉塔的宽度 $C$ 变到解码器的宽度 $d$。得到的向量就是*视觉 token*。
# 3. **预填充**（prefill）。提示词的文字被嵌入，视觉 token 站在图像的位置上，整个序列一次通过解码器。每一层都把自己的键和值留在 **KV 缓存**里。最后一个位置给出答案的第一个词。
# 4. **解码**（decode）。之后每个词都是单个 token 的一次前向，它关注缓存中的内容。

# %%
with torch.inference_mode():
    tower = vlm.model.model.vision_tower
    states = tower(vlm.inputs([scene.image]).pixels, output_hidden_states=True).hidden_states
    features = states[-2][0, 1:]  # the second-last layer, without CLS: [576, C]
    visual = vlm.model.model.multi_modal_projector(features[None])[0]  # [576, d]
say(f"{len(states) - 1} layers in the tower; features {tuple(features.shape)}, visual tokens {tuple(visual.shape)}")

# %% lang=zh
with torch.inference_mode():
    tower = vlm.model.model.vision_tower
    states = tower(vlm.inputs([scene.image]).pixels, output_hidden_states=True).hidden_states
    features = states[-2][0, 1:]  # the second-last layer, without CLS: [576, C]
    visual = vlm.model.model.multi_modal_projector(features[None])[0]  # [576, d]
say(f"视觉塔有 {len(states) - 1} 层；特征 {tuple(features.shape)}，视觉 token {tuple(visual.shape)}")

# %% [markdown]
# The prompt is text around a marker for the image. The marker's id is replaced by the 576 visual tokens.

# %% [markdown] lang=zh
# 提示词是文字，中间有一个图像标记。这个标记的 id 被 576 个视觉 token 取代。

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

# %% lang=zh
text = vlm.adapter.prompt(vlm.processor, question.text)
ids = vlm.tokenize(text)
at = ids.index(vlm.config.image_token_id)
print(repr(text))

decoder = vlm.model.model.language_model
with torch.inference_mode():
    words = decoder.embed_tokens(torch.tensor(ids))
    sequence = torch.cat([words[:at], visual, words[at + 1 :]])  # [S, d]
say(
    f"**{len(ids) - 1}** 个文字 token 和 **{len(visual)}** 个视觉 token：序列的 {100 * len(visual) / len(sequence):.0f} % 是图像。"
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

# %% lang=zh
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
    f"**{question.text}** 手动：{vlm.tokenizer.decode(by_hand, skip_special_tokens=True)}。程序包：{run.answer}。真值：{question.answer}。"
)

# %% [instructor]
# Ask before running the last cell: which of the four stages will see fewer tokens if we drop half of them *after* the projector? (Prefill, and every decode step through the cache; not the tower.)
# The tower's layers after the feature layer never run in the package; in the cell above `transformers` runs them for nothing.

# %% [instructor] lang=zh
# 运行最后一个单元之前先提问：如果在投影器*之后*丢掉一半 token，四个阶段里哪些会看到更少的 token？（预填充，以及通过缓存的每个解码步；视觉塔不会。）
# 特征层之后的视觉塔层在程序包里根本不运行；上面单元中的 `transformers` 白白运行了它们。

# %% [quiz]
# A method drops half of the visual tokens at the input of the decoder. Which part of the pass does as much work as before?
#
# - [ ] Prefill
#   Prefill runs the whole sequence through every decoder layer; with half of the visual tokens it has nearly half of the work.
# - [x] The vision tower
#   It has finished when the tokens are dropped. Only methods that act inside the tower, or that shrink the picture itself, save work there.
# - [ ] The attention of a decode step
#   A decode step reads the keys and values of every token in the cache. Dropped tokens are not in it.

# %% [quiz] lang=zh
# 某方法在解码器输入处丢掉一半视觉 token。哪个部分的工作量与原来一样？
#
# - [ ] 预填充
#   预填充让整个序列通过解码器的每一层；视觉 token 减半，它的工作量几乎减半。
# - [x] 视觉塔
#   丢弃 token 时它已经算完了。只有在视觉塔内部起作用的方法，或者缩小图像本身的方法，才能让它少做工作。
# - [ ] 解码步中的注意力
#   解码步要读取缓存中每个 token 的键和值。被丢弃的 token 不在其中。

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

# %% [markdown] lang=zh
# ## 3. 数 FLOPs
#
# 一次乘加记为 2 FLOPs。设解码器层宽 $d$，门控 MLP 内宽 $m$，共 $n$ 个 token：
#
# $$ \underbrace{2n\,(4d^2)}_{q,\,k,\,v,\,o} \;+\; \underbrace{2n\,(3dm)}_{\text{gated MLP}} \;+\; \underbrace{2 \cdot 2\,\tfrac{n(n+1)}{2}\,d}_{\text{causal attention}} $$
#
# 前两项随 $n$ 线性增长，第三项随 $n^2$ 增长。因果注意力的第 $i$ 行看到 $i + 1$ 个键，因此共有 $n(n+1)/2$ 对，每对用两次：一次算分数，一次做值的加权和。
# 归一化、softmax 和激活函数不计，它们很小。键和值的头数可以少于查询（分组查询注意力，GQA），这时 $k$、$v$ 的矩阵更窄。

# %% [exercise] difficulty=medium minutes=8
# Count the prefill of a whole decoder. `spec` has `.layers`, `.hidden` ($d$), `.intermediate` ($m$), `.heads`, `.kv_heads` and `.head_dim`; `tokens` is
# the whole sequence, visual and text.

# %% [exercise] lang=zh
# 计算整个解码器预填充的 FLOPs。`spec` 有 `.layers`、`.hidden`（$d$）、`.intermediate`（$m$）、`.heads`、`.kv_heads` 和 `.head_dim`；`tokens` 是整个序列的长度，包括视觉和文字。


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

# %% [hint] lang=zh
# 每个矩阵写一行：$q$ 和 $o$ 是 `hidden` × `heads * head_dim`，$k$ 和 $v$ 是 `hidden` × `kv_heads * head_dim`，MLP 有三个 `hidden` × `intermediate` 的矩阵。
# 如果 LLaVA 对而 Qwen 不对，看看 $k$ 和 $v$ 的头数。


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

# %% [markdown] lang=zh
# 现在看带 40 个文字 token 的 LLaVA-1.5-7B。哪一部分最大？人人警惕的二次项占预填充的多少？

# %% [slide]
# ## Where the FLOPs go
#
# A layer costs 2n(4d² + 3dm) for its matrices and 2n²d for causal attention. At a few hundred tokens the first is nearly all.

# %% [slide] lang=zh
# ## FLOPs 花在哪里
#
# 一层的矩阵要 2n(4d² + 3dm)，因果注意力要 2n²d。在几百个 token 时，几乎全是前者。

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

# %% lang=zh
n = 576 + text_tokens
quadratic = llava.layers * vtc.cost.attention_flops(vtc.cost.causal_pairs(n), llava.heads, llava.head_dim)
share = quadratic / vtc.cost.run_flops(llava, llava.full_schedule, text_tokens)["prefill"]
total = {name: sum(row.values()) for name, row in counted.items()}
ratio = total["576 visual tokens"] / total["64 visual tokens"]
say(f"""
在 {n} 个 token 时，二次项占预填充的 **{100 * share:.1f} %**：代价来自矩阵乘法中 token 的*个数*，而不是平方项。
从 576 到 64 个视觉 token，token 缩小到 1/{576 / 64:.0f}，FLOPs 只缩小到 1/**{ratio:.1f}**：文字和视觉塔不变。
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
#   With the cache a decode step need not compute old keys and values again. Prefill fills it and computes all pairs.

# %% [quiz] lang=zh
# 注意力对序列长度是二次的。为什么这里丢掉视觉 token 却几乎*线性*地节省 FLOPs？
#
# - [ ] 因为融合的注意力核是线性的
#   融合核节省的是访存，每一对查询和键仍然要计算。
# - [x] 因为在几百个 token 时，与权重的矩阵乘法占主导
#   一层的矩阵约需 $2n(4d^2 + 3dm)$，因果注意力约需 $2n^2d$；只有当 $n$ 达到 $d$ 的数倍时后者才会超过前者。
# - [ ] 因为 KV 缓存使注意力变成线性
#   缓存让解码步不必重算旧的键和值。预填充是填充缓存的过程，要计算所有的对。

# %% [markdown] minutes=8
# ## 4. The KV cache
#
# For every token, each layer stores a key and a value for each of its key-value heads: $2 \cdot L \cdot h_{kv} \cdot d_h \cdot s$ bytes per token with $L$ layers and
# $s$ bytes per number (2 for bfloat16). With many users on one GPU it is this memory that runs out first, not the weights.

# %% [markdown] lang=zh
# ## 4. KV 缓存
#
# 对每个 token，每一层为每个键值头存一个键和一个值：每个 token 共 $2 \cdot L \cdot h_{kv} \cdot d_h \cdot s$ 字节，其中 $L$ 是层数，$s$ 是每个数的字节数（bfloat16 为 2）。
# 一块 GPU 服务许多用户时，先用完的是这部分内存，而不是权重。

# %% [exercise] difficulty=easy minutes=4
# Count the bytes that the cache holds at the end of an answer. The last word of an answer is never fed back, so it has no entry.

# %% [exercise] lang=zh
# 计算答案结束时缓存占用的字节数。答案的最后一个词不会再送回模型，所以它没有缓存项。


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

# %% [hint] lang=zh
# 键*和*值：因子 2。提示词的每个 token 都有一项；答案中除最后一个外都有。


# %% [mistake] why="The last answer token is counted, too."
def cache_bytes(spec, prompt_tokens, answer_tokens, bytes_per_number):
    return (prompt_tokens + answer_tokens) * spec.layers * 2 * spec.kv_heads * spec.head_dim * bytes_per_number


# %%
per_image = {n: vtc.cost.kv_bytes(llava, [n] * llava.layers, text_tokens=0) / 1e6 for n in (576, 192, 64)}
say(
    f"LLaVA-1.5-7B in bfloat16: **{per_image[576]:.0f} MB** of cache for one picture of 576 tokens, {per_image[64]:.0f} MB for 64."
)

# %% lang=zh
per_image = {n: vtc.cost.kv_bytes(llava, [n] * llava.layers, text_tokens=0) / 1e6 for n in (576, 192, 64)}
say(
    f"bfloat16 的 LLaVA-1.5-7B：一张 576 个 token 的图像占缓存 **{per_image[576]:.0f} MB**，64 个 token 占 {per_image[64]:.0f} MB。"
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

# %% [markdown] lang=zh
# ## 5. FLOPs 不等于时间
#
# 设备每秒做 $F$ 次浮点运算，每秒读 $B$ 字节。一个阶段有 $f$ FLOPs、搬运 $b$ 字节，至少需要
#
# $$ t \ge \max\left(\frac{f}{F},\; \frac{b}{B}\right) $$
#
# 这就是 **roofline**（屋顶线）。预填充读一次权重，服务几百个 token：受计算限制。批大小为 1 的解码步为*一个* token 读*全部*权重：受内存限制，FLOPs 几乎无关紧要。
# 设有一台 300 TFLOP/s、2 TB/s 的设备；这是大型数据中心 GPU 数量级的整数，不是测量值。

# %% [instructor]
# Let them predict first, on paper: (a) time of the prefill at 576 and at 64 tokens, (b) time of one decode step at both. Then run the figure.
# The typical surprise is (b): nothing changes. Say plainly that a paper's "3x faster" on long answers at batch 1 deserves a second look.

# %% [instructor] lang=zh
# 先让学员在纸上预测：(a) 576 和 64 个 token 时的预填充时间，(b) 两种情况下一个解码步的时间。然后再运行图。
# 典型的意外是 (b)：几乎没有变化。要明确地说：一篇论文若声称批大小为 1 的长答案“快 3 倍”，值得再看一眼。

# %% [exercise] difficulty=medium minutes=5
# Write the roofline of a decode step: one token through the decoder, reading all weights and the whole cache once.

# %% [exercise] lang=zh
# 写出一个解码步的 roofline：一个 token 通过解码器，把所有权重和整个缓存各读一次。


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

# %% [hint] lang=zh
# `vtc.cost.weight_bytes(spec)` 按阶段给出字节数，解码器各层在其中叫 `prefill`。`vtc.cost.roofline(flops, bytes, peak, bandwidth)` 就是上面的公式。


# %% [mistake] why="Only the FLOPs are counted: two hundred times too fast."
def decode_step_seconds(spec, cached_tokens, peak_flops, bandwidth):
    return vtc.cost.weight_bytes(spec)["prefill"] / peak_flops


# %% [mistake] why="The cache is forgotten: no gain at all from fewer tokens."
def decode_step_seconds(spec, cached_tokens, peak_flops, bandwidth):
    weights = vtc.cost.weight_bytes(spec)
    return vtc.cost.roofline(weights["prefill"], weights["prefill"] + weights["lm_head"], peak_flops, bandwidth)


# %% [slide]
# ## FLOPs are not time
#
# Time ≥ max(FLOPs / peak, bytes / bandwidth). Prefill computes, a decode step at batch 1 reads all weights for one token.

# %% [slide] lang=zh
# ## FLOPs 不等于时间
#
# 时间 ≥ max(FLOPs / 峰值算力, 字节 / 带宽)。预填充在计算；批大小为 1 的解码步为一个 token 读取全部权重。

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

# %% lang=zh
(_, prefill_ms), (_, step_ms) = expected.values()
low = prefill_ms[grid.index(64)] / step_ms[grid.index(64)]
say(f"""
从 576 到 64 个视觉 token，预填充的下限缩小到 1/**{prefill_ms[0] / prefill_ms[grid.index(64)]:.1f}**，解码步只缩小到 1/{step_ms[0] / step_ms[grid.index(64)]:.2f}。
到 64 个 token 时，预填充已降到一个解码步的 {low:.1f} 倍：再往下只剩读取权重的时间，继续剪枝没有收益。
""")
assert prefill_ms[0] / prefill_ms[grid.index(64)] > 3 and step_ms[0] / step_ms[grid.index(64)] < 1.1

# %% [markdown]
# Now measure. A figure can be believed if it says: how many repeats after how many warm-ups, which middle and spread, on which device, with which versions. The package's
# `benchmark.timing.repeat` does that; every run has its own stopwatch for each stage. Here the tokens are thinned out evenly (`uniform`) before the decoder.

# %% [markdown] lang=zh
# 现在来测量。一个可信的数字要说明：预热几次、重复几次，取哪个中间值和离散程度，在什么设备上，用什么版本。程序包的 `benchmark.timing.repeat` 就是这样做的；每次运行的每个阶段都有自己的秒表。
# 这里在解码器之前均匀地抽稀 token（`uniform`）。

# %% [slide]
# ## Measured on the embedded VLM
#
# The tower has done its work before the tokens are dropped: it sets the floor.

# %% [slide] lang=zh
# ## 在内置 VLM 上实测
#
# 丢弃 token 时视觉塔已经算完：它决定了下限。

# %% volatile slide
from vtc_demo.benchmark import timing
from vtc_demo.core import clock, environment

prompt = scene.questions[0].text
measured = {}
for n in (576, 192, 64):

    def once(n=n):
        vlm.workspace.forget()  # else the vision pass of the same image would be shared
        return vtc.run(vlm, scene.image, prompt, method="uniform", retention=n / 576).timings

    measured[f"{n} visual tokens"] = timing.repeat(once, warmups=2, repeats=5)
stages = {name: {s: row[s]["median"] for s in clock.STAGES if s != "decode"} for name, row in measured.items()}
kit.bars(stages, "ms", "Embedded VLM up to the first token: measured, median of 5")

# %% volatile
device = environment.environment(vlm.device, vlm.dtype)
full, few = measured["576 visual tokens"], measured["64 visual tokens"]
kit.table(
    [(s, full[s]["median"], full[s]["iqr"], few[s]["median"], few[s]["iqr"], full[s]["median"] / max(few[s]["median"], 1e-3))
     for s in ("vision", "prefill", "ttft", "decode_per_token")],
    ["stage", "576: ms", "IQR", "64: ms", "IQR", "ratio"],
)  # fmt: skip
say(
    f"Measured with {device['threads']} thread(s) on {device['device']}, {device['dtype']}, torch {device['torch']}, {device['date'][:10]}."
)

# %% lang=zh
device = environment.environment(vlm.device, vlm.dtype)
full, few = measured["576 visual tokens"], measured["64 visual tokens"]
kit.table(
    [(s, full[s]["median"], full[s]["iqr"], few[s]["median"], few[s]["iqr"], full[s]["median"] / max(few[s]["median"], 1e-3))
     for s in ("vision", "prefill", "ttft", "decode_per_token")],
    ["stage", "576: ms", "IQR", "64: ms", "IQR", "ratio"],
)  # fmt: skip
say(
    f"实测环境：{device['threads']} 个线程，{device['device']}，{device['dtype']}，torch {device['torch']}，{device['date'][:10]}。"
)

# %% [markdown]
# Compare the ratio of `prefill` with the ratio of `ttft` (time to first token). The tower has done its work before the tokens are dropped. In this small model tower and decoder are of
# a size, so the tower soon rules; in LLaVA-1.5-7B the decoder is by far the larger part, as the figure of section 3 shows.

# %% [markdown] lang=zh
# 比较 `prefill` 的比值和 `ttft`（首 token 时间）的比值。丢弃 token 之前视觉塔已经完成了工作。在这个小模型里视觉塔与解码器大小相当，所以很快就由视觉塔主导；
# 在 LLaVA-1.5-7B 里解码器要大得多，如第 3 节的图所示。

# %% [markdown] minutes=8
# ## 6. What do we lose?
#
# Fewer tokens are cheaper in any way you pick them. The question of the whole course is *which*. Beside the full model, three ways to come down to (at most) 64 of 576 tokens that look at neither picture nor question:

# %% [markdown] lang=zh
# ## 6. 我们失去了什么？
#
# 不管怎样挑选，token 少了都更便宜。整个课程的问题是挑*哪些*。除完整模型外，这里有三种不看图像也不看问题的办法，把 576 个 token 减到（至多）64 个：

# %%
retention = 64 / 576
chosen = ["full", f"uniform@{retention}", f"random@{retention}", f"pool@{retention}"]
runs = vtc.compare(vlm, scene.image, question.text, chosen).runs
kit.results(runs, question)

# %% [slide]
# ## Which tokens?
#
# Cheaper they are in any way you pick them. Baselines first: they look at neither picture nor question.

# %% [slide] lang=zh
# ## 留下哪些 token？
#
# 怎样挑选都会更便宜。先看基线：它们既不看图像也不看问题。

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

# %% lang=zh
evidence = torch.from_numpy(question.evidence)
kept = {run.method.card.name: run.trace.evidence_kept(evidence) for run in runs}
assert kept["full"] == 1.0 and kept["pool"] == 1.0  # pooling blurs every patch, but drops none
assert kept["random"] < 1.0 and kept["uniform"] < 1.0
say(f"""
“证据”是承载答案的 {int(evidence.sum())} 个图像块；在生成的场景里它们是精确已知的。随机挑选保留了其中的 {100 * kept["random"]:.0f} %，
均匀抽取保留了 {100 * kept["uniform"]:.0f} %。池化保留了所有块的一份，但把它们模糊了。
""")

# %% [markdown]
# Try other questions of the scene (`scene.questions`), other scenes (`vtc.world.sample(seed=1)`), other budgets. Colour of a big object survives
# almost anything; a number does not. One picture proves nothing, though: lesson 11 is about how many it takes.
#
# These are **baselines**. Every later method is shown beside them, because several published ones do not beat them.

# %% [markdown] lang=zh
# 试试这个场景的其他问题（`scene.questions`）、其他场景（`vtc.world.sample(seed=1)`）、其他预算。大物体的颜色几乎怎样都能保住；数字则不行。
# 不过一张图证明不了什么：需要多少张，是第 11 课的内容。
#
# 这些就是**基线**。后面的每种方法都与它们并列展示，因为已发表的方法中有几种并没有胜过它们。

# %% [exercise] difficulty=hard minutes=6
# *Equivalent tokens* make methods comparable that cut at different depths: the mean over the decoder's layers of the visual tokens that **enter** the layer. FastV lets all tokens through the layers before
# `layer` and keeps `keep` from there on. What is the smallest mean that it can reach with at least one token kept?

# %% [exercise] lang=zh
# *等效 token 数*使在不同深度剪枝的方法可以比较：它是**进入**解码器各层的视觉 token 数的平均。FastV 让所有 token 通过 `layer` 之前的层，从该层起只留 `keep` 个。
# 至少保留一个 token 时，它能达到的最小平均是多少？


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

# %% [hint] lang=zh
# 层从 0 数起。在第 2 层剪枝，意味着第 0 层和第 1 层看到了全部 token。


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

# %% [quiz] lang=zh
# 一篇论文在 32 层中从第 16 层起保留 64 个 token，并与一种在第 0 层之前就只留 64 个 token 的方法比较。问题在哪里？
#
# - [ ] 没有问题，两者最后都是 64 个 token
#   结尾相同，但前者有一半的层是在 576 个 token 上运行的。
# - [x] 前者的平均 token 数是后者的五倍
#   (16 · 576 + 16 · 64) / 32 = 320，而后者是 64。按相同的平均数、相同的 FLOPs 或相同的时间比较才公平。
# - [ ] 后面的层不那么重要，所以前者吃亏
#   它占了便宜：前面的层看到了整幅图像，而且为此付出了代价。

# %% [markdown] minutes=4
# ## 7. What the papers say, and where to go on
#
# The geometry is that of LLaVA-1.5: 336 pixels, patches of 14, features of the second-last layer, a two-layer MLP. Only width and depth of the model here are smaller, and
# it was trained on generated scenes alone; it knows nothing of photographs. So trust the *mechanics* you see here, and take accuracies as those of a small model in a small world.
#
# - `docs/performance.md`: how speed is measured in the package, and what was found.
# - `vtc_demo/cost/counts.py`: the whole cost model, one page.
# - Lesson 01 merges tokens on the grid; lesson 05 asks the tower which patches matter; lesson 06 asks the question.

# %% [markdown] lang=zh
# ## 7. 论文怎么说，接下来学什么
#
# 几何结构取自 LLaVA-1.5：336 像素，14 像素的图像块，倒数第二层的特征，两层 MLP。这里的模型只是宽度和深度更小，而且只用生成的场景训练；它对照片一无所知。
# 所以请相信这里看到的*机制*，而把准确率看作小模型在小世界里的结果。
#
# - `docs/performance.md`：程序包如何测速，发现了什么。
# - `vtc_demo/cost/counts.py`：整个成本模型，一页。
# - 第 01 课在网格上合并 token；第 05 课问视觉塔哪些图像块重要；第 06 课问的是问题本身。
# - 术语表见 `lessons/glossary.md`。

# %% [slide]
# ## Take home
#
# - Visual tokens are most of the prompt; their **number in the matrix products** is what costs, not the square.
# - Fewer tokens shorten the **prefill** and shrink the **cache**. They make neither the tower nor, at batch 1, the decode steps cheaper.
# - FLOPs are counted, time is measured. Show both, and the baselines beside them.

# %% [slide] lang=zh
# ## 小结
#
# - 视觉 token 占提示词的绝大部分；花费来自它们**在矩阵乘法中的个数**，而不是平方项。
# - token 少了，**预填充**变短，**缓存**变小；视觉塔不受益，批大小为 1 时解码步也不受益。
# - FLOPs 是数出来的，时间是测出来的。两者都要给出，并与基线并列。

# %% [instructor]
# With ten minutes to spare, run the app next to the notebook (`python app.py`) and repeat section 6 there: same scene, same baselines, budget slider.
# Known trouble: on a shared machine the measured ratios wander. That is a lesson of its own; point to the IQR column.

# %% [instructor] lang=zh
# 若还有十分钟，在笔记本旁边运行应用（`python app.py`），在那里重复第 6 节：同一场景，同样的基线，预算滑块。
# 已知的麻烦：在共用的机器上，实测比值会漂移。这本身就是一课；请看 IQR 一列。
