"""The record in words and as a table."""

from __future__ import annotations

from vtc_demo import cost

from .settings import BATCHED

SLACK = 0.95  # a ratio this close to what was expected needs no explanation
STAGES = ("vision", "projector", "prefill", "lm_head")  # up to the first token
COLUMNS = (*STAGES, "ttft")


def spec_of(record: dict) -> cost.ModelSpec:
    """The shape of a record."""
    return cost.ModelSpec(**record["spec"])


def itemsize(record: dict) -> int:
    """Bytes of one value."""
    return 4 if record["environment"]["dtype"] == "float32" else 2


def ridge(record: dict) -> float:
    """FLOPs per byte above which arithmetic, below which memory decides the time on the machine of a record."""
    return record["environment"]["peak_flops"] / record["environment"]["bandwidth"]


def label(row: dict) -> str:
    return "Full model" if row["method"]["method"] == "full" else f"{row['title']} @ {row['budget']}"


def amount(value: float, unit: str = "B") -> str:
    """Bytes or FLOPs in round figures: 13 GB, 0.3 GB, 40 MB."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor / 10:
            shown = value / factor
            return f"{shown:.0f} {prefix}{unit}" if shown >= 10 else f"{shown:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


# -- by batch -------------------------------------------------------------------------------------------------------
def batches(record: dict, part: str) -> list[int]:
    """The batches of a part of a record, a key of BATCHED. In older ones prompts are prefilled one at a time."""
    return list(record["settings"].get(BATCHED[part]) or [1])


def at(row: dict, figures: str, part: str, batch: int):
    """One of a row's figures of a batch, None if there is none. figures: "ms", "expected_ms", "ratios" or
    "expected_ratios"."""
    found = row[figures]
    return found[part][str(batch)] if part in found else found["prefill"]


def missing(record: dict, part: str, batch: int) -> str:
    """Why a figure of a batch is not there, in a few words."""
    kind = "prefill" if part == "batched_prefill" else part
    causes = {p.get("cause") for p in record["skipped"] if (p["kind"], p["batch"]) == (kind, batch)}
    return "takes too long for this run" if causes == {"time"} else "does not fit into memory"


# -- why ------------------------------------------------------------------------------------------------------------
def prefill_reason(record: dict, row: dict) -> str:
    """What decides the prefill's time at the fewest tokens that a layer sees."""
    n = min(row["schedule"]) + row["text_tokens"]
    intensity = cost.layers.layer_prefill(spec_of(record), n, 1, itemsize(record)).intensity
    balance = ridge(record)
    said = (
        f"With {n} tokens a decoder layer computes {intensity:.0f} FLOPs for every byte that it must move; this "
        f"machine can do {balance:.0f} in the same time. "
    )
    if intensity >= balance:
        return said + "Arithmetic decides, so every token dropped saves time."
    return said + "Reading the weights decides, so dropping still more tokens would save nothing."


def prompts_reason(record: dict, row: dict, batch: int) -> str:
    """The same for a prefill of several prompts, and what it gains."""
    full, part = record["rows"][0], "batched_prefill"
    least, n = missing(record, part, batch), min(row["schedule"]) + row["text_tokens"]
    if at(row, "ms", part, batch) is None:
        return f"The prefill of {batch} prompts at once {least}."
    intensity = cost.layers.layer_prefill(spec_of(record), n, batch, itemsize(record)).intensity
    said = (
        f"With {batch} prompts of {n} tokens each a decoder layer computes {intensity:.0f} FLOPs for every byte: "
        f"{'arithmetic decides' if intensity >= ridge(record) else 'reading the weights decides'}."
    )
    if row is full:
        return said
    if at(full, "ms", part, batch) is None:
        return f"{said} The full model's prefill of them {least}."
    measured, expected = at(row, "ratios", part, batch)["median"], at(row, "expected_ratios", part, batch)
    return f"{said} For their prefill the roofline expects {expected:.2f}x, {measured:.2f}x was measured."


def decode_reason(record: dict, row: dict, batch: int) -> str:
    """What a decode step moves, what of it shrinks, and which roof it is under."""
    spec, size, full, key = spec_of(record), itemsize(record), record["rows"][0], str(batch)
    weights = cost.weight_bytes(spec, size)
    if row["ms"]["decode"][key] is None:
        return f"At batch {batch} one layer's cache alone does not fit into this machine's memory."
    before, after = batch * full["kv_bytes"], batch * row["kv_bytes"]
    said = f"At batch {batch} a decode step reads {amount(weights['prefill'] + weights['lm_head'])} of weights, which "
    said += "compression leaves as they are, and "
    if row is full:
        entries = row["cached"][-1] + row["text_tokens"]
        memory = cost.layers.layer_decode(spec, entries, batch, size).intensity < ridge(record)
        return said + f"{amount(before)} of cache; {'memory' if memory else 'arithmetic'} decides."
    said += f"{amount(after)} of cache in place of {amount(before)}"
    if full["ms"]["decode"][key] is None:
        return said + "; the full model's does not fit into this machine's memory."
    measured, expected = row["ratios"]["decode"][key]["median"], row["expected_ratios"]["decode"][key]
    return said + f": the roofline expects {expected:.2f}x, {measured:.2f}x was measured."


