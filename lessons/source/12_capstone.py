# /// lesson
# title = "Capstone: a method of your own, in the app"
# objectives = [
#   "turn an idea into a pure function on tensors and test it by hand",
#   "put it into one file that the app, the shell and the tests find by themselves",
#   "hold it to the contract that every method keeps, and read the findings",
#   "compare it fairly: same budget, baselines beside it, a paired test on held-out questions",
# ]
# prerequisites = ["lesson 00", "lesson 05 helps: attention of the CLS token as a score"]
# methods = ["fastervlm", "uniform", "random", "divprune"]
# papers = ["2412.01818 FasterVLM", "2408.10945 HiRED"]
# [zh]
# title = "结业项目：你自己的方法，进入应用"
# objectives = [
#   "把一个想法写成张量上的纯函数，并手算验证",
#   "把它放进一个文件，应用、命令行和测试会自己找到它",
#   "用每个方法都要遵守的契约检验它，读懂检查结果",
#   "公平地比较：相同预算，并列基线，在留出问题上做配对检验",
# ]
# prerequisites = ["第 00 课", "第 05 课有帮助：以 CLS token 的注意力作为分数"]
# ///

# %% [slide]
# ## A method is one file
#
# - a **pure function** on tensors, without a model in sight
# - a **frozen dataclass** with its hyper-parameters, a card, and one hook
# - nothing else is edited: app, shell, benchmark and contract tests find it

# %% [slide] lang=zh
# ## 一个方法就是一个文件
#
# - 一个张量上的**纯函数**，与任何模型无关
# - 一个**冻结的 dataclass**：超参数、一张卡片、一个钩子
# - 别处什么都不用改：应用、命令行、基准测试和契约测试会找到它

# %%
import tempfile
from collections import defaultdict
from inspect import getsource
from pathlib import Path

import torch

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.core import measures
from vtc_demo.core.operations import grid_within, top
from vtc_demo.core.tokens import Reduction
from vtc_demo.evaluation.paired import McNemar
from vtc_demo.methods import contract
from vtc_demo.methods.maths.received import patch_attention

vlm = vtc.load_vlm("embedded")
scene = vtc.world.sample(seed=2)
BUDGET = 64 / 576

# %% [markdown] minutes=9
# ## 1. An idea that can be wrong
#
# FasterVLM keeps the patches that the tower's CLS token attends to most. `uniform` keeps patches at even distances. Look at what each keeps of the same picture:

# %% [markdown] lang=zh
# ## 1. 一个可能出错的想法
#
# FasterVLM 保留视觉塔的 CLS token 最关注的图像块，`uniform` 按均匀间距保留图像块。看看两者各保留了同一张图的什么：

# %%
counting = next(q for q in scene.questions if q.kind == "counting")
pair = vtc.compare(vlm, scene.image, counting.text, [f"fastervlm@{BUDGET}", f"uniform@{BUDGET}"]).runs
kit.masks(scene.image, pair, counting, "By attention, and at even distances: 64 of 576 tokens")

# %% [markdown]
# The first crowds its tokens onto few places; the second sees every place and nothing sharply. The idea of this lesson: **spend a part of the budget on coverage and the rest on attention**.
# Cut the grid into blocks, keep the best patch of each block, and give what is left to the patches with the most attention anywhere.
#
# An idea needs a sentence that could turn out false, *before* the first run. Ours: *at 64 tokens, half of them for coverage, more of the evidence of counting questions survives than with attention alone.*
# In section 5 we see whether it holds. HiRED, for pictures cut into tiles, shares its budget among the tiles in a related way; ours shares it among blocks of one picture.

# %% [markdown] lang=zh
# 前者把 token 挤在少数几处；后者处处都看到，却处处都不清楚。本课的想法：**预算的一部分用于覆盖，其余用于注意力**。把网格切成若干区块，每个区块保留最好的图像块，剩下的预算给全图注意力最大的图像块。
#
# 在第一次运行*之前*，一个想法需要一句可能被证伪的话。我们的是：*在 64 个 token、其中一半用于覆盖时，计数问题的证据比只用注意力时保留得更多。*
# 第 5 节将看到它是否成立。HiRED 针对被切成多个切片（tile）的图像，以相近的方式在各切片之间分配预算；我们则在一张图的区块之间分配。

# %% [instructor]
# Let each participant write an idea and its falsifiable sentence on paper; five minutes, in pairs. Those without one follow the lesson's.
# Good alternatives: keep the borders of objects (largest difference to the neighbours), keep what differs most from the mean token, thin out what CLS attends to by similarity.

# %% [instructor] lang=zh
# 让每位学员在纸上写下一个想法和一句可证伪的话；五分钟，两人一组。没有想法的人用本课的。
# 好的备选：保留物体边缘（与邻块差异最大者），保留与平均 token 差异最大者，按相似度抽稀 CLS 关注的图像块。

