"""The atlas: what is known of every paper in `assets/atlas.json`, and which of them run here.

What the papers say is data. What runs is never written down there: a method's card names its paper, and that is the
link, so a new method file appears in the atlas by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from vtc_demo.core.assets import ASSETS
from vtc_demo.core.card import Card
from vtc_demo.core.tokens import SITE_ORDER

ATLAS = ASSETS / "atlas.json"
LESSONS = ASSETS.parent / "lessons"

DOMAINS = {
    "vlm image": "vision-language, images",
    "vlm video": "vision-language, video",
    "vit": "vision encoders",
    "generation": "image and video generation",
    "3d": "3D scenes",
    "vla": "robot policies",
    "state space": "state-space encoders",
    "other": "other",
}

# What a paper needs before it can run, for papers that no method implements.
PLANS = {
    "any model": "could run here",
    "vision encoder": "could run here",
    "trained": "needs training",
    "frames": "needs several frames",
    "adjacent": "neighbouring work",
}
RUNS = "runs here"

NOT_YET = "so it could run here; its method file is not written yet."
FRAMES = {
    "vlm video": "Made for video, while this page shows one picture at a time.",
    "vlm image": "Made for prompts with several pictures, while this page shows one at a time.",
    "3d": "Made for scenes seen from many views, while this page shows one picture at a time.",
}
NEIGHBOURS = {
    "generation": "About generating images or video and its tokenizers, which the models here do not do.",
    "vla": "Acts on a robot policy, which needs a robot or its simulator.",
    "state space": "Made for state-space encoders; the encoders here are transformers.",
    "vit": "About the vision backbone alone, which would have to be trained anew.",
    "other": "Made for another task than answering questions about a picture.",
}


@dataclass(frozen=True)
class Paper:
    """One paper. `idea` is told in our words; `claim` is what the paper reports of itself, unchecked.

    first_posted: "2024-03". arxiv: "2403.06764". code: "owner/name" on GitHub, None where none was found.
    sites: kinds of site, see `vtc_demo.core.tokens`; none where nothing is reduced inside a vision-language model.
    training_free: None where the question does not arise, or where it adds no weights but is usually trained in.
    plan: what it needs in order to run, a key of PLANS. lesson: number of the lesson that builds it, "06", or None.
    """

    key: str
    name: str
    title: str
    first_posted: str
    arxiv: str
    code: str | None
    domain: str
    family: str
    sites: tuple[str, ...]
    training_free: bool | None
    plan: str
    lesson: str | None
    idea: str
    claim: str


@dataclass(frozen=True)
class Atlas:
    """families: name -> one sentence in plain words, in the order of lists. papers: by month of first posting."""

    families: dict[str, str]
    papers: tuple[Paper, ...]


def load(path: str | Path = ATLAS) -> Atlas:
    """Read and check an atlas. Raises ValueError that names the paper and the field for anything out of order."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        entries, families = list(record["papers"]), dict(record["families"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"cannot read the atlas {path}: {type(error).__name__}: {error}") from None
    papers = tuple(_paper(entry, families) for entry in entries)
    _check_order(papers)
    unused = set(families) - {p.family for p in papers}
    if unused:
        raise ValueError(f"atlas: no paper of the family {', '.join(sorted(unused))}")
    return Atlas(families, papers)


def _paper(entry: dict, families: dict[str, str]) -> Paper:
    names = {f.name for f in fields(Paper)}
    if not isinstance(entry, dict) or set(entry) != names:
        given = set(entry) if isinstance(entry, dict) else set()
        key = entry.get("key") if isinstance(entry, dict) else entry
        raise ValueError(f"atlas: paper {key!r}: fields missing or unknown: {', '.join(sorted(names ^ given))}")
    try:
        paper = Paper(**entry | {"sites": tuple(entry["sites"])})
        rules = _rules(paper, families)
    except (TypeError, AttributeError) as error:  # a number where text belongs
        raise ValueError(f"atlas: paper {entry['key']!r}: a field has the wrong type: {error}") from None
    for name, good in rules.items():
        if not good:
            raise ValueError(f"atlas: paper {paper.key!r}: {name}={getattr(paper, name)!r} is not allowed")
    return paper


