"""Writes a Hugging Face Space into a folder: front matter, requirements, the page and what it runs on.

Two kinds. "docker" serves the page from the Dockerfile, on a CPU or on a GPU that the Space has to itself. "zerogpu" is
a Gradio Space that borrows a GPU for each click. Keys and rules: the Hub's pages "Spaces Configuration Reference",
"Docker Spaces" and "ZeroGPU", as of August 2026.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData

ROOT = Path(__file__).resolve().parents[2]
PORT = 7860  # that of the Dockerfile
FOLDERS = ("vtc_demo", "assets")
FILES = ("app.py", "LICENSE")
ONLY_DOCKER = ("Dockerfile", ".dockerignore")
PYTHON = "3.12.12"  # of the two that ZeroGPU has, the one that transformers runs on
ZERO_TORCH = "torch==2.11.0"  # the newest of ZeroGPU's list
NOT_SERVED = {"jupyterlab"}  # for the lessons alone
PLATFORM = {"gradio", "torch"}  # on ZeroGPU: sdk_version sets Gradio, ZERO_TORCH stands in for torch
LARGE = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"
CARD = """
Compares methods of visual token compression side by side, on a small vision-language model that is part of this Space.
{hardware}

Another model: set the variable `VTC_MODEL` in the Space's settings to one that `python -m vtc_demo models` lists. The
Space needs the memory shown there; where a model cannot be loaded, the page says why and runs the small one.
"""
HARDWARE = {
    "docker": "CPU basic is enough for it.",
    "zerogpu": "With the hardware ZeroGPU the page borrows a GPU for each click, out of the visitor's quota.",
}


def write(kind: str, folder: str | Path, name: str | None = None) -> list[Path]:
    """Write the Space; returns the files, relative to the folder. What an earlier call wrote is replaced.

    kind: "docker" or "zerogpu". name: "owner/space", where it will live. Raises ValueError for another kind or name,
    and for a folder that holds anything but a Space.
    """
    folder = Path(folder).expanduser().resolve()
    _check(kind, folder, name)
    for part in FOLDERS:
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    for part in FILES + ONLY_DOCKER:
        (folder / part).unlink(missing_ok=True)
    for part in FILES + (ONLY_DOCKER if kind == "docker" else ()):
        shutil.copy(ROOT / part, folder / part)
    for part, text in (
        ("README.md", f"---\n{front_matter(kind)}\n---\n{CARD.format(hardware=HARDWARE[kind])}"),
        ("requirements.txt", requirements(kind)),
        (".gitattributes", LARGE),
    ):
        (folder / part).write_text(text, encoding="utf-8")
    return sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file() and ".git" not in f.parts)


def front_matter(kind: str) -> str:
    """YAML that tells the Hub how to run the Space."""
    how: dict[str, dict[str, Any]] = {
        "docker": {"sdk": "docker", "app_port": PORT, "suggested_hardware": "cpu-basic"},
        "zerogpu": {
            "sdk": "gradio",
            "sdk_version": pins()["gradio"],
            "python_version": PYTHON,
            "app_file": "app.py",
        },
    }
    facts = SpaceCardData(
        title="Visual token compression",
        emoji="🧩",
        colorFrom="blue",
        colorTo="purple",
        short_description="Visual token compression methods side by side",  # the Hub takes up to 60 characters
        license="apache-2.0",
        fullWidth=True,
        pinned=False,
        **how[kind],
    )
    return facts.to_yaml()


def requirements(kind: str) -> str:
    """Contents of the Space's requirements.txt: what serving the page needs, pinned as in the repository."""
    leave = NOT_SERVED | (PLATFORM if kind == "zerogpu" else set())
    lines = [f"{package}=={version}" for package, version in pins().items() if package not in leave]
    return "\n".join(lines + ([ZERO_TORCH] if kind == "zerogpu" else [])) + "\n"


def pins() -> dict[str, str]:
    """Package -> version, as the repository's requirements.txt pins them."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M))


def next_steps(kind: str, folder: str | Path, name: str | None = None) -> str:
    """What to do with the folder, in words."""
    hardware = "choose the hardware ZeroGPU in its settings" if kind == "zerogpu" else "choose its hardware"
    return (
        f"wrote a {kind} Space to {folder}. Create the Space on the Hub with the SDK "
        f"{'Docker' if kind == 'docker' else 'Gradio'}, {hardware}, and push:\n"
        f"hf upload {name or 'OWNER/SPACE'} {folder} . --repo-type space"
    )


def _check(kind: str, folder: Path, name: str | None) -> None:
    if kind not in HARDWARE:
        raise ValueError(f"there is no Space of kind {kind!r}; choose {' or '.join(HARDWARE)}")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise ValueError(f"a Space is named owner/space, got {name!r}")
    missing = [part for part in (*FOLDERS, *FILES, *ONLY_DOCKER, "requirements.txt") if not (ROOT / part).exists()]
    if missing:
        raise ValueError(
            f"a Space is written from a checkout of the repository, which {ROOT} is not: {', '.join(missing)} "
            "not found. An installed package does not hold them"
        )
    if any(folder.is_relative_to(ROOT / part) for part in FOLDERS):
        raise ValueError(f"{folder} is part of what is copied; give a folder elsewhere")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if folder.exists() and not _is_space(folder) and any(f.name != ".git" for f in folder.iterdir()):
        raise ValueError(f"{folder} holds other files; give a new folder, or the checkout of a Space")


def _is_space(folder: Path) -> bool:
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return text.startswith("---\n") and "\nsdk:" in text.partition("\n---")[0]
