"""The recipe of the zoo: every connector on the same frozen tower, data, order and number of steps.

Two stages, as in LLaVA: the connector starts at random and learns while the decoder of the shipped embedded model is
frozen, then both are tuned together. Trained together from the start, a Q-Former stood near chance after 450 steps: the
decoder forgets how to read before the connector has anything to say.

The tower's features and the packed questions are computed once and kept on disk; an epoch repeats them. Each step draws
a budget of tokens where the connector allows (from the number of the step's first item, so that a run resumes exactly).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoProcessor

from vtc_demo import registry
from vtc_demo.connectors import store
from vtc_demo.connectors.base import Connected, Connector, Dims
from vtc_demo.models import EMBEDDED

from . import build
from .data import GRID, IGNORE, PackedQuestions, normalise
from .loop import Stage, run_stage
from .objectives import AnswerObjective, encode, pack_mask
from .recipe import FULL

FIRST = 7 * 10**7  # seed of the first scene; no other stage of a recipe comes near
TEXT = 288  # packed words per picture
WORDS = ("ids", "target", "block", "offset", "kind")
ALIGN, TUNE, BATCH = 600, 150, 8  # steps with the decoder frozen, steps of both, pictures per step
ALIGN_RATE, TUNE_RATE = 4e-3, 1e-3
IMAGES = 3600


# -- the data, computed once ----------------------------------------------------------------------------------------
class CachedPictures(Dataset):
    """Items [start, start + length) of an endless stream over the cached pictures.

    features [577, C] float16 (CLS first), the packed questions of `PackedQuestions`, and the item's number.
    """

    def __init__(self, start: int, length: int, folder: Path, images: int, width: int):
        self.start, self.length, self.images = start, length, images
        self.features = np.memmap(folder / "features.f16", np.float16, "r", shape=(images, 1 + GRID**2, width))
        self.words = np.memmap(folder / "questions.i16", np.int16, "r", shape=(images, len(WORDS), TEXT))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        place = (self.start + i) % self.images
        words = dict(zip(WORDS, self.words[place].astype(np.int64), strict=True))
        return {"features": self.features[place].copy(), "item": self.start + i, **words}


def cache(model: nn.Module, processor, folder: Path, images: int, batch: int = 16) -> int:
    """Write features and questions of `images` pictures below `folder`; goes on where it was stopped. Returns bytes.

    Raises ValueError if the folder holds those of another tower or number of pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note, width = folder / "cache.json", model.config.vision_config.hidden_size
    wanted = {"tower": store.fingerprint(model.model.vision_tower), "images": images}
    state: dict = json.loads(note.read_text()) if note.exists() else wanted | {"done": 0}
    if any(state[key] != value for key, value in wanted.items()):
        raise ValueError(f"{folder} holds features of another tower or number of pictures; delete it or name another")
    shapes = {"features.f16": (images, 1 + GRID**2, width), "questions.i16": (images, len(WORDS), TEXT)}
    mode: Literal["r+", "w+"] = "r+" if state["done"] else "w+"
    kinds: dict[str, type] = {"features.f16": np.float16, "questions.i16": np.int16}
    features, words = (np.memmap(folder / name, kinds[name], mode, shape=shape) for name, shape in shapes.items())
    data = PackedQuestions(
        FIRST + state["done"], images - state["done"], GRID, processor.tokenizer, weights=FULL, text=TEXT
    )
    image = processor.image_processor
    for some in tqdm(DataLoader(data, batch), desc="features", mininterval=2):
        at = slice(state["done"], state["done"] + len(some["ids"]))
        with torch.inference_mode():
            pixels = normalise(some["pixels"], image.image_mean, image.image_std)
            features[at] = encode(model.model.vision_tower, pixels, some["places"])[0].half().numpy()
        words[at] = torch.stack([some[name] for name in WORDS], 1).numpy()
        features.flush()
        words.flush()
        state["done"] = at.stop
        note.write_text(json.dumps(state))
    return features.nbytes + words.nbytes


# -- the objective --------------------------------------------------------------------------------------------------
class Pack(NamedTuple):
    """Where things stand in a packed sequence: the picture's tokens [first, first + visual), then the words.

    block [B, text]: the question of each word; asks [B, text]: words of the question, not of its answer; counts [B]:
    visual tokens that are no padding; budget: what the step drew.
    """

    first: int
    visual: int
    block: Tensor
    asks: Tensor
    counts: Tensor
    budget: int


