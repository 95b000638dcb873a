"""Whether torch.compile can make code here."""

import shutil

import pytest


def demand() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler on this machine")
