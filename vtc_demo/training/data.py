"""Batches from the generated world. Item i of a stream is a function of (split, i): training resumes at any step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vtc_demo import world
from vtc_demo.world.vocabulary import COLOURS, KINDS, PATTERNS, THINGS

GRID = 24  # patches per side of the full picture
PATCH = 14
CHARS = 36
IGNORE = -100
# padding of packed text
EMPTY = dict(ids=0, target=IGNORE, block=-1, offset=0, kind=-1, row=IGNORE, column=IGNORE, row2=IGNORE, column2=IGNORE)
EMPTY |= dict(asked=IGNORE)
ASKED = dict(left=0, right=1, above=2, higher=2, below=3, lower=3)


def window_positions(window: int, rng: np.random.Generator) -> np.ndarray:
    """Raster indices [window * window] of a window at a random place of the full grid.

    Small pictures are trained at the places of the full one, so that nothing is interpolated later.
    """
    r, c = rng.integers(0, GRID - window + 1, 2)
    rows, cols = np.meshgrid(np.arange(r, r + window), np.arange(c, c + window), indexing="ij")
    return (rows * GRID + cols).reshape(-1)


def presence(scene) -> np.ndarray:
    """What the CLS token must know: things, colours, characters present, [16 + 8 + 36] float."""
    out = np.zeros(len(THINGS) + len(COLOURS) + CHARS, dtype=np.float32)
    colours = list(COLOURS)
    for item in scene.items:
        out[THINGS.index(item.thing)] = 1
        out[len(THINGS) + colours.index(item.colour)] = 1
    for ch in scene.tag.text if scene.tag else "":
        code = int(ch) if ch.isdigit() else 10 + ord(ch.upper()) - ord("A")
        out[len(THINGS) + len(COLOURS) + code] = 1
    return out


class DenseScenes(Dataset):
    """Pictures with a label per patch, for the vision tower."""

    def __init__(self, start: int, length: int, window: int, split: str = "train"):
        self.start, self.length, self.window, self.split = start, length, window, split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        seed = self.start + i
        scene = world.sample(seed, split=self.split, size=PATCH * self.window)
        labels = {k: v.reshape(-1) for k, v in world.dense_labels(scene).items()}
        labels["pattern"] = np.full(self.window**2, PATTERNS.index(scene.background.pattern))
        return {
            "pixels": world.render(scene),
            "places": window_positions(self.window, np.random.default_rng(seed)),
            "present": presence(scene),
            **{f"label_{k}": v for k, v in labels.items()},
        }


class PackedQuestions(Dataset):
    """Pictures with many questions packed into one sequence; each block sees the picture and itself only.

    ids, target, block, offset: [text]. target is IGNORE except where the next token is part of the answer; block is
    the question's number (-1 padding); offset the position after the picture. kind [text] is the question kind's index.
    row, column [text]: where the item stands that a word names, IGNORE unless it names exactly one. At the end of a
    question about two items: where the first stands (row, column) and the second (row2, column2), and `asked`, the
    number of the direction if the question names exactly one.
    """

    def __init__(
        self, start: int, length: int, window: int, tokenizer, *, split="train", weights=None, text: int = 192
    ):
        self.start, self.length, self.window, self.split = start, length, window, split
        self.tokenizer, self.weights, self.text = tokenizer, weights, text
        self.cache: dict[str, list[int]] = {}
        self.things = {self.encode(thing)[0]: thing for thing in THINGS}
        self.colours = {self.encode(colour)[0]: colour for colour in COLOURS}
        self.directions = {self.encode(word)[0]: number for word, number in ASKED.items()}

    def __len__(self) -> int:
        return self.length

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.cache[text]

    def __getitem__(self, i: int) -> dict:
        seed = self.start + i
        rng = np.random.default_rng(seed)
        scene = world.sample(seed, split=self.split, size=PATCH * self.window)
        places = window_positions(self.window, rng)
        corner = int(places[0])
        out = {k: np.full(self.text, v) for k, v in EMPTY.items()}
        at = 0
        for number, q in enumerate(world.ask(scene, rng, n=24, weights=self.weights)):
            question = self.encode(q.text) + self.encode("assistant:")
            answer = [*self.encode(q.answer), self.tokenizer.eos_token_id]
            ids = question + answer[:-1]
            if at + len(ids) > self.text:
                break
            here = slice(at, at + len(ids))
            out["ids"][here] = ids
            out["target"][at + len(question) - 1 : at + len(ids)] = answer
            out["block"][here] = number
            out["offset"][here] = np.arange(len(ids))
            out["kind"][here] = KINDS.index(q.kind)
            named = [(k, *self.place(item, corner)) for k, item in self.named(question, scene)]
            for k, row, column in named:
                out["row"][at + k], out["column"][at + k] = row, column
            if len(named) == 2:
                end = at + len(question) - 1
                (_, out["row"][end], out["column"][end]), (_, out["row2"][end], out["column2"][end]) = named
                asked = [self.directions[token] for token in question if token in self.directions]
                if len(asked) == 1:
                    out["asked"][end] = asked[0]
            at += len(ids)
        return {"pixels": world.render(scene), "places": places, **out}

    @staticmethod
    def place(item: world.Item, corner: int) -> tuple[int, int]:
        """Row and column of the full grid; corner: raster index of the window's first patch."""
        return int(item.y // PATCH) + corner // GRID, int(item.x // PATCH) + corner % GRID

    def named(self, question: list[int], scene) -> Iterator[tuple[int, world.Item]]:
        """(place of the word, item) for every thing, with its colour if one stands before it, that names one item."""
        for k, token in enumerate(question):
            colour = self.colours.get(question[k - 1]) if k else None
            fits = [
                item for item in scene.items if item.thing == self.things.get(token) and colour in (None, item.colour)
            ]
            if len(fits) == 1:
                yield k, fits[0]


def loader(dataset: Dataset, batch: int, workers: int) -> DataLoader:
    return DataLoader(dataset, batch, num_workers=workers, prefetch_factor=4 if workers else None, drop_last=False)


def normalise(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, S, S], as the image processor does."""
    mean, std = (torch.tensor(v, device=pixels.device) for v in (mean, std))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
