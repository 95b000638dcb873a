"""The result cards of Compare: finished, running, failed."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from vtc_demo.core.units import quantity
from vtc_demo.core.vocabulary import DOING
from vtc_demo.figures import bars, masks, verdicts
from vtc_demo.figures.render import render

LONG = 12  # characters of an answer that still fit in large type
MARKS = {"right": "✓", "wrong": "✕", "neutral": "•", "running": ""}


def card(
    run: dict,
    picture: str,
    *,
    full: dict | None = None,
    truth: str | None = None,
    evidence: np.ndarray | None = None,
    longest: float = 0.0,
) -> Markup:
    """A finished run. full: the run of the full model, for speed-ups; longest: ms that fill the time bar."""
    if run.get("error"):
        return failed(run["error"], picture)
    stops, sites, busy = masks.frames(run), run["sites"], bars.busy_ms(run)
    state, remark = verdicts.verdict(run, truth, full)
    matched, missed = _matched(run)
    return render(
        "ui/components/card.html",
        mask=masks.mask(run, picture, evidence, run["title"]),
        last=len(stops) - 1,
        place=stops[-1]["label"],
        counts=masks.counts(sites[-1], masks.outside(run)) if sites else "every patch kept",
        banner=banner(state, run["answer"], remark),
        figures=[_tokens(run), _first_token(run, full), _share(run, evidence)],
        matched=matched,
        missed=missed,
        trimmed=bars.trims_cache(run),
        layers=bars.layer_bars(run),
        busy=busy,
        ttft=run["timings_ms"]["ttft"],
        stages=bars.stage_bar(run, max(longest, busy)),
        flops=quantity(run["flops"]["total"]),
        cache=_cache(run),
        bytes=quantity(run["kv_bytes"], "B"),
    )


def running(picture: str, stage: str = "", text: str = "") -> Markup:
    """A card whose run is under way or still waits for its turn; the shape of the finished card."""
    doing = banner("running", text, DOING.get(stage, stage or "waiting"))
    return render("ui/components/running.html", picture=picture, begun=bool(stage), banner=doing)


def failed(message: str, picture: str = "") -> Markup:
    """A column that could not run, with the reason."""
    return render("ui/components/failed.html", message=message, picture=picture)


def banner(state: str, answer: str, remark: str) -> Markup:
    """The answer, so large that it is seen from across a room."""
    values = {"state": state, "mark": MARKS[state], "answer": answer, "remark": remark}
    return render("ui/components/banner.html", **values, long=len(answer) > LONG)


# -- the figures ----------------------------------------------------------------------------------------------------
def _tokens(run: dict) -> dict:
    average = f"average {run['equivalent_tokens']:.0f}" if _uneven(run) else ""
    title = "visual tokens at the last LLM layer; average over the layers"
    return _figure("tokens", str(run["visual_tokens"]), average, title, unit=f"/{run['tokens0']}")


def _first_token(run: dict, full: dict | None) -> dict:
    if full is None or full is run:
        ms, note = f"{run['timings_ms']['ttft']:.0f}", "the reference" if full is run else ""
        return _figure("first token", ms, note, "time to first token, measured in one pass", unit=" ms")
    gain, expected = verdicts.speedup(run, full)
    title = "time to first token: the full model's over this one's, measured in one pass; expected from FLOPs"
    return _figure("first token", f"{gain:.1f}×", f"expected {expected:.1f}×", title)


def _share(run: dict, evidence: np.ndarray | None) -> dict:
    """The evidence that is left where it is known, else the tokens that are."""
    share = None if evidence is None else masks.evidence_share(run, evidence)
    if share is not None:
        title = "share of the patches that carry the answer, kept or merged where the slider stands"
        return _figure("evidence", f"{share:.0%}", "kept", title, follows=True)
    left = f"{run['equivalent_tokens'] / max(run['tokens0'], 1):.0%}"
    if _uneven(run):
        return _figure("average", left, "per layer", "mean share over the layers")
    return _figure("of all", left, "tokens", "share of the visual tokens")


def _figure(label: str, value: str, note: str, title: str, unit: str = "", follows: bool = False) -> dict:
    """unit: in small type behind the value; follows: the value is that of the place where the slider stands."""
    return {"label": label, "value": value, "note": note, "title": title, "unit": unit, "follows": follows}


def _uneven(run: dict) -> bool:
    return len(set(run["schedule"])) > 1


def _matched(run: dict) -> tuple[str, bool]:
    """What the run reached of the cost that all were to have, and why not the same; whether it was missed."""
    matched = run.get("matched")
    if not matched or run["method"]["method"] == "full":
        return "", False
    reached, target = (verdicts.cost(matched["match"], matched[key]) for key in ("reached", "target"))
    if matched["note"]:
        return f"Reached {reached}, not {target}: {matched['note']}.", True
    shown = matched["match"] == "final tokens"  # among the figures
    return "" if shown else f"Matched at {reached}.", False


def _cache(run: dict) -> str:
    """Bytes of the cache by layer: every layer has entries of one size."""
    lengths = run["kv_lengths"]
    if masks.outside(run):
        return f"{lengths[0]} entries in every layer, and what layers hold of the picture beside the sequence"
    one = run["kv_bytes"] / max(sum(lengths), 1)
    return "; ".join(f"layer {k}: {n} entries, {quantity(n * one, 'B')}" for k, n in enumerate(lengths))
