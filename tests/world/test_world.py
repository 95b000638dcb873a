"""The generated world: answers, evidence and labels are checked against hand-made scenes and against the pixels."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from vtc_demo.world import (
    COLOURS,
    KINDS,
    PATTERNS,
    THINGS,
    WORDS,
    Background,
    Item,
    Question,
    Scene,
    Tag,
    ask,
    dense_labels,
    render,
    sample,
    truth,
    words,
)

PATCH = 14


def hand_made() -> Scene:
    """336 px. Two red hearts (one big, one small), a blue key, a green car, an orange umbrella; the card says 407."""
    return Scene(
        items=(
            Item("heart", "red", 70, 63, 63),
            Item("heart", "red", 42, 273, 63),
            Item("key", "blue", 70, 63, 203),
            Item("car", "green", 42, 273, 203),
            Item("umbrella", "orange", 60, 170, 280),
        ),
        tag=Tag("407", 168, 120),
        background=Background("dots", 0.4, 7),
    )


ITEMS = {"red": (0, 1), "heart": (0, 1), "key": (2,), "car": (3,), "umbrella": (4,), "all": (0, 1, 2, 3, 4)}


def without(scene: Scene, drop: tuple[int, ...] = (), tag: bool = True) -> Scene:
    kept = tuple(item for i, item in enumerate(scene.items) if i not in drop)
    return Scene(kept, scene.tag if tag else None, scene.background, scene.size)


def change(a: Scene, b: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Per patch [g, g]: does any pixel differ; is any pixel of `a` clearly brighter than a shadow could leave it?"""
    g = a.grid
    difference = render(a).astype(int) - render(b).astype(int)
    split = difference.reshape(g, PATCH, g, PATCH, 3)
    return (split != 0).any((1, 3, 4)), (split > 60).any((1, 3, 4))


# ---- scenes ----------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes():
    for size in (168, 336):
        a, b = sample(5, "train", size), sample(5, "train", size)
        assert a == b and render(a).tobytes() == render(b).tobytes()
        assert render(a).shape == (size, size, 3) and render(a).dtype == np.uint8
        assert [(q.text, q.answer) for q in a.questions] == [(q.text, q.answer) for q in b.questions]
        one, two = (ask(a, np.random.default_rng(3)) for _ in range(2))
        assert [q.text for q in one] == [q.text for q in two]


def test_splits_and_sizes_give_different_scenes():
    splits = ("demo", "train", "eval")
    scenes = [sample(seed, split, size) for split in splits for size in (168, 336) for seed in range(50)]
    assert len({json.dumps(scene.to_dict()) for scene in scenes}) == len(scenes)


@pytest.mark.parametrize(("size", "low", "high"), [(168, 1, 4), (336, 2, 8)])
def test_sampled_scenes_keep_their_promises(size, low, high):
    counts, tags, numbers = Counter(), 0, 0
    for seed in range(300):
        scene = sample(seed, "train", size)
        counts[len(scene.items)] += 1
        boxes = [item.box for item in scene.items] + ([scene.tag.box] if scene.tag else [])
        for i, a in enumerate(boxes):
            assert min(a[:2]) >= 0 and max(a[2:]) <= size
            for b in boxes[:i]:
                assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= 4
        for item in scene.items:
            assert 36 <= item.size_px <= 46 or 60 <= item.size_px <= (70 if size < 250 else 84)
        if scene.tag:
            tags += 1
            numbers += scene.tag.text.isdigit()
            assert scene.tag.text[0] != "0" and (scene.tag.text.isdigit() or scene.tag.text.lower() in WORDS)
    assert set(counts) <= set(range(high + 1)) and counts[high] and counts[low]
    assert 0.6 < tags / 300 < 0.85 and 0.5 < numbers / tags < 0.8


def test_number_of_items_can_be_asked_for():
    assert all(len(sample(seed, "train", 336, items=6).items) in (5, 6) for seed in range(50))
    assert sample(0, items=0).items == ()