class ZooObjective(nn.Module):
    """Cross-entropy on the answers of packed questions, through a connector and the decoder."""

    def __init__(self, connector: Connector, model: nn.Module, prefix: list[int]):
        super().__init__()
        self.projector, self.decoder, self.lm_head = connector, model.model.language_model, model.lm_head
        self.prefix = prefix

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = self.projector.draw(Random(int(batch["item"][0])), GRID**2)
        made = self.projector(batch["features"].float(), (GRID, GRID), **drawn)
        hidden, target = self.decode(made, batch, drawn["budget"]), batch["target"]
        logits = self.lm_head(hidden[target != IGNORE])  # [answers, vocab]
        loss = F.cross_entropy(logits, target[target != IGNORE]) + made.loss
        return loss, AnswerObjective.score(logits, batch) | {"tokens": made.tokens.new_tensor(made.tokens.shape[1])}

    def decode(self, made: Connected, batch: dict, budget: int) -> Tensor:
        """-> hidden states of the words [B, text, D]. Positions are counted through, as in the engine."""
        lm, connector, b, p = self.decoder, self.projector, len(batch["ids"]), len(self.prefix)
        image, device = [] if connector.outside else [made.tokens], made.tokens.device
        n = sum(tokens.shape[1] for tokens in image)
        present = torch.ones(b, n, dtype=torch.bool, device=device) if made.present is None else made.present
        prefix = torch.tensor(self.prefix, device=device).expand(b, -1)
        h = torch.cat([lm.embed_tokens(prefix), *image, lm.embed_tokens(batch["ids"])], 1)
        counts = present.sum(1)
        start = torch.arange(p, device=h.device).expand(b, -1)
        after = p + counts[:, None] + batch["offset"]
        rope = lm.rotary_emb(h, torch.cat([start, p + present.cumsum(1) - present.long(), after], 1))
        mask = pack_mask(p + n, batch["block"])
        mask[:, :, p : p + n] &= present[:, None]
        held = connector.layer_memory(lm, made.tokens, p) if connector.outside else {}
        sees = torch.arange(h.shape[1], device=h.device) >= p
        pack = Pack(p, n, batch["block"], (batch["block"] >= 0) & (batch["target"] == IGNORE), counts, budget)
        entered = None
        for k, layer in enumerate(lm.layers):
            mask = connector.narrow(k, lm, entered, rope, mask, pack)
            entered = h
            h = connector.run(k, layer, h, held, sees, attention_mask=mask[:, None], position_embeddings=rope)
        return lm.norm(h[:, p + n :])


# -- training ----------------------------------------------------------------------------------------------------
def train_zoo(
    names: list[str],
    folder: Path,
    out: Path | None = None,
    steps: int = ALIGN,
    tune: int = TUNE,
    batch: int = BATCH,
    images: int = IMAGES,
    start: Path = EMBEDDED,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Train connectors one after another; resumes. start: the model whose tower and decoder they take over.

    steps: with the decoder frozen; tune: of connector and decoder. Writes checkpoints and one log below `folder`, the
    results below `out` (default: assets/models/zoo). progress: is called with a line of news. Returns what it wrote.
    Raises ValueError for an unknown name or a count below 1.
    """
    known = registry.trained()
    if unknown := set(names) - set(known):
        raise ValueError(f"no trained method {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if min(steps, tune, batch, images) < 1:
        raise ValueError("steps, tune, batch and images must be 1 or more")
    base, processor = build.load(start).eval(), AutoProcessor.from_pretrained(start, local_files_only=True)
    written = folder / f"features-{images}"
    size = cache(base, processor, written, images)
    progress(f"{images} pictures, {size / 1e6:.0f} MB of features and questions in {written}")
    pictures = partial(CachedPictures, folder=written, images=images, width=base.config.vision_config.hidden_size)
    prefix = processor.tokenizer.encode("user:")
    done = []
    for name in names or known:
        torch.manual_seed(0)
        model, connector = store.joined(base), known[name].connector(Dims.of(base.config))
        for stage, frozen in stages(name, pictures, steps, tune, batch):
            objective = ZooObjective(connector, model, prefix).train()
            objective.decoder.requires_grad_(not frozen)
            objective.lm_head.requires_grad_(not frozen)
            run_stage(stage, objective, folder, workers=0)
        facts = {"steps": [steps, tune], "batch": batch, "rates": [ALIGN_RATE, TUNE_RATE]}
        facts["parameters"] = sum(p.numel() for p in connector.parameters())
        done.append(store.save(name, connector, model, facts, out))
    return done


def stages(name: str, pictures, steps: int, tune: int, batch: int) -> list[tuple[Stage, bool]]:
    """(stage, whether the decoder is frozen); the second goes on in the stream where the first ends."""

    def later(start: int, length: int):
        return pictures(steps * batch + start, length)

    every = lambda n: min(50, n)  # noqa: E731
    align = Stage(f"{name} align", steps, batch, ALIGN_RATE, pictures, 20, cooldown=0.3, log_every=every(steps))
    both = Stage(f"{name} tune", tune, batch, TUNE_RATE, later, 10, cooldown=0.8, log_every=every(tune))
    return [(align, True), (both, False)]
