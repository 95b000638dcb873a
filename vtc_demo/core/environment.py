"""What a figure depends on besides the code."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch
import transformers


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a figure depends on besides the code, JSON-ready."""
    return {
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "backend": "sdpa",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "batch": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """The device in words, with the product's name where it is known."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{device.type} ({name})" if name else device.type
