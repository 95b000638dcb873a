"""CLIP's text tower beside a VLM whose vision tower comes from the same CLIP: text and patches in one space."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from vtc_demo import cost


class TextTower:
    """A CLIP model's text half and its two projections. Features are float32 and of length 1."""

    def __init__(self, model: CLIPModel, tokenizer):
        self.text_model, self.text_projection = model.text_model, model.text_projection
        self.visual_projection, self.visual_norm = model.visual_projection, model.vision_model.post_layernorm
        self.tokenizer, self.config = tokenizer, model.config.text_config
        self._ask = lru_cache(maxsize=8)(self._run)  # several hooks of one pass ask the same

    @classmethod
    def load(cls, source: str | Path, device, dtype, **options) -> TextTower:
        """From a folder or hub id of a CLIP model; options go to `from_pretrained`. Raises ValueError for another."""
        found = AutoConfig.from_pretrained(source, **options).model_type
        if found != "clip":  # its weights would be left aside, and random ones taken
            raise ValueError(f"it is no CLIP model; its family is {found!r}")
        model, info = CLIPModel.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        if info["missing_keys"]:
            raise ValueError(f"weights are missing, among them {min(info['missing_keys'])}")
        return cls(model.to(device).eval(), AutoTokenizer.from_pretrained(source, **options))

    @property
    def vision_width(self) -> int:
        return self.visual_projection.in_features

    def ids(self, text: str) -> list[int]:
        """Cut at what the tower can read; the end token stays."""
        return self.tokenizer(text, truncation=True, max_length=self.config.max_position_embeddings)["input_ids"]

    def _run(self, text: str) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([self.ids(text)], device=self.text_projection.weight.device)
        with torch.inference_mode():
            out = self.text_model(input_ids=ids)
            tokens = self.text_projection(out.last_hidden_state[0]).float()  # [t, P]
            return self.text_projection(out.pooler_output[0]).float(), tokens

    def sentence(self, text: str) -> Tensor:
        """[P]"""
        return normalize(self._ask(text)[0], dim=-1)

    def tokens(self, text: str) -> Tensor:
        """[t, P], begin and end tokens included."""
        return normalize(self._ask(text)[1], dim=-1)

    def align(self, features: Tensor) -> Tensor:
        """Encoder features [n, C] -> [n, P], as CLIP projects its own pooled feature."""
        return normalize(self.visual_projection(self.visual_norm(features)).float(), dim=-1)

    def flops(self, text: str) -> int:
        """Of reading the text once."""
        n, c = len(self.ids(text)), self.config
        layer = cost.linear_flops(n, c.hidden_size, 4 * c.hidden_size) + cost.attention_flops(n * n, 1, c.hidden_size)
        layer += cost.mlp_flops(n, c.hidden_size, c.intermediate_size, gated=False)
        return c.num_hidden_layers * layer + cost.linear_flops(n + 1, c.hidden_size, self.text_projection.out_features)

    def align_flops(self, n: int) -> int:
        return cost.linear_flops(n, self.visual_projection.in_features, self.visual_projection.out_features)
