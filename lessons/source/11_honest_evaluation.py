# /// lesson
# title = "Honest evaluation: baselines, intervals, cost"
# objectives = [
#   "name the baselines that a table of results needs, and say what a score is worth without a picture",
#   "put an interval on a share of right answers, compare two methods on the same questions, and say how many questions a claim needs",
#   "reproduce the FLOPs that papers print, and say which convention a figure is in",
#   "compare methods at equal cost, and predict where fewer FLOPs do not become less time",
# ]
# prerequisites = ["lesson 00", "lesson 05 or 06 helps: some methods to compare"]
# methods = ["full", "random", "uniform", "pool", "downsample", "divprune", "fastv", "pyramiddrop"]
# papers = ["2403.06764 FastV", "2410.17247 PyramidDrop", "2410.04417 SparseVLM", "2503.02175 DivPrune", "2411.17686 FiCoCo", "2501.05179 GlobalCom2"]
# ///

# %% [slide]
# ## "97 % of the accuracy at 11 % of the tokens"
#
# - 97 % of **which questions**, and what would a guess score?
# - Better than **whom**, by how much, on how many questions?
# - 11 % of the tokens is how much of the **cost**, and whose way of counting is that?

# %%
import json
from collections import Counter
from functools import cache
from math import comb, sqrt
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

import vtc_demo as vtc
from lessons import kit
from lessons.kit import check, check_equal, done, say
from vtc_demo.core import measures
from vtc_demo.evaluation import intervals, paired
from vtc_demo.evaluation.questions import balanced
from vtc_demo.figures.colours import colours

vlm = vtc.load_vlm("embedded")

# %% [markdown] minutes=9
# ## 1. What would a guess score?
#
# This lesson measures little and reads much. A sweep over all methods takes an hour, so it was recorded once, with the answer to *every question*: that is what makes the comparisons below possible.
#
# A score means something only beside what can be had for nothing. There are three kinds of nothing:
#
# 1. **No picture.** The question alone often tells the answer: half of all yes/no questions are answered by "yes". Ask the model with a grey picture, or give the most frequent answer of each kind without any model.
# 2. **No look at the picture.** `random`, `uniform`, `pool` and `downsample` shorten the sequence without asking what is in it. A method that looks has to beat them.
# 3. **No compression.** The full model is the upper reference. It says what there is to lose.

# %%
RECORDS = Path(vtc.__file__).parents[1] / "assets/measurements"
sweep = json.loads((RECORDS / "embedded_sweep.json").read_text(encoding="utf-8"))
rows = {(row["method"]["method"], row["tokens"]): row for row in sweep["rows"]}
BLIND = ["random", "uniform", "pool", "downsample"]
NAMES = list(dict.fromkeys(name for name, tokens in rows if tokens))  # in the order of the record
INFORMED = [name for name in NAMES if name not in BLIND]
KINDS = sweep["kinds"]
title = {name: row["title"] for (name, _), row in rows.items()}


def when(record):
    """Where and when a record was made."""
    where = record["environment"]
    return f"{where['date'][:10]}, {where['device']}, {where['dtype']}, {where['threads']} thread(s)"


asked = [(number, picture, q) for number, picture, questions in balanced(sweep["questions"]) for q in questions]
assert [q.kind for *_, q in asked] == sweep["asked"]["kinds"]  # the very questions of the record
assert [number for number, *_ in asked] == sweep["asked"]["scenes"]
say(f"""
The record: {sweep["questions"]} questions about {sweep["scenes"]} held-out pictures, every kind equally often, {len(NAMES)} methods at {len({t for _, t in rows if t})} budgets. Made on {when(sweep)}.
""")

# %% [exercise] difficulty=easy minutes=4
# The simplest "model": for each kind of question it knows the answer that was most frequent *in training*. Write it. `train` holds pairs (kind, answer); return one answer for each entry of `kinds`.


# %% [solution]
def most_frequent(train, kinds):
    """train: pairs (kind, answer); kinds: of the questions to answer. Returns a list with one answer per question."""
    # BEGIN SOLUTION
    by_kind = {}
    for kind, answer in train:
        by_kind.setdefault(kind, Counter())[answer] += 1
    return [by_kind[kind].most_common(1)[0][0] for kind in kinds]
    # END SOLUTION


# %% [check]
toy = [("size", "big")] * 3 + [("size", "small")] * 2 + [("reading", "7")] * 9 + [("colour", "red")]
got = list(most_frequent(toy, ["size", "reading", "size", "colour"]))
check(len(got) == 4, f"One answer per question: four, not {len(got)}.")
check(got[0] != "7", "The most frequent answer of all is 7. Nobody answers that when asked for a size: count by kind.")
check(got == ["big", "7", "big", "red"], f"Three of five sizes are big, all numbers are 7. You answer {got}.")
check(
    set(most_frequent(toy, ["size"] * 60)) == {"big"},
    "Always the most frequent one. Drawing answers as often as they occur is right less often.",
)
done("a model without weights")

# %% [hint]
# A `Counter` per kind; `counter.most_common(1)` is a list with one pair (answer, how often).


# %% [mistake] why="One answer for all kinds."
def most_frequent(train, kinds):
    return [Counter(answer for _, answer in train).most_common(1)[0][0] for _ in kinds]


# %% [mistake] why="Draws answers as often as they occur. With shares p of the answers it is right in the sum of p², the most frequent one in max p."
def most_frequent(train, kinds):
    rng = np.random.default_rng(0)
    return [str(rng.choice([answer for k, answer in train if k == kind])) for kind in kinds]


# %% [markdown]
# Now the three kinds of nothing beside the full model. The prior comes from training scenes and is graded on held-out ones; counting the answers of the test set itself would be peeking. The grey picture goes through the full
# model, live.

# %%
counted = {}
for seed in range(300):
    lesson_scene = vtc.world.sample(seed, split="train")
    for q in vtc.world.ask(lesson_scene, np.random.default_rng(seed), n=16):
        counted.setdefault(q.kind, Counter())[q.answer] += 1
prior = [counted[q.kind].most_common(1)[0][0] == q.answer for *_, q in asked]

grey = Image.new("RGB", asked[0][1].image.size, (128, 128, 128))
LIVE = 48  # the first of the same questions
unseen = [measures.right(vtc.run(vlm, grey, q.text).answer, q.answer) for *_, q in asked[:LIVE]]


def shares(hits):
    """Accuracy over all questions and by kind, from the first len(hits) of them."""
    told = {kind: [h for h, (*_, q) in zip(hits, asked) if q.kind == kind] for kind in KINDS}
    return {"all": intervals.share(hits), "kinds": {kind: intervals.share(h) for kind, h in told.items()}}


def cells(row):
    """All kinds with the interval, then every kind, in percent."""
    whole = row["all"]
    first = f"{100 * whole['accuracy']:.0f} ({100 * whole['low']:.0f} to {100 * whole['high']:.0f})"
    return [first, *(f"{100 * row['kinds'][kind]['accuracy']:.0f}" for kind in KINDS)]


