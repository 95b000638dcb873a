"""Replays a Dockerfile in a folder that stands for the container's file system, with the packages of this environment.

What is executed: WORKDIR, ENV, ARG, COPY (through .dockerignore), and RUN as the shell commands that they are, with two
commands replaced. `useradd` makes the home folder and the name that COPY --chown asks for. `pip install` runs with
--no-index: every pinned requirement must be in place already, and nothing is downloaded. What is not: FROM's image, and
the change of user, for which a container is needed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

INSTRUCTIONS = {"FROM", "RUN", "USER", "ENV", "WORKDIR", "ARG", "COPY", "EXPOSE", "CMD"}
USERADD = """#!/bin/sh
# useradd -m -u ID NAME
[ "$1 $2" = "-m -u" ] && [ $# = 4 ] || exit 64
mkdir -p "$ROOT/home/$4" && echo "$4:$3" >> "$ROOT/passwd"
"""
PIP = """#!/bin/sh
[ "$1" = install ] || exit 64
shift
for a; do shift; [ "$a" = --user ] || set -- "$@" "$a"; done
exec "PYTHON" -m pip --disable-pip-version-check install --no-index "$@"
"""
PYTHON = """#!/bin/sh
exec "PYTHON" "$@"
"""


def parse(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continuation lines joined. Raises ValueError for an unknown instruction."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    steps = [tuple(line.split(None, 1)) for line in joined.splitlines()]
    for word, _ in steps:
        if word not in INSTRUCTIONS:
            raise ValueError(f"cannot replay {word}")
    return steps


class Replay:
    """context: the folder that is built. root: an empty folder. After `run`: cwd, env, user, ports and cmd."""

    def __init__(self, context: Path, root: Path):
        self.context, self.root = context, root
        self.cwd, self.user, self.ports, self.cmd = root, "root", [], None
        self.env: dict[str, str] = {"PATH": os.environ["PATH"]}
        self.args: dict[str, str] = {}
        self.image = ""
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        for name, text in (("useradd", USERADD), ("pip", PIP), ("python", PYTHON)):
            (self.bin / name).write_text(text.replace("PYTHON", sys.executable))
            (self.bin / name).chmod(0o755)

    def run(self) -> "Replay":
        for word, rest in parse((self.context / "Dockerfile").read_text()):
            getattr(self, f"do_{word.lower()}")(self.fill(rest) if word not in ("RUN", "CMD") else rest)
        return self

    def fill(self, text: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda m: self.env.get(m[1], self.args.get(m[1], "")), text)

    def inside(self, path: str) -> Path:
        """Where a path of the container lies."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.cwd / path

    def shell_env(self) -> dict[str, str]:
        """The container's variables, its paths moved under the root; the commands above come first."""
        moved = {k: re.sub(r"(?<![\w/])/home/", f"{self.root}/home/", v) for k, v in self.env.items()}
        moved["PATH"] = f"{self.bin}{os.pathsep}{moved['PATH']}"
        return moved | self.args | {"ROOT": str(self.root)}

    # -- one function per instruction ---------------------------------------------------------------------------------
    def do_expose(self, rest):
        self.ports.append(int(rest))

    def do_cmd(self, rest):
        self.cmd = json.loads(rest)

    def do_arg(self, rest):
        name, _, value = rest.partition("=")
        self.args[name] = value

    def do_env(self, rest):
        for name, value in re.findall(r"(\w+)=(\S+)", rest):
            self.env[name] = value

    def do_from(self, rest):
        self.image = rest

    def do_user(self, rest):
        known = (self.root / "passwd").read_text().split() if (self.root / "passwd").exists() else []
        assert any(entry.split(":")[0] == rest for entry in known), f"no user {rest}"
        self.user = rest

    def do_workdir(self, rest):
        self.cwd = self.inside(rest)
        self.cwd.mkdir(parents=True, exist_ok=True)

    def do_run(self, rest):
        done = subprocess.run(["sh", "-c", rest], cwd=self.cwd, env=self.shell_env(), capture_output=True, text=True)
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def do_copy(self, rest):
        *flags, source, target = rest.split()
        assert flags == [f"--chown={self.user}"], f"COPY {rest}: files must belong to {self.user}"
        origin, goal = self.context / source, self.inside(target)
        if origin.is_dir():
            shutil.copytree(origin, goal, ignore=self.ignored, dirs_exist_ok=True)
        else:
            shutil.copy(origin, goal)

    def ignored(self, folder: str, names: list[str]) -> set[str]:
        """Those of a folder that .dockerignore keeps out."""
        rules = [line for line in (self.context / ".dockerignore").read_text().splitlines() if line.strip()]
        base = Path(folder).relative_to(self.context)
        return {n for n in names if any(_hits(rule, (base / n).as_posix()) for rule in rules)}


def _hits(rule: str, path: str) -> bool:
    if rule.startswith("**/"):
        return fnmatch(path.rsplit("/", 1)[-1], rule[3:])
    return fnmatch(path, rule)
