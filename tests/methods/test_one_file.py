"""A new method, a new family of methods and a new connector are new files and nothing else: no test fails of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEW = ROOT / "tests" / "standins" / "one_file"  # laid out as vtc_demo is
COPIED = ("vtc_demo", "tests", "docs", "README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "app.py", "pyproject.toml")
CORE = (
    "tests/core", "tests/methods", "tests/connectors", "tests/atlas", "tests/evaluation", "tests/test_readme.py",
    "tests/ui/test_language.py", "tests/ui/test_share.py", "tests/ui/test_own_method.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the new files in it."""
    home = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        part = ROOT / name
        shutil.copytree(part, home / name) if part.is_dir() else shutil.copy(part, home / name)
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, home)
    for name in ("assets", "lessons"):
        (home / name).symlink_to(ROOT / name)
    shutil.copytree(NEW, home / "vtc_demo", dirs_exist_ok=True)
    return home


def run(copy, *args):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *args], cwd=copy, env=env, capture_output=True, encoding="utf-8", check=False
    )


@pytest.mark.slow
def test_they_are_found(copy):
    code = (
        "import json, vtc_demo as vtc; print(json.dumps([vtc.__file__, [c.name for c in vtc.list_methods()], "
        "list(vtc.registry.trained()), vtc.registry.problems]))"
    )
    file, listed, trained, problems = json.loads(run(copy, "-c", code).stdout)
    assert Path(file).is_relative_to(copy) and not problems
    assert {"norms", "keep-first", "keep-last"} <= set(listed)
    assert "every-other" in trained and "every-other" not in listed, "without weights it is no choice"


@pytest.mark.slow
def test_no_test_fails_of_them(copy):
    done = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser", *CORE)
    assert done.returncode == 0, done.stdout[-4000:]
    held = run(copy, "-m", "pytest", "--collect-only", "tests/methods/test_methods.py").stdout
    assert all(held.count(f"-{new}]") > 4 for new in ("norms", "keep-first")), "the contract's tests take them in"
