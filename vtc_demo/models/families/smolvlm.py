"""SmolVLM: Idefics3 with other sizes."""

from __future__ import annotations

from transformers import SmolVLMForConditionalGeneration

from .idefics3 import Idefics3Adapter


class SmolVLMAdapter(Idefics3Adapter):
    model_type = "smolvlm"
    model_class = SmolVLMForConditionalGeneration
    description = "SmolVLM (SmolVLMForConditionalGeneration)"