# %% [markdown] minutes=22
# ## 2. Pure functions first
#
# A method's mathematics knows no model: scores in, indices out. That makes it testable by hand. Patch $i$ of a grid of $H \times W$ lies in row $y = \lfloor i / W \rfloor$ and column $x = i \bmod W$.
# With $r \times c$ blocks it belongs to block
#
# $$ b(i) = \left\lfloor \frac{y\,r}{H} \right\rfloor c + \left\lfloor \frac{x\,c}{W} \right\rfloor $$

# %% [markdown] lang=zh
# ## 2. 先写纯函数
#
# 方法的数学不认识任何模型：输入分数，输出下标，因此可以手算验证。在 $H \times W$ 的网格里，第 $i$ 块位于第 $y = \lfloor i / W \rfloor$ 行、第 $x = i \bmod W$ 列。分成 $r \times c$ 个区块时，它属于区块
#
# $$ b(i) = \left\lfloor \frac{y\,r}{H} \right\rfloor c + \left\lfloor \frac{x\,c}{W} \right\rfloor $$

# %% [exercise] difficulty=easy minutes=5
# Write $b(i)$ for all patches at once.

# %% [exercise] lang=zh
# 一次写出所有图像块的 $b(i)$。


# %% [solution]
def block_of(grid, rows, columns):
    """The block of every patch in raster order, [H * W] int64; grid = (H, W) cut into rows x columns blocks."""
    # BEGIN SOLUTION
    height, width = grid
    y, x = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return (y[:, None] * columns + x).flatten()
    # END SOLUTION


# %% [check]
got = block_of((4, 6), 2, 3)
check_equal(
    got[:6],
    [0, 0, 1, 1, 2, 2],
    "The top row of a 4 x 6 grid in 2 x 3 blocks lies in blocks 0 to 2, two patches in each.",
)
check_equal(got[-1], 5, "The last patch lies in the last block.")
counts = torch.bincount(block_of((24, 24), 4, 8))
check_equal(counts, [18] * 32, "24 x 24 patches in 4 x 8 blocks: 6 x 3 patches in each.")
check(
    len(block_of((24, 24), 5, 7).unique()) == 35, "Every block must get patches, also where the numbers do not divide."
)
done("every patch has its block")

# %% [hint]
# Compute the block row of every $y$ and the block column of every $x$, then let broadcasting make the table `[H, W]`.

# %% [hint] lang=zh
# 先算每个 $y$ 的区块行和每个 $x$ 的区块列，再用广播得到 `[H, W]` 的表。


# %% [mistake] why="Rows and columns are mixed up: the number of block rows is used as the width."
def block_of(grid, rows, columns):
    height, width = grid
    y, x = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return (y[:, None] * rows + x).flatten()


# %% [exercise] difficulty=medium minutes=8
# The best patch of each block. Do not loop over patches and read nothing back from the device (no `.item()`, no boolean mask): on a GPU each of these makes the host wait.
# Every block has at least one patch.

# %% [exercise] lang=zh
# 每个区块里最好的图像块。不要对图像块写循环，也不要从设备读回任何东西（不用 `.item()`，不用布尔掩码）：在 GPU 上，这些都会让主机等待。每个区块至少有一个图像块。


# %% [solution]
def best_of_each(scores, block, blocks):
    """The patch with the largest score in each block, [blocks] int64. scores [n], block [n] in [0, blocks)."""
    # BEGIN SOLUTION
    inside = block[None, :] == torch.arange(blocks, device=block.device)[:, None]  # [blocks, n]
    return torch.where(inside, scores[None, :], -torch.inf).argmax(1)
    # END SOLUTION


# %% [check]
block = torch.tensor([0, 0, 1, 1, 0, 2])
check_equal(
    best_of_each(torch.tensor([1.0, 3.0, 5.0, 4.0, 2.0, -7.0]), block, 3),
    [1, 2, 5],
    "Blocks 0, 1, 2 have their best at patches 1, 2 and 5.",
)
check_equal(
    best_of_each(torch.tensor([-1.0, -3.0, -5.0, -4.0, -2.0, -7.0]), block, 3), [0, 3, 5], "All scores may be negative."
)
scores, block = torch.randn(576, generator=torch.Generator().manual_seed(0)), torch.arange(576) % 32
try:
    with contract.NoSync():
        quick = best_of_each(scores, block, 32)
except contract.Broken as waits:
    check(False, f"Right so far, but {waits}.")
wanted = [max(range(b, 576, 32), key=lambda i: scores[i].item()) for b in range(32)]
check_equal(quick, wanted, "Compared with a plain loop on random scores.")
done("right, and without waiting for the device")

# %% [hint]
# Make a table `[blocks, n]`: the score where patch and block belong together, $-\infty$ elsewhere. `torch.where` and one `argmax` do it.

