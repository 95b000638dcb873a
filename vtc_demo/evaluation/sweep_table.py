"""The record of a sweep as lines of text."""

from __future__ import annotations


def table(record: dict) -> str:
    """One line per point, by budget and then by accuracy."""
    patches, where = record["model"]["patches"], record["environment"]
    lines = [_line("method", "tokens", "mean", "accuracy (95 %)", "minus random", "evidence", "TTFT ms")]
    for row in sorted(record["rows"], key=lambda row: (-(row["tokens"] or patches), -row["all"]["right"])):
        share, less = row["all"], row["minus"]["random"]
        accuracy = f"{100 * share['accuracy']:.1f} ({100 * share['low']:.1f}-{100 * share['high']:.1f})"
        gain = f"{100 * less['mean']:+.1f} ({100 * less['low']:+.1f} to {100 * less['high']:+.1f})" if less else ""
        evidence = "" if share["evidence"] is None else f"{100 * share['evidence']['mean']:.0f} %"
        last, mean = f"{row['final_tokens']:.4g}", f"{row['equivalent_tokens']:.4g}"
        lines.append(_line(row["title"], last, mean, accuracy, gain, evidence, f"{row['ttft_ms']['median']:.1f}"))
    lines += [f"left out: {p['method']['method']} at {p['tokens']} tokens: {p['reason']}" for p in record["left_out"]]
    machine = ", ".join([where["device"], where["dtype"], f"{where['threads']} threads"])
    lines.append(f"{record['questions']} questions on {record['scenes']} held-out scenes, in percent. ")
    lines[-1] += f"{record['model']['name']}, {where['date'][:10]}, {machine}"
    return "\n".join(lines)


def _line(title: str, tokens: str, mean: str, accuracy: str, gain: str, evidence: str, ttft: str) -> str:
    return f"{title:<22}{tokens:>7}{mean:>7}  {accuracy:<20}{gain:<22}{evidence:>8}{ttft:>9}"
