"""The sentence on top of the cards, computed from the results."""

from __future__ import annotations

from vtc_demo.core.measures import right
from vtc_demo.core.units import quantity
from vtc_demo.figures.colours import OTHER
from vtc_demo.figures.render import render
from vtc_demo.figures.verdicts import speedup


def sentence(runs: list[dict], hues: dict[str, str], truth: str | None) -> tuple[str, str]:
    """(what happened to the answer, what happened to the time). runs: those that gave an answer."""
    full = next((r for r in runs if r["method"]["method"] == "full"), None)
    reduced = [r for r in runs if r is not full]
    if not reduced:
        return _full_alone(full, truth), ""
    cost, measure = _budget(reduced)
    between, clauses = _answers(reduced, full, truth)
    named = [(_names(some, hues), said) for some, said in clauses]
    values = {"cost": cost, "measure": measure, "between": between, "clauses": named}
    return render("ui/components/summary.html", **values), _time(reduced, full)


def _full_alone(full: dict | None, truth: str | None) -> str:
    if full is None:
        return ""
    known = "" if truth is None else f"; the truth is {truth}"
    if truth is not None and right(full["answer"], truth):
        known = ", which is right"
    return render("ui/components/summary_full.html", answer=full["answer"], known=known)


def _budget(runs: list[dict]) -> tuple[str, str]:
    """What the runs cost, in the measure by which they were matched: (the figures, their unit)."""
    match = (runs[0].get("matched") or {}).get("match")
    total = max(r["tokens0"] for r in runs)
    if match == "flops":
        return _span([quantity(f, "FLOPs") for f in sorted(r["matched"]["reached"] for r in runs)]), ""
    if match == "equivalent tokens":
        tokens = sorted(r["equivalent_tokens"] for r in runs)
        return f"{_span([f'{n:.0f}' for n in tokens])} of {total}", " tokens on average"
    return f"{_span([str(n) for n in sorted(r['visual_tokens'] for r in runs)])} of {total}", " tokens"


def _span(values: list[str]) -> str:
    """From the first to the last, or the one that they all are."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _answers(runs: list[dict], full: dict | None, truth: str | None) -> tuple[str, list[tuple[list[dict], str]]]:
    """Who still answers as wanted: right where the truth is known, else as the full model does.

    (what stands between clauses, clauses); a clause: (the runs that it begins with, what is said of them).
    """
    wanted = truth if truth is not None else full["answer"] if full else None
    if wanted is None:
        return " and ", [([r], f" answers {r['answer']}") for r in runs]
    good = [r for r in runs if right(r["answer"], wanted)]
    bad = [r for r in runs if r not in good]
    lost = full is not None and truth is not None and not right(full["answer"], truth)
    well, ill = ("right", "wrong") if truth is not None else ("as the full model does", "differently")
    clauses = []
    if good:
        clauses.append((good, f"{'' if lost else ' still'} {_s('answer', good)} {well}"))
    if bad and good:
        clauses.append((bad, f" {'does' if _one(bad) else 'do'} not"))
    elif bad:
        clauses.append((bad, f" {_s('answer', bad)} {ill}"))
        if full is not None and truth is not None and not lost:
            clauses.append(([], "the full model is right"))
    if lost:
        clauses[-1] = (clauses[-1][0], clauses[-1][1] + ". The full model itself is wrong here")
    return "; ", clauses


def _time(runs: list[dict], full: dict | None) -> str:
    """How the time to the first token changes, and what keeps it from falling as the tokens do."""
    if full is None:
        return ""
    gains, expected = zip(*(speedup(r, full) for r in runs))
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


def _names(runs: list[dict], hues: dict[str, str]) -> list[dict]:
    """Title and colour of the runs, each once."""
    named = dict.fromkeys((r["title"], hues.get(r["method"]["method"], OTHER[0])) for r in runs)
    return [{"title": title, "hue": hue} for title, hue in named]


def _one(runs: list[dict]) -> bool:
    return len({r["title"] for r in runs}) == 1


def _s(verb: str, runs: list[dict]) -> str:
    return verb + "s" if _one(runs) else verb