# %% [hint] lang=zh
# 做一张 `[blocks, n]` 的表：图像块属于该区块处填分数，其余填 $-\infty$。`torch.where` 加一次 `argmax` 即可。


# %% [mistake] why="Zero instead of minus infinity outside the block: fails as soon as all scores are negative."
def best_of_each(scores, block, blocks):
    inside = block[None, :] == torch.arange(blocks)[:, None]
    return (inside * scores[None, :]).argmax(1)


# %% [mistake] why="A loop with boolean masks: right, but a GPU would wait at every block."
def best_of_each(scores, block, blocks):
    out = []
    for b in range(blocks):
        inside = (block == b).nonzero().flatten()
        out.append(inside[scores[inside].argmax()])
    return torch.stack(out)


# %% [markdown]
# The whole method on tensors. To keep the blocks' best *and* the rest by attention, one trick suffices: give the best of each block the score $+\infty$ and take the top `keep`.

# %% [markdown] lang=zh
# 整个方法，只用张量。要*同时*保留各区块的最好者和其余按注意力的图像块，一个技巧就够：把每个区块最好者的分数设为 $+\infty$，再取前 `keep` 个。


# %%
def blockwise(scores, grid, keep, coverage):
    """Indices of the kept patches, [keep] ascending: the best of each block, then the largest scores anywhere.

    scores [H * W]; coverage: share of `keep` that is spent on blocks, their number rounded down to a grid of them.
    """
    height, width = grid
    rows, columns = grid_within(grid, max(1, round(coverage * keep)))
    y = torch.arange(height, device=scores.device) * rows // height
    x = torch.arange(width, device=scores.device) * columns // width
    block = (y[:, None] * columns + x).flatten()
    inside = block[None, :] == torch.arange(rows * columns, device=scores.device)[:, None]  # [blocks, H * W]
    best = torch.where(inside, scores[None, :], -torch.inf).argmax(1)
    return top(scores.index_fill(0, best, torch.inf), keep)


# %%
# By hand: a 2 x 4 grid in 1 x 2 blocks of four patches; the best of the blocks are patches 1 and 6.
by_hand = torch.tensor([0.1, 0.9, 0.0, 0.3, 0.8, 0.2, 0.7, 0.4])
assert blockwise(by_hand, (2, 4), 2, 1.0).tolist() == [1, 6]
assert blockwise(by_hand, (2, 4), 3, 0.67).tolist() == [1, 4, 6]  # one more: the largest of the rest
# At its edges it is a method that we know.
some = torch.rand(576, generator=torch.Generator().manual_seed(1))
assert 64 - len(set(blockwise(some, (24, 24), 64, 0.0).tolist()) & set(top(some, 64).tolist())) == 0  # all by attention
assert blockwise(some, (24, 24), 576, 0.5).tolist() == list(range(576))  # nothing to drop

# %% [markdown] minutes=14
# ## 3. One file
#
# The file of a method holds the function and a frozen dataclass. Its fields are the hyper-parameters with their ranges; API, shell and page read them from there. The **card** is what a visitor
# reads. The **hook** is asked at each site that the method names, is shown the state as a `HookContext`, and answers with a `Reduction` or `None`. It never touches the model.
# A method that computes scores of its own declares their FLOPs in `overhead_flops`, so that a comparison at equal FLOPs charges it for them. Ours only compares and sorts, and the attention that it asks for is booked by the engine: the default of 0 is right.
#
# Below, the function's source goes into the file as it stands above. In practice you write the file in an editor; `vtc_demo/methods/template.py` is there to be copied.

# %% [markdown] lang=zh
# ## 3. 一个文件
#
# 方法的文件里有这个函数和一个冻结的 dataclass。它的字段就是带取值范围的超参数；API、命令行和页面都从这里读取。**卡片**是访客读到的内容。**钩子**在方法声明的每个位置被调用，通过 `HookContext` 看到状态，返回一个 `Reduction` 或 `None`，从不改动模型。自行计算分数的方法要在 `overhead_flops` 里申报其 FLOPs，使 FLOPs 相等的比较把它计入方法。我们的方法只做比较和排序，索取的注意力由引擎记账：默认值 0 是对的。
#
# 下面把上面函数的源码原样写进文件。实际工作中你会在编辑器里写；`vtc_demo/methods/template.py` 就是供复制的模板。

