"""The two objectives: dense labels for the tower (plus CLS), answers for connector and decoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc_demo.world.vocabulary import COLOURS, KINDS, PATTERNS, THINGS

from .data import ASKED, CHARS, GRID, IGNORE, normalise

CLASSES = {
    "thing": len(THINGS) + 1,
    "colour": len(COLOURS) + 1,
    "size": 3,
    "anchor": 2,
    "char": CHARS + 1,
    "ordinal": 5,
}
CLASSES |= {"pattern": len(PATTERNS), "row": GRID, "column": GRID}


def encode(tower: nn.Module, pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP tower on a window of the grid.

    pixels [B, 3, S, S], places [B, n] -> features of layer -2 [B, 1 + n, C] and CLS of the last layer [B, C].
    """
    emb = tower.embeddings
    patches = emb.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, n, C]
    cls = emb.class_embedding.expand(len(patches), 1, -1)
    index = torch.cat([torch.zeros_like(places[:, :1]), places + 1], 1)
    h = torch.cat([cls, patches], 1) + emb.position_embedding(index)
    h = tower.pre_layrnorm(h)
    for layer in tower.encoder.layers[:-1]:
        h = layer(h, attention_mask=None)
    return h, tower.encoder.layers[-1](h, attention_mask=None)[:, 0]


def pack_mask(shared: int, block: Tensor) -> Tensor:
    """What each token of a packed sequence sees, [B, S, S]: before it, the `shared` first tokens and its own block.

    block [B, S - shared]: the number of each word's question.
    """
    block = F.pad(block, (shared, 0), value=-2)
    causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool, device=block.device).tril()
    return causal & ((block[:, None, :] == -2) | (block[:, None, :] == block[:, :, None]))


