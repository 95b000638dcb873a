"""Starts `app.py` of a folder in a process of its own and waits until it answers."""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from gradio_client import Client

SECONDS = 240  # a laptop needs ten; a shared machine many more


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def page(command: list[str], port: int, folder: Path, env: dict[str, str], log: Path):
    """The client of the page that `command` serves; the process and its children are ended afterwards."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield client(process, port, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def client(process: subprocess.Popen, port: int, log: Path) -> Client:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return Client(f"http://127.0.0.1:{port}", verbose=False, httpx_kwargs={"timeout": SECONDS})
        time.sleep(0.2)
    raise AssertionError(f"nothing answers on port {port} after {SECONDS} s:\n{log.read_text()[-4000:]}")