# %%
HEAD = '''"""Best of each block: coverage of the picture first, attention with what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtc_demo.core.card import Card
from vtc_demo.core.method import Method
from vtc_demo.core.operations import check_grid, grid_within, top
from vtc_demo.core.parameters import param
from vtc_demo.core.tokens import Reduction, Site
from vtc_demo.methods.maths.received import patch_attention


'''
CLASS = '''

@dataclass(frozen=True)
class Blockwise(Method):
    """Keeps the best patch of each block and spends the rest of the budget on attention."""

    gridded = True  # of a picture cut into tiles it is asked tile by tile

    coverage: float = param(0.5, "share of the budget that is spread over the picture", low=0.0, high=1.0, step=0.05)

    def sites(self, shape):
        return (Site("projector"),)

    def reduce(self, context):
        n, grid = context.hidden.shape[0], context.shape.grid
        check_grid(self.card.name, grid, n - context.extra)
        kept = blockwise(patch_attention(context), grid, self.keep(n - context.extra), self.coverage)
        return Reduction.select(context.extra + kept, n)


Blockwise.card = Card(
    name="blockwise",
    title="Best of each block",
    family="pruning by vision attention",
    summary="Every part of the picture keeps its most looked-at patch; the rest of the budget goes to the best.",
    sites=("projector",),
    faithfulness="in the style of",
    deviations=("No published method: the capstone of the course.",),
)
'''
folder = Path(tempfile.mkdtemp()) / "my_methods"
folder.mkdir()
(folder / "blockwise.py").write_text(HEAD + getsource(blockwise) + CLASS, encoding="utf-8")
names = vtc.registry.load_folder(folder)
assert names == ["blockwise"] and "blockwise" in {card.name for card in vtc.list_methods()}
kit.table(
    [[p["name"], p["default"], p["help"]] for p in vtc.registry.parameters("blockwise")],
    ["hyper-parameter", "default", "what it is"],
)

# %% [markdown]
# From now on it is a method like any other: by name, with a retention, with its hyper-parameters.

# %% [markdown] lang=zh
# 从现在起它与其他方法一样：可以按名字、保留率和超参数来调用。

# %% [slide]
# ## Coverage and attention
#
# The best patch of each block, then the best anywhere. `coverage` is the share of the budget that is spread out.

# %% [slide] lang=zh
# ## 覆盖与注意力
#
# 先取每个区块的最好者，再取全图的最好者。`coverage` 是分散到全图的预算份额。

# %% slide
chosen = [{"method": "blockwise", "retention": BUDGET, "coverage": share} for share in (0.0, 0.5, 1.0)]
runs = vtc.compare(vlm, scene.image, counting.text, chosen).runs
names = [f"coverage {share}" for share in (0.0, 0.5, 1.0)]
kit.masks(scene.image, runs, counting, "Best of each block", names=names)

# %%
# What the engine did is what the function says: the trace of the run has the same indices.
attention = {}


def places(run):
    return set(run.trace.product().anchor.tolist())


class Look(vtc.methods.FasterVLM):
    def reduce(self, context):
        attention["patches"] = patch_attention(context).clone()


vtc.run(vlm, scene.image, counting.text, method=Look())
for run, share in zip(runs, (0.0, 0.5, 1.0)):
    kept = (run.trace.fate().status == 2).nonzero().flatten()
    assert torch.equal(kept, blockwise(attention["patches"], (24, 24), 64, share))
attention_alone = vtc.run(vlm, scene.image, counting.text, method="fastervlm", retention=BUDGET)
none, _, all_of_it = [len(places(attention_alone) & places(run)) for run in runs]
say(f"With coverage 0, {none} of 64 patches are those of FasterVLM; with coverage 1 it is {all_of_it}.")

# %% lang=zh
# What the engine did is what the function says: the trace of the run has the same indices.
attention = {}


def places(run):
    return set(run.trace.product().anchor.tolist())


class Look(vtc.methods.FasterVLM):
    def reduce(self, context):
        attention["patches"] = patch_attention(context).clone()


vtc.run(vlm, scene.image, counting.text, method=Look())
for run, share in zip(runs, (0.0, 0.5, 1.0)):
    kept = (run.trace.fate().status == 2).nonzero().flatten()
    assert torch.equal(kept, blockwise(attention["patches"], (24, 24), 64, share))
attention_alone = vtc.run(vlm, scene.image, counting.text, method="fastervlm", retention=BUDGET)
none, _, all_of_it = [len(places(attention_alone) & places(run)) for run in runs]
say(f"coverage 为 0 时，64 个图像块中有 {none} 个与 FasterVLM 相同；为 1 时有 {all_of_it} 个。")

# %% [quiz]
# Why does the hook return a `Reduction` instead of the reduced tokens?
#
# - [ ] Because indices are smaller than tokens
#   Memory is not the point; the engine makes the reduced tokens at once.
# - [x] Because from the reductions alone follow masks, merge weights, schedule and FLOPs
#   The engine applies it, the trace keeps it, and everything shown about a run is computed from the trace. The method reports no more than its overhead, and the contract holds that to a counter.
# - [ ] Because tokens must not be changed
#   They may be: merging is a `Reduction` with weights. What a hook must not do is change the model or the context.

