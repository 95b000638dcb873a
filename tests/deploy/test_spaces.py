"""The written Spaces: what the Hub reads of them, and that they serve the page."""

import json
import os
import re
import sys
from importlib import metadata
from pathlib import Path

import boot
import pytest
import yaml
from gradio_client.exceptions import AppError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from vtc_demo.deploy import spaces

ROOT = Path(__file__).resolve().parents[2]
STANDINS = ROOT / "tests" / "standins"
KINDS = ("docker", "zerogpu")
# The Hub's "Spaces Configuration Reference": keys, and the values where it lists them.
KEYS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version", "suggested_hardware",
    "suggested_storage", "app_file", "app_build_command", "app_port", "base_path", "fullWidth", "header",
    "short_description", "models", "datasets", "tags", "thumbnail", "pinned", "hf_oauth", "hf_oauth_scopes",
    "hf_oauth_expiration_minutes", "disable_embedding", "startup_duration_timeout", "custom_headers",
    "preload_from_hub", "license",
}  # fmt: skip
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
HARDWARE = {
    "cpu-basic", "cpu-upgrade", "t4-small", "t4-medium", "l4x1", "l4x4", "l40sx1", "l40sx4", "l40sx8", "a10g-small",
    "a10g-large", "a10g-largex2", "a10g-largex4", "a100-large",
}  # fmt: skip
ZERO_GPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")  # "ZeroGPU", August 2026
ZERO_GPU_PYTHON = ("3.12.12", "3.10.13")


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """(kind, folder) of a Space."""
    folder = tmp_path_factory.mktemp(request.param) / "space"
    spaces.write(request.param, folder, "owner/space")
    return request.param, folder


def card(folder: Path) -> dict:
    opening, text, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert opening == "" and body.strip()
    return yaml.safe_load(text)


def pins(folder: Path) -> dict[str, str]:
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return dict(line.split("==") for line in lines)


# -- what the Hub reads -----------------------------------------------------------------------------------------------
def test_front_matter_is_what_the_hub_documents(written):
    kind, folder = written
    facts = card(folder)
    assert set(facts) <= KEYS
    assert {facts["colorFrom"], facts["colorTo"]} <= COLOURS
    assert len(facts["short_description"]) <= 60 and len(facts["emoji"]) == 1
    assert facts["license"] == "apache-2.0" and (folder / "LICENSE").is_file()
    assert facts.get("suggested_hardware", "cpu-basic") in HARDWARE
    assert facts["sdk"] == {"docker": "docker", "zerogpu": "gradio"}[kind]


def test_docker_front_matter_fits_the_dockerfile(written):
    kind, folder = written
    if kind == "docker":
        assert f"EXPOSE {card(folder)['app_port']}\n" in (folder / "Dockerfile").read_text()
    else:
        assert not (folder / "Dockerfile").exists()


def test_zerogpu_front_matter_fits_the_requirements():
    facts = yaml.safe_load(spaces.front_matter("zerogpu"))
    assert facts["sdk_version"] == spaces.pins()["gradio"] == metadata.version("gradio")
    assert facts["python_version"] in ZERO_GPU_PYTHON
    assert (ROOT / facts["app_file"]).is_file()
    assert Version(facts["python_version"]) in SpecifierSet(metadata.metadata("transformers")["Requires-Python"])


def test_requirements_are_those_of_the_repository(written):
    kind, folder = written
    ours, theirs = spaces.pins(), pins(folder)
    changed = {name for name in theirs if theirs[name] != ours[name]}
    left = set(ours) - set(theirs)
    if kind == "docker":
        assert (changed, left) == (set(), {"jupyterlab"})
    else:
        assert (changed, left) == ({"torch"}, {"jupyterlab", "gradio"})
        assert theirs["torch"] in ZERO_GPU_TORCH
        wanted = [Requirement(r) for r in metadata.requires("accelerate") if re.match(r"torch\b", r)]
        assert all(Version(theirs["torch"]) in r.specifier for r in wanted)
    assert "spaces" not in theirs  # the platform brings its own


