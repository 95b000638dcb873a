"""What a visitor reads about a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Faithfulness = Literal["matches released code", "from the paper", "in the style of", "baseline"]


@dataclass(frozen=True)
class Card:
    """What a visitor reads about a method. Sites as strings; parameters come from the dataclass fields."""

    name: str  # key in the API, e.g. "fastervlm"
    title: str
    family: str
    summary: str  # one sentence, plain words
    sites: tuple[str, ...]
    faithfulness: Faithfulness
    paper: str | None = None  # "arXiv 2412.01818"
    code: str | None = None  # "owner/name" of the released code
    training_free: bool = True
    needs: tuple[str, ...] = ()  # e.g. ("cls",)
    deviations: tuple[str, ...] = ()  # where this differs from paper or released code, and known defects of that code
    reported: str = ""  # what the paper reports, one line
    finding: str = ""  # what else was found here, beyond the records that evaluation.findings puts into words
    order: int = 100  # place in lists
