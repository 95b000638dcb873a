"""The record of a benchmark as lines of text."""

from __future__ import annotations

from collections.abc import Callable

from vtc_demo.core.vocabulary import TTFT_STAGES

from .measurements import COMPILED, REFERENCES

STAGES = (*TTFT_STAGES, "ttft", "decode_per_token")


def table(record: dict) -> str:
    """The record as lines of text."""
    done = [row for row in record["rows"] if "error" not in row]
    failed = [f"{label(row)}: not run. {row['error']}" for row in record["rows"] if "error" in row]
    why = [f"{label(row)}: {reason}" for row in done for reason in row["reasons"]]
    parts = [generate_lines(record["generate"]), failed, notes(record)]
    if done:
        parts[1:1] = [time_lines(record, done), ratio_lines(record, done), why]
    if record.get("references"):
        parts[-2:-2] = [reference_lines(record["references"])]
    if record.get("compiled"):
        parts[-2:-2] = [compiled_lines(record["compiled"])]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def label(row: dict) -> str:
    return f"{row['title']} @ {row['budget']}"


def cell(spread: dict[str, float], digits: int = 1) -> str:
    return f"{spread['median']:.{digits}f} ({spread['iqr']:.{digits}f})"


def generate_lines(part: dict) -> list[str]:
    names = list(part["ratios"])
    lines = [f"{'full model, ms':<26}" + "".join(f"{name:>18}" for name in names)]
    for title, figures, digits in (
        ("engine", part["engine_ms"], 1),
        ("model.generate", part["generate_ms"], 1),
        ("generate / engine", part["ratios"], 2),
    ):
        lines.append(f"{title:<26}" + "".join(f"{cell(figures[name], digits):>18}" for name in names))
    return [*lines, f"the same answer: {'yes' if part['same_answer'] else 'NO'}"]


def time_lines(record: dict, rows: list[dict]) -> list[str]:
    """Stage times; the line of the full model is that of the loop with the first method."""
    lines = [f"{'ms':<26}{'tokens':>7}" + "".join(f"{stage.replace('_per_token', ''):>15}" for stage in STAGES)]
    full = ("full", record["full"]["visual_tokens"], rows[0]["full_ms"])
    for name, tokens, figures in [full, *((label(row), row["visual_tokens"], row["ms"]) for row in rows)]:
        lines.append(f"{name:<26}{tokens:>7}" + "".join(f"{cell(figures[stage]):>15}" for stage in STAGES))
    return lines


def ratio_lines(record: dict, rows: list[dict]) -> list[str]:
    """Ratios full / method, and the overhead in percent of the full prefill."""
    heads = ["expected", "FLOPs", "KV", "KV kB", "GFLOPs", "peak MB"]
    lines = [
        f"{'full / method':<26}{'prefill':>13}{'ttft':>13}" + "".join(f"{h:>9}" for h in heads) + f"{'overhead':>10}"
    ]
    full = record["full"]
    sizes = f"{full['kv_bytes'] / 1e3:>9.0f}{full['flops']['total'] / 1e9:>9.2f}{full['peak_bytes'] / 1e6:>9.1f}"
    lines.append(f"{'full':<26}{'':>53}{sizes}")
    for row in rows:
        r = row["ratios"]
        lines.append(
            f"{label(row):<26}{cell(r['prefill'], 2):>13}{cell(r['ttft'], 2):>13}{r['prefill_expected']:>9.2f}"
            f"{r['prefill_flops']:>9.2f}{r['kv_bytes']:>9.2f}{row['kv_bytes'] / 1e3:>9.0f}"
            f"{row['flops']['total'] / 1e9:>9.2f}{row['peak_bytes'] / 1e6:>9.1f}"
            f"{100 * row['own_work']['median']:>8.1f} %"
        )
    return lines


def reference_lines(rows: list[dict]) -> list[str]:
    """Ratios of the way of released codes (no fused attention, all maps kept) over ours."""
    peaks = lambda row: f"{row['reference_peak_bytes'] / 1e6:.1f} / {row['peak_bytes'] / 1e6:.1f}"  # noqa: E731
    return beside_lines("all maps / on demand", REFERENCES, "peak MB", peaks, rows)


def compiled_lines(rows: list[dict]) -> list[str]:
    """Ratios of the decoder's layers as they are over the same layers compiled."""
    return beside_lines("as is / compiled", COMPILED, "first pass, s", lambda row: f"{row['first_seconds']:.1f}", rows)


def beside_lines(title: str, names: tuple[str, ...], last: str, said: Callable, rows: list[dict]) -> list[str]:
    """A method beside another way to run it: the ratios `names`, then what `said` makes of a row, then if all is the
    same."""
    heads = "".join(f"{name.replace('_per_token', ''):>14}" for name in names)
    lines = [f"{title:<26}{heads}{last:>16}{'same':>6}"]
    for row in rows:
        if "error" in row:
            lines.append(f"{label(row)}: not run. {row['error']}")
            continue
        shown = "".join(f"{cell(row['ratios'][name], 2):>14}" for name in names)
        same = "yes" if row["same_answer"] and row.get("same_tokens", True) else "NO"
        lines.append(f"{label(row):<26}{shown}{said(row):>16}{same:>6}")
    return lines


def notes(record: dict) -> list[str]:
    e = record["environment"]
    lines = [
        f"{record['model']}, {record['new_tokens']} new tokens, batch 1; {record['repeats']} repeats after "
        f"{record['warmups']} warm-ups, each beside the full model; median (IQR). expected: at the roofline.",
        f"{e['device']}, {e['dtype']}, {e['backend']}, {e['threads']} threads of {e['cores']} cores, "
        f"torch {e['torch']}, transformers {e['transformers']}, {e['date']}; {e['peak_flops'] / 1e9:.0f} GFLOP/s, "
        f"{e['bandwidth'] / 1e9:.1f} GB/s",
    ]
    if record["warmups"] < 2 or record["repeats"] < 5:
        lines.append("Fewer than 2 warm-ups or 5 repeats: not to be quoted.")
    if e["load_average"] is not None and e["load_average"] > 0.5:
        lines.append(f"The machine was busy at the start (load {e['load_average']:.1f}): trust ratios, not times.")
    return lines