table = [["most frequent answer, no model", *cells(shares(prior))]]
table += [[f"grey picture, {LIVE} questions", *cells(shares(unseen))]]
table += [[f"{title[name]}, 64 tokens", *cells(rows[name, 64])] for name in BLIND]
table += [["Full, 576 tokens", *cells(rows["full", None])]]
kit.table(table, ["right, in percent", "all (95 % interval)", *KINDS])
floor, by_chance, full = (row["all"]["accuracy"] for row in (shares(prior), rows["random", 64], rows["full", None]))
assert floor < full
say(f"""
The scale does not begin at 0. Without any model {100 * floor:.0f} % are right. Of what lies between this and the full model's {100 * full:.0f} %, a blind choice of 64 tokens reaches **{100 * (by_chance - floor) / (full - floor):.0f} %**.
""")

# %% [quiz]
# A method keeps 92 % of the full model's score on a benchmark of yes/no questions. The full model is right in 86 of 100. What does that say?
#
# - [ ] Little was lost: 8 %
#   0.92 · 86 is 79. But saying "yes" throughout is right in about 50, so the scale runs from 50 to 86.
# - [x] About a fifth of what the picture adds was lost
#   79 of the range from 50 to 86: (86 − 79) / (86 − 50) is 19 %. "Percent of the full score" hides where the scale begins.
# - [ ] Nothing, because ratios of accuracies have no meaning
#   They have one, but it depends on the floor, which has to be shown.

# %% [markdown] minutes=12
# ## 2. How sure is a share?
#
# Of $n$ questions $k$ were right, so $\hat p = k/n$. Which true shares $p$ go with that? Those for which $\hat p$ lies no more than $z$ standard errors from $p$, with $z = 1.96$ for 95 %:
#
# $$ |\hat p - p| \le z \sqrt{\frac{p (1 - p)}{n}} $$
#
# Square both sides and solve for $p$. The two roots are **Wilson's interval**:
#
# $$ \frac{\hat p + \frac{z^2}{2n} \;\pm\; z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}}{1 + \frac{z^2}{n}} $$
#
# The textbook's shortcut puts $\hat p$ into the square root in place of $p$: $\hat p \pm z \sqrt{\hat p (1 - \hat p) / n}$, Wald's interval. With $k = n$ it has no width at all, as if 25 right answers of 25 proved perfection.

# %% [exercise] difficulty=medium minutes=5
# Write Wilson's interval.


# %% [solution]
def wilson(k, n, z=1.96):
    """Bounds (low, high) of the share, from k right answers of n."""
    # BEGIN SOLUTION
    p = k / n
    centre = p + z * z / (2 * n)
    reach = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)
    # END SOLUTION


# %% [check]
low, high = wilson(25, 25)
check(
    low < 1,
    "25 of 25 do not prove that the share is 1: the interval must have a width. The p in the root is the true one.",
)
check_equal([low, high], [25 / (25 + 1.96**2), 1.0], "With k = n the formula becomes n / (n + z²) and 1.", 1e-6)
low, high = wilson(15, 25)
for bound in (low, high):
    check_equal(
        abs(15 / 25 - bound),
        1.96 * sqrt(bound * (1 - bound) / 25),
        f"{bound:.3f} is no root of the equation: the two sides differ. Is every term of the formula there?",
        1e-6,
    )
check(low < 15 / 25 < high, "15 of 25 lie between the bounds.")
check_equal(wilson(304, 500), intervals.wilson(304, 500), "The package gives other bounds for 304 of 500.", 1e-9)
done("bounds as in the package")

# %% [hint]
# Three names: `p = k / n`, the centre with its $z^2 / 2n$, the reach with its $z^2 / 4n^2$ under the root. Both are divided by $1 + z^2/n$.


# %% [mistake] why="Wald's interval: no width where all are right."
def wilson(k, n, z=1.96):
    p = k / n
    reach = z * sqrt(p * (1 - p) / n)
    return p - reach, p + reach


# %% [mistake] why="The term z²/4n² under the root is forgotten: right only for shares in the middle, and no width at the ends."
def wilson(k, n, z=1.96):
    p = k / n
    centre, reach = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n)
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


# %% [markdown]
# An interval keeps its promise if it contains the true share in 95 % of all repetitions. That can be computed exactly: sum the probabilities of all $k$ whose interval contains $p$.


# %%
def wald(k, n, z=1.96):
    reach = z * sqrt(k / n * (1 - k / n) / n)
    return k / n - reach, k / n + reach


def coverage(interval, p, n):
    """Probability that the interval contains the true share p, over all outcomes of n questions."""
    bounds = [interval(k, n) for k in range(n + 1)]
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k, (low, high) in enumerate(bounds) if low <= p <= high)


true = np.linspace(0.02, 0.98, 97)
kept = {name: [coverage(f, p, 25) for p in true] for name, f in (("Wilson", intervals.wilson), ("Wald", wald))}
assert min(kept["Wilson"]) > 0.8 > min(kept["Wald"])

# %% [slide]
# ## Which interval keeps its promise?
#
# 25 questions, as many as one kind has in the record. How often a 95 % interval contains the truth, computed exactly.

# %% slide
chart = kit.lines(
    {name: (100 * true, 100 * np.array(values)) for name, values in kept.items()},
    "true share of right answers, %",
    "intervals that contain it, %",
    "Coverage of 95 % intervals, 25 questions",
)
chart.add_hline(y=95, line={"dash": "dot", "color": "#64748b", "width": 1})
chart.update_traces(mode="lines")
chart.update_yaxes(range=[30, 101])

# %% [markdown]
# How wide are they? In the middle, half the width is about $z\sqrt{0.25/n} \approx 1/\sqrt n$. Four times the questions halve it.

