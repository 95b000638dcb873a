"""Our functions against recorded outputs of the released codes: indices exactly, floats to 1e-4.

Recordings are in tests/data; more are read from shared/goldens beside the repository if there is such a folder.
"""

import json
from pathlib import Path

import pytest
import torch
from adapters import ADAPTERS, RECORDED
from safetensors import safe_open

from vtc_demo.registry import list_methods

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "tests" / "data", ROOT.parent / "shared" / "goldens")
RECORDINGS = [
    pytest.param(file, id=f"{file.stem}-{folder.name}")
    for folder in FOLDERS
    for file in sorted(folder.glob("*.safetensors"))
    if file.stem in ADAPTERS
]


def load(file):
    """inputs, hp, outputs of a recording; scalar outputs are in its metadata."""
    with safe_open(file, "pt") as f:
        golden = json.loads(f.metadata()["golden"])
        tensors = {key: f.get_tensor(key) for key in list(f.keys())}
    everything = {**tensors, **golden["values"]}
    inputs, outputs = (
        {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}
        for prefix in ("inputs.", "outputs.")
    )
    return inputs, golden["hp"], outputs


@pytest.mark.parametrize("file", RECORDINGS)
def test_matches_the_released_code(file):
    inputs, hp, recorded = load(file)
    before = {k: v.clone() for k, v in inputs.items()}
    ours = ADAPTERS[file.stem](inputs, hp)
    assert set(ours) == set(recorded)
    for name, expected in recorded.items():
        expected, got = torch.as_tensor(expected), torch.as_tensor(ours[name])
        tolerance = 1e-4 if expected.is_floating_point() else 0
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert all(torch.equal(v, before[k]) for k, v in inputs.items())


def test_every_adapter_has_a_recording_in_the_repository():
    assert {f.stem for f in FOLDERS[0].glob("*.safetensors")} >= set(ADAPTERS)


def test_a_claim_of_equality_with_released_code_is_backed_by_a_recording():
    """Of methods that need no training; trained connectors are held to transformers' classes in test_connectors."""
    claimed = {c.name for c in list_methods() if c.training_free and c.faithfulness == "matches released code"}
    assert claimed
    assert claimed <= RECORDED
