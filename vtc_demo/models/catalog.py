"""Models that the app offers. The API takes any id of a supported family; a shared page does not."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import memory


class Entry(NamedTuple):
    """id on the hub; family: config.model_type; gigabytes: of its weights in bfloat16, rounded up.

    revision: the commit that is loaded. None follows the repository's main branch.
    """

    id: str
    family: str
    gigabytes: float
    revision: str | None = None

    def needs(self, dtype: torch.dtype) -> int:
        """Bytes that must be free to load it in `dtype`, by the rule of `memory.check`."""
        return round(self.gigabytes * memory.GIGA * dtype.itemsize / torch.bfloat16.itemsize * memory.ROOM)


# Revisions: each hash is the one that public projects independent of one another pin or have in their caches under this
# id (November 2026), among them LibreYOLO's roster of snapshots (InternVL3, Qwen3-VL, SmolVLM2), recipes around LeRobot
# (InternVL3, SmolVLM2) and Tenstorrent's model specs (Qwen2.5-VL). They were not compared with the hub, nor loaded.
CATALOG = (
    Entry("HuggingFaceTB/SmolVLM-256M-Instruct", "idefics3", 0.6, "7e3e67edbbed1bf9888184d9df282b700a323964"),
    Entry("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "smolvlm", 1.1, "7b375e1b73b11138ff12fe22c8f2822d8fe03467"),
    Entry(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision", 1.8, "74dd0bf867a4cda7950c17663794267c60cf4b40"
    ),
    Entry("OpenGVLab/InternVL3-1B-hf", "internvl", 2.0, "014c0583a0d4bedf29fbe2dbff4f865eb998e171"),
    Entry("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", 4.5, "895c3a49bc3fa70a340399125c650a463535e71c"),
    Entry("Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl", 4.5, "89644892e4d85e24eaac8bacfd4f463576704203"),
    Entry("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 7.6, "66285546d2b821cf421d4f5eb2576359d3770cd3"),
    Entry("llava-hf/llava-1.5-7b-hf", "llava", 14.2, "b234b804b114d9e37bb655e11cbbb5f5e971b7a9"),
    Entry("llava-hf/llava-v1.6-vicuna-7b-hf", "llava_next", 14.2, "c916e6cdcd760b4cecd1dd4907f84ac649f93b23"),
)


def pick(name: str) -> Entry:
    """The entry of that id. Raises ValueError if the app does not offer it."""
    found = next((entry for entry in CATALOG if entry.id == name), None)
    if found is None:
        raise ValueError(f"the app does not offer {name!r}; choose {', '.join(entry.id for entry in CATALOG)}")
    return found


def rows(device: torch.device, dtype: torch.dtype) -> list[dict]:
    """The catalogue for one device, JSON-ready: id, family, revision, needs_gb, free_gb, fits (None: not known)."""
    have = memory.free(device)
    return [
        {
            "id": entry.id,
            "family": entry.family,
            "revision": entry.revision,
            "needs_gb": round(entry.needs(dtype) / memory.GIGA, 1),
            "free_gb": None if have is None else round(have / memory.GIGA, 1),
            "fits": None if have is None else entry.needs(dtype) <= have,
        }
        for entry in CATALOG
    ]


def table(rows: list[dict], device: torch.device, dtype: torch.dtype) -> str:
    """`rows` as lines of text."""
    said = {True: "yes", False: "no", None: "not known"}
    lines = [f"{'model':<44}{'family':<17}{'needs':>8}  {'fits':<11}revision"]
    lines += [
        f"{row['id']:<44}{row['family']:<17}{row['needs_gb']:>5.1f} GB  {said[row['fits']]:<11}"
        f"{row['revision'] or 'main, not pinned'}"
        for row in rows
    ]
    have = rows[0]["free_gb"]
    free = "free memory not known" if have is None else f"{have:.1f} GB free"
    kind = str(dtype).removeprefix("torch.")
    return "\n".join([*lines, f"{device}, {kind}, {free}. 'embedded' ships with the repository and runs anywhere."])
