"""The facts of a model that decide where methods can act."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The facts of a model that a method may need to place its sites."""

    grid: tuple[int, int]
    patch_size: int
    vision_layers: int
    feature_layer: int  # 0-based encoder layer whose output feeds the projector
    llm_layers: int
    has_cls: bool
    vision_heads: int = 1  # only for counting FLOPs on head-wise keys

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]
