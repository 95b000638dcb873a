"""`compare`: its table, its JSON, its picture and question, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from vtc_demo import registry, world
from vtc_demo.cli import main, parser
from vtc_demo.cli.compare import picture_and_question

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(tmp_path):
    """A folder with a method of somebody's own."""
    text = (ROOT / "vtc_demo" / "methods" / "template.py").read_text(encoding="utf-8")
    (tmp_path / "shell.py").write_text(text.replace('name="mine"', 'name="shell_norm"'), encoding="utf-8")
    yield tmp_path
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
def test_methods_of_a_folder(files, own, capsys, option):
    assert main(args(files, "shell_norm@0.5", option, own, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["visual_tokens"] == 18
    assert main(["methods", "--json", option, str(own)]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert cards["shell_norm"]["parameters"][1]["name"] == "power"
    assert {"full", "fastv"} <= set(cards)


def test_the_list_of_methods(capsys, refused):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "fastervlm" in out and "retention=0.25 (0.01 to 1.0)" in out
    for option in ("--methods", "--methods-dir"):
        assert "no folder" in refused("methods", option, "nowhere")


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
            "--max-new-tokens",
        ),
        (["compare", "--scene", "0", "--model", "MODEL", "--question", "what", "--seed", "-4"], "seed"),
        (["compare", "--scene", "0", "--device", "teapot", "--model", "MODEL"], "device"),
    ],
)
def test_bad_input(files, refused, given, message):
    places = {"IMAGE": files / "image.png", "TEXT": files / "text.png", "MODEL": files / "model"}
    assert message in refused(*(places.get(g, g) for g in given))


def test_equal_cost(files, capsys, refused):
    given = args(files, "full", "fastv", "--match", "equivalent tokens", "--tokens")
    assert main([*given, "9"]) == 0
    out = capsys.readouterr().out
    assert "FastV: 18.5 tokens on average, asked for 9 tokens on average; cannot go below 18.5" in out
    assert main([*given, "9", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["match"]["tokens"] == 9 and record["runs"][1]["matched"]["reached"] == 18.5
    assert "this picture has 36" in refused(*given, "99")


def test_the_answer_is_known_for_questions_of_the_scene():
    scene = world.sample(seed=3)
    first, second = scene.questions[:2]
    read = lambda *more: picture_and_question(parser(["compare"]).parse_args(["compare", "--scene", "3", *more]))  # noqa: E731
    assert read()[1:] == (first.text, first.answer)
    assert read("--question", f" {second.text.upper()} ")[2] == second.answer
    assert read("--question", "is it art")[1:] == ("is it art", None)
    assert read()[0].tobytes() == scene.image.tobytes()


@pytest.mark.slow
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
