"""`python -m lessons check`: is this machine ready for a workshop? One line per fact, with the way out where one fails."""

from __future__ import annotations

import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LESSONS = Path(__file__).resolve().parents[1]
ROOT = LESSONS.parent


def main() -> int:
    """Print the findings; 0 if all is well."""
    fine = True
    for name, look in LOOKS.items():
        try:
            print(f"✓ {name}: {look()}")
        except Exception as error:  # whatever is wrong with somebody's machine, the other facts are still told
            fine = False
            print(f"✗ {name}: {error}")
    print("Ready." if fine else "Not ready: see lessons/README.md, Troubleshooting.")
    return 0 if fine else 1


def python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 (the package needs it, and somebody may have an older one)
        raise RuntimeError(f"{sys.version.split()[0]} is too old; make the environment with Python 3.11 or newer")
    return sys.version.split()[0]


def packages() -> str:
    """The pinned packages are there, in any version."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line)
    found, missing = {}, []
    for name in pins:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise RuntimeError(f"{', '.join(missing)} missing; run: pip install -r requirements.txt")
    other = [f"{name} {v} (pinned {pins[name]})" for name, v in found.items() if v.split("+")[0] != pins[name]]
    return f"{len(found)} installed" + (f"; other versions than pinned: {', '.join(other)}" if other else "")


def model() -> str:
    """The embedded VLM answers a question."""
    import vtc_demo as vtc
    from vtc_demo.cli.common import quiet

    quiet()
    began = time.perf_counter()
    vlm, scene = vtc.load_vlm("embedded"), vtc.world.sample(seed=0)
    question = scene.questions[0]
    run = vtc.run(vlm, scene.image, question.text)
    return f"{question.text} -> {run.answer} ({time.perf_counter() - began:.1f} s)"


def kernel() -> str:
    """A notebook runs, and finds the package from the folder of the lessons."""
    from nbformat.v4 import new_code_cell, new_notebook

    from .execute import run
    from .notebook import SETUP

    lines = "import vtc_demo\nfrom lessons import kit\nprint('ok')"
    made = run(new_notebook(cells=[new_code_cell(SETUP), new_code_cell(lines)]))
    if "ok" not in made.cells[1].outputs[-1].get("text", ""):
        raise RuntimeError("a notebook ran but did not answer; reinstall jupyterlab")
    return "a notebook runs and imports vtc_demo"


def figures() -> str:
    """JupyterLab knows how to draw plotly."""
    import plotly
    from jupyter_core.paths import jupyter_path

    if not any(Path(folder, "jupyterlab-plotly").is_dir() for folder in jupyter_path("labextensions")):
        raise RuntimeError("JupyterLab lacks the plotly extension; reinstall plotly in the environment of JupyterLab")
    return f"plotly {plotly.__version__} with its JupyterLab extension"


LOOKS = {"Python": python, "packages": packages, "embedded model": model, "notebooks": kernel, "figures": figures}