class DenseObjective(nn.Module):
    """A linear head per label on the features that the projector will read, and a multi-label head on CLS.

    The place of a patch is asked for as two classes and as two numbers: with classes alone it was known (90 %) but lay
    on no line (R^2 0.14). Numbers should let a decoder compare places; that is not shown so far.
    """

    def __init__(self, tower: nn.Module, mean, std):
        super().__init__()
        self.tower, self.mean, self.std = tower, mean, std
        width = tower.config.hidden_size
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in CLASSES.items()})
        self.place_head = nn.Linear(width, 2)
        self.cls_head = nn.Linear(width, len(THINGS) + len(COLOURS) + CHARS)

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and accuracy per label; for labels with a 'none' class the accuracy counts the other patches only."""
        h, cls = encode(self.tower, normalise(batch["pixels"], self.mean, self.std), batch["places"])
        h, loss, scores = h[:, 1:], h.new_zeros(()), {}
        targets = {k[6:]: v for k, v in batch.items() if k.startswith("label_")}
        targets |= {"row": batch["places"] // GRID, "column": batch["places"] % GRID}
        for name, target in targets.items():
            logits = self.heads[name](h)  # [B, n, classes]
            each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            some = (
                target.flatten() > 0
                if name not in ("pattern", "row", "column")
                else torch.ones_like(each, dtype=torch.bool)
            )
            part = each[some].mean() if some.any() else 0.0
            rest = each[~some].mean() if (~some).any() else 0.0
            loss = loss + (part + rest) * (0.2 if name in ("row", "column", "pattern") else 1.0)
            hit = (logits.argmax(-1) == target).flatten().float()
            scores[name] = hit[some].mean() if some.any() else hit.mean()
        target = torch.stack([targets["row"], targets["column"]], -1) / (GRID - 1) * 2 - 1  # [B, n, 2] in [-1, 1]
        error = self.place_head(h) - target
        loss = loss + 4 * error.square().mean()
        scores["place"] = (error.abs() * (GRID - 1) / 2 < 1).float().mean()  # within one patch
        logits = self.cls_head(self.tower.post_layernorm(cls))
        loss = loss + 2 * F.binary_cross_entropy_with_logits(logits, batch["present"])
        scores["cls"] = ((logits > 0) == (batch["present"] > 0.5)).float().mean()
        return loss, scores


class AnswerObjective(nn.Module):
    """Cross-entropy on answer tokens; the picture is encoded once for all its questions. The tower is frozen.

    Linear heads, thrown away after training, ask for hints on the way: half-way through the decoder a word that names
    an item must know where that item stands; two layers later the end of a question about two items must know both
    places, on which side of the second the first stands, and which direction was asked about; one layer before the
    last, whether the first stands there. An answer needs side and direction, and neither alone lowers its loss.
    """

    def __init__(self, model: nn.Module, mean, std, prefix: list[int]):
        super().__init__()
        self.projector, self.decoder = model.model.multi_modal_projector, model.model.language_model
        self.tower, self.lm_head = model.model.vision_tower.requires_grad_(False), model.lm_head
        self.mean, self.std, self.prefix = mean, std, prefix
        self.hint = 0.25  # weight of each hint's loss
        width = self.decoder.config.hidden_size
        self.places = nn.ModuleDict({name: nn.Linear(width, GRID) for name in ("row", "column")})
        self.pairs = nn.ModuleDict({name: nn.Linear(width, GRID) for name in ("row", "column", "row2", "column2")})
        self.asked = nn.Linear(width, 1 + max(ASKED.values()))
        self.sides = nn.ModuleDict({name: nn.Linear(width, 2) for name in ("row", "column")})
        self.holds = nn.Linear(width, 2)

    def forward(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = normalise(batch["pixels"], self.mean, self.std)
        with torch.no_grad():
            features = encode(self.tower, pixels, batch["places"])[0][:, 1:]
        hidden, *states = self.decode(self.projector(features), batch)
        target = batch["target"]
        logits = self.lm_head(hidden[target != IGNORE])  # [answers, vocab]
        loss, scores = F.cross_entropy(logits, target[target != IGNORE]), self.score(logits, batch)
        for name, head, state, known, wanted, slack in self.hints(batch, *states):
            if known.any():
                guess = head(state[known])
                loss = loss + self.hint * F.cross_entropy(guess, wanted[known])
                scores[name] = ((guess.argmax(-1) - wanted[known]).abs() <= slack).float()
        return loss, scores

    def hints(self, batch: dict, halfway: Tensor, later: Tensor, late: Tensor) -> Iterator[tuple]:
        """(name, head, state, where it is known [B, text], what it must be [B, text], slack in patches)."""
        ends, asked = batch["row2"] != IGNORE, batch["asked"]
        for name, head in self.places.items():
            yield f"{name} of word", head, halfway, ~ends & (batch[name] != IGNORE), batch[name], 1
        for name, head in self.pairs.items():
            yield f"{name} of pair", head, later, ends, batch[name], 1
        gaps = {name: batch[f"{name}2"] - batch[name] for name in self.sides}  # > 0: the first is above or left
        for name, head in self.sides.items():
            yield f"side by {name}", head, later, ends & (gaps[name].abs() > 1), (gaps[name] < 0).long(), 0
        yield "direction asked", self.asked, later, asked != IGNORE, asked, 0
        gap = torch.where(asked < 2, gaps["column"], gaps["row"])
        holds = (gap > 0) ^ (asked % 2 == 1)
        yield "direction holds", self.holds, late, (asked != IGNORE) & (gap.abs() > 1), holds.long(), 0

    def decode(self, image: Tensor, batch: dict) -> list[Tensor]:
        """image [B, n, D] -> hidden states of the text tokens [B, text, D]: normed at the end, half-way, two
        layers later, one layer before the last."""
        lm, (b, n, _) = self.decoder, image.shape
        prefix = torch.tensor(self.prefix, device=image.device).expand(b, -1)
        p = prefix.shape[1]
        h = torch.cat([lm.embed_tokens(prefix), image, lm.embed_tokens(batch["ids"])], 1)
        start = torch.arange(p, device=h.device).expand(b, -1)
        # Positions are those of the full picture, whatever the window: text always begins after the last patch.
        positions = torch.cat([start, p + batch["places"], p + GRID**2 + batch["offset"]], 1)
        mask = pack_mask(p + n, batch["block"])
        rope = lm.rotary_emb(h, positions)
        states = []
        for layer in lm.layers:
            h = layer(h, attention_mask=mask[:, None], position_embeddings=rope)
            states.append(h[:, p + n :])  # [B, text, D]
        half = len(states) // 2
        return [lm.norm(states[-1]), states[half - 1], states[half + 1], states[-2]]

    @staticmethod
    @torch.no_grad()
    def score(logits: Tensor, batch: dict) -> dict[str, Tensor]:
        """1 for each question whose whole answer, end token included, is right: exact match of greedy decoding."""
        rows, cols = (batch["target"] != IGNORE).nonzero(as_tuple=True)
        wrong = (logits.argmax(-1) != batch["target"][rows, cols]).long()
        key = rows * 64 + batch["block"][rows, cols]
        misses = torch.zeros(int(key.max()) + 1, dtype=torch.long, device=key.device).index_add_(0, key, wrong)
        kind = torch.full_like(misses, -1).index_copy_(0, key, batch["kind"][rows, cols])
        return {name: (misses[kind == i] == 0).float() for i, name in enumerate(KINDS)}
