"""Whether a model fits, asked before its weights are read."""

from __future__ import annotations

import os

import torch

GIGA = 1e9
ROOM = 1.1  # weights and a little for one pass: caches and activations of one prompt are small beside them


class TooLarge(ValueError):
    """The model does not fit into the memory that is free."""


def weights(adapter, config, dtype: torch.dtype) -> int:
    """Bytes of all parameters of the family's model class in `dtype`, counted without making any of them."""
    with torch.device("meta"):
        model = adapter.model_class(config)
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


def free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None if that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return min(_available(), _allowed())
    return None


def _available() -> int:
    """Of the machine: what can be given out without swapping, which includes the cache of files."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _allowed() -> int:
    """Of the container, if it has a limit of its own."""
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            return int(limit.read()) - int(used.read())
    except (OSError, ValueError):  # no such files, or "max"
        return 1 << 62


def check(name, need: int, device: torch.device) -> None:
    """Raise TooLarge if `need` bytes of weights do not fit on the device."""
    have = free(device)
    if have is not None and need * ROOM > have:
        raise TooLarge(
            f"{name} needs {need * ROOM / GIGA:.1f} GB on {device}, which has {have / GIGA:.1f} GB free. {WAYS_OUT}"
        )


def full(name, device: torch.device) -> str:
    return f"{name} ran out of memory on {device} while it was loaded. {WAYS_OUT}"


WAYS_OUT = (
    "Close other programs, choose a smaller model, dtype='bfloat16', another device, or spread it over several "
    "with device_map='auto'."
)
