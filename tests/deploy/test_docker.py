"""The Dockerfile, replayed step by step in a folder, then asked for the page. What that covers: docs/deploy.md."""

import json
from pathlib import Path

import boot
import dockerfile
import pytest
from packaging.version import Version

from vtc_demo.deploy import spaces

pytestmark = pytest.mark.slow  # every step of the Dockerfile is played
ROOT = Path(__file__).resolve().parents[2]
HOME = Path("home/user/app")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Every step of the repository's Dockerfile but the last."""
    return dockerfile.Replay(ROOT, tmp_path_factory.mktemp("image")).run()


def test_it_is_what_a_docker_space_runs(built):
    name, _, tag = built.image.partition(":")
    assert name == "python" and Version(tag.split("-")[0]) >= Version("3.11")
    assert (built.user, (built.root / "passwd").read_text()) == ("user", "user:1000\n")
    assert built.cwd == built.root / HOME
    assert built.ports == [spaces.PORT]
    assert built.cmd == ["python", "app.py", "--host", "0.0.0.0", "--port", str(spaces.PORT)]


def test_the_image_holds_what_serves_and_not_what_develops(built):
    app = built.root / HOME
    for path in (
        "app.py",
        "vtc_demo/ui/static/page.css",
        "assets/models/embedded/model.safetensors",
        "requirements.txt",
    ):
        assert (app / path).read_bytes() == (ROOT / path).read_bytes()
    assert not any((app / path).exists() for path in ("tests", ".git", ".ci", "Dockerfile", ".pytest_cache"))
    assert not [path for path in app.rglob("*") if path.name == "__pycache__"]


def test_a_step_that_fails_fails_the_build(tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    (context / ".dockerignore").write_text("")
    (context / "requirements.txt").write_text("torch==0.0.1\n")
    start = "FROM python:3.12-slim\nRUN useradd -m -u 1000 user\nUSER user\nWORKDIR /home/user/app\n"
    for number, (step, message) in enumerate(
        (
            ("COPY --chown=user requirements.txt .\nRUN pip install --user -r requirements.txt", "torch==0.0.1"),
            ("COPY requirements.txt .", "must belong to user"),
            ("RUN useradd somebody", "useradd somebody"),
            ("USER somebody", "no user somebody"),
        )
    ):
        (context / "Dockerfile").write_text(f"{start}{step}\n")
        with pytest.raises(AssertionError, match=message):
            dockerfile.Replay(context, tmp_path / str(number)).run()
    (context / "Dockerfile").write_text(f"{start}ONBUILD RUN true\n")
    with pytest.raises(ValueError, match="cannot replay ONBUILD"):
        dockerfile.Replay(context, tmp_path / "last").run()


def test_the_docker_space_serves_and_says_which_model_it_could_not_load(tmp_path):
    """The written Space, built by its own Dockerfile, with a model that a public Space does not offer."""
    spaces.write("docker", tmp_path / "space")
    image = dockerfile.Replay(tmp_path / "space", tmp_path / "image").run()
    port, env = boot.free_port(), image.shell_env() | {"SPACE_ID": "owner/space", "VTC_MODEL": "someone/else"}
    command = [str(port) if part == str(spaces.PORT) else part for part in image.cmd]
    command[0] = str(image.bin / command[0])
    with boot.page(command, port, image.cwd, env, tmp_path / "log") as client:
        shown = json.dumps(client.config, ensure_ascii=False)
        assert "The embedded model is running in place of someone/else. The app does not offer" in shown
        found = client.predict("How many objects are there?", ["full", "pool@0.25"], 3, None, api_name="/compare")
        assert [run["visual_tokens"] for run in found["runs"]] == [576, 144]
    log = (tmp_path / "log").read_text()
    assert f"http://0.0.0.0:{port}" in log and log.count("in place of someone/else") == 1