def _rules(p: Paper, families: dict[str, str]) -> dict[str, bool]:
    """Field -> whether its value is in order."""
    return {
        "key": bool(re.fullmatch(r"[a-z0-9][a-z0-9-]*", p.key)),
        "name": bool(p.name.strip()),
        "title": bool(p.title.strip()),
        "first_posted": bool(re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", p.first_posted)),
        "arxiv": bool(re.fullmatch(r"\d{4}\.\d{4,5}", p.arxiv)) and abs(_months(p)) <= 1,
        "code": p.code is None or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", p.code)),
        "domain": p.domain in DOMAINS,
        "family": p.family in families,
        "sites": list(p.sites) == sorted(set(p.sites), key=lambda s: SITE_ORDER.get(s, -1))
        and set(p.sites) <= set(SITE_ORDER),
        "training_free": p.training_free in (True, False, None),
        "plan": p.plan in PLANS,
        "lesson": p.lesson is None or bool(re.fullmatch(r"\d\d", p.lesson)),
        "idea": p.idea.endswith("."),
        "claim": p.claim == "" or p.claim.endswith("."),
    }


def _months(p: Paper) -> int:
    """Months from the month of posting to that of the arXiv number; a paper of a month's last day gets the next."""
    year, month = map(int, p.first_posted.split("-"))
    return (2000 + int(p.arxiv[:2])) * 12 + int(p.arxiv[2:4]) - year * 12 - month


def _check_order(papers: tuple[Paper, ...]) -> None:
    keys = [p.key for p in papers]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    if twice:
        raise ValueError(f"atlas: two papers have the key {', '.join(twice)}")
    if [p.first_posted for p in papers] != sorted(p.first_posted for p in papers):
        raise ValueError("atlas: papers must stand in the order of first_posted")


# -- what runs here -------------------------------------------------------------------------------------------------
def runnable(papers: Iterable[Paper], cards: Iterable[Card]) -> dict[str, tuple[Card, ...]]:
    """Key of each paper -> the cards of the methods that implement it, in the order of lists.

    A card belongs to the paper whose arXiv number it names. Where several papers share one number (two versions under
    different names), to the one whose name begins the card's title.
    """
    papers, cards = list(papers), list(cards)
    sharing: dict[str, list[Paper]] = {}
    for paper in papers:
        sharing.setdefault(paper.arxiv, []).append(paper)

    def implements(card: Card, paper: Paper) -> bool:
        named = re.fullmatch(r"arXiv (\d{4}\.\d{4,5})(v\d+)?", card.paper or "")
        if named is None or named[1] != paper.arxiv:
            return False
        return len(sharing[paper.arxiv]) == 1 or card.title.startswith(paper.name)

    return {paper.key: tuple(card for card in cards if implements(card, paper)) for paper in papers}


def why_not(paper: Paper) -> str:
    """Why no method of the page runs this paper, in plain words."""
    if paper.plan == "any model":
        return f"Works on a frozen model, {NOT_YET}"
    if paper.plan == "vision encoder":
        return f"Works inside a frozen vision encoder, {NOT_YET}"
    if paper.plan == "trained":
        return "Needs a trained module of its own. The zoo trains some under one recipe; this is not one of them."
    if paper.plan == "frames":
        return FRAMES.get(paper.domain, FRAMES["vlm video"])
    if paper.family == "benchmark/position":
        return "A study of compression, not a method to run."
    return NEIGHBOURS.get(paper.domain, NEIGHBOURS["other"])


def lesson_file(paper: Paper, folder: str | Path = LESSONS) -> Path | None:
    """The notebook of the lesson that builds the paper; None where there is none (yet)."""
    if paper.lesson is None:
        return None
    return next(iter(sorted(Path(folder).glob(f"{paper.lesson}_*.ipynb"))), None)