def test_background_is_darker_than_every_colour():
    for pattern in PATTERNS:
        for seed in range(5):
            image = Scene((), None, Background(pattern, seed / 5, seed)).image.convert("HSV")
            grey = np.asarray(Scene((), None, Background(pattern, seed / 5, seed)).image.convert("L"))
            assert grey.min() >= 36 and grey.max() <= 120 and grey.std() > 2
            assert np.asarray(image)[..., 1].mean() < 100  # of 255


# ---- questions on a hand-made scene ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "kind", "evidence"),
    [
        ("Is there a red heart?", "yes", "existence", "heart"),
        ("Do you see an umbrella?", "yes", "existence", "umbrella"),
        ("Can you find a blue object?", "yes", "existence", "key"),
        ("Can you see a blue heart?", "no", "existence", "all"),
        ("Is there a moon?", "no", "existence", "all"),
        ("What colour is the key?", "blue", "colour", "key"),
        ("Which colour is the car?", "green", "colour", "car"),
        ("What is the colour of the umbrella?", "orange", "colour", "umbrella"),
        ("Which colour does the car have?", "green", "colour", "car"),
        ("What is the blue object?", "key", "object", "key"),
        ("What thing is green?", "car", "object", "car"),
        ("Which object is orange?", "umbrella", "object", "umbrella"),
        ("What is blue?", "key", "object", "key"),
        ("Is the key big or small?", "big", "size", "key"),
        ("Is the car small or big?", "small", "size", "car"),
        ("What size is the umbrella?", "big", "size", "umbrella"),
        ("How big is the car?", "small", "size", "car"),
        ("How many objects are there?", "5", "counting", "all"),
        ("How many red objects do you see?", "2", "counting", "red"),
        ("How many hearts can you find?", "2", "counting", "heart"),
        ("What is the number of red hearts?", "2", "counting", "heart"),
        ("How many fish are there?", "0", "counting", "all"),
        ("Is the key left of the car?", "yes", "relation", ("key", "car")),
        ("Is the key to the right of the car?", "no", "relation", ("key", "car")),
        ("Is the blue key placed above the umbrella?", "yes", "relation", ("key", "umbrella")),
        ("Do you see the key below the orange umbrella?", "no", "relation", ("key", "umbrella")),
        ("Is the key left or right of the car?", "left", "relation", ("key", "car")),
        ("Is the car to the right or left of the key?", "right", "relation", ("key", "car")),
        ("Do you see the umbrella above or below the blue key?", "below", "relation", ("key", "umbrella")),
        ("Is the key or the umbrella higher?", "key", "relation", ("key", "umbrella")),
        ("Which of the key and the umbrella is lower?", "umbrella", "relation", ("key", "umbrella")),
        ("Which one is further left the car or the key?", "key", "relation", ("key", "car")),
        ("Which is further right, the key or the car?", "car", "relation", ("key", "car")),
        ("What number is written?", "407", "reading", "text"),
        ("Read the number?", "407", "reading", "text"),
        ("What is written?", "407", "reading", "text"),
        ("What does the card say?", "407", "reading", "text"),
        ("What pattern is the background?", "dots", "background", "background"),
        ("  what PATTERN does the background have ", "dots", "background", "background"),
    ],
)
def test_hand_computed_answers(text, answer, kind, evidence):
    scene = hand_made()
    question = truth(scene, text)
    assert (question.answer, question.kind, question.text) == (answer, kind, text)
    if evidence == "background":
        blank = Scene((), None, scene.background, scene.size)
        changed, brighter = change(scene, blank)
        assert not (question.evidence & brighter).any() and question.evidence[~changed].all()
    elif evidence == "text":
        rows, columns = np.nonzero(question.evidence)
        assert rows.min() * PATCH >= 120 - 28 and columns.min() * PATCH >= 168 - 42
        assert rows.max() * PATCH < 120 + 14 and columns.max() * PATCH < 168 + 42
        assert change(scene, without(scene, tag=False))[0][question.evidence].all()
    else:
        names = (evidence,) if isinstance(evidence, str) else evidence
        changed, brighter = change(scene, without(scene, sum((ITEMS[name] for name in names), ())))
        assert (question.evidence & ~changed).sum() == 0, "every evidence patch changes when the items go"
        assert (brighter & ~question.evidence).sum() == 0, "what the items light up is evidence"


