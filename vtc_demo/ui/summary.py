"""The sentence on top of the cards, computed from the results."""

from __future__ import annotations

from html import escape

from .. import viz


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
    known = (
        "" if truth is None else ", which is right" if viz.same(full["answer"], truth) else f"; the truth is {truth}"
    )
    return f"The full model answers <b>{escape(full['answer'])}</b>{escape(known)}."


def _budget(runs: list[dict]) -> str:
    tokens = sorted({r["visual_tokens"] for r in runs})
    span = str(tokens[0]) if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}"
    return f"<b>{span} of {max(r['tokens0'] for r in runs)}</b> tokens"


def _answers(runs: list[dict], full: dict | None, hues: dict[str, str], truth: str | None) -> str:
    """Who still answers as wanted: right where the truth is known, else as the full model does."""
    wanted = truth if truth is not None else full["answer"] if full else None
    if wanted is None:
        return " and ".join(f"{_name(r, hues)} answers {escape(r['answer'])}" for r in runs)
    good = [r for r in runs if viz.same(r["answer"], wanted)]
    bad = [r for r in runs if r not in good]
    lost = full is not None and truth is not None and not viz.same(full["answer"], truth)
    right = "right" if truth is not None else "as the full model does"
    parts = []
    if good:
        parts.append(f"{_names(good, hues)} {'' if lost else 'still '}{_s('answer', good)} {right}")
    if bad and good:
        parts.append(f"{_names(bad, hues)} {'does' if _one(bad) else 'do'} not")
    elif bad:
        parts.append(f"{_names(bad, hues)} {_s('answer', bad)} " + ("wrong" if truth is not None else "differently"))
    return "; ".join(parts) + (". The full model itself is wrong here" if lost else "")


def _time(runs: list[dict], full: dict | None, hues: dict[str, str]) -> str:
    """How much sooner the first token comes, and what keeps it from falling with the tokens."""
    if full is None:
        return ""
    best = max(runs, key=lambda r: viz.speedup(r, full)[0])
    gain, expected = viz.speedup(best, full)
    fewer = full["visual_tokens"] / max(best["visual_tokens"], 1)
    times = full["timings_ms"]
    vision = (times.get("preprocess", 0) + times.get("vision", 0)) / max(times["ttft"], 1e-9)
    text = (
        f"Time to first token: {gain:.1f}× sooner with {_name(best, hues)}"
        if gain >= 1.05
        else ("Time to first token does not fall")
    )
    if fewer > 1.5 * gain:
        text += f", not {fewer:.0f}× as the tokens alone suggest"
    untouched = best["timings_ms"].get("vision", 0) > 0.5 * times.get("vision", 0)
    if vision >= 0.1 and untouched:
        text += f": preparing and encoding the picture takes {vision:.0%} of the full model's time and stays"
    return f"{text}. Expected from FLOPs: {expected:.1f}×."


def _name(run: dict, hues: dict[str, str]) -> str:
    hue = hues.get(run["method"]["method"], viz.OTHER[0])
    return f'<b class="vtc-name" style="--m:{hue}">{escape(run["title"])}</b>'


def _names(runs: list[dict], hues: dict[str, str]) -> str:
    names = list(dict.fromkeys(_name(r, hues) for r in runs))
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _one(runs: list[dict]) -> bool:
    return len({r["title"] for r in runs}) == 1


def _s(verb: str, runs: list[dict]) -> str:
    return verb + "s" if _one(runs) else verb