# %% [quiz] lang=zh
# 钩子为什么返回 `Reduction`，而不是缩减后的 token？
#
# - [ ] 因为下标比 token 小
#   这与内存无关；引擎会立即算出缩减后的 token。
# - [x] 因为掩码、合并权重、调度和 FLOPs 都只由这些缩减推出
#   引擎应用它，轨迹（trace）保存它，关于一次运行所展示的一切都由轨迹算出。方法只需申报自身开销，而契约用计数器核对它。
# - [ ] 因为 token 不允许改变
#   可以改变：合并就是带权重的 `Reduction`。钩子不能做的是改动模型或上下文。

# %% [markdown] minutes=10
# ## 4. The contract
#
# Every method keeps the same rules: valid indices, any retention from 1 % to all, towers with and without CLS, the same outcome twice, the context left alone, no waiting for the device, overhead
# that is declared, a complete card. `vtc.registry.check_folder` rehearses the hooks with random numbers; on the shell it is `python -m vtc_demo check my_methods`.

# %% [markdown] lang=zh
# ## 4. 契约
#
# 每个方法遵守同样的规则：下标有效；保留率从 1 % 到全部都能用；有无 CLS 的视觉塔都能用；两次结果相同；不改动上下文；不等待设备；自身开销如实申报；卡片完整。`vtc.registry.check_folder` 用随机数排练各个钩子；
# 在命令行里是 `python -m vtc_demo check my_methods`。

# %%
findings = vtc.registry.check_folder(folder)
print(contract.report(findings))
assert findings == {"blockwise": []}

# %% [markdown]
# Read findings before you meet them. Four typical slips, each in a file of its own:

# %% [markdown] lang=zh
# 在自己遇到之前，先学会读检查结果。四个典型的疏忽，各在一个文件里：

# %%
slips = {
    "unsorted": ("kept = blockwise(", "kept = scrambled("),
    "waiting": ("(0, best, torch.inf)", "(0, best, scores.max().item() + 1)"),
    "off_by_one": ("Reduction.select(context.extra + kept, n)", "Reduction.select(context.extra + kept, n - 1)"),
    "forgotten": ("patch_attention(context)", "context.hidden[context.extra :].norm(dim=-1)"),
}  # fmt: skip
broken = folder.parent / "broken"
broken.mkdir()
for name, (old, new) in slips.items():
    text = (HEAD + getsource(blockwise) + CLASS).replace(old, new)
    text = text.replace('name="blockwise"', f'name="{name}"').replace("Blockwise", name.title())
    text += "\n\ndef scrambled(*args):\n    return blockwise(*args).flip(0)\n"
    (broken / f"{name}.py").write_text(text, encoding="utf-8")
report = vtc.registry.check_folder(broken)
print(contract.report(report))
assert all(report[name] for name in slips)

# %% [quiz]
# A method of yours passes the contract. What do you know?
#
# - [ ] That it is a good method
#   The contract knows nothing of accuracy. `random` passes it.
# - [x] That it runs in the app, the shell and the benchmark without surprises
#   Its outcomes are valid and repeatable, at every budget. Whether they are *good* is a question for section 5.
# - [ ] That it does what the paper says
#   For that you need the paper's released code and a conformance test on the same tensors (`tests/methods/test_conformance.py`).

# %% [quiz] lang=zh
# 你的方法通过了契约。你知道了什么？
#
# - [ ] 它是个好方法
#   契约对准确率一无所知。`random` 也能通过。
# - [x] 它在应用、命令行和基准测试里运行时不会有意外
#   在每个预算下，它的结果都有效且可重复。结果*好不好*是第 5 节的问题。
# - [ ] 它做的就是论文所说的
#   那需要论文公开的代码，以及在相同张量上的一致性测试（`tests/methods/test_conformance.py`）。

# %% [markdown] minutes=16
# ## 5. Does the idea hold?
#
# Same pictures, same questions, same budget, baselines beside it. The scenes come from the evaluation split, which no training has seen. For each method we note, question by question, whether the answer is right and which share of the evidence survived.

# %% [markdown] lang=zh
# ## 5. 想法成立吗？
#
# 同样的图像，同样的问题，同样的预算，并列基线。场景来自评估划分，任何训练都没有见过。对每种方法，我们逐题记录答案是否正确，以及证据保留了多少。

# %%
COLUMNS = {"full": "full", "attention": f"fastervlm@{BUDGET}", "random": f"random@{BUDGET}"}
COLUMNS |= {"blockwise": f"blockwise@{BUDGET}"}
right, survived = defaultdict(list), defaultdict(lambda: defaultdict(list))
kinds = []
for seed in range(8):
    held_out = vtc.world.sample(seed, split="eval")
    for q in held_out.questions[:6]:
        kinds.append(q.kind)
        for run, name in zip(vtc.compare(vlm, held_out.image, q.text, COLUMNS.values()).runs, COLUMNS):
            right[name].append(measures.right(run.answer, q.answer))
            survived[name][q.kind].append(run.trace.evidence_kept(torch.from_numpy(q.evidence)))