# %%
sizes = [25, 100, 200, 500, 2000, 9000]
half = {n: (intervals.wilson(n // 2, n)[1] - intervals.wilson(n // 2, n)[0]) / 2 for n in sizes}
assert all(abs(half[n] * sqrt(n) - 0.98) < 0.08 for n in sizes)
kit.table([["± points", *(100 * half[n] for n in sizes)]], ["questions", *map(str, sizes)])
say(f"""
One kind of question in the record has about 25: **±{100 * half[25]:.0f} points**. With 200 it is ±{100 * half[200]:.0f}. Even 9,000 questions leave ±{100 * half[9000]:.0f} point: what stands after the
decimal point of a single score says nothing about other questions of the same kind. TextVQA's validation set has 5,000 questions, the three parts of POPE about 3,000 each.
""")

# %% [markdown] minutes=7
# ## 3. A mean over kinds hides reading and counting
#
# Two methods with the same mean can be good at different things. The cell looks for such a pair in the record: the informed method whose mean is nearest to that of random picking, at 192 tokens.

# %%
near = min(INFORMED, key=lambda name: abs(rows[name, 192]["all"]["right"] - rows["random", 192]["all"]["right"]))
pair = {name: rows[name, 192] for name in ("random", near)}
kit.table([[title[name], *cells(row)] for name, row in pair.items()], ["192 tokens, right in percent", "all", *KINDS])
change = {kind: pair[near]["kinds"][kind]["accuracy"] - pair["random"]["kinds"][kind]["accuracy"] for kind in KINDS}
most, least = max(change, key=change.get), min(change, key=change.get)
say(f"""
In the mean {title[near]} and Random are **{100 * (pair[near]["all"]["accuracy"] - pair["random"]["all"]["accuracy"]):+.1f} points** apart. By kind: {100 * change[most]:+.0f} points on *{most}*, {100 * change[least]:+.0f} on *{least}*, {100 * change["counting"]:+.0f} on *counting*
({pair[near]["kinds"][least]["n"]} questions each). Whether the two are "on a par" depends on what is asked.
""")

# %% [markdown]
# So a mean is a statement about the *mix* of questions, too. Let the share of reading questions in a benchmark grow from none to all, the other kinds equally likely:

# %%
mix = np.linspace(0, 1, 5)
shown = list(dict.fromkeys(["random", "pool", *(n for n in ("divprune", "fastervlm", "visionzip") if n in NAMES)]))


def score(name, kind, share, tokens=64):
    """Accuracy on a benchmark with this share of one kind, the rest spread evenly over the others."""
    parts = {k: v["accuracy"] for k, v in rows[name, tokens]["kinds"].items()}
    others = [v for k, v in parts.items() if k != kind]
    return share * parts[kind] + (1 - share) * sum(others) / len(others)


by_mix = {name: [100 * score(name, "reading", s) for s in mix] for name in shown}

# %% [slide]
# ## The mix decides the ranking
#
# The same recorded answers at 64 tokens. Only the share of reading questions changes.

# %% slide
kit.lines(
    {name: (100 * mix, values) for name, values in by_mix.items()},
    "reading questions in the benchmark, %",
    "right answers, %",
    "64 tokens: mean accuracy over the mix of questions",
)

# %%
order = {s: [title[n] for n in sorted(shown, key=lambda n: -by_mix[n][list(mix).index(s)])] for s in (0.0, 1.0)}
drop = {
    kind: rows["full", None]["kinds"][kind]["accuracy"] - rows["random", 64]["kinds"][kind]["accuracy"]
    for kind in KINDS
}
worst = sorted(drop, key=drop.get)[-3:][::-1]
say(f"""
Without reading questions the order is {", ".join(order[0.0])}; with nothing else it is {", ".join(order[1.0])}. From the full model to random picking at 64 tokens the largest losses are
{", ".join(f"*{kind}* (−{100 * drop[kind]:.0f} points)" for kind in worst)}. A benchmark that asks neither to read nor to count cannot show these.
""")

# %% [instructor]
# Have the participants say which of their own benchmarks asks to read (TextVQA, DocVQA, OCRBench) and which to count. Many tables in papers on token compression average POPE, GQA, MME and the like, in which few questions need a small detail.
# A good exercise for the break: take a table of a paper and compute the mean with and without its TextVQA column.

# %% [markdown] minutes=6
# ## 4. Kept evidence and right answers
#
# In generated scenes the **evidence** is known: the patches that carry the answer. If $E$ is the evidence and $S$ the patches that survive, evidence recall is $|S \cap E| / |E|$. It is measured without grading an answer, has
# a value between 0 and 1 for every question, and its interval is usually narrower than that of accuracy. Two things must be said with it.
#
# First, its ceiling: $m$ kept patches can hold no more than $m$ of the evidence. Second, what it counts: the package's figure takes a patch as survived if it is kept *or merged*, so pooling has 100 % by definition.

# %%
room = {}
for *_, q in asked:
    room.setdefault(q.kind, []).append(min(1.0, 64 / q.evidence.sum()))
kit.table(
    [
        ["best possible with 64 patches", *(f"{100 * np.mean(room[kind]):.0f} %" for kind in KINDS)],
        *(
            [title[name], *(f"{100 * rows[name, 64]['kinds'][kind]['evidence']['mean']:.0f} %" for kind in KINDS)]
            for name in ("random", *shown[2:], "pool")
        ),
    ],
    ["evidence kept or merged, 64 tokens", *KINDS],
)
assert np.mean(room["background"]) < np.mean(room["reading"])
assert rows["pool", 64]["all"]["evidence"]["mean"] == 1

# %% [markdown]
# Does more evidence mean more right answers? The record has both for every question. Take the methods that only *pick* patches before the decoder, at all budgets, and sort the questions by the evidence that survived.

# %%
pickers = [name for name in ("random", "uniform", "fastervlm", "divprune") if name in NAMES]
edges = [0, 1e-9, 0.1, 0.25, 0.5, 0.75, 0.999]  # the last bin: all of it


def graded(kind):
    """(evidence, right) of every question of a kind, of all pickers and budgets."""
    for (name, _), row in rows.items():
        if name in pickers:
            told = zip(row["samples"]["right"], row["samples"]["evidence"], sweep["asked"]["kinds"])
            yield from ((e, int(r)) for r, e, k in told if k == kind and e is not None)


def binned(kind):
    """Mean evidence, accuracy and its interval in each bin that has at least ten questions."""
    pairs = np.array(list(graded(kind)))
    place = np.digitize(pairs[:, 0], edges[1:])
    out = []
    for i in range(len(edges)):
        inside = pairs[place == i]
        if len(inside) >= 10:
            part = intervals.share(inside[:, 1])
            out.append([100 * inside[:, 0].mean(), *(100 * part[key] for key in ("accuracy", "low", "high"))])
    return np.array(out).T


curves = {kind: binned(kind) for kind in ("reading", "colour", "counting")}

# %% [slide]
# ## More evidence, more right answers?
#
# Questions sorted by surviving evidence. Pickers before the decoder, all budgets of the record. Bands: 95 % intervals.

# %% slide
kit.lines(curves, "evidence kept, % (mean of the bin)", "right answers, %", "Right answers by surviving evidence")

# %%
none = [right for kind in KINDS for evidence, right in graded(kind) if evidence == 0]
whole = {kind: [right for evidence, right in graded(kind) if evidence >= 0.999] for kind in ("reading", "counting")}
fields = {kind: (v[1][0], v[1].max(), v[0][v[1].argmax()]) for kind, v in curves.items()}
say(f"""
With no evidence left {100 * np.mean(none):.0f} % of {len(none)} answers are right; compare with the first row of section 1. *Reading* goes from {fields["reading"][0]:.0f} % to
{fields["reading"][1]:.0f} %, reached in the bin at {fields["reading"][2]:.0f} % evidence; *counting* has its best bin ({fields["counting"][1]:.0f} %) at {fields["counting"][2]:.0f} % evidence, and {curves["counting"][1][-1]:.0f} % in its last. With all of the text's patches kept {100 * (1 - np.mean(whole["reading"])):.0f} % of the readings are still wrong.

Careful: this is what goes together in the record, not what causes what. The bins hold different methods, budgets and questions.
""")

# %% [markdown] minutes=18
# ## 5. Two methods, the same questions
#
# How much of a difference is luck? Here is luck alone: *one* method, random picking of 64 tokens, drawn five times.

# %%
draws = [
    [
        int(
            measures.right(
                vtc.run(vlm, s.image, q.text, "random", retention=64 / 576, seed=1000 * i + n).answer, q.answer
            )
        )
        for n, s, q in asked[:LIVE]
    ]
    for i in range(5)
]
again = sum(str(a) == b for a, b in zip(draws[0], rows["random", 64]["samples"]["right"]))
percent = [100 * sum(hits) / LIVE for hits in draws]
spread = max(percent) - min(percent)
say(f"""
{LIVE} questions, five draws: {", ".join(f"{p:.0f}" for p in percent)} % right. Best minus worst: **{spread:.0f} points**, and there is nothing to find. (The first draw has the seeds of the record: {again} of {LIVE} verdicts are the same.) Who reports the best
of five runs reports this difference.
""")

# %% [markdown]
# Intervals of two methods that overlap do not settle a comparison: they ask how the methods would do on *other* questions. But both answered the *same* ones, and a hard question is hard for both. So look at each question:
#
# | | B right | B wrong |
# | --- | --- | --- |
# | **A right** | $a$ | $b$ |
# | **A wrong** | $c$ | $d$ |
#
# Questions in $a$ and $d$ say nothing about who is better. The difference of the accuracies is $(b - c)/n$, its variance
#
# $$ \operatorname{var} = \frac{1}{n} \left( \frac{b + c}{n} - \Big( \frac{b - c}{n} \Big)^{2} \right), $$
#
# and if A and B were equally good, each of the $b + c$ questions would be the toss of a fair coin. The exact **McNemar test** (you write it in lesson 12) is that coin's binomial test, on both sides:


# %%
@cache
def mcnemar(b, c):
    """Two-sided exact p-value from the numbers of questions that only A and only B got right."""
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c))


assert mcnemar(5, 0) == 2 / 2**5 and mcnemar(7, 7) == 1.0
assert mcnemar(20, 5) == paired.McNemar(better=20, worse=5, n=500).p  # as the package has it


def answers(name, tokens):
    """[n]: 1 where the recorded answer was right."""
    return np.array([int(digit) for digit in rows[name, tokens]["samples"]["right"]])


def only(first, second):
    """(b, c): questions that only the first, only the second got right."""
    return int((first > second).sum()), int((second > first).sum())


chance = answers("random", 64)
against = {name: only(answers(name, 64), chance) for name in NAMES if name != "random"}
kit.table(
    [
        [title[name], b, c, f"{100 * (b - c) / len(chance):+.1f}", f"{mcnemar(b, c):.2g}"]
        for name, (b, c) in against.items()
    ],
    ["64 tokens, against Random", "only it is right", "only Random is right", "difference, points", "p"],
)

# %% [markdown]
# The p-value says whether there is a difference; an interval says how large it may be. **Paired bootstrap**: draw the questions again, with replacement, and take the mean difference each time; the middle 95 % of these means
# are the interval. One more thing: four questions about one picture are not independent. A picture that a method cuts badly is bad for all four. So whole *scenes* are drawn.

# %% [exercise] difficulty=hard minutes=8
# Write it. Draw as many scenes as there are, with replacement; a scene brings all its questions along. The mean is over the *questions* drawn.


# %% [solution]
def paired_interval(first, second, scenes, resamples=2000):
    """95 % interval (low, high) of the mean of first - second. first, second [n]: 1 where right; scenes [n]: of which scene."""
    # BEGIN SOLUTION
    difference = np.asarray(first, float) - np.asarray(second, float)
    _, place = np.unique(scenes, return_inverse=True)
    total, count = np.bincount(place, difference), np.bincount(place)  # by scene
    drawn = np.random.default_rng(0).integers(len(count), size=(resamples, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
    # END SOLUTION


# %% [check]
luck = np.random.default_rng(1)
one, other = luck.integers(0, 2, (2, 150))  # one question per scene
got = paired_interval(one, one, range(150))
check(
    tuple(got) == (0.0, 0.0),
    f"A method against itself: every difference is 0, in every draw. You find {got}. Draw both methods' answers to the same questions.",
)
got = paired_interval(one, other, range(150))
width = 2 * 1.96 * (one - other).std() / sqrt(150)
check(
    abs((got[1] - got[0]) / width - 1) < 0.12,
    f"150 independent questions: the width should be near {width:.3f}, four standard errors. Yours is {got[1] - got[0]:.3f}.",
)
four = [np.repeat(x, 4) for x in (one, other, np.arange(150))]
got = paired_interval(*four)
check(
    abs((got[1] - got[0]) / width - 1) < 0.12,
    f"Every question asked four times tells nothing new: the width stays near {width:.3f}. Yours shrinks to {got[1] - got[0]:.3f}. Draw scenes.",
)
uneven = [1, 1, 1] * 40 + [0] * 40  # forty scenes of three questions, all better; forty of one, no difference
got = paired_interval(uneven, [0] * 160, [*np.repeat(np.arange(40), 3), *range(40, 80)])
check(
    got[0] < 0.75 < got[1],
    f"On 120 of 160 questions the first is better, so the mean is 0.75; your interval is {got[0]:.2f} to {got[1]:.2f}. Do scenes of one question weigh as much as those of three?",
)
name = max(against, key=lambda n: abs(against[n][0] - against[n][1]))
told = rows[name, 64]["minus"]["random"]
got = paired_interval(answers(name, 64), chance, sweep["asked"]["scenes"])
check(
    abs(got[0] - told["low"]) < 0.02 and abs(got[1] - told["high"]) < 0.02,
    f"{title[name]} minus Random: the record has {told['low']:.3f} to {told['high']:.3f}, you find {got[0]:.3f} to {got[1]:.3f}.",
)
done("intervals as in the record")

# %% [hint]
# `np.unique(scenes, return_inverse=True)` numbers the scenes; `np.bincount(place, difference)` sums the differences of each. `rng.integers(k, size=(resamples, k))` draws scenes; index the sums and the counts with it.


# %% [mistake] why="Draws questions, not scenes: too narrow where questions of one scene go together."
def paired_interval(first, second, scenes, resamples=2000):
    difference = np.asarray(first, float) - np.asarray(second, float)
    drawn = np.random.default_rng(0).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.quantile(difference[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


# %% [mistake] why="Draws again for each method, so the pairs are torn apart."
def paired_interval(first, second, scenes, resamples=2000):
    _, place = np.unique(scenes, return_inverse=True)
    count, rng = np.bincount(place), np.random.default_rng(0)
    means = []
    for hits in (first, second):
        total = np.bincount(place, np.asarray(hits, float))
        drawn = rng.integers(len(count), size=(resamples, len(count)))
        means.append(total[drawn].sum(1) / count[drawn].sum(1))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(low), float(high)


# %% [mistake] why="The mean of the scenes' means: a scene with one question weighs as much as one with three."
def paired_interval(first, second, scenes, resamples=2000):
    difference = np.asarray(first, float) - np.asarray(second, float)
    _, place = np.unique(scenes, return_inverse=True)
    mean = np.bincount(place, difference) / np.bincount(place)
    low, high = np.quantile(np.random.default_rng(0).choice(mean, (resamples, len(mean))).mean(1), [0.025, 0.975])
    return float(low), float(high)


# %% [markdown]
# The package has the same (`vtc_demo.evaluation.intervals.Scenes`), and every row of the record carries the result. Against Random at the same budget:

# %%
by_scene = intervals.Scenes(sweep["asked"]["scenes"])
for name in against:
    fresh = by_scene.mean(answers(name, 64) - chance)
    assert fresh == rows[name, 64]["minus"]["random"]  # the record can be computed again from its samples

# %% [slide]
# ## Against chance, question by question
#
# Intervals that contain 0 do not tell the method from random picking. Grey: methods that do not look at the picture either.

# %% slide
minus = {
    name: rows[name, 64]["minus"]["random"] for name in sorted(against, key=lambda n: against[n][1] - against[n][0])
}
chart = go.Figure()
chart.add_scatter(
    x=[100 * m["mean"] for m in minus.values()],
    y=[title[name] for name in minus],
    error_x={
        "type": "data",
        "symmetric": False,
        "array": [100 * (m["high"] - m["mean"]) for m in minus.values()],
        "arrayminus": [100 * (m["mean"] - m["low"]) for m in minus.values()],
        "color": "#94a3b8",
    },
    mode="markers",
    marker={"size": 10, "color": ["#6b7a8f" if name in BLIND else "#2563a8" for name in minus]},
)
kit.figures.layout(chart, "64 tokens: right answers minus those of Random, same questions", height=430)
chart.add_vline(x=0, line={"color": "#64748b", "width": 1})
chart.update_xaxes(title="points, with 95 % interval (bootstrap over scenes)")
chart.update_yaxes(autorange="reversed", automargin=True)

# %%
p_values = sorted((mcnemar(*bc), name) for name, bc in against.items())
plain = [name for p, name in p_values if p < 0.05]
holm = []
for i, (p, name) in enumerate(p_values):
    if p >= 0.05 / (len(p_values) - i):
        break
    holm.append(name)
adjusted = paired.holm([p for p, _ in p_values])  # the package turns it round: adjusted p-values, compared with 0.05
assert holm == [name for p, (_, name) in zip(adjusted, p_values) if p < 0.05]
better = [title[name] for name in holm if against[name][0] > against[name][1]]
worse = [title[name] for name in holm if against[name][0] < against[name][1]]
say(f"""
{len(p_values)} comparisons at 5 % each: if no method differed from chance at all, there would still be a false alarm in about {100 * (1 - 0.95 ** len(p_values)):.0f} % of such tables (if the tests were independent). **Holm's correction** asks the smallest p to be below 0.05 / {len(p_values)}, the next below 0.05 / {len(p_values) - 1}, and so on
until one fails. Of {len(plain)} with p below 0.05, {len(holm)} remain. Better than Random: {", ".join(better) or "none"}. Worse: {", ".join(worse) or "none"}. About the others this record says nothing, which is *not* "as good as".
And mind the columns: a cut inside the decoder at "64 tokens" costs more than one before it. Section 7 comes back to that.
""")

# %% [markdown]
# ### How many questions does a claim need?
#
# Turn the test around. Let A be better by $\delta$, and let the two differ on a share $\psi = (b + c)/n$ of the questions. To find the difference in 80 % of all experiments (normal approximation; 1.96 for the 5 % level, 0.84 for 80 %):
#
# $$ n \approx \frac{\left( 1.96 \sqrt{\psi} + 0.84 \sqrt{\psi - \delta^2} \right)^2}{\delta^2} $$
#
# With separate questions for A and B, each would need about $(1.96 + 0.84)^2 \cdot 2\,p(1-p)/\delta^2$.


# %%
def needed(delta, psi):
    """Questions to find a difference delta <= psi with 80 % probability, both methods on the same questions."""
    return (1.96 * sqrt(psi) + 0.84 * sqrt(psi - delta**2)) ** 2 / delta**2


def separate(delta, p):
    """The same with other questions for each method, per method."""
    return 2.8**2 * 2 * p * (1 - p) / delta**2


alike = sum(only(answers(near, 192), answers("random", 192))) / len(chance)  # how often the pair of section 3 differs
level = rows["random", 64]["all"]["accuracy"]
wanted = [0.01, 0.02, 0.03, 0.05, 0.1, 0.15]
kit.table(
    [
        [
            f"same questions, differing on {100 * alike:.0f} % (as in section 3)",
            *(f"{needed(d, alike):,.0f}" if d <= alike else "-" for d in wanted),
        ],
        ["same questions, differing on 15 %", *(f"{needed(d, 0.15):,.0f}" for d in wanted)],
        ["separate questions, per method", *(f"{separate(d, level):,.0f}" for d in wanted)],
    ],
    ["questions needed to find", *(f"{100 * d:.0f} points" for d in wanted)],
)

n = round(needed(0.05, 0.3))
assert abs(n / paired.questions_needed(discordance=0.3, difference=0.05).questions - 1) < 0.01
trials = np.random.default_rng(0).multinomial(n, [0.175, 0.125, 0.7], size=1000)
found = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in trials])
assert 0.7 < found < 0.88
say(f"""
A trial of the formula: methods that differ on 30 % of the questions, 5 points apart, {n} questions. In 1,000 simulated experiments the exact test found it in {100 * found:.0f} %.

The record's {sweep["questions"]} questions suit differences of some 10 points. A claim of one point on a few hundred questions is no finding, in either direction. Methods that are alike differ on fewer questions, and pairing pays the more.
""")

# %% [quiz]
# Two methods are compared on 500 questions. A is right in 61 %, B in 58 %; the Wilson intervals overlap widely. On 25 questions they differ: 20 times A is right, 5 times B. What can be said?
#
# - [ ] Nothing, since the intervals overlap
#   The intervals speak of other samples of questions. Both methods had the same ones, and on 475 of them they agree.
# - [x] A is better on such questions: p is 0.004
#   Twenty to five with a fair coin is rare. The difference is small (3 points) and yet well established, because the methods are so alike.
# - [ ] A is better by 3 points ± 0.4
#   The p-value is about whether there is a difference. Its size has an interval of about ±2 points here.

# %% [markdown] minutes=13
# ## 6. FLOPs, and whose
#
# Tables of costs are as easy to misread. Let a decoder layer have width $d$, MLP width $m$, and $n$ tokens entering. With attention heads of full width and a gated MLP, its matrix products have
#
# $$ \underbrace{4 n d^2}_{q, k, v, o} + \underbrace{2 n^2 d}_{\text{scores and their use}} + \underbrace{3 n d m}_{\text{gate, up, down}} $$
#
# multiply-adds. That is the common core. Published counts differ in five ways: a multiply-add counts 1 or 2; the gate is counted or not (3 or 2 matrices); the text tokens are in $n$ or not; layers are summed or averaged; and keys and values of
# grouped-query models are narrower, or not. None of them counts the vision tower, the projector or the LM head, and all take attention as if every token saw every other. The package's own convention, `true`, counts tower, projector and LM head, and of the attention what a causal mask leaves.

# %%
kit.table(
    [[name, how.unit, f"`{how.description}`", how.counts] for name, how in vtc.cost.CONVENTIONS.items()],
    ["convention", "unit", "per layer", "what is counted"],
)

# %% [exercise] difficulty=medium minutes=6
# Write one function for most of them. `schedule` holds the visual tokens entering each layer; `matrices` is 2 or 3; `product` is what one multiply-add counts. `spec` has `.hidden`, `.intermediate` and `.layers`.


# %% [solution]
def published(spec, schedule, text, matrices, product, mean=False):
    """The count of a prefill in a published convention; the mean of a layer if `mean`, else the sum over the layers."""
    # BEGIN SOLUTION
    d, m = spec.hidden, spec.intermediate
    total = 0
    for visual in schedule:
        n = visual + text
        total += product * (4 * n * d * d + 2 * n * n * d + matrices * n * d * m)
    return total / len(schedule) if mean else total
    # END SOLUTION


# %% [check]
seven, larger = vtc.cost.SPECS["llava-1.5-7b"], vtc.cost.SPECS["llava-next-7b"]
got = published(seven, [576] * 32, 36, 2, 1, mean=True)
check_equal(
    round(got / 1e9, 1),
    99.3,
    "FastV's table has 99.3 G for LLaVA-1.5-7B: two matrices, 36 text tokens, mean of a layer.",
    1e-9,
)
got = published(seven, [576] * 32, 0, 3, 1)
check_equal(round(got / 1e12, 2), 3.82, "PyramidDrop's has 3.82 T: three matrices, visual tokens alone, summed.", 1e-9)
got = published(seven, [576] * 2 + [288] * 30, 0, 3, 1)
check_equal(
    round(got / 1e12, 2),
    2.01,
    "FastV in PyramidDrop's table, half the tokens from layer 2 on: 2.01 T. Every layer has its own n.",
    1e-9,
)
got = published(larger, [2880] * 32, 0, 3, 2)
check_equal(
    round(got / 1e12, 1), 41.7, "GlobalCom2's has 41.7 T for LLaVA-NeXT-7B with 2,880 tokens, 2 per multiply-add.", 1e-9
)
got = published(seven, [576] * 32, 118, 3, 1)
check_equal(
    got,
    vtc.cost.flops(seven, [576] * 32, 118, "sparsevlm"),
    "The package has another count in SparseVLM's convention.",
    1e-9,
)
done("four printed figures")

# %% [hint]
# `n = visual + text`, layer by layer, because the attention's term is quadratic in it. Multiply by `product` at the end; divide by the number of layers if `mean`.


# %% [mistake] why="The first layer's count times the number of layers: right only without a cut inside the decoder."
def published(spec, schedule, text, matrices, product, mean=False):
    d, m, n = spec.hidden, spec.intermediate, schedule[0] + text
    layer = product * (4 * n * d * d + 2 * n * n * d + matrices * n * d * m)
    return layer if mean else layer * len(schedule)


# %% [mistake] why="Text tokens pass through the matrices but are left out of the attention."
def published(spec, schedule, text, matrices, product, mean=False):
    d, m, total = spec.hidden, spec.intermediate, 0
    for visual in schedule:
        n = visual + text
        total += product * (4 * n * d * d + 2 * visual * visual * d + matrices * n * d * m)
    return total / len(schedule) if mean else total


# %% [markdown]
# Here are figures from the tables of these papers, counted again by the package. Some need nothing but the model and the number of visual tokens. For the others a **text length** had to be found: the last column says with which lengths the digits
# come out as printed. These lengths are reconstructed from the digits, not read in the papers.

# %%
llava, llava_next = vtc.cost.SPECS["llava-1.5-7b"], vtc.cost.SPECS["llava-next-7b"]
qwen = vtc.cost.SPECS["qwen2.5-vl-7b"]
FIGURES = [  # where, convention, model, schedule, text tokens, printed, unit
    ("FastV, full", "fastv", llava, [576] * 32, 36, "99.3", 1e9),
    ("PyramidDrop, full", "pyramiddrop", llava, [576] * 32, 0, "3.82", 1e12),
    ("PyramidDrop, half after layers 8, 16, 24", "pyramiddrop", llava, [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 0, "1.78", 1e12),
    ("ViCA, full", "vica", llava, [576] * 32, 0, "7.63", 1e12),
    ("GlobalCom2, full", "vica", llava_next, [2880] * 32, 0, "41.7", 1e12),
    ("GlobalCom2, a tenth", "vica", llava_next, [288] * 32, 0, "3.8", 1e12),
    ("DivPrune, full", "divprune", llava, [576] * 32, 36, "3.2", 1e12),
    ("SparseVLM, full", "sparsevlm", llava, [576] * 32, 118, "4.62", 1e12),
    ("LLM-Viewer's count, full", "llm-viewer", llava, [576] * 32, 64, "8.50", 1e12),
    ("FiCoCo, full", "llm-viewer", llava_next, [2880] * 32, 64, "42.7", 1e12),
    ("a table of Qwen2.5-VL-7B, full", "gqa", qwen, [576] * 28, 39, "8.18", 1e12),
]  # fmt: skip


def digits(value, printed, unit):
    """The count as the table prints it."""
    return f"{value / unit:.{len(printed.split('.')[1])}f}"


def lengths(convention, spec, schedule, printed, unit):
    """Text lengths up to 300 with which the printed digits come out."""
    fits = [t for t in range(301) if digits(vtc.cost.flops(spec, schedule, t, convention), printed, unit) == printed]
    return str(fits[0]) if len(fits) == 1 else f"{fits[0]} to {fits[-1]}"


table = []
for where, convention, spec, schedule, text, printed, unit in FIGURES:
    assert digits(vtc.cost.flops(spec, schedule, text, convention), printed, unit) == printed
    how = vtc.cost.CONVENTIONS[convention]
    fits = lengths(convention, spec, schedule, printed, unit) if how.text else "none counted"
    true_flops = vtc.cost.flops(spec, schedule, text) / 1e12
    size = {1e9: "G", 1e12: "T"}[unit]
    table.append([where, spec.name, f"{printed} {size}", how.unit, f"{true_flops:.2f} T", fits])
kit.table(table, ["table of", "model", "printed", "which are", "`true` FLOPs", "text tokens"])

# %%
base, cut = llava.full_schedule, [64] * 32
late = [576] * 2 + [64] * 30
every = {name: vtc.cost.flops(llava, base, 64, name) for name, how in vtc.cost.CONVENTIONS.items() if not how.mean}
gates = every["true"] / min(every.values())
assert 2 < gates < 3
left = {
    "64 tokens before the decoder": {},
    "FastV: 64 tokens from layer 2 on": {},
}
for name in vtc.cost.CONVENTIONS:
    for label, schedule in zip(left, (cut, late)):
        left[label][name] = 100 * vtc.cost.flops(llava, schedule, 64, name) / vtc.cost.flops(llava, base, 64, name)

# %% [slide]
# ## One cut, eight costs
#
# LLaVA-1.5-7B. Counting visual tokens alone makes every cut look deeper; `true` counts the vision tower and the text, which no method here reduces.

# %% slide
chart = go.Figure()
for (label, values), colour in zip(left.items(), kit.figures.SERIES):
    chart.add_bar(y=list(values), x=list(values.values()), name=label, orientation="h", marker_color=colour)
kit.figures.layout(
    chart, "What is left of the full model's cost, by convention (64 text tokens)", height=430, bargap=0.25
)
chart.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"}, margin_t=90)
chart.update_yaxes(autorange="reversed", automargin=True, ticks="")
chart.update_xaxes(title="% of the full model")

# %%
early = left["64 tokens before the decoder"]
assert max(early.values()) == early["true"] and early["vica"] == early["pyramiddrop"]
say(f"""
The full model costs {min(every.values()) / 1e12:.1f} T in one convention and {max(every.values()) / 1e12:.1f} T in another ({gates:.1f} times as much), leaving FastV's mean per layer aside. The same cut to 64 tokens leaves between **{min(early.values()):.0f} % and {max(early.values()):.0f} %**.
Neither is wrong. Wrong is one chart with figures of two conventions, or a "saving" without its base.
""")

# %% [quiz]
# Paper X prints 3.8 TFLOPs for the full LLaVA-1.5-7B, paper Y prints 7.6 TFLOPs for the same model and the same 576 tokens. Y's method is listed with 1.5. How does it compare with X's method at 1.1?
#
# - [ ] X's is cheaper
#   In X's unit Y's method would be listed with half of its figure: the full models are the same model.
# - [x] Y's is cheaper: about 0.75 in X's unit
#   3.8 and 7.6 are the same multiply-adds, counted as 1 and as 2. Always look at the row of the full model first.
# - [ ] It cannot be said
#   Here it can, because both print the full model, which fixes the factor. Without that row it could not.

# %% [markdown] minutes=6
# ## 7. At equal cost
#
# "64 tokens" may be what is left at the end, the mean over layers, or what enters from some layer on. So give the *cost*, and solve each method's retention for it. `match=` names what is equal: final tokens, equivalent tokens (the mean over
# layers), or FLOPs up to the first token of the answer, tower and overhead included. `tokens=192` stands for what 192 tokens cost that are left before the decoder.

# %%
_, picture, question = next(x for x in asked if x[2].kind == "reading")
contest = ["random", "downsample", "fastv", "pyramiddrop"]
matched = {
    measure: vtc.compare(vlm, picture.image, question.text, contest, match=measure, tokens=192).runs
    for measure in ("final tokens", "equivalent tokens", "flops")
}


def first_token(run):
    """FLOPs up to the first token of the answer."""
    return run.ttft_flops


kit.table(
    [
        [measure, run.method.card.title, f"{100 * run.matched.retention:.1f} %", run.visual_tokens]
        + [f"{run.trace.equivalent_tokens:.0f}", f"{first_token(run) / 1e9:.2f} G", run.matched.note]
        for measure, runs in matched.items()
        for run in runs
    ],
    ["equal", "method", "retention", "final tokens", "mean over layers", "FLOPs to first token", "note"],
)
final, flops = ({r.method.card.name: r for r in matched[m]} for m in ("final tokens", "flops"))
spent = {name: first_token(run) for name, run in final.items()}
assert spent["downsample"] < spent["random"] < spent["fastv"] < spent["pyramiddrop"]
assert flops["downsample"].visual_tokens > flops["random"].visual_tokens
say(f"""
At 192 final tokens PyramidDrop spends {spent["pyramiddrop"] / spent["random"]:.2f} times what Random does, the smaller picture {spent["downsample"] / spent["random"]:.2f} times. At equal FLOPs the smaller picture may keep **{flops["downsample"].visual_tokens}** tokens, because its tower
is cheaper as well.
""")

# %% [markdown]
# What does that do to a ranking? The same recorded answers on three axes:

# %%
axes = {
    "budget asked for": lambda row: row["tokens"],
    "mean tokens over layers": lambda row: row["equivalent_tokens"],
    "GFLOPs to the first token": lambda row: row["flops"] / 1e9,
}
chosen = [name for name in ("random", "downsample", "divprune", "fastv", "pyramiddrop") if name in NAMES]
palette = colours(vtc.list_methods())
budgets = sorted({tokens for _, tokens in rows if tokens})

# %% [slide]
# ## One record, three axes
#
# Nothing changes but what is called cost. Cuts inside the decoder move right, the smaller picture moves left.

# %% slide
chart = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.03)
for column, value in enumerate(axes.values(), 1):
    for name in chosen:
        points = sorted((value(rows[name, t]), 100 * rows[name, t]["all"]["accuracy"]) for t in budgets)
        x, y = zip(*points)
        line = {"color": palette[name], "width": 2}
        chart.add_scatter(
            x=x, y=y, name=title[name], mode="lines+markers", line=line, showlegend=column == 1, row=1, col=column
        )
kit.figures.layout(chart, "Right answers over three measures of cost", height=400)
chart.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, margin_t=95)
for column, label in enumerate(axes, 1):
    chart.update_xaxes(title=label, col=column)
chart.update_yaxes(title="right answers, %", col=1)
plain_axis = {"rangemode": "tozero", "gridcolor": "#e3e8ef", "zerolinecolor": "#c3ccd8", "tickcolor": "#c3ccd8"}
chart.update_xaxes(ticks="outside", **plain_axis)
chart.update_yaxes(**plain_axis)

# %%
price = rows["random", 288]["flops"]
affordable = {
    name: max((rows[name, t] for t in budgets if rows[name, t]["flops"] <= 1.001 * price), key=lambda r: r["flops"])
    for name in chosen
    if min(rows[name, t]["flops"] for t in budgets) <= 1.001 * price
}
kit.table(
    [
        [row["title"], row["tokens"], f"{row['flops'] / 1e9:.2f} G", cells(row)[0], cells(rows[name, 288])[0]]
        for name, row in affordable.items()
    ],
    [f"for at most {price / 1e9:.2f} GFLOPs", "budget", "FLOPs", "right, %", "right, % at a budget of 288"],
)
absent = [title[name] for name in chosen if name not in affordable]
say(f"""
{("No point of the record is cheap enough for " + ", ".join(absent) + ". ") if absent else ""}The last column is the usual comparison, the one before it that at equal FLOPs. {sweep["questions"]} questions: differences of a few points are within the intervals.
""")

# %% [markdown] minutes=8
# ## 8. FLOPs are not time
#
# Lesson 00 gave the roofline: a stage with $f$ FLOPs that moves $b$ bytes takes at least $\max(f/F, b/B)$ on a device with $F$ FLOP/s and $B$ byte/s. Three consequences for anyone who reads "2.4 times faster":
#
# - **A ridge.** In bfloat16 a weight is 2 bytes and does 2 FLOPs per token. So a prefill of $n$ tokens does about $n$ FLOPs per byte, and below $n \approx F/B$ it waits for the weights: fewer tokens buy nothing.
# - **A decode step** at batch 1 reads all weights for one token. What compression saves is the cache, which is small beside them.
# - **The rest stays.** Tower, preprocessing, the method's overhead and the cost of launching kernels do not shrink.

# %%
lab = json.loads((RECORDS / "lab-cpu.json").read_text(encoding="utf-8"))
bench = json.loads((RECORDS / "bench-cpu.json").read_text(encoding="utf-8"))
maps = json.loads((RECORDS / "references-cpu.json").read_text(encoding="utf-8"))
assert lab["spec"]["name"] == llava.name
machine = lab["environment"]


def ridge(peak, bandwidth):
    """The least number of tokens from which a decoder layer's prefill is bound by computing."""
    work = (vtc.cost.layers.layer_prefill(llava, n) for n in range(1, 5000))
    return next(n for n, w in enumerate(work, 1) if w.flops / peak >= w.bytes / bandwidth)


step = vtc.cost.layers.layer_decode(llava, 640)
waits = (step.bytes / machine["bandwidth"]) / (step.flops / machine["peak_flops"])
of_cache = 2 * 640 * 2 * llava.kv_heads * llava.head_dim / step.bytes
here, there = ridge(machine["peak_flops"], machine["bandwidth"]), ridge(300e12, 2e12)
assert of_cache < 0.1 and there > 128
say(f"""
LLaVA-1.5-7B in bfloat16. The machine of the record: {machine["peak_flops"] / 1e12:.2f} TFLOP/s and {machine["bandwidth"] / 1e9:.0f} GB/s, measured, so the ridge lies at **{here} tokens**. With the round numbers of lesson 00 for a large accelerator (300 TFLOP/s, 2 TB/s) it lies at **{there}**: 64 visual
and 64 text tokens are below it. A decoder layer's decode step with 640 tokens in the cache waits {waits:.0f} times as long for bytes as for arithmetic here, and {100 * of_cache:.0f} % of these bytes are cache.
""")

# %%
plain = next(row for row in lab["rows"] if row["title"] == "Full")
table = []
for row in lab["rows"]:
    if row is not plain:
        measured, expected = row["ratios"], row["expected_ratios"]
        table.append(
            [f"{row['title']}, {row['budget']} tokens"]
            + [f"{plain['flops'][s] / row['flops'][s]:.2f}" for s in ("prefill", "decode")]
            + [f"{expected['prefill']:.2f}", f"{measured['prefill']['median']:.2f}"]
            + [f"{expected['decode']['1']:.2f}", f"{measured['decode']['1']['median']:.2f}"]
            + [f"{measured['decode']['32']['median']:.2f}"]
        )
kit.table(
    table,
    ["full over method", "FLOPs, prefill", "FLOPs, decode", "prefill expected", "prefill measured"]
    + ["decode step expected", "decode step measured", "the same, batch 32"],
)
say(f"""
Recorded on {when(lab)}: layers of LLaVA-1.5-7B in true size with random weights, {lab["repeats"]} rounds, load {machine["load_average"]:.1f} at the start. Expected: the roofline of that machine, which bounds either time but is no prediction of their ratio. With 32 answers at once the weights are shared and the caches are not; that is where a shorter cache is felt.
""")

# %% [markdown]
# The embedded VLM is the other extreme: small layers, where calls and the tower weigh more. All methods asked for 64 tokens, measured in pairs with the full model:

# %%
timed = [row for row in bench["rows"] if row["budget"] == 64]
whole = bench["full"]["flops"]
flops_ratio = [(whole["total"] - whole["decode"]) / (r["flops"]["total"] - r["flops"]["decode"]) for r in timed]
prefill_ratio = [whole["prefill"] / r["flops"]["prefill"] for r in timed]

# %% [slide]
# ## FLOPs promised, time kept
#
# Open marks: what the FLOPs say. Filled: what the clock says. Prefill in grey, everything up to the first token in blue.

# %% slide
chart = go.Figure()
for label, values, symbol, colour in (
    ("FLOPs of the prefill", prefill_ratio, "diamond-open", "#94a3b8"),
    ("prefill, measured", [r["ratios"]["prefill"]["median"] for r in timed], "diamond", "#94a3b8"),
    ("FLOPs to the first token", flops_ratio, "circle-open", "#2563a8"),
    ("time to the first token, measured", [r["ratios"]["ttft"]["median"] for r in timed], "circle", "#2563a8"),
):
    look = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 2}}
    chart.add_scatter(x=values, y=[r["title"] for r in timed], name=label, mode="markers", marker=look)
