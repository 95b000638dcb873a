"""The sentence on top of the cards, computed from the results."""

from __future__ import annotations

from html import escape

from vtc_demo.core.measures import right
from vtc_demo.core.units import quantity
from vtc_demo.figures import colours, verdicts


def sentence(runs: list[dict], hues: dict[str, str], truth: str | None) -> tuple[str, str]:
    """(what happened to the answer, what happened to the time), both HTML. runs: those that gave an answer."""
    full = next((r for r in runs if r["method"]["method"] == "full"), None)
    reduced = [r for r in runs if r is not full]
    if not reduced:
        return _full_alone(full, truth), ""
    return f"At {_budget(reduced)}, {_answers(reduced, full, hues, truth)}.", _time(reduced, full, hues)


def _full_alone(full: dict | None, truth: str | None) -> str:
    if full is None:
        return ""
    known = "" if truth is None else ", which is right" if right(full["answer"], truth) else f"; the truth is {truth}"
    return f'The full model answers <b translate="no">{escape(full["answer"])}</b>{escape(known)}.'


def _budget(runs: list[dict]) -> str:
    """What the runs cost, in the measure by which they were matched."""
    match = (runs[0].get("matched") or {}).get("match")
    total = max(r["tokens0"] for r in runs)
    if match == "flops":
        costs = [quantity(f, "FLOPs") for f in sorted(r["matched"]["reached"] for r in runs)]
        return f"<b>{_span(costs)}</b>"
    if match == "equivalent tokens":
        tokens = sorted(r["equivalent_tokens"] for r in runs)
        return f"<b>{_span([f'{n:.0f}' for n in tokens])} of {total}</b> tokens on average"
    return f"<b>{_span([str(n) for n in sorted(r['visual_tokens'] for r in runs)])} of {total}</b> tokens"


def _span(values: list[str]) -> str:
    """From the first to the last, or the one that they all are."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _answers(runs: list[dict], full: dict | None, hues: dict[str, str], truth: str | None) -> str:
    """Who still answers as wanted: right where the truth is known, else as the full model does."""
    wanted = truth if truth is not None else full["answer"] if full else None
    if wanted is None:
        return " and ".join(f"{_name(r, hues)} answers {escape(r['answer'])}" for r in runs)
    good = [r for r in runs if right(r["answer"], wanted)]
    bad = [r for r in runs if r not in good]
    lost = full is not None and truth is not None and not right(full["answer"], truth)
    well, ill = ("right", "wrong") if truth is not None else ("as the full model does", "differently")
    parts = []
    if good:
        parts.append(f"{_names(good, hues)} {'' if lost else 'still '}{_s('answer', good)} {well}")
    if bad and good:
        parts.append(f"{_names(bad, hues)} {'does' if _one(bad) else 'do'} not")
    elif bad:
        parts.append(f"{_names(bad, hues)} {_s('answer', bad)} {ill}")
        if full is not None and truth is not None and not lost:
            parts.append("the full model is right")
    return "; ".join(parts) + (". The full model itself is wrong here" if lost else "")


def _time(runs: list[dict], full: dict | None, hues: dict[str, str]) -> str:
    """How the time to the first token changes, and what keeps it from falling as the tokens do."""
    if full is None:
        return ""
    gains, expected = zip(*(verdicts.speedup(r, full) for r in runs))
    fewer = full["visual_tokens"] / max(1, *(r["visual_tokens"] for r in runs))
    times = full["timings_ms"]
    vision = (times.get("preprocess", 0) + times.get("vision", 0)) / max(times["ttft"], 1e-9)
    text = f"The first token comes {_times(gains)} as fast" if max(gains) >= 1.05 else "The first token comes no sooner"
    text += f" (by FLOPs alone: {_times(expected)})"
    if fewer > 1.5 * max(gains):
        text += f", not {fewer:.0f}×"
    untouched = any(r["timings_ms"].get("vision", 0) > 0.5 * times.get("vision", 0) for r in runs)
    if vision >= 0.1 and untouched:
        text += f": preparing and encoding the picture is {vision:.0%} of the full model's time and mostly stays"
    return text + "."


def _times(factors) -> str:
    low, high = (f"{f(factors):.1f}" for f in (min, max))
    return f"{low}×" if low == high else f"{low} to {high}×"


def _name(run: dict, hues: dict[str, str]) -> str:
    hue = hues.get(run["method"]["method"], colours.OTHER[0])
    return f'<b class="vtc-name" translate="no" style="--m:{hue}">{escape(run["title"])}</b>'


def _names(runs: list[dict], hues: dict[str, str]) -> str:
    names = list(dict.fromkeys(_name(r, hues) for r in runs))
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _one(runs: list[dict]) -> bool:
    return len({r["title"] for r in runs}) == 1


def _s(verb: str, runs: list[dict]) -> str:
    return verb + "s" if _one(runs) else verb
