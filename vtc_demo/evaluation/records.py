"""The record of a sweep: one row per point with its figures, as JSON and as CSV.

A row keeps what each question gave (`samples`), so that a stopped sweep can go on and every interval can be drawn anew.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtc_demo import world
from vtc_demo.benchmark import timing
from vtc_demo.core.method import Method
from vtc_demo.core.run import Run

from .accuracy import graded
from .intervals import Scenes, share

MEANS = ("final_tokens", "equivalent_tokens", "flops", "kv_bytes")
REFERENCES = ("full", "random")  # every row is compared with these, question by question
COLUMNS = (
    "method", "title", "family", "hyper_parameters", "tokens", *MEANS, "ttft_ms_median", "ttft_ms_iqr", "kind", "n",
    "right", "accuracy", "low", "high", "evidence", "evidence_low", "evidence_high",
    *(f"minus_{name}{bound}" for name in REFERENCES for bound in ("", "_low", "_high")),
)  # fmt: skip


@dataclass
class SweepPoint:
    """One method at one budget with what its questions gave, in the order of the questions.

    tokens: the visual tokens asked for, None if the method takes no budget. right: 0 or 1; evidence: a share, None
    without evidence; ttft_ms; totals: sums over the questions of the figures in MEANS, FLOPs up to the first token.
    """

    method: Method
    tokens: int | None
    right: list[int] = field(default_factory=list)
    evidence: list[float | None] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEANS, 0.0))

    @property
    def key(self) -> str:
        return key_of(self.method.spec())

    @property
    def label(self) -> str:
        return self.method.card.title + ("" if self.tokens is None else f" at {self.tokens} tokens")

    def add(self, run: Run, question: world.Question) -> None:
        right, evidence = graded(run, question)
        self.right.append(int(right))
        self.evidence.append(None if math.isnan(evidence) else round(evidence, 3))
        self.ttft_ms.append(round(run.timings["ttft"], 2))
        figures = (run.visual_tokens, run.equivalent_tokens, run.ttft_flops, run.kv_bytes)
        for name, value in zip(MEANS, figures, strict=True):
            self.totals[name] += value

    def samples(self) -> dict:
        right = "".join(map(str, self.right))
        return {"right": right, "evidence": self.evidence, "ttft_ms": self.ttft_ms, "totals": self.totals}

    def restore(self, samples: dict) -> None:
        self.right = [int(digit) for digit in samples["right"]]
        self.evidence, self.ttft_ms = list(samples["evidence"]), list(samples["ttft_ms"])
        self.totals = dict(samples["totals"])


def key_of(spec: dict) -> str:
    """The same for methods of the same name and hyper-parameters."""
    return json.dumps(spec, sort_keys=True)


@dataclass
class Asked:
    """The questions so far: the scene and the kind of each."""

    scenes: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def places(self, kind: str) -> list[int]:
        return [i for i, k in enumerate(self.kinds) if k == kind]


def rows(points: Sequence[SweepPoint], asked: Asked) -> list[dict]:
    """The figures of every point, JSON-ready. All points must have answered all the questions asked."""
    scenes = Scenes(asked.scenes)
    kinds = {kind: asked.places(kind) for kind in world.KINDS if kind in asked.kinds}
    parts = {kind: (places, Scenes([asked.scenes[i] for i in places])) for kind, places in kinds.items()}
    return [_row(point, points, scenes, parts) for point in points]


def _row(
    point: SweepPoint, points: Sequence[SweepPoint], scenes: Scenes, parts: dict[str, tuple[list[int], Scenes]]
) -> dict:
    n, card = len(point.right), point.method.card
    return {
        "method": point.method.spec(),
        "title": card.title,
        "family": card.family,
        "tokens": point.tokens,
        **{name: round(point.totals[name] / n, 2) for name in MEANS},
        "ttft_ms": {name: round(value, 2) for name, value in timing.spread(point.ttft_ms).items()},
        "all": _part(point, range(n), scenes),
        "kinds": {kind: _part(point, *part) for kind, part in parts.items()},
        "minus": {name: _difference(point, points, name, scenes) for name in REFERENCES},
        "samples": point.samples(),
    }


def _part(point: SweepPoint, places: Sequence[int], scenes: Scenes) -> dict:
    """Accuracy and evidence over the questions at these places."""
    return share([bool(point.right[i]) for i in places]) | {
        "evidence": scenes.mean([point.evidence[i] for i in places])
    }


def _difference(point: SweepPoint, points: Sequence[SweepPoint], name: str, scenes: Scenes) -> dict[str, float] | None:
    """Accuracy minus that of the reference on the same questions, at the same budget; None if it is the reference."""
    same = (p for p in points if p.method.card.name == name and p.tokens in (None, point.tokens))
    other = next(same, None)
    if other is None or other is point or point.method.card.name == name or (point.tokens is None and other.tokens):
        return None
    return scenes.mean([a - b for a, b in zip(point.right, other.right, strict=True)])


# -- files ----------------------------------------------------------------------------------------------------------
def to_json(record: dict) -> str:
    """JSON with one entry, and one row of the sweep, per line: files stay readable and their differences small."""
    heads = [f" {json.dumps(name)}: {_line(value)}" for name, value in record.items() if name != "rows"]
    lines = ",\n".join(f"  {_line(row)}" for row in record["rows"])
    return "{\n" + ",\n".join([*heads, f' "rows": [\n{lines}\n ]']) + "\n}\n"


def _line(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def to_csv(record: dict) -> str:
    """One line per point and kind of question ("all" for all of them), with the columns COLUMNS."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in record["rows"]:
        for kind, part in {"all": row["all"], **row["kinds"]}.items():
            writer.writerow(_flat(row) | _flat_part(kind, part) | (_flat_differences(row) if kind == "all" else {}))
    return out.getvalue()


def _flat(row: dict) -> dict:
    hyper = {k: v for k, v in row["method"].items() if k != "method"}
    times = {f"ttft_ms_{name}": row["ttft_ms"][name] for name in ("median", "iqr")}
    plain = {name: row[name] for name in ("title", "family", "tokens", *MEANS)}
    return {"method": row["method"]["method"], "hyper_parameters": json.dumps(hyper)} | plain | times


def _flat_part(kind: str, part: dict) -> dict:
    evidence = part["evidence"] or {"mean": None, "low": None, "high": None}
    told = {"evidence": evidence["mean"], "evidence_low": evidence["low"], "evidence_high": evidence["high"]}
    return {"kind": kind} | {name: part[name] for name in ("n", "right", "accuracy", "low", "high")} | told


def _flat_differences(row: dict) -> dict:
    out = {}
    for name, difference in row["minus"].items():
        for key, bound in (("mean", ""), ("low", "_low"), ("high", "_high")):
            out[f"minus_{name}{bound}"] = difference[key] if difference else None
    return out


def write(path: Path, text: str) -> None:
    """The whole text or nothing: a file is never left half written."""
    if path.exists() and not path.is_file():  # a pipe or a device is written to, not replaced
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read(path: Path) -> dict:
    """A record from its file. Raises ValueError if the file is no record of a sweep."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as a record of a sweep ({error}); remove it or name another file"
        ) from None
    if not isinstance(record, dict) or not {"sweep", "asked", "rows", "environment", "model"} <= set(record):
        raise ValueError(f"{path} is no record of a sweep; remove it or name another file")
    return record
