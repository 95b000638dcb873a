"""Running notebooks, and telling whether the outputs of two runs agree."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from .source import LESSONS

WEIGHTS = LESSONS.parent / "assets" / "models" / "embedded" / "model.safetensors"
LIMIT = 180  # seconds of a cell by the clock, and of a whole notebook by the processor
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
TOLERANCE = 0.02  # relative; another processor rounds otherwise


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Execute a notebook in place, in the folder lessons/, and clean its outputs. Raises CellExecutionError.

    The kernel is this Python; one thread, as the tests have it, and no network.
    """
    settings = {"PLOTLY_RENDERER": "plotly_mimetype", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    client = NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(LESSONS)}},
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    client.execute(env={**os.environ, **settings, "PATH": path})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("execution", None)
    return notebook


def weights() -> str:
    """A short hash of the embedded model's weights: outputs made with other weights are stale."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]


def text_of(cell) -> str:
    """What a cell shows in words: printed text, Markdown, the plain form of a result; pictures and figures left out."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        figure = {"application/vnd.plotly.v1+json", "image/png", "text/html"} & set(data)
        parts.append(output.get("text") or data.get("text/markdown") or ("" if figure else data.get("text/plain", "")))
    return "\n".join(part.strip() for part in parts if part)


def agree(old: str, new: str) -> bool:
    """Whether two outputs are the same words with nearly the same numbers."""
    if NUMBER.sub("#", old).strip() != NUMBER.sub("#", new).strip():  # a print may arrive in two parts
        return False
    a, b = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (old, new))
    return all(abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) + 1e-9 for x, y in zip(a, b))


__all__ = ["CellExecutionError", "agree", "run", "text_of", "weights"]