@pytest.mark.parametrize(
    "text",
    [
        "What colour is the heart?",  # two hearts, although both are red
        "What is the red object?",
        "Is the heart big or small?",
        "What colour is the moon?",
        "Is the heart left of the key?",
        "Is the key above the car?",  # same height
        "Which is higher, the key or the car?",
        "Is the key left of the key?",
        "What word is written?",
        "Why is the sky blue?",
        "",
    ],
)
def test_questions_without_one_right_answer_are_refused(text):
    assert truth(hand_made(), text) is None


def test_words_on_the_card():
    scene = Scene((), Tag("TAXI", 168, 168))
    assert truth(scene, "What word is written?").answer == "taxi"
    assert truth(scene, "Which number is written?") is None
    assert truth(Scene(), "What is written?") is None
    assert not [q for q in ask(Scene((), Tag("A7", 168, 168)), np.random.default_rng(0), 40) if q.kind == "reading"]


def test_an_empty_scene_can_be_asked_about():
    asked = ask(Scene(), np.random.default_rng(0), n=30)
    assert {q.kind for q in asked} == {"existence", "counting", "background"}
    assert {q.answer for q in asked if q.kind == "existence"} == {"no"}
    assert all(q.evidence.all() for q in asked)


def test_hidden_items_do_not_count():
    scene = Scene((Item("circle", "red", 40, 168, 168), Item("square", "blue", 80, 168, 168)))
    assert truth(scene, "How many objects are there?").answer == "1"
    assert truth(scene, "Is there a red circle?").answer == "no"
    assert not (dense_labels(scene)["thing"] == THINGS.index("circle") + 1).any()
    beside = Scene((Item("circle", "red", 40, 110, 168), Item("square", "blue", 80, 168, 168)))
    assert truth(beside, "How many objects are there?").answer == "2"


# ---- questions on sampled scenes -------------------------------------------------------------------------------------


def test_truth_agrees_with_ask():
    rng = np.random.default_rng(0)
    for seed in range(100):
        scene = sample(seed, "train", (168, 336)[seed % 2])
        for question in ask(scene, rng, 12) + scene.questions:
            again = truth(scene, question.text.upper())
            assert isinstance(again, Question)
            assert (again.answer, again.kind) == (question.answer, question.kind)
            assert question.evidence.shape == (scene.grid, scene.grid) and question.evidence.dtype == bool
            assert (again.evidence == question.evidence).all() and question.evidence.any()


def test_only_known_words():
    known, rng = set(words()), np.random.default_rng(1)
    assert list(words()) == sorted(known)
    for seed in range(300):
        scene = sample(seed, "train", (168, 336)[seed % 2])
        for question in ask(scene, rng, 12) + scene.questions:
            assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+)*\?", question.text), question
            assert set(question.text[:-1].lower().split()) <= known
            assert question.answer in known or re.fullmatch(r"[1-9]?[0-9]{1,2}", question.answer)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", question.text)


def test_answers_are_balanced():
    rng, seen, hard = np.random.default_rng(2), Counter(), Counter()
    for seed in range(400):
        scene = sample(seed, "train")
        for question in ask(scene, rng, 6, weights={"existence": 1, "relation": 1, "counting": 1}):
            seen[question.kind, question.answer] += 1
            if (question.kind, question.answer) == ("existence", "no"):
                hard[any(item.thing in question.text.split()[-1] for item in scene.items)] += 1
    for kind in ("existence", "relation"):
        assert 0.44 < seen[kind, "yes"] / (seen[kind, "yes"] + seen[kind, "no"]) < 0.56
    counted = sum(n for (kind, _), n in seen.items() if kind == "counting")
    assert 0 < seen["counting", "0"] / counted <= 0.15
    assert 0.4 < hard[True] / hard.total() < 0.65