n = len(kinds)
assert n >= 40 and all(len(r) == n for r in right.values())

# %%
from vtc_demo.evaluation.intervals import wilson

rows, pooled = [], {}
for name, hits in right.items():
    low, high = wilson(sum(hits), n)
    shares = [value for values in survived[name].values() for value in values]
    pooled[name] = [value for value in shares if value == value]  # a question without evidence has none to keep
    accuracy = f"{100 * sum(hits) / n:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
    rows.append([name, accuracy, f"{100 * sum(pooled[name]) / len(pooled[name]):.0f} %"])
kit.table(rows, ["method", "right (95 % interval)", "evidence kept"])
say(f"{n} held-out questions, exact match; 64 of 576 tokens, all of them for the full model.")

# %% lang=zh
from vtc_demo.evaluation.intervals import wilson

rows, pooled = [], {}
for name, hits in right.items():
    low, high = wilson(sum(hits), n)
    shares = [value for values in survived[name].values() for value in values]
    pooled[name] = [value for value in shares if value == value]  # a question without evidence has none to keep
    accuracy = f"{100 * sum(hits) / n:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
    rows.append([name, accuracy, f"{100 * sum(pooled[name]) / len(pooled[name]):.0f} %"])
kit.table(rows, ["method", "right (95 % interval)", "evidence kept"])
say(f"{n} 个留出问题，完全匹配；576 个 token 中取 64 个，完整模型则为全部。")

# %%
mean = {name: sum(by_kind["counting"]) / len(by_kind["counting"]) for name, by_kind in survived.items()}
verdict = "holds" if mean["blockwise"] > mean["attention"] else "does not hold"
say(f"""
Our sentence was about the evidence of counting questions. Of {kinds.count("counting")} such questions, attention alone kept {100 * mean["attention"]:.0f} % of it on average
and blockwise {100 * mean["blockwise"]:.0f} %: on these questions it **{verdict}**. An idea refuted is a result, too.
""")

# %% lang=zh
mean = {name: sum(by_kind["counting"]) / len(by_kind["counting"]) for name, by_kind in survived.items()}
verdict = "成立" if mean["blockwise"] > mean["attention"] else "不成立"
say(f"""
我们的那句话说的是计数问题的证据。在 {kinds.count("counting")} 个这样的问题上，只用注意力平均保留了 {100 * mean["attention"]:.0f} %，
blockwise 保留了 {100 * mean["blockwise"]:.0f} %：在这些问题上它**{verdict}**。被推翻的想法也是结果。
""")

# %%
kept_share = {name: sum(values) / len(values) for name, values in pooled.items()}
by_answers = sorted(right, key=lambda name: -sum(right[name]))
by_evidence = sorted(right, key=lambda name: -kept_share[name])
agree = "the same" if by_answers == by_evidence else "not the same"
say(f"""
By right answers the order is {", ".join(by_answers)}; by surviving evidence it is {", ".join(by_evidence)}. The two orders are **{agree}** here.
Evidence that survives and answers that are right are two different measures: report both.
""")

# %% lang=zh
kept_share = {name: sum(values) / len(values) for name, values in pooled.items()}
by_answers = sorted(right, key=lambda name: -sum(right[name]))
by_evidence = sorted(right, key=lambda name: -kept_share[name])
agree = "相同" if by_answers == by_evidence else "不同"
say(f"""
按答对数排序是 {", ".join(by_answers)}；按保留的证据排序是 {", ".join(by_evidence)}。这里两个次序**{agree}**。
保留的证据与答对的问题是两种不同的度量：两者都要报告。
""")

# %% [markdown]
# The intervals above overlap widely: with some dozens of questions they must. But both methods answered the *same* questions, so compare them pair by pair. Questions that both get right, or both wrong, say nothing.
# Let $a$ be the number that only the first gets right and $b$ that of the second. If the methods were equally good, each of the $a + b$ would be a fair coin. The exact **McNemar test** asks how likely a split at least this uneven is:
#
# $$ p = \min\left(1,\; 2 \sum_{k=0}^{\min(a,b)} \binom{a+b}{k} \, 2^{-(a+b)} \right) $$

# %% [markdown] lang=zh
# 上面的区间大幅重叠：只有几十个问题，必然如此。但两种方法回答的是*同样的*问题，所以要逐对比较。两者都对或都错的问题不提供信息。
# 设只有前者答对的有 $a$ 题，只有后者答对的有 $b$ 题。若两种方法同样好，这 $a + b$ 题每一题都是一枚公平的硬币。精确的 **McNemar 检验**问：至少这么不均匀的分法有多大可能：
#
# $$ p = \min\left(1,\; 2 \sum_{k=0}^{\min(a,b)} \binom{a+b}{k} \, 2^{-(a+b)} \right) $$

