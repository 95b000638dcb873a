"""The question as a method sees it: its text, the embeddings of the chat's words, features of a text tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from vtc_demo.models.text_tower import TextTower


@dataclass
class Question:
    """text: as it was asked. after: how many of the words follow the picture. own [q]: which of the words are the
    question's, without those of the chat template. spent: FLOPs of the text tower, booked to the method that asked.
    """

    text: str
    after: int
    own: Tensor
    embed: Callable[[], Tensor]
    tower: TextTower | None = None
    spent: int = 0
    _words: Tensor | None = field(default=None, repr=False)
    _read: bool = field(default=False, repr=False)  # the tower has read the text, and that is booked

    @property
    def words(self) -> Tensor:
        """Embeddings of all words of the chat, before and after the picture, [t, D]."""
        if self._words is None:
            self._words = self.embed()
        return self._words

    @property
    def features(self) -> Tensor:
        """Of the question by the text tower, [P] float32, of length 1. ValueError without a tower."""
        return self._asked(lambda tower: tower.sentence(self.text), self._of_text)

    @property
    def token_features(self) -> Tensor:
        """Of each token of the question by the text tower, [q, P] float32, of length 1."""
        return self._asked(lambda tower: tower.tokens(self.text), self._of_text)

    def aligned(self, features: Tensor) -> Tensor:
        """Encoder features [n, C] in the text tower's space, [n, P] float32, of length 1."""
        return self._asked(lambda tower: tower.align(features), lambda tower: tower.align_flops(len(features)))

    def _of_text(self, tower: TextTower) -> int:
        once, self._read = not self._read, True
        return tower.flops(self.text) if once else 0

    def book(self) -> int:
        """FLOPs spent since the last call."""
        spent, self.spent = self.spent, 0
        return spent

    def _asked(self, ask: Callable[[TextTower], Tensor], cost: Callable[[TextTower], int]) -> Tensor:
        if self.tower is None:
            raise ValueError(
                "this method compares the picture with a text tower, and the model was loaded without one; give "
                "load_vlm(..., text_tower=FOLDER or hub id of the CLIP model that the vision tower comes from)"
            )
        self.spent += cost(self.tower)
        return ask(self.tower)