def test_weights_choose_the_kinds():
    scene, rng = hand_made(), np.random.default_rng(0)
    assert {q.kind for q in ask(scene, rng, 400)} == set(KINDS)
    assert {q.kind for q in ask(scene, rng, 20, {"reading": 1, "size": 2, "colour": 0})} == {"reading", "size"}
    assert len(ask(scene, rng, 0)) == 0
    with pytest.raises(ValueError, match="unknown question kinds: taste"):
        ask(scene, rng, 4, {"taste": 1})
    with pytest.raises(ValueError, match="no question kind"):
        ask(Scene(), rng, 4, {"reading": 1})


def test_display_questions_are_varied():
    assert {q.kind for q in hand_made().questions} == set(KINDS)
    for seed in range(30):
        texts = [q.text for q in sample(seed).questions]
        assert 5 <= len(texts) == len(set(texts)) <= 12


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_of_a_hand_made_scene():
    labels = dense_labels(hand_made())
    assert all(label.shape == (24, 24) and label.dtype == np.int64 for label in labels.values())
    heart, red = THINGS.index("heart") + 1, list(COLOURS).index("red") + 1
    # The big heart fills x, y 28..98 px, patches 2..6; the small one x 252..294, patches 18..20.
    rows, columns = np.nonzero(labels["thing"] == heart)
    assert rows.min() == 2 and rows.max() in (5, 6)
    assert set(columns) <= {*range(2, 7), *range(18, 21)} and labels["thing"][4, 4] == labels["thing"][4, 19] == heart
    assert labels["size"][4, 4] == 2 and labels["size"][4, 19] == 1 and labels["colour"][4, 4] == red
    assert (labels["colour"][labels["thing"] == heart] == red).all()
    for name in ("colour", "size"):
        assert ((labels["thing"] > 0) == (labels[name] > 0)).all()
    centres = {(63 // 14, 63 // 14), (63 // 14, 273 // 14), (203 // 14, 63 // 14), (203 // 14, 273 // 14), (20, 12)}
    assert set(zip(*map(tuple, np.nonzero(labels["anchor"])), strict=True)) == centres
    # "4", "0", "7" from left to right are the codes 5, 1, 8.
    assert set(labels["char"][labels["char"] > 0]) == {5, 1, 8}
    for code, place in ((5, 1), (1, 2), (8, 3)):
        assert (labels["ordinal"][labels["char"] == code] == place).all()
    spots = [np.nonzero(labels["ordinal"] == place)[1].mean() for place in (1, 2, 3)]
    assert spots == sorted(spots) and abs(spots[1] + 0.5 - 168 / 14) < 1
    assert (labels["ordinal"] > 0).sum() == (labels["char"] > 0).sum()


def test_the_item_in_front_owns_the_patch():
    behind, front = Item("square", "red", 84, 168, 168), Item("square", "white", 42, 161, 161)
    labels = dense_labels(Scene((behind, front)))
    white = labels["colour"] == list(COLOURS).index("white") + 1
    assert white[10:13, 10:13].all() and white.sum() == 9  # 140..182 px: patches 10, 11, 12
    assert labels["size"][11, 11] == 1 and labels["size"][13, 13] == 2
    hidden = dense_labels(Scene((front, behind)))
    assert (hidden["size"][hidden["thing"] > 0] == 2).all() and hidden["anchor"].sum() == 1


def test_coverage_threshold_is_a_fifth_of_a_patch():
    square = THINGS.index("square") + 1
    # The side of the drawn square is 2 px inside its box, so 2 or 3 of the 14 columns of patch 13 are covered.
    for shift, covered in ((4, False), (5, True)):
        labels = dense_labels(Scene((Item("square", "red", 42, 161 + shift, 161),)))
        assert (labels["thing"][11, 13] == square) is np.bool_(covered)


@pytest.mark.parametrize("size", [168, 336])
def test_labels_agree_with_evidence(size):
    for seed in range(40):
        scene = sample(seed, "eval", size)
        labels = dense_labels(scene)
        seen = truth(scene, "How many objects are there?").evidence
        assert scene.items == () or not (labels["thing"] > 0)[~seen].any()
        assert labels["anchor"].sum() == len(scene.items)
        if scene.tag:
            # An I can be too thin to own a patch.
            places = {i + 1 for i, char in enumerate(scene.tag.text) if char != "I"}
            assert places <= set(labels["ordinal"][labels["ordinal"] > 0]) <= set(range(1, len(scene.tag.text) + 1))


def test_every_thing_looks_different():
    pictures = [render(Scene((Item(thing, "white", 40, 56, 56),), size=112)).astype(int) for thing in THINGS]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert (abs(a - b).max(2) > 80).sum() > 60


# ---- data ------------------------------------------------------------------------------------------------------------


def test_round_trip_through_json():
    for scene in (hand_made(), sample(3), sample(4, size=168), Scene()):
        again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
        assert again == scene and render(again).tobytes() == render(scene).tobytes()


ITEM = {"thing": "cup", "colour": "red", "size_px": 40, "x": 168, "y": 168}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "scene must be an object"),
        ({}, "scene lacks items"),
        ({"items": {}}, "items must be a list"),
        ({"items": [], "sky": 1}, "unknown fields: sky"),
        ({"items": [{"thing": "cup"}]}, "item lacks colour, size_px, x, y"),
        ({"items": [3]}, "item must be an object"),
        ({"items": [ITEM | {"thing": "dog"}]}, "unknown thing 'dog'"),
        ({"items": [ITEM | {"thing": ["cup"]}]}, "unknown thing"),
        ({"items": [ITEM | {"colour": "mauve"}]}, "unknown colour 'mauve'"),
        ({"items": [ITEM | {"x": "left"}]}, "x must be a finite number"),
        ({"items": [ITEM | {"x": float("nan")}]}, "x must be a finite number"),
        ({"items": [ITEM | {"y": True}]}, "y must be a finite number"),
        ({"items": [ITEM | {"size_px": 4}]}, "size_px must be between"),
        ({"items": [ITEM | {"x": 10}]}, "the red cup lies outside the canvas"),
        ({"items": [ITEM | {"y": 320}]}, "the red cup lies outside the canvas"),
        ({"items": [ITEM] * 13}, "too many items: 13, at most 12"),
        ({"items": [], "size": 300}, "multiple of 14"),
        ({"items": [], "size": "336"}, "multiple of 14"),
        ({"items": [], "size": 14}, "between 56 and 1344"),
        ({"items": [], "tag": {"text": "12345", "x": 168, "y": 168}}, "1-4 characters"),
        ({"items": [], "tag": {"text": "", "x": 168, "y": 168}}, "1-4 characters"),
        ({"items": [], "tag": {"text": "a-b", "x": 168, "y": 168}}, "1-4 characters"),
        ({"items": [], "tag": {"text": 407, "x": 168, "y": 168}}, "1-4 characters"),
        ({"items": [], "tag": {"text": "407", "x": 168, "y": 168, "height": 400}}, "tag height"),
        ({"items": [], "tag": {"text": "407", "x": 5, "y": 168}}, "the tag 407 lies outside the canvas"),
        ({"items": [], "tag": {"text": "407"}}, "tag lacks x, y"),
        ({"items": [], "background": {"pattern": "plaid"}}, "unknown pattern 'plaid'"),
        ({"items": [], "background": {"hue": 2}}, "hue must be between"),
        ({"items": [], "background": {"seed": -1}}, "background seed"),
        ({"items": [], "background": "dots"}, "background must be an object"),
    ],
)
def test_bad_scene_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        Scene.from_dict(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"seed": 0, "split": "test"}, "unknown split 'test'"),
        ({"seed": 0, "size": 300}, "multiple of 14"),
        ({"seed": 0, "items": 13}, "items must be"),
    ],
)
def test_bad_sample_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(**arguments)
