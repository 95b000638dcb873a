"""The shell: tables, JSON, and one line of error with exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from vtc_demo import registry, world
from vtc_demo.__main__ import main, parser, picture_and_question

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a tiny model, an image, a file that is none, and a folder of methods."""
    path, vlm = tmp_path_factory.mktemp("cli"), tiny.vlm()
    vlm.model.save_pretrained(path / "model")
    vlm.processor.save_pretrained(path / "model")
    tiny.image().save(path / "image.png")
    (path / "text.png").write_text("no image")
    (path / "own").mkdir()
    text = (ROOT / "vtc_demo" / "methods" / "template.py").read_text(encoding="utf-8")
    (path / "own" / "shell.py").write_text(text.replace('name="mine"', 'name="shell_norm"'), encoding="utf-8")
    yield path
    registry._classes.pop("shell_norm", None)  # the tests that follow know nothing of it


def args(files, *more):
    base = ["compare", "--model", files / "model", "--image", files / "image.png", "--question", tiny.QUESTION]
    return [str(a) for a in (*base, *more)]


def test_the_table(files, capsys):
    assert main(args(files, "full", "fastv@0.25", "--max-new-tokens", "4")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"question: {tiny.QUESTION}")
    assert [line.split()[0] for line in out[2:4]] == ["full@1", "fastv@0.25"]
    assert " 9 " in out[3]


def test_json_and_both_ways_to_name_methods(files, capsys):
    assert main(args(files, "full", "--methods", "random@0.5", "uniform", "--json", "--seed", "3")) == 0
    record = json.loads(capsys.readouterr().out)
    assert [r["method"]["method"] for r in record["runs"]] == ["full", "random", "uniform"]
    assert [r["visual_tokens"] for r in record["runs"]] == [36, 18, 9]
    assert record["expected"] is None


def test_default_methods(files, capsys):
    assert main(args(files, "--json")) == 0
    names = [r["method"]["method"] for r in json.loads(capsys.readouterr().out)["runs"]]
    assert names == ["full", "random", "fastervlm", "fastv"]


@pytest.mark.parametrize("option", ["--methods", "--methods-dir"])
def test_methods_of_a_folder(files, capsys, option):
    assert main(["methods", "--json", option, str(files / "own")]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert cards["shell_norm"]["parameters"][1]["name"] == "power"
    assert {"full", "fastv"} <= set(cards)
    assert main(args(files, "shell_norm@0.5", option, files / "own", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["visual_tokens"] == 18


def test_the_list_of_methods(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "fastervlm" in out and "retention=0.25 (0.01 to 1.0)" in out


def test_a_column_that_fails_is_shown_and_all_of_them_are_an_error(files, capsys):
    deep = args(files, "full", "fastv", "--max-new-tokens", "2")
    assert main(deep) == 0
    shallow = tiny.config(layers=2)
    assert shallow.text_config.num_hidden_layers == 2
    path = files / "shallow"
    shutil.copytree(files / "model", path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (path / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["compare", "full", "pyramiddrop", "--model", str(path), *deep[3:7]]) == 0
    assert "need at least 4 decoder layers" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["compare", "pyramiddrop", "--model", str(path), *deep[3:7]])
    assert left.value.code == 2
    assert "need at least 4 decoder layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["compare"], "either --image FILE or --scene SEED"),
        (["compare", "--image", "a.png", "--scene", "0"], "either --image FILE or --scene SEED"),
        (["compare", "--image", "IMAGE"], "--question"),
        (["compare", "--image", "none.png", "--question", "what"], "no image file"),
        (["compare", "--image", "TEXT", "--question", "what"], "text.png is not an image"),
        (["compare", "--scene", "-1"], "seed must be"),
        (["compare", "--scene", "one"], "invalid int"),
        (["compare", "fastw", "--scene", "0"], "did you mean fastv"),
        (["compare", "fastv@9", "--scene", "0"], "out of range"),
        (["compare", "--scene", "0", "--model", "nosuch"], "unknown model"),
        (["compare", "--scene", "0", "--model", "MODEL", "--question", "what is the giraffe"], "giraffe"),
        (
            ["compare", "--scene", "0", "--model", "MODEL", "--question", "what", "--max-new-tokens", "0"],
            "max_new_tokens",
        ),
        (["compare", "--scene", "0", "--model", "MODEL", "--question", "what", "--seed", "-4"], "seed"),
        (["compare", "--scene", "0", "--device", "teapot", "--model", "MODEL"], "device"),
        (["methods", "--methods-dir", "nowhere"], "no folder"),
        (["methods", "--methods", "nowhere"], "no folder"),
        (["paint"], "invalid choice"),
        ([], "required"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(files, capsys, given, message):
    places = {"IMAGE": files / "image.png", "TEXT": files / "text.png", "MODEL": files / "model"}
    with pytest.raises(SystemExit) as left:
        main([str(places.get(g, g)) for g in given])
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_train_has_its_own_options(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    assert "--folder" in capsys.readouterr().out


def test_the_answer_is_known_for_questions_of_the_scene():
    scene = world.sample(seed=3)
    first, second = scene.questions[:2]
    read = lambda *more: picture_and_question(parser().parse_args(["compare", "--scene", "3", *more]))  # noqa: E731
    assert read()[1:] == (first.text, first.answer)
    assert read("--question", f" {second.text.upper()} ")[2] == second.answer
    assert read("--question", "is it art")[1:] == ("is it art", None)
    assert read()[0].tobytes() == scene.image.tobytes()


def test_as_a_module(files, tmp_path):
    """From any folder; nothing but the result on stdout and nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "vtc_demo", *args(files, "full", "--json", "--max-new-tokens", "2")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["runs"]) == 1