def gap_reason(record: dict, row: dict) -> str | None:
    """Why the prefill's ratio falls short of the expected one, from the rates reached; None if it does not."""
    measured, expected = row["ratios"]["prefill"]["median"], row["expected_ratios"]["prefill"]
    if measured >= SLACK * expected:
        return None
    timed = [p for p in record["points"] if p["kind"] == "prefill"]
    lengths = [n + row["text_tokens"] for n in row["schedule"]]
    short, long = (
        pick(timed, key=lambda p: abs(p["tokens"] - wish)) for pick, wish in ((min, min(lengths)), (min, 1e9))
    )
    rate = lambda p: f"{p['flops'] / p['ms']['median'] / 1e6:.0f} GFLOP/s over {p['tokens']} tokens"  # noqa: E731
    return (
        f"Prefill is {measured:.1f}x faster where the roofline expects {expected:.1f}x: a layer reached {rate(short)} "
        f"and {rate(long)}."
    )


def ttft_reason(record: dict, row: dict) -> str | None:
    """How much of the time to the first token is not prefill; None for the full model."""
    full = record["rows"][0]
    if row is full:
        return None
    share = 100 * full["ms"]["vision"]["median"] / full["ms"]["ttft"]["median"]
    kept = (
        "is not compressed" if row["ms"]["vision"]["median"] > SLACK * full["ms"]["vision"]["median"] else "shrinks too"
    )
    return f"The vision tower is {share:.0f} % of the full model's time to the first token and {kept}."


def reasons(record: dict, row: dict, answers=None, prompts=None) -> list[str]:
    """Why the times of a row are what they are, in whole sentences. answers, prompts: batches of decode steps and of
    prefills; default all of the record."""
    answers = batches(record, "decode") if answers is None else answers
    prompts = batches(record, "batched_prefill") if prompts is None else prompts
    said = [prefill_reason(record, row), gap_reason(record, row), ttft_reason(record, row)]
    said += [prompts_reason(record, row, batch) for batch in prompts if batch > 1]
    said += [decode_reason(record, row, batch) for batch in answers]
    return [sentence for sentence in said if sentence]


def summary(record: dict, batch: int) -> str:
    """The experiment in two sentences: what the method with the fewest tokens gains, and where it gains nothing."""
    full, *others = record["rows"]
    if not others:
        return f"At the shape of {record['title']} the first token takes {full['ms']['ttft']['median'] / 1000:.1f} s."
    row = min(others, key=lambda r: r["equivalent_tokens"])
    gain, expected = row["ratios"]["ttft"]["median"], row["expected_ratios"]["ttft"]
    said = (
        f"At the shape of {record['title']}, with {row['equivalent_tokens']:,.0f} visual tokens per layer in place of "
        f"{full['equivalent_tokens']:,.0f}, the first token comes {gain:.1f}x as fast; the roofline expects "
        f"{expected:.1f}x. "
    )
    step = row["ratios"]["decode"][str(batch)]
    if step is None:
        return said + f"Decoding at batch {batch} does not fit into this machine's memory without compression."
    allowed = row["expected_ratios"]["decode"][str(batch)]
    return (
        said + f"A decode step at batch {batch} is {step['median']:.2f}x as fast; the roofline expects {allowed:.2f}x."
    )


def provenance(record: dict) -> str:
    """Where, when and how a record was made."""
    e = record["environment"]
    many = lambda n, word: f"{n} {word}{'' if n == 1 else 's'}"  # noqa: E731
    return (
        f"{e['device']}, {e['dtype']}, {many(e['threads'], 'thread')} of {many(e['cores'], 'core')}, "
        f"torch {e['torch']}, transformers {e['transformers']}, {e['date'][:10]}; "
        f"{many(record['repeats'], 'round')} after {many(record['warmups'], 'warm-up')}"
    )