# %% [exercise] difficulty=medium minutes=6
# Write the test. `first` and `second` are lists of bools over the same questions.

# %% [exercise] lang=zh
# 写出这个检验。`first` 和 `second` 是同一组问题上的布尔列表。


# %% [solution]
def mcnemar(first, second):
    """Two-sided exact p-value that two methods are equally often right, from paired lists of bools."""
    # BEGIN SOLUTION
    from math import comb

    a = sum(x and not y for x, y in zip(first, second))
    b = sum(y and not x for x, y in zip(first, second))
    return min(1.0, 2 * sum(comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b))
    # END SOLUTION


# %% [check]
def paired(a, b, both=5, neither=3):
    return [True] * a + [False] * b + [True] * both + [False] * neither, [False] * a + [True] * b + [True] * both + [
        False
    ] * neither


check_equal(mcnemar(*paired(10, 2)), 0.03857421875, "10 against 2 discordant questions give p = 0.0386.", 1e-9)
check_equal(mcnemar(*paired(2, 10)), 0.03857421875, "The test is two-sided: 2 against 10 is the same.", 1e-9)
check_equal(mcnemar(*paired(3, 3)), 1.0, "3 against 3 is no difference at all, and a probability is at most 1.", 1e-9)
check_equal(mcnemar(*paired(0, 0)), 1.0, "Without a discordant question there is nothing to tell apart.", 1e-9)
check_equal(mcnemar(*paired(10, 2, both=500)), 0.03857421875, "Questions that both get right must not matter.", 1e-9)
both = right["attention"], right["blockwise"]
check_equal(mcnemar(*both), McNemar.of(*both).p, "The package finds another p-value on the questions above.", 1e-9)
done(
    f"blockwise against attention: p = {mcnemar(right['blockwise'], right['attention']):.2f}; against the full model: p = {mcnemar(right['blockwise'], right['full']):.2g}"
)

# %% [hint]
# `zip` the lists and count the two kinds of discordant pairs; `math.comb` gives the binomial coefficients. With $a = b$ the sum exceeds one half: cap it.

# %% [hint] lang=zh
# 用 `zip` 配对两个列表，数出两种不一致的对；`math.comb` 给出二项式系数。当 $a = b$ 时和会超过二分之一：要截断。


# %% [mistake] why="One-sided: half of the true value."
def mcnemar(first, second):
    from math import comb

    a = sum(x and not y for x, y in zip(first, second))
    b = sum(y and not x for x, y in zip(first, second))
    return min(1.0, sum(comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b))


# %% [mistake] why="All questions are counted, not only those on which the methods differ."
def mcnemar(first, second):
    from math import comb

    n, low = len(first), min(sum(first), sum(second))
    return min(1.0, 2 * sum(comb(n, k) for k in range(low + 1)) / 2**n)


# %% [instructor]
# The point is not whether blockwise wins. Ask each group to state its result in one honest sentence: budget, number of questions, baselines, p-value. Then ask how many questions it would take to show a difference of three points
# (at 60 % and independent errors several thousand; pairing brings it down).
# Groups with ideas of their own put their file next to blockwise.py and add a line to COLUMNS.

# %% [instructor] lang=zh
# 重点不是 blockwise 是否获胜。请每组用一句诚实的话陈述结果：预算、问题数、基线、p 值。然后问：要多少个问题才能看出三个百分点的差异（在 60 % 附近、误差独立时要数千个；配对可以减少）。
# 有自己想法的小组把文件放在 blockwise.py 旁边，并在 COLUMNS 里加一行。

# %% [slide]
# ## An honest sentence
#
# - the budget, the same for all
# - the number of questions, held out
# - the baselines: random, uniform, pooling, a smaller picture
# - an interval, and a paired test against the best rival
# - what was *not* tried

# %% [slide] lang=zh
# ## 一句诚实的话
#
# - 预算，对所有方法相同
# - 问题数，而且是留出的
# - 基线：随机、均匀、池化、更小的图像
# - 一个区间，以及与最强对手的配对检验
# - 还有*没有*试过什么

# %% [markdown] minutes=9
# ## 6. Drop or merge?
#
# Dropped patches are lost. Merging them into the nearest kept patch keeps a trace of everything: each new token is the mean of a kept patch and all patches assigned to it. As a matrix, row $t$ of $R$ has weight $1/s_t$ for each of the $s_t$ patches of its group.

# %% [markdown] lang=zh
# ## 6. 丢弃还是合并？
#
# 被丢弃的图像块就没有了。把它们合并到最近的保留块里，就保住了所有块的痕迹：每个新 token 是一个保留块与分给它的所有块的平均。写成矩阵，$R$ 的第 $t$ 行对其组内 $s_t$ 个图像块各取权重 $1/s_t$。

