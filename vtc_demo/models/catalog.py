"""Models that the app offers. The API takes any id of a supported family; a shared page should not."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """id on the hub; family: config.model_type; gigabytes: of its weights in bfloat16, rounded up.

    revision: the commit that is loaded. None follows the repository's main branch: whoever deploys the app writes the
    full commit hash that they have looked at here.
    """

    id: str
    family: str
    gigabytes: float
    revision: str | None = None


CATALOG = (
    Entry("HuggingFaceTB/SmolVLM-256M-Instruct", "idefics3", 0.6),
    Entry("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "smolvlm", 1.1),
    Entry("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision", 1.8),
    Entry("OpenGVLab/InternVL3-1B-hf", "internvl", 2.0),
    Entry("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", 4.5),
    Entry("Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl", 4.5),
    Entry("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 7.6),
    Entry("llava-hf/llava-1.5-7b-hf", "llava", 14.2),
    Entry("llava-hf/llava-v1.6-vicuna-7b-hf", "llava_next", 14.2),
)


def pick(name: str) -> Entry:
    """The entry of that id. Raises ValueError if the app does not offer it."""
    found = next((entry for entry in CATALOG if entry.id == name), None)
    if found is None:
        raise ValueError(f"the app does not offer {name!r}; choose {', '.join(entry.id for entry in CATALOG)}")
    return found