def cautions(record: dict) -> list[str]:
    """What limits the trust in a record."""
    out, busy, cores = [], record["environment"]["load_average"], record["environment"]["cores"]
    if record["warmups"] < 2 or record["repeats"] < 5:
        out.append("Fewer than 2 warm-ups or 5 rounds: not to be quoted; allow more seconds.")
    if busy is not None and busy > cores / 2:
        out.append(f"The machine was busy at the start (load {busy:.1f} on {cores} cores): trust ratios, not times.")
    return out


# -- table ----------------------------------------------------------------------------------------------------------
def cell(figure: dict | None, digits: int = 0) -> str:
    return "-" if figure is None else f"{figure['median']:.{digits}f} ({figure['iqr']:.{digits}f})"


def table(record: dict) -> str:
    """The record as lines of text."""
    by_batch = [
        batch_lines(record, "batched_prefill", "prefill of all prompts", "prompts"),
        batch_lines(record, "decode", "decode step", "answers"),
    ]
    parts = [time_lines(record), ratio_lines(record), *by_batch, note_lines(record), foot(record)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def time_lines(record: dict) -> list[str]:
    """Stages up to the first token, measured and at the roofline."""
    lines = [f"{'ms (IQR); = roofline':<24}{'tokens':>7}" + "".join(f"{stage:>16}" for stage in COLUMNS)]
    for row in record["rows"]:
        lines.append(
            f"{label(row):<24}{row['equivalent_tokens']:>7.0f}" + "".join(f"{cell(row['ms'][s]):>16}" for s in COLUMNS)
        )
        lines.append(f"{'':<31}" + "".join(f"{'= ' + format(row['expected_ms'][s], '.0f'):>16}" for s in COLUMNS))
    return lines


def ratio_lines(record: dict) -> list[str]:
    """Full / method, measured and at the roofline, and what is counted."""
    lines = [
        f"{'full / method':<24}{'prefill':>16}{'expected':>10}{'ttft':>16}{'expected':>10}{'FLOPs':>9}{'KV':>9}"
        f"{'own work, FLOPs, not timed':>28}"
    ]
    for row in record["rows"]:
        measured, expected = row["ratios"], row["expected_ratios"]
        lines.append(
            f"{label(row):<24}"
            + "".join(f"{cell(measured[s], 2):>16}{expected[s]:>10.2f}" for s in ("prefill", "ttft"))
            + f"{amount(row['flops']['total'], ''):>9}{amount(row['kv_bytes']):>9}{own_work(row):>28}"
        )
    return lines


def own_work(row: dict) -> str:
    """FLOPs of a method's own work; older records have none."""
    own = row.get("own_flops")
    return "not counted" if own is None else amount(own, "").strip()


def batch_lines(record: dict, part: str, title: str, what: str) -> list[str]:
    """A prefill or a decode step by batch: measured, at the roofline, and full / method of both."""
    sizes = batches(record, part)
    lines = [f"{title + ', ms':<24}" + "".join(f"{f'{b} {what if b > 1 else what[:-1]}':>26}" for b in sizes)]
    for row in record["rows"]:
        measured, expected = [f"{label(row):<24}"], [f"{'':<24}"]
        for b in sizes:
            ms, ratio = (at(row, figures, part, b) for figures in ("ms", "ratios"))
            gain = "" if ratio is None else f"  {ratio['median']:.2f}x"
            measured.append(f"{cell(ms) + gain:>26}")
            bound, gain = (at(row, figures, part, b) for figures in ("expected_ms", "expected_ratios"))
            expected.append(f"{f'= {bound:.0f}  {gain:.2f}x':>26}")
        lines += ["".join(measured), "".join(expected)]
    return lines


def note_lines(record: dict) -> list[str]:
    said, heard = [], set()
    for row in record["rows"]:
        new = [text for text in (*reasons(record, row), *row["notes"]) if text not in heard]
        said += [f"{label(row)}: {text}" for text in new]
        heard.update(new)
    return said + [
        f"not timed: {'prefill' if p['kind'] == 'prefill' else 'decode step'}, batch {p['batch']} with {p['tokens']} "
        f"{'tokens' if p['kind'] == 'prefill' else 'entries'} each. {p['reason']}"
        for p in record["skipped"]
    ]


def foot(record: dict) -> list[str]:
    e, settings = record["environment"], record["settings"]
    return [
        f"{record['title']}: random weights, one layer of each kind timed and multiplied by the number of layers; "
        f"{settings['text_tokens']} text tokens, answers of {settings['new_tokens']}. A method's own work is counted "
        "where it can be, and not timed.",
        f"{provenance(record)}; {e['peak_flops'] / 1e9:.0f} GFLOP/s, {e['bandwidth'] / 1e9:.1f} GB/s",
        *cautions(record),
    ]