# %% [exercise] difficulty=hard minutes=8
# Build that reduction. `kept` are the survivors, `group[i]` says for *every* patch (kept ones too) which survivor, 0 to $m - 1$, it belongs to; a survivor belongs to itself.
# `Reduction.from_dense(matrix, anchor)` makes a reduction from $R$ and the places of the new tokens.

# %% [exercise] lang=zh
# 构造这个缩减。`kept` 是保留者，`group[i]` 给出*每个*图像块（包括保留者）属于哪个保留者，取值 0 到 $m - 1$；保留者属于自己。
# `Reduction.from_dense(matrix, anchor)` 由 $R$ 和新 token 的位置构造一个缩减。


# %% [solution]
def absorb(kept, group):
    """Mean over groups as a Reduction. kept [m] int64 ascending; group [n] int64 in [0, m)."""
    # BEGIN SOLUTION
    member = (group[None, :] == torch.arange(len(kept))[:, None]).float()  # [m, n]
    return Reduction.from_dense(member / member.sum(1, keepdim=True), kept)
    # END SOLUTION


# %% [check]
made = absorb(torch.tensor([0, 3]), torch.tensor([0, 0, 1, 1, 1]))
check(isinstance(made, Reduction), "Return a Reduction.")
check_equal(
    made.dense(), [[0.5, 0.5, 0, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]], "Row t holds 1 / size for each member of group t."
)
check_equal(made.anchor, [0, 3], "A new token stands at the place of its survivor.")
tokens = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
check_equal(made.apply(tokens)[1], tokens[2:].mean(0), "Applied to tokens, it gives the mean of each group.")
check_equal(made.apply(torch.ones(5, 1)), torch.ones(2, 1), "Rows sum to 1: equal tokens stay as they are.")
done("merging is a matrix, too: lesson 08 writes every method this way")

# %% [hint]
# Start from the table `[m, n]` that is 1 where a patch belongs to a group; divide each row by its sum.

# %% [hint] lang=zh
# 从 `[m, n]` 的表开始：图像块属于该组处为 1；再让每行除以自己的和。


# %% [mistake] why="Sums instead of means: a large group becomes a long vector."
def absorb(kept, group):
    member = (group[None, :] == torch.arange(len(kept))[:, None]).float()
    return Reduction.from_dense(member, kept)


# %% [markdown] minutes=5
# ## 7. In the app
#
# Put `blockwise.py` into a folder of your own, `my_methods`, beside `app.py`. Then:
#
# - `python app.py --methods my_methods` shows it in the list of methods; `http://127.0.0.1:7860/?method=blockwise` opens with it.
# - `python -m vtc_demo check my_methods` holds it to the contract.
# - `python -m vtc_demo compare full fastervlm@0.11 blockwise@0.11 --scene 2 --methods my_methods` compares it in the shell.
#
# Before you show it to others, read your card once more. `faithfulness` says how near it is to a paper: `matches released code` is for methods with a conformance test, `from the paper` for those without;
# an idea of your own is `in the style of`, with the sentence that says so among its deviations. `finding` is the place for the sentence from section 5, with its numbers.

# %% [markdown] lang=zh
# ## 7. 进入应用
#
# 把 `blockwise.py` 放进自己的文件夹 `my_methods`，与 `app.py` 并列。然后：
#
# - `python app.py --methods my_methods`：它出现在方法列表里；`http://127.0.0.1:7860/?method=blockwise` 打开时就选中它。
# - `python -m vtc_demo check my_methods`：用契约检验它。
# - `python -m vtc_demo compare full fastervlm@0.11 blockwise@0.11 --scene 2 --methods my_methods`：在命令行里比较它。
#
# 给别人看之前，再读一遍你的卡片。`faithfulness` 说明它与论文有多近：`matches released code` 用于有一致性测试的方法，`from the paper` 用于没有的；
# 你自己的想法是 `in the style of`，并在 deviations 里用一句话说明。`finding` 是写第 5 节那句话的地方，要带数字。

# %%
kit.report("blockwise")

# %% [slide]
# ## Take home
#
# - Pure function, one file, contract: then it runs everywhere.
# - Write down what would refute the idea before the first run.
# - Same budget, baselines, paired test. A refuted idea is a result.

# %% [slide] lang=zh
# ## 小结
#
# - 纯函数，一个文件，契约：这样它处处都能运行。
# - 第一次运行之前，写下什么会推翻这个想法。
# - 相同预算、基线、配对检验。被推翻的想法也是结果。

# %% [instructor]
# Close with a gallery walk: every group starts the app with its folder and shows one picture where its method wins and one where it loses. Ten minutes for four groups.

# %% [instructor] lang=zh
# 以“画廊漫步”结束：每组带着自己的文件夹启动应用，展示一张自己方法赢的图和一张输的图。四组约十分钟。
