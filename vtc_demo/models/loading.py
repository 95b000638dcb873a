"""`load_vlm`: from a name to a model that runs. The adapter is found by the config's model_type."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig

from vtc_demo.core import discovery
from vtc_demo.core.assets import ASSETS
from vtc_demo.cost import ModelSpec

from . import catalog, families, memory
from .adapter import Adapter
from .catalog import CATALOG
from .text_tower import TextTower
from .vlm import VLM


def _discover() -> dict[str, Adapter]:
    """An adapter per family: every class with a model_type of its own in a file of `families`."""
    found = {}
    for file in discovery.files(Path(families.__path__[0]), frozenset()):
        for thing in vars(discovery.load(file, families)).values():
            if isinstance(thing, type) and issubclass(thing, Adapter) and "model_type" in vars(thing):
                found[thing.model_type] = thing()
    return found


FAMILIES: dict[str, Adapter] = _discover()
EMBEDDED = ASSETS / "models" / "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of reading somebody's files: TypeError and AttributeError come from a config that holds the wrong things, ImportError
# from a tokenizer or processor that wants a package which is not installed.
FAILURES = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)


def load_vlm(
    name: str | Path = "embedded",
    device=None,
    dtype=None,
    revision: str | None = None,
    device_map=None,
    text_tower=None,
) -> VLM:
    """A model ready to run: "embedded" (ships with the repository), a folder, or a hub id (uses the network once).

    device: default cuda if there is one, else cpu. dtype: torch dtype or its name; default float32 on a CPU, bfloat16
    elsewhere. revision: commit or tag of a hub repository; default that of `catalog`, if it has one. device_map: as in
    accelerate ("auto", or module -> device), for a model larger than one device; then `device` must be left out.
    text_tower: folder or hub id of the CLIP model that the vision tower comes from, for methods that compare the
    picture with the question in its space.
    Code from a repository is never run; only safetensors weights are read. Progress bars of the download and of the
    weights are shown on stderr, unless transformers is told otherwise.
    Raises ValueError if there is no such model, it cannot be had, its family does not run here, or it does not fit.
    """
    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both: a device_map says where every part goes")
    revision = revision or next((entry.revision for entry in CATALOG if entry.id == str(name)), None)
    source, local = _source(str(name), revision)
    device = find_device(device)
    dtype = find_dtype(dtype, device)
    options = {"revision": revision, "local_files_only": local, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except FAILURES as error:
        raise ValueError(_cannot(name, error, local)) from error
    adapter = _adapter(name, config)
    placed = {} if device_map is None else {"device_map": device_map}
    try:
        adapter.check(config)
        if device_map is None:
            memory.check(name, memory.weights(adapter, config, dtype), device)
        model, info = adapter.load(
            source, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, **options, **placed
        )
        processor = adapter.load_processor(source, **options)
        model = model if placed else model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ValueError(memory.full(name, device)) from error
    except memory.TooLarge:
        raise
    except FAILURES as error:
        raise ValueError(_cannot(name, error, local)) from error
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(f"{name} does not fit on the devices: accelerate left parts of it aside. {memory.WAYS_OUT}")
    if info["missing_keys"]:
        raise ValueError(f"cannot run {name}: weights are missing, among them {min(info['missing_keys'])}")
    return VLM(
        model, processor, adapter, str(name), None if text_tower is None else _text_tower(text_tower, model, config)
    )


def _text_tower(name: str | Path, model, config) -> TextTower:
    """Raises ValueError if it cannot be had or does not fit the model's vision tower."""
    source, local = _source(str(name), None)
    try:
        tower = TextTower.load(source, model.device, model.dtype, local_files_only=local)
    except FAILURES as error:
        raise ValueError(_cannot(name, error, local)) from error
    width = getattr(config.vision_config, "hidden_size", None)
    if tower.vision_width != width:
        raise ValueError(
            f"{name} is a CLIP model for {tower.vision_width} wide vision features, the model's tower has {width}; "
            "give the CLIP model that the vision tower comes from"
        )
    return tower


def spec_of(config) -> ModelSpec:
    """The dimensions of a model from its transformers config, of one view of a typical picture.

    Raises ValueError if its family, or this configuration of the family, does not run.
    """
    adapter = _adapter("this model", config)
    adapter.check(config)
    return adapter.spec(config)


def _adapter(name: str | Path, config) -> Adapter:
    """Of the config's family; `name` is for the message of the ValueError if there is none."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"cannot run {name}: its family is {config.model_type!r}. {_families()}")
    return FAMILIES[config.model_type]


def _source(name: str, revision: str | None) -> tuple[str, bool]:
    """(what to load from, whether it must not use the network)."""
    if name == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise ValueError(
                f"the embedded model is missing: no config.json in {EMBEDDED}. Get the whole repository, or make the "
                "model with: python -m vtc_demo train embedded"
            )
        return str(EMBEDDED), True
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder), True
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise ValueError(
            f"unknown model {name!r}; give 'embedded', a folder, or a hub id such as owner/name. {_families()}"
        )
    return name, not _on_hub(name, revision)


def _on_hub(name: str, revision: str | None) -> bool:
    """Whether the hub can be reached; one request, where loading would retry every file for half a minute."""
    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise ValueError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, log in (hf auth login) and try again"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(f"the hub has no public model {name} at revision {revision or 'main'}") from error
    except Exception:  # no network, offline mode, a proxy: each has its own class; the cache is what is left
        return False
    return True


def find_device(device) -> torch.device:
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(wanted)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {wanted!r} cannot be used here; choose cpu or cuda") from error
    return found


def find_dtype(dtype, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype {dtype!r} cannot be used; choose {', '.join(DTYPES)}")
    return found


def offers(device=None, dtype=None) -> tuple[list[dict], str]:
    """The catalogue as `catalog.rows` and as lines of text: what each model needs and whether it fits here.

    device and dtype as in `load_vlm`; raises ValueError as it does.
    """
    device = find_device(device)
    dtype = find_dtype(dtype, device)
    rows = catalog.rows(device, dtype)
    return rows, catalog.table(rows, device, dtype)


def _families() -> str:
    return f"Families that run: {', '.join(a.description.split(' (')[0] for a in FAMILIES.values())}."


def _cannot(name, error: Exception, local: bool) -> str:
    """One line; the libraries' own messages run over several. local: the network was not used."""
    if local and isinstance(error, OSError) and not Path(name).expanduser().exists() and name != "embedded":
        return (
            f"cannot load {name}: the hub cannot be reached and this machine has no complete copy of the model. "
            "Check the network, or use 'embedded' or a local folder."
        )
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    advice = "Check the files and the name, or use 'embedded' or another folder."
    return f"cannot load {name}: {reason}. {advice} {_families()}"
