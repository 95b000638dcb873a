"""Where the picture of a comparison comes from: a built-in scene, a composed one, or an upload."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from vtc_demo import world

from . import serve

QUESTION_KIND = "reading"  # asked of a scene first: what compression costs shows most in reading


@dataclass(frozen=True)
class Source:
    """seed: number of the built-in scene; None for a composed scene. An upload has no scene at all."""

    image: Image.Image
    scene: world.Scene | None = None
    seed: int | None = None

    @classmethod
    def of(cls, seed) -> Source:
        """The built-in scene of that number. Raises ValueError for what is no such number."""
        scene = serve.scene(seed)
        return cls(scene.image, scene, int(seed))

    def truth(self, question: str) -> world.Question | None:
        return world.truth(self.scene, question) if self.scene else None

    def suggestions(self) -> list[str]:
        """Questions to click on; the first is asked when the picture is chosen."""
        if self.scene is None:
            return ["How many objects are there?", "What number is written?", "Is there a red circle?"]
        first = {q.kind: q.text for q in reversed(self.scene.questions)}  # one of each kind
        return [first.pop(QUESTION_KIND), *first.values()] if QUESTION_KIND in first else list(first.values())
