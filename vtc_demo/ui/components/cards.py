"""The result cards of Compare, as HTML: finished, running, failed. All text is escaped."""

from __future__ import annotations

from html import escape

import numpy as np

from vtc_demo.core.units import quantity
from vtc_demo.core.vocabulary import DOING, STAGES
from vtc_demo.figures import bars, verdicts
from vtc_demo.figures.masks import counts, evidence_share, frames, mask, outside

from . import summary

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
) -> str:
    """A finished run. full: the run of the full model, for speed-ups; longest: ms that fill the time bar."""
    if run.get("error"):
        return failed(run["error"], picture)
    times = run["timings_ms"]
    state, remark = verdicts.verdict(run, truth, full)
    busy = bars.busy_ms(run)
    return f"""<div class="vtc-body">
<div class="vtc-picture">{mask(run, picture, evidence, run["title"])}<div class="vtc-tip" aria-hidden="true"></div>
<p class="vtc-live" aria-live="polite"></p></div>
{_player(run)}
{banner(state, run["answer"], remark)}
<dl class="vtc-figures">{_figures(run, full, evidence)}</dl>
{_matched(run)}
<p class="vtc-caption">tokens entering each layer{_trimmed(run)}</p>{bars.layer_bars(run)}
<p class="vtc-caption">time <b>{busy:.0f} ms</b><span>{times["ttft"]:.0f} to first token</span></p>
{bars.stage_bar(run, max(longest, busy))}
<p class="vtc-foot"><span>FLOPs <b>{quantity(run["flops"]["total"])}</b></span>
<span title="{_cache(run)}">KV cache <b>{quantity(run["kv_bytes"], "B")}</b></span></p></div>"""


def _matched(run: dict) -> str:
    """What the run reached of the cost that all were to have, and why not the same."""
    matched = run.get("matched")
    if not matched or run["method"]["method"] == "full":
        return '<p class="vtc-matched"></p>'
    reached, target = (verdicts.cost(matched["match"], matched[key]) for key in ("reached", "target"))
    if not matched["note"]:
        shown = matched["match"] == "final tokens"  # among the figures
        return f'<p class="vtc-matched">{"" if shown else f"Matched at {reached}."}</p>'
    text = f"Reached {reached}, not {target}: {matched['note']}."
    return f'<p class="vtc-matched missed">{escape(text)}</p>'


def _trimmed(run: dict) -> str:
    return '<span class="trimmed">left the cache</span>' if bars.trims_cache(run) else ""


def _cache(run: dict) -> str:
    """Bytes of the cache by layer: every layer has entries of one size."""
    lengths = run["kv_lengths"]
    if outside(run):
        return f"{lengths[0]} entries in every layer, and what layers hold of the picture beside the sequence"
    one = run["kv_bytes"] / max(sum(lengths), 1)
    return "; ".join(f"layer {k}: {n} entries, {quantity(n * one, 'B')}" for k, n in enumerate(lengths))


def _player(run: dict) -> str:
    stops = frames(run)
    last = len(stops) - 1
    kept = counts(run["sites"][-1], outside(run)) if run["sites"] else "every patch kept"
    return (
        '<div class="vtc-player"><button type="button" class="vtc-play" aria-label="Play the pass">▶</button>'
        f'<input type="range" class="vtc-site" min="0" max="{last}" step="1" value="{last}" '
        f'aria-label="Place in the pass" aria-valuetext="{escape(stops[-1]["label"])}">'
        f"<output>{escape(stops[-1]['label'])}</output></div>"
        f'<p class="vtc-counts">{kept}</p>'
    )


def banner(state: str, answer: str, remark: str) -> str:
    """The answer, so large that it is seen from across a room."""
    text = escape(answer) or ("" if state == "running" else "<i>no answer</i>")
    return (
        f'<div class="vtc-answer {state}"><span class="mark" aria-hidden="true">{MARKS[state]}</span>'
        f'<span class="text{" long" if len(answer) > LONG else ""}"{" translate=no" if answer else ""}>{text}</span>'
        f'<span class="remark">{escape(remark)}</span></div>'
    )


