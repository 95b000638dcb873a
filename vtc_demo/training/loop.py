"""One resumable training loop for every recipe: accelerate, a checkpoint, a JSON-lines log, a progress bar."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from .data import loader
from .muon import build_optimizer


@dataclass(frozen=True)
class Stage:
    """One stretch of a recipe: `dataset(start, length)` gives the items [start, start + length) of its stream."""

    name: str
    steps: int
    batch: int
    lr: float
    dataset: Callable
    warmup: int = 100
    cooldown: float = 0.25  # the last share of the steps, in which the rate falls to zero
    log_every: int = 50
    save_every: int = 200

    def rate(self, step: int) -> float:
        left = (self.steps - step) / max(1, self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, left)


def run_stage(stage: Stage, objective: nn.Module, folder: Path, workers: int = 1) -> None:
    """Train to the end of the stage, or return at once if its checkpoint says it is done.

    Ctrl-C and a termination signal write the checkpoint before the process ends.
    """
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs start with SIGINT ignored
        signal.signal(stop, signal.default_int_handler)
    accelerator = Accelerator()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{stage.name}.pt", folder / "log.jsonl"
    objective.to(accelerator.device)
    optimizer = build_optimizer(objective, stage.lr)
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=accelerator.device, weights_only=True)
        load_trained(objective, saved["model"])
        step = saved["step"]
        if saved.get("optimizer") and step < stage.steps:
            optimizer.load_state_dict(saved["optimizer"])
    if step >= stage.steps:
        return
    objective, optimizer = accelerator.prepare(objective, optimizer)
    batches = loader(stage.dataset(step * stage.batch, (stage.steps - step) * stage.batch), stage.batch, workers)
    bar = tqdm(batches, initial=step, total=stage.steps, desc=stage.name, mininterval=2)
    window: dict[str, list[float]] = {}
    began = time.perf_counter()

    def save():
        state = {"model": trained(accelerator.unwrap_model(objective)), "step": step}
        if step < stage.steps:
            state["optimizer"] = optimizer.state_dict()
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    try:
        for batch in bar:
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(step)
            batch = {k: v.to(accelerator.device) for k, v in batch.items()}
            with accelerator.autocast():
                loss, scores = objective(batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            collect(window, {"loss": loss.detach(), **scores})
            if step % stage.log_every == 0 or step == stage.steps:
                record: dict[str, Any] = {
                    "stage": stage.name,
                    "step": step,
                    "seconds": round(time.perf_counter() - began, 1),
                    **flush(window),
                }
                with log.open("a") as f:
                    f.write(json.dumps(record) + "\n")
                bar.set_postfix({k: v for k, v in record.items() if k not in ("stage", "step", "seconds")})
                if not math.isfinite(record["loss"]):
                    raise RuntimeError(f"{stage.name}: the loss is not finite at step {step}; lower the learning rate")
            if step % stage.save_every == 0:
                save()
    finally:
        save()


def trained(module: nn.Module) -> dict[str, torch.Tensor]:
    """What a stage changes; frozen parts belong to the stage that trained them."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def load_trained(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    if set(state) != set(trained(module)):
        raise ValueError("the checkpoint is of another model or recipe; give another --folder or delete it")
    module.load_state_dict(state, strict=False)


def collect(window: dict, scores: dict) -> None:
    for name, value in scores.items():
        window.setdefault(name, []).extend(torch.as_tensor(value, dtype=torch.float32).flatten().tolist())


def flush(window: dict) -> dict[str, float]:
    means = {k: round(sum(v) / len(v), 4) for k, v in window.items() if v}
    window.clear()
    return means