# -- writing ----------------------------------------------------------------------------------------------------------
def test_only_what_serving_needs_is_written(written):
    kind, folder = written
    tops = {path.name for path in folder.iterdir()}
    shared = {".gitattributes", "LICENSE", "README.md", "app.py", "assets", "requirements.txt", "vtc_demo"}
    assert tops == shared | ({"Dockerfile", ".dockerignore"} if kind == "docker" else set())
    assert not [path for path in folder.rglob("*") if path.name == "__pycache__"]
    weights = Path("assets/models/embedded/model.safetensors")
    assert (folder / weights).read_bytes() == (ROOT / weights).read_bytes()


def test_writing_again_replaces_and_keeps_the_checkout(tmp_path):
    spaces.write("docker", tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("kept")
    (tmp_path / "vtc_demo" / "old.py").write_text("")
    files = spaces.write("zerogpu", tmp_path)
    assert (tmp_path / ".git" / "config").read_text() == "kept"
    assert not (tmp_path / "vtc_demo" / "old.py").exists() and not (tmp_path / "Dockerfile").exists()
    assert Path("app.py") in files and all((tmp_path / file).is_file() for file in files)


def test_a_package_without_its_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(spaces, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"checkout of the repository.*app.py, LICENSE"):
        spaces.write("docker", tmp_path / "new")


# -- running ----------------------------------------------------------------------------------------------------------
GUARD = """
import importlib.metadata, json, os, re, sys
from importlib.machinery import PathFinder
allowed, owners = set(json.loads(os.environ["ALLOWED"])), importlib.metadata.packages_distributions()
class Guard(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = owners.get(name)
        if path is None and found and not allowed & {re.sub("[-_.]+", "-", x).lower() for x in found}:
            return None  # as if it were not installed
        return super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Guard
"""


def closure(names) -> set[str]:
    """Distributions, as installed here, that come with the named ones."""
    found, queue = set(), [canonicalize_name(name) for name in names]
    while queue:
        name = queue.pop()
        try:
            wanted = [Requirement(r) for r in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:  # for another system
            continue
        if name not in found:
            found.add(name)
            queue += [canonicalize_name(r.name) for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.slow
def test_the_zerogpu_space_serves_with_one_lease_a_click(tmp_path):
    """In a Python that sees the Space's requirements and nothing else of what is installed here."""
    spaces.write("zerogpu", tmp_path / "space")
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    allowed = closure([*pins(tmp_path / "space"), "gradio"])
    assert "huggingface-hub" in allowed and not allowed & {"jupyterlab", "pytest", "ruff"}
    leases, port = tmp_path / "leases", boot.free_port()
    env = os.environ | {
        "ALLOWED": json.dumps(sorted(allowed)),
        "PYTHONPATH": f"{tmp_path / 'guard'}{os.pathsep}{STANDINS}",
        "LEASES": str(leases),
        "SPACES_ZERO_GPU": "true",
        "SPACE_ID": "owner/space",
        "GRADIO_SERVER_PORT": str(port),
    }
    with boot.page([sys.executable, "app.py"], port, tmp_path / "space", env, tmp_path / "log") as client:
        assert not leases.exists()
        shown = json.dumps(client.config, ensure_ascii=False)
        assert "borrows a GPU for each click" in shown and "embedded model is running in place" not in shown
        chosen = ["full", "random@0.25", "fastv@0.25", "pool@0.25"]
        found = client.predict("How many objects are there?", chosen, 3, None, api_name="/compare")
        assert [run["visual_tokens"] for run in found["runs"]] == [576, 144, 144, 144]
        noted = [json.loads(line) for line in leases.read_text().splitlines()]
        assert len(noted) == 1 and noted[0]["duration"] <= 30
        with pytest.raises(AppError, match="did you mean fastv"):  # no lease for what cannot run
            client.predict("How many objects are there?", ["fastvv"], 3, None, api_name="/compare")
        assert len(leases.read_text().splitlines()) == 1