def _figures(run: dict, full: dict | None, evidence: np.ndarray | None) -> str:
    average = run["equivalent_tokens"]
    uneven = len(set(run["schedule"])) > 1
    tokens = (f"{run['visual_tokens']}<small>/{run['tokens0']}</small>", f"average {average:.0f}" if uneven else "")
    boxes = [_figure("tokens", *tokens, "visual tokens at the last LLM layer; average over the layers")]
    if full is None or full is run:
        ms, note = f"{run['timings_ms']['ttft']:.0f}<small> ms</small>", "the reference" if full is run else ""
        boxes.append(_figure("first token", ms, note, "time to first token, measured in one pass"))
    else:
        gain, expected = verdicts.speedup(run, full)
        note = "time to first token: the full model's over this one's, measured in one pass; expected from FLOPs"
        boxes.append(_figure("first token", f"{gain:.1f}×", f"expected {expected:.1f}×", note))
    share = None if evidence is None else evidence_share(run, evidence)
    if share is not None:
        note = "share of the patches that carry the answer, kept or merged where the slider stands"
        boxes.append(_figure("evidence", f'<span class="vtc-share">{share:.0%}</span>', "kept", note))
    elif not uneven:
        boxes.append(
            _figure("of all", f"{average / max(run['tokens0'], 1):.0%}", "tokens", "share of the visual tokens")
        )
    else:
        boxes.append(
            _figure("average", f"{average / max(run['tokens0'], 1):.0%}", "per layer", "mean share over the layers")
        )
    return "".join(boxes)


def _figure(label: str, value: str, note: str, title: str) -> str:
    return f'<div title="{escape(title)}"><dt>{label}</dt><dd>{value}</dd><dd class="note">{note}&nbsp;</dd></div>'


def running(picture: str, stage: str = "", text: str = "") -> str:
    """A card whose run is under way or still waits for its turn; the shape of the finished card."""
    bones = "".join(f'<div class="vtc-bone" style="height:{h}px"></div>' for h in (58, 44, 14, 14))
    return f"""<div class="vtc-body is-running" aria-busy="true">
<div class="vtc-picture"><img src="{escape(picture)}" alt=""></div>
<div class="vtc-progress{" go" if stage else ""}"></div>
{banner("running", text, DOING.get(stage, stage or "waiting"))}
{bones}</div>"""


def failed(message: str, picture: str = "") -> str:
    """A column that could not run, with the reason."""
    image = f'<div class="vtc-picture"><img src="{escape(picture)}" alt=""></div>' if picture else ""
    return f'<div class="vtc-body">{image}<p class="vtc-problem" role="alert">{escape(message)}</p></div>'


# -- the strip on top -----------------------------------------------------------------------------------------------
LEGEND = (
    '<ul class="vtc-legend"><li class="kept">kept</li><li class="merged">merged</li>'
    '<li class="dropped">dropped</li><li class="soft">share in a token</li>'
    '<li><button type="button" class="vtc-evidence-toggle evidence" aria-pressed="true" '
    'title="Show or hide the outline of the patches that carry the answer">evidence</button></li></ul>'
)
STAGE_LEGEND = (
    '<ul class="vtc-legend stages">'
    + "".join(f'<li class="vtc-stage-{k}">{name}</li>' for k, name in STAGES.items())
    + "</ul>"
)


def strip(runs: list[dict], hues: dict[str, str], question: str, truth: str | None, link: str = "") -> str:
    """The computed sentence and the legends. runs: those that gave an answer; link: query that restores the view."""
    what, time = summary.sentence(runs, hues, truth)
    return _strip(f'<p class="what">{what}</p><p class="time">{time}</p>', question, link)


def waiting(question: str) -> str:
    time = '<p class="time">The methods answer one after another …</p>'
    return _strip(f'<p class="what" translate="no">{escape(question)}</p>{time}', question)


def problem(message: str) -> str:
    """What went wrong with the request and what to do, in place of the sentence."""
    first, _, rest = message.partition(". ")
    more = f'<p class="time">{escape(rest)}</p>' if rest else ""
    first += "." if rest else ""
    return _strip(f'<div class="vtc-problem" role="alert"><p class="what">{escape(first)}</p>{more}</div>')


def stopped() -> str:
    return _strip('<p class="what vtc-stopped">Stopped. Press Compare to start again.</p>')


def _strip(text: str, question: str = "", link: str = "") -> str:
    said = f'<div class="vtc-said" aria-live="polite">{text}</div>'
    data = f'data-question="{escape(question)}" data-link="{escape(link)}"'
    return f'<div class="vtc-strip" {data}>{said}{LEGEND}{STAGE_LEGEND}</div>'
