"""Questions about a scene, their answers and the patches that carry the answer.

A question has a form: a tuple that says what is asked, apart from the phrasing. `ask` makes forms and phrases them,
`truth` reads a typed text back into a form. Both take the answer from `_solve`, so they cannot disagree.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .labels import background_patches, item_patches, text_patches
from .vocabulary import COLOURS, KINDS, PLURALS, THINGS, WORDS

if TYPE_CHECKING:
    from .scene import Scene

APART = 40  # px between two centres along the asked axis; nearer pairs are not asked about

# {a}, {b}: noun phrases without article; {an}: with "a" or "an"; {many}: plural; {dir}: where; {sides}: where or where
# instead; {more}: comparative.
PHRASINGS = {
    "existence": ("Is there {an}?", "Do you see {an}?", "Can you find {an}?", "Can you see {an}?"),
    "colour": ("What colour is the {a}?", "Which colour is the {a}?", "What is the colour of the {a}?",
               "Which colour does the {a} have?"),
    "object": ("What is the {colour} object?", "What thing is {colour}?", "Which object is {colour}?",
               "What is {colour}?"),
    "size": ("Is the {a} big or small?", "Is the {a} small or big?", "What size is the {a}?", "How big is the {a}?"),
    "counting": ("How many {many} are there?", "How many {many} do you see?", "How many {many} can you find?",
                 "What is the number of {many}?"),
    "relation": ("Is the {a} {dir} the {b}?", "Is the {a} placed {dir} the {b}?", "Do you see the {a} {dir} the {b}?"),
    "side": ("Is the {a} {sides} the {b}?", "Is the {a} placed {sides} the {b}?",
             "Do you see the {a} {sides} the {b}?"),
    "choice": ("Is the {a} or the {b} {more}?", "Which of the {a} and the {b} is {more}?",
               "Which one is {more} the {a} or the {b}?"),
    "number": ("What number is written?", "Which number is written?", "What number do you see?", "Read the number?"),
    "word": ("What word is written?", "Which word is written?", "What word do you see?", "Read the word?"),
    "text": ("What is written?", "What does the card say?"),
    "background": ("What pattern is the background?", "What is the pattern of the background?",
                   "Which pattern is the background?", "What pattern does the background have?"),
}  # fmt: skip
DIRECTIONS = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
SIDES = {
    "left or right of": ("x", -1),
    "right or left of": ("x", 1),
    "above or below": ("y", -1),
    "below or above": ("y", 1),
}
MORE = {"further left": ("x", -1), "further right": ("x", 1), "higher": ("y", -1), "lower": ("y", 1)}


RELATIONS = {"relation": DIRECTIONS, "side": SIDES, "choice": MORE}  # forms about two items -> their words


class Question:
    """A question with its answer (both text), its kind (one of KINDS) and its evidence, bool [g, g].

    `evidence` may be given as an array or as a function without arguments, which is called when first needed.
    """

    def __init__(self, text: str, answer: str, kind: str, evidence: np.ndarray | Callable[[], np.ndarray]):
        self.text, self.answer, self.kind, self._evidence = text, answer, kind, evidence

    @cached_property
    def evidence(self) -> np.ndarray:
        """bool [g, g]: the patches that carry the answer."""
        return self._evidence() if callable(self._evidence) else self._evidence

    def __repr__(self) -> str:
        return f"Question({self.text!r}, {self.answer!r}, {self.kind!r})"


def form_words() -> set[str]:
    """Return the lower-case words of the phrasings, without the names of things, colours and so on."""
    text = " ".join(p for group in PHRASINGS.values() for p in group)
    text += " a an object objects " + " ".join((*DIRECTIONS, *SIDES, *MORE))
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text.lower())))


# ---- solving ---------------------------------------------------------------------------------------------------------
# A noun is (thing or None, colour or None).


def _match(scene: Scene, noun: tuple) -> tuple[int, ...]:
    thing, colour = noun
    items = scene.items
    return tuple(
        i
        for i in scene.seen
        if (thing is None or items[i].thing == thing) and (colour is None or items[i].colour == colour)
    )


def _one(scene: Scene, noun: tuple) -> int | None:
    found = _match(scene, noun)
    return found[0] if len(found) == 1 else None


def _solve(scene: Scene, form: tuple) -> tuple[str, str, Callable[[], np.ndarray]] | None:
    """Return answer, kind and evidence of a form, or None when the question has no unique answer."""
    kind, *rest = form
    if kind in ("existence", "counting"):
        found = _match(scene, rest[0])
        answer = str(len(found)) if kind == "counting" else "yes" if found else "no"
        return answer, kind, _see(scene, found or scene.seen)
    if kind in ("colour", "object", "size"):
        i = _one(scene, rest[0])
        if i is None:
            return None
        item = scene.items[i]
        answer = {"colour": item.colour, "object": item.thing, "size": item.size}[kind]
        return answer, kind, _see(scene, (i,))
    if kind in RELATIONS:
        i, j, (axis, sign) = _one(scene, rest[0]), _one(scene, rest[1]), rest[2]
        if i is None or j is None or i == j:
            return None
        a, b = scene.items[i], scene.items[j]
        gap = sign * (getattr(a, axis) - getattr(b, axis))
        if abs(gap) < APART or (kind == "choice" and a.thing == b.thing):
            return None
        if kind == "relation":
            answer = "yes" if gap > 0 else "no"
        elif kind == "choice":
            answer = a.thing if gap > 0 else b.thing
        else:  # gap > 0: a lies on the side that is named first
            answer = next(name for name, value in DIRECTIONS.items() if value == (axis, sign if gap > 0 else -sign))
        return answer.removesuffix(" of"), "relation", _see(scene, (i, j))
    if kind == "background":
        return scene.background.pattern, kind, lambda: background_patches(scene)
    text = scene.tag.text if scene.tag else ""
    if not text or (kind == "number" and not text.isdigit()) or (kind == "word" and not text.isalpha()):
        return None
    return text.lower(), "reading", lambda: text_patches(scene)


def _see(scene: Scene, indices: tuple[int, ...]) -> Callable[[], np.ndarray]:
    if not indices:  # nothing is there: every patch must be seen to know
        return lambda: np.ones((scene.grid, scene.grid), bool)
    return lambda: item_patches(scene, indices)


# ---- phrasing --------------------------------------------------------------------------------------------------------


def _noun(noun: tuple, many: bool = False) -> str:
    thing, colour = noun
    name = (PLURALS[thing] if thing else "objects") if many else thing or "object"
    return f"{colour} {name}" if colour else name


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _phrase(form: tuple, template: str) -> str:
    kind, *rest = form
    if kind == "existence":
        return template.format(an=_article(_noun(rest[0])))
    if kind == "counting":
        return template.format(many=_noun(rest[0], many=True))
    if kind == "object":
        return template.format(colour=rest[0][1])
    if kind in ("colour", "size"):
        return template.format(a=_noun(rest[0]))
    if kind in RELATIONS:
        a, b = _noun(rest[0]), _noun(rest[1])
        where = next(name for name, value in RELATIONS[kind].items() if value == rest[2])
        return template.format(a=a, b=b, dir=where, sides=where, more=where)
    return template


def _question(scene: Scene, form: tuple, template: str) -> Question | None:
    solved = _solve(scene, form)
    return solved and Question(_phrase(form, template), *solved)


# ---- asking ----------------------------------------------------------------------------------------------------------


class _Asker:
    """Draws forms for one scene. A method named after a kind returns a form, or None when the kind does not apply."""

    def __init__(self, scene: Scene, rng: random.Random):
        self.scene, self.rng = scene, rng
        self.items = [scene.items[i] for i in scene.seen]
        self.pairs = Counter((item.thing, item.colour) for item in self.items)
        self.things = Counter(item.thing for item in self.items)
        self.colours = Counter(item.colour for item in self.items)

    def any(self, options: list | tuple):
        return self.rng.choice(options) if options else None

    def coin(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def applies(self, kind: str) -> bool:
        return bool(self.relation("side") if kind == "relation" else getattr(self, kind)())

    def existence(self, yes: bool | None = None, hard: bool | None = None) -> tuple:
        shape = self.rng.random()
        yes = self.coin() if yes is None else yes
        if yes and self.items:
            item = self.any(self.items)
            colour = None if 0.58 <= shape < 0.85 else item.colour
            return "existence", (item.thing if shape < 0.85 else None, colour)
        hard = shape < 0.5 if hard is None else hard
        if hard and self.items:
            noun = self._near_miss()
        elif shape < 0.85 and (absent := [t for t in THINGS if t not in self.things]):
            noun = (self.any(absent), self.any(tuple(COLOURS)) if shape < 0.58 else None)
        elif absent := [c for c in COLOURS if c not in self.colours]:
            noun = (None, self.any(absent))
        else:
            noun = self._near_miss()
        return "existence", noun

    def _near_miss(self) -> tuple:
        """A thing that is there, in a colour it does not have; often a colour that another thing has."""
        thing = self.any(tuple(self.things))
        absent = [c for c in COLOURS if (thing, c) not in self.pairs]
        if not absent:
            return self.any([t for t in THINGS if t not in self.things]), None
        swapped = [c for c in absent if c in self.colours]
        return thing, self.any(swapped if swapped and self.coin() else absent)

    def colour(self) -> tuple | None:
        thing = self.any([t for t, n in self.things.items() if n == 1])
        return thing and ("colour", (thing, None))

    def object(self) -> tuple | None:
        colour = self.any([c for c, n in self.colours.items() if n == 1])
        return colour and ("object", (None, colour))

    def size(self) -> tuple | None:
        thing = self.any([t for t, n in self.things.items() if n == 1])
        return thing and ("size", (thing, None))

    def counting(self, subset: bool | None = None) -> tuple:
        subset = self.coin() if subset is None else subset
        if not subset:
            return "counting", (None, None)
        if not self.items or self.coin(0.16):
            return "counting", self.existence(yes=False)[1]
        groups: list[tuple[tuple, int]] = [((t, None), n) for t, n in self.things.items()]
        groups += [((None, c), n) for c, n in self.colours.items()]
        groups += [(pair, n) for pair, n in self.pairs.items() if n > 1]
        several = [group for group in groups if group[1] > 1]
        return "counting", self.any(several if several and self.coin(0.65) else groups)[0]

    def side(self) -> tuple | None:
        return self.relation("side")

    def relation(self, form: str | None = None) -> tuple | None:
        form = form or self.any(tuple(RELATIONS))
        if form == "choice" and len(self.things) < 2:
            form = "side"
        named = [item for item in self.items if self.pairs[item.thing, item.colour] == 1]
        pairs = [(a, b) for a in named for b in named if a is not b and not (form == "choice" and a.thing == b.thing)]
        options = [(a, b, k) for a, b in pairs for k in "xy" if abs(getattr(a, k) - getattr(b, k)) >= APART]
        if not options:
            return None
        a, b, axis = self.any(options)
        # The order of a and b is already even, so the sign alone makes yes and no equally likely.
        return form, self._name(a), self._name(b), (axis, self.any((-1, 1)))

    def _name(self, item) -> tuple:
        plain = self.things[item.thing] == 1 and self.coin(0.75)
        return item.thing, None if plain else item.colour

    def reading(self) -> tuple | None:
        text = self.scene.tag.text if self.scene.tag else ""
        if not text.isdigit() and text.lower() not in WORDS:
            return None
        return ("text",) if self.coin(0.2) else ("number" if text.isdigit() else "word",)

    def background(self) -> tuple:
        return ("background",)


def ask(
    scene: Scene, rng: np.random.Generator | None = None, n: int = 12, weights: Mapping[str, float] | None = None
) -> list[Question]:
    """Return questions about a scene, all with one right answer.

    Without `rng`: a fixed selection for display that covers every kind that applies (`n` and `weights` are not used).
    With `rng`: exactly `n` questions in random phrasing. Kinds are drawn by `weights` (kind to weight, missing kinds
    count as 0; default equal) among those that apply; a question is repeated only if several draws bring no new one.
    "side" in `weights` stands for relations of the form "left or right of" alone, which are learned first.
    Raises ValueError for an unknown kind or when no kind with a positive weight applies.
    """
    if rng is None:
        return _display(scene)
    weights = dict.fromkeys(KINDS, 1.0) if weights is None else dict(weights)
    if unknown := set(weights) - {*KINDS, "side"}:
        raise ValueError(f"unknown question kinds: {', '.join(sorted(unknown))}; choose from: {', '.join(KINDS)}")
    asker = _Asker(scene, random.Random(int(rng.integers(1 << 62))))
    kinds = [kind for kind, weight in weights.items() if weight > 0 and asker.applies(kind)]
    if not kinds and n > 0:
        raise ValueError("no question kind with a positive weight applies to this scene")
    out: list[Question] = []
    seen = set()
    for kind in asker.rng.choices(kinds, [weights[k] for k in kinds], k=n) if n > 0 else ():
        for _ in range(6):
            form = getattr(asker, kind)()
            question = form and _question(scene, form, asker.any(PHRASINGS[form[0]]))
            if question and question.text not in seen:
                break
        if not question:  # several draws gave no pair that can be compared by "which"
            form = asker.side()
            assert form is not None  # the kind applies: some pair lies apart
            question = _question(scene, form, asker.any(PHRASINGS[form[0]]))
        assert question is not None
        seen.add(question.text)
        out.append(question)
    return out


def _display(scene: Scene) -> list[Question]:
    asker = _Asker(scene, random.Random(zlib.crc32(repr((scene.items, scene.tag, scene.background)).encode())))
    forms = [
        asker.counting(subset=False),
        asker.colour(),
        asker.object(),
        scene.tag and asker.reading() and ("number" if scene.tag.text.isdigit() else "word",),
        asker.existence(yes=True),
        asker.existence(yes=False, hard=True),
        asker.side(),
        asker.size(),
        asker.counting(subset=True),
        asker.relation("choice"),
        asker.existence(yes=False, hard=False),
        asker.background(),
    ]
    questions = [_question(scene, form, PHRASINGS[form[0]][0]) for form in forms if form]
    return list({question.text: question for question in questions if question}.values())


# ---- reading a typed question ----------------------------------------------------------------------------------------

_SINGULAR = {plural: thing for thing, plural in PLURALS.items()} | {thing: thing for thing in THINGS}
_ONE = rf"(?:({'|'.join(COLOURS)}) )?({'|'.join(THINGS)}|object|thing)"
_MANY = rf"(?:({'|'.join(COLOURS)}) )?({'|'.join(sorted(_SINGULAR, key=len, reverse=True))}|objects?|things?)"
_PARTS = {
    "an": rf"(?:an?|the|any) {_ONE}",
    "a": _ONE,
    "b": _ONE,
    "many": _MANY,
    "colour": rf"({'|'.join(COLOURS)})",
    "dir": rf"(?:to the )?({'|'.join(DIRECTIONS)})",
    "sides": rf"(?:to the )?({'|'.join(SIDES)})",
    "more": rf"({'|'.join(MORE)})",
}
_EXTRA = {
    "existence": ("are there any {many}?",),
    "choice": ("Which is {more} the {a} or the {b}?", "Which one of the {a} and the {b} is {more}?"),
}


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[str, list[str], re.Pattern]]:
    out = []
    for kind, templates in PHRASINGS.items():
        for template in (*templates, *_EXTRA.get(kind, ())):
            text = re.sub(r"[,?]", "", template.lower())
            names = re.findall(r"\{(\w+)\}", text)
            out.append((kind, names, re.compile(re.sub(r"\{(\w+)\}", lambda m: _PARTS[m[1]], text))))
    return out


def _parse(text: str) -> tuple | None:
    text = " ".join(re.sub(r"[^a-z0-9 ]+", " ", text.lower().replace("color", "colour")).split())
    for kind, names, pattern in _patterns():
        if not (found := pattern.fullmatch(text)):
            continue
        groups = iter(found.groups())
        parts: dict[str, Any] = {}
        for name in names:
            if name in ("an", "a", "b", "many"):
                colour, thing = next(groups), next(groups)
                parts[name] = (_SINGULAR.get(thing), colour)
            else:
                parts[name] = next(groups)
        noun = parts.get("an") or parts.get("many") or parts.get("a")
        if kind in RELATIONS:
            where = next(parts[name] for name in ("dir", "sides", "more") if name in parts)
            return kind, parts["a"], parts["b"], RELATIONS[kind][where]
        if kind == "object":
            return kind, (None, parts["colour"])
        return (kind, noun) if noun else (kind,)
    return None


def truth(scene: Scene, text: str) -> Question | None:
    """Return a typed question with its right answer and evidence, or None.

    None means that `text` matches no known form or that the question has no unique answer in this scene. Case, spaces
    and punctuation do not matter. The `text` of the result is the one given.
    """
    form = _parse(text)
    solved = form and _solve(scene, form)
    return Question(text, *solved) if solved else None
