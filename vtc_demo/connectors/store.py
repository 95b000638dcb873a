"""Trained connectors on disk, and joined to a VLM: its tower, the connector, the decoder that was tuned with it.

assets/models/zoo/NAME holds model.safetensors (connector, decoder and LM head in half precision) and zoo.json. The
tower is shared; zoo.json knows by a fingerprint which one the weights belong to.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from . import files
from .base import Connector, Dims, Trained
from .files import FACTS, WEIGHTS, has

_fitted: WeakKeyDictionary[Any, dict[tuple[Path, str], Fitted]] = WeakKeyDictionary()


class Fitted(NamedTuple):
    """model: the VLM's own with the tuned decoder and LM head; its tower is the same object."""

    connector: Connector
    model: nn.Module


def fingerprint(tower: nn.Module) -> str:
    """Of the tower's weights as bfloat16, which is the same in every dtype that the shipped model is loaded in."""
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        if weight.is_floating_point():
            digest.update(name.encode() + weight.bfloat16().cpu().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(name: str, connector: Connector, model: nn.Module, facts: dict, folder: Path | None = None) -> Path:
    """Write a connector and the decoder of `model`. facts: what else zoo.json shall tell. Returns its folder."""
    out = (folder or files.FOLDER) / name
    out.mkdir(parents=True, exist_ok=True)
    parts = {"connector": connector, "decoder": model.model.language_model, "lm_head": model.lm_head}
    weights = {
        f"{part}.{key}": weight.detach().cpu().half().contiguous()
        for part, module in parts.items()
        for key, weight in module.state_dict().items()
    }
    save_file(weights, out / WEIGHTS)
    about = {"tower": fingerprint(model.model.vision_tower), "dims": asdict(Dims.of(model.config))}
    (out / FACTS).write_text(json.dumps(about | facts, indent=1) + "\n", encoding="utf-8")
    return out


def fit(vlm, method: Trained) -> Fitted:
    """The method's connector and the model around it, loaded once per VLM.

    Raises ValueError if the weights are not here, are broken, or belong to another tower.
    """
    name, loaded = method.card.name, _fitted.setdefault(vlm, {})
    if (files.FOLDER, name) not in loaded:
        loaded[files.FOLDER, name] = _load(vlm, name, method.connector)
    return loaded[files.FOLDER, name]


def _load(vlm, name: str, kind: type[Connector]) -> Fitted:
    if not has(name):
        raise ValueError(f"{name} has no weights in {files.FOLDER}; train it with: python -m vtc_demo train zoo {name}")
    foreign = (
        f"{name} was trained for the embedded model, on top of its vision tower; {vlm.name} is another. Choose the "
        "embedded model, or a method that needs no training"
    )
    try:
        facts = json.loads((files.FOLDER / name / FACTS).read_text(encoding="utf-8"))
        if vlm.config.model_type != "llava" or asdict(Dims.of(vlm.config)) != facts["dims"]:
            raise ValueError(foreign)
        if fingerprint(vlm.model.model.vision_tower) != facts["tower"]:
            raise ValueError(f"{foreign}; or train it anew for this tower: python -m vtc_demo train zoo {name}")
        weights = load_file(files.FOLDER / name / WEIGHTS)
        connector, model = kind(Dims.of(vlm.config)), joined(vlm.model)
        for part, module in (
            ("connector", connector),
            ("decoder", model.model.language_model),
            ("lm_head", model.lm_head),
        ):
            module.load_state_dict({k[len(part) + 1 :]: v for k, v in weights.items() if k.startswith(f"{part}.")})
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the weights of {name} in {files.FOLDER / name} cannot be read: {reason}") from error
    return Fitted(connector.to(vlm.device, vlm.dtype).eval(), model)


def joined(model: nn.Module) -> nn.Module:
    """A model with the same tower and with a decoder and LM head of its own, equal to the model's."""
    outer, inner = copy.copy(model), copy.copy(model.model)
    for module in (outer, inner):
        module._modules = dict(module._modules)
    inner.language_model = copy.deepcopy(model.model.language_model)
    outer.model, outer.lm_head = inner, copy.deepcopy(model.lm_head)
    return outer
