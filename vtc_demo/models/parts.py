"""An image processor and a tokenizer side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin


@dataclass(frozen=True)
class Parts:
    """An image processor and a tokenizer side by side, for families whose processor class also wants to read videos
    (which needs packages that pictures do not)."""

    image_processor: Any
    tokenizer: Any
    chat_template: str | None = None

    @classmethod
    def load(cls, source: str, **options) -> Parts:
        settings, _ = ProcessorMixin.get_processor_dict(source, **options)
        return cls(
            AutoImageProcessor.from_pretrained(source, **options),
            AutoTokenizer.from_pretrained(source, **options),
            settings.get("chat_template"),
        )

    def apply_chat_template(self, messages: list[dict], **options) -> str:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, tokenize=False, **options)