kit.figures.layout(chart, "Asked for 64 tokens, embedded VLM: full over method", height=500)
chart.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"}, margin_t=105)
chart.update_yaxes(autorange="reversed", automargin=True)
chart.update_xaxes(title="times cheaper, or faster, than the full model", rangemode="tozero")

# %%
fastest = max(timed, key=lambda r: r["ratios"]["ttft"]["median"])
busiest = max(timed, key=lambda r: r["own_work"]["median"])
short = ", ".join(f"{r['title']} ({r['equivalent_tokens']:.0f})" for r in timed if r["equivalent_tokens"] > 65)
booked = {r["title"]: r["flops"]["compression"] / whole["prefill"] for r in timed}
whole_maps = max(maps["references"], key=lambda r: r["ratios"]["ttft"]["median"])
say(f"""
Recorded on {when(bench)}, medians of {bench["repeats"]} pairs. More than 64 tokens on average over the layers: {short}. To the first token {fastest["title"]} gains most: {fastest["ratios"]["ttft"]["median"]:.1f} times. The largest *overhead* is that of {busiest["title"]}: its FLOPs are {100 * booked[busiest["title"]]:.1f} % of the full prefill, its time {100 * busiest["own_work"]["median"]:.0f} %. Sorting
and gathering, for instance, have no FLOPs at all and take time.

How a method is *written* counts, too. With whole attention maps in place of single rows, as released codes take them, {whole_maps["title"]} takes {whole_maps["ratios"]["ttft"]["median"]:.2f} times as long to the first token, for the same tokens and the same answer (the record of {when(maps)}).
""")

