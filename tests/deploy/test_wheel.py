"""The wheel: built from the sdist, installed into an environment of its own, used from another folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import vtc_demo as vtc

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("vtc_demo", "assets", "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
METHODS = ["full", "fastv@0.25", "q-former@0.25"]  # one of them from the zoo
PAGE = """
import httpx
from vtc_demo import ui
vlm, notice = ui.serve.load("embedded")
assert not notice, notice
_, address, _ = ui.build(vlm, notice).launch(prevent_thread_lock=True, quiet=True, **ui.LAUNCH)
print(httpx.get(address).status_code)
"""
SECONDS = 600
MEGA = 10**6

pytestmark = pytest.mark.slow


def run(*command, folder: Path, ok: int = 0) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == ok, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """By way of the sdist, so that both are complete. Built in a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", folder=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", "wheels", sdist, folder=source)
    (built,) = (source / "wheels").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a new environment. It holds the wheel alone and borrows what the wheel depends on."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, symlinks=os.name != "nt")
    paths = {"base": str(home), "platbase": str(home)}
    programs = Path(sysconfig.get_path("scripts", vars=paths))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(programs / "python"))
    run(*pip, "install", "--no-deps", "--no-index", wheel, folder=home)
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(sysconfig.get_path("purelib", vars=paths), "borrowed.pth").write_text("\n".join(borrowed))
    return programs


def test_it_holds_what_running_needs_and_no_more(wheel):
    assert wheel.stat().st_size < 60 * MEGA
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [f for top in ("vtc_demo", "assets") for f in (ROOT / top).rglob("[!.]*") if f.is_file()]
    wanted = {f.relative_to(ROOT) for f in files if "__pycache__" not in f.parts and not f.match("screenshot*")}
    assert held == {(path if path.parts[0] == "vtc_demo" else "vtc_demo" / path).as_posix() for path in wanted}


def test_it_compares_from_another_folder(installed, tmp_path):
    where = run(installed / "python", "-c", "import vtc_demo; print(vtc_demo.__file__)", folder=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)
    shell = (installed / "python", "-m", "vtc_demo", "compare", *METHODS, "--scene", "0", "--json")
    found = json.loads(run(*shell, folder=tmp_path).stdout)
    scene = vtc.world.sample(seed=0)
    here = vtc.compare(vtc.load_vlm("embedded"), scene.image, scene.questions[0].text, METHODS)
    assert [(r["answer"], r["flops"]["total"]) for r in found["runs"]] == [
        (r.answer, r.flops["total"]) for r in here.runs
    ]
    assert "fastv" in run(installed / "vtc-demo", "methods", folder=tmp_path).stdout


def test_it_serves_the_page(installed, tmp_path):
    """Building and launching read the styles, scripts, dictionaries and records."""
    assert run(installed / "python", "-c", PAGE, folder=tmp_path).stdout.split()[-1] == "200"


def test_a_space_needs_a_checkout_and_says_so(installed, tmp_path):
    error = run(installed / "vtc-demo", "space", "docker", "new", folder=tmp_path, ok=2).stderr
    assert "a Space is written from a checkout" in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
