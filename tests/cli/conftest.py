"""What the tests of several commands need."""

import pytest
import tiny
import torch

from vtc_demo.cli import main
from vtc_demo.training import build


@pytest.fixture(scope="package")
def files(tmp_path_factory):
    """A folder with a tiny model of 36 visual tokens, an image, and a file that is none."""
    path, vlm = tmp_path_factory.mktemp("cli"), tiny.vlm()
    vlm.model.save_pretrained(path / "model")
    vlm.processor.save_pretrained(path / "model")
    tiny.image().save(path / "image.png")
    (path / "text.png").write_text("no image")
    return path


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    """A folder with the embedded model's geometry, 576 visual tokens, and random weights."""
    torch.manual_seed(0)
    processor = build.build_processor()
    out = tmp_path_factory.mktemp("model")
    build.save(build.build_model(processor), processor, out)
    return out


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns its one line on stderr."""

    def run(*argv) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert left.value.code == 2 and out == ""
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    return run