# %% [instructor]
# Times in this section are recorded, never measured in class: laptops throttle, and thirty of them share a socket strip. Who wants to measure: `python -m vtc_demo bench --methods fastv --tokens 64` after the lesson, alone on the machine.
# The question to ask of any "x times faster": which stage, which batch, how long the answer, against which kernel of the full model? The last one is often the largest: a baseline that runs without a fused kernel is slow by itself.

# %% [quiz]
# A method leaves 64 of 576 tokens before the decoder and promises "8 times cheaper". A chat at batch 1 gets an answer of 300 tokens. Where is most of the time, and what does the method do to it?
#
# - [ ] In the prefill; it becomes about 8 times shorter
#   The prefill is one pass. Three hundred decode steps follow, each of which reads all weights.
# - [x] In the decode steps; they hardly change
#   At batch 1 they wait for the weights, and the cache is a small share of the bytes. The gain is real for the first token, and for many answers at once.
# - [ ] In the vision tower; it becomes 8 times shorter
#   The tower has finished before this method begins. Only a smaller picture, or a cut inside the tower, shortens it.

# %% [markdown] minutes=3
# ## 9. A sentence that holds
#
# Put together, an honest claim has this form: *On n held-out questions of these kinds, method A at cost c (measured as ...) is right in x % (interval), against y % for the best of random, uniform, pooling and a smaller picture at the same cost;
# the paired difference is ... (interval, p); by kind it gains on ... and loses on ...; it was not tried on ....*
#
# - `vtc_demo/evaluation/intervals.py` has Wilson's interval and the bootstrap, `paired.py` McNemar's test, Holm's correction and the number of questions needed; `docs/accuracy.md` says how the record is made and read.
# - `vtc_demo/cost/conventions.py` is a page; `docs/performance.md` says how times are taken.
# - `python -m vtc_demo sweep --questions 300 --out FILE` adds questions to a record; the **Sweep** tab of the app shows it.
# - Lesson 12: write a method of your own and make such a sentence about it.

# %% [slide]
# ## Take home
#
# - Show what **nothing** scores: no picture, no look at it, no compression.
# - Same questions, **paired**; intervals by scene; enough questions for the claim. And by kind: reading and counting go first.
# - Name the **convention** of every FLOP, match the cost, and measure time as time.
