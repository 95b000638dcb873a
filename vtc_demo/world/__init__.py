"""Generated scenes with questions, answers and evidence patches.

scene = sample(seed=0)
scene.image                      # PIL RGB, 336 x 336
scene.questions[0].text          # also .answer, .kind, .evidence (bool [24, 24])
"""

from .labels import dense_labels
from .questions import Question, ask, truth
from .render import render
from .sample import SPLITS, sample
from .scene import PATCH, Background, Item, Scene, Tag
from .vocabulary import CHARACTERS, COLOURS, KINDS, PATTERNS, PLURALS, SIZES, THINGS, WORDS, words

__all__ = [
    "CHARACTERS", "COLOURS", "KINDS", "PATCH", "PATTERNS", "PLURALS", "SIZES", "SPLITS", "THINGS", "WORDS",
    "Background", "Item", "Question", "Scene", "Tag", "ask", "dense_labels", "render", "sample", "truth", "words",
]  # fmt: skip
