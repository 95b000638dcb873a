"""Comparisons: columns, events, errors, JSON. And loading models."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import vtc_demo as vtc
from vtc_demo import engine, registry
from vtc_demo.core.images import Pictures
from vtc_demo.models import loading

IMAGE = tiny.image()
STAGES = ("preprocess", "vision", "projector", "compression", "prefill", "decode")
COLUMNS = ["full", "fastervlm@0.25", "fastv@0.25", {"method": "pyramiddrop", "retention": 0.2}]


@pytest.fixture(scope="module")
def vlm():
    return tiny.vlm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model as files."""
    path, vlm = tmp_path_factory.mktemp("models") / "tiny", tiny.vlm()
    vlm.model.save_pretrained(path)
    vlm.processor.save_pretrained(path)
    return path


def test_columns_equal_single_runs(vlm):
    c = vtc.compare(vlm, IMAGE, tiny.QUESTION, COLUMNS, max_new_tokens=6)
    for run, column in zip(c.runs, COLUMNS):
        alone = vtc.run(vlm, IMAGE, tiny.QUESTION, column, max_new_tokens=6)
        assert run.token_ids == alone.token_ids
        assert run.flops == alone.flops
    assert c.question == tiny.QUESTION


def test_hyper_parameters_by_keyword(vlm):
    run = vtc.run(vlm, IMAGE, tiny.QUESTION, method="fastv", retention=0.5, layer=3)
    assert run.trace.schedule == [36, 36, 36, 18]
    assert vtc.run(vlm, IMAGE, tiny.QUESTION).method == registry.resolve("full")


def test_the_record(vlm):
    vlm.workspace.forget()
    c = vtc.compare(vlm, IMAGE, f"  {tiny.QUESTION} ", COLUMNS, max_new_tokens=4)
    record = json.loads(c.to_json())
    assert record == json.loads(json.dumps(c.to_dict()))
    assert set(record) == {"question", "model", "match", "runs", "environment"}
    assert record["question"] == tiny.QUESTION
    assert set(record["environment"]) >= {"device", "dtype", "torch", "transformers", "threads", "date"}
    full, early, late, pyramid = record["runs"]
    assert [r["vision_shared"] for r in record["runs"]] == [False, True, True, True]
    assert full["method"] == {"method": "full", "retention": 1.0} and full["title"] == "Full"
    assert (full["tokens0"], full["visual_tokens"], full["grid"]) == (36, 36, [6, 6])
    assert (early["visual_tokens"], early["schedule"], early["equivalent_tokens"]) == (9, [9] * 4, 9.0)
    assert (late["schedule"], late["equivalent_tokens"]) == ([36, 36, 9, 9], 22.5)
    assert [s["site"] for s in pyramid["sites"]] == ["projector", "llm_layer(1)", "llm_layer(2)", "llm_layer(3)"]
    for run in record["runs"]:
        assert run["error"] is None
        assert set(run["timings_ms"]) == {*STAGES, "ttft", "decode_per_token", "total"}
        assert run["flops"]["total"] == sum(v for k, v in run["flops"].items() if k != "total")
        assert len(run["kv_lengths"]) == 4
        for site in run["sites"]:
            assert len(site["status"]) == len(site["weight"]) == len(site["home"]) == 36
            assert site["counts"]["kept"] == site["status"].count(2) == site["tokens"]


def test_events(vlm):
    events = list(vtc.compare_events(vlm, IMAGE, tiny.QUESTION, COLUMNS[:2], max_new_tokens=3))
    assert events[0] == ("start", None, None, ["Full", "FasterVLM"])
    assert events[-1].kind == "done" and len(events[-1].data.runs) == 2
    for index in (0, 1):
        own = [e for e in events if e.index == index]
        assert own[-1].kind == "run" and own[-1].data is events[-1].data.runs[index]
        assert {e.method.card.name for e in own} == {("full", "fastervlm")[index]}
        texts = [e.data["text"] for e in own if e.kind == "token"]
        assert len(texts) == len(own[-1].data.token_ids) and texts[-1] == own[-1].data.answer
        stages = [e.data["stage"] for e in own if e.kind == "stage"]
        assert stages == [
            "preprocess",
            *(["vision"] if not own[-1].data.vision_shared else []),
            "projector",
            "prefill",
            "decode",
        ]


def test_a_column_that_fails_leaves_the_others(vlm):
    columns = ["full", {"method": "fastv", "layer": 9}, "random"]
    events = list(vtc.compare_events(vlm, IMAGE, tiny.QUESTION, columns, max_new_tokens=3))
    (error,) = [e for e in events if e.kind == "error"]
    assert error.index == 1 and "layer=9 does not exist" in error.data
    runs = events[-1].data.runs
    assert [bool(r.error) for r in runs] == [False, True, False]
    record = runs[1].to_dict()
    assert record["error"] == error.data and record["sites"] == [] and record["answer"] == ""
    assert set(record) == set(runs[0].to_dict())
    with pytest.raises(ValueError, match="layer=9"):
        vtc.run(vlm, IMAGE, tiny.QUESTION, columns[1])


def test_closing_a_comparison_stops_the_column(vlm):
    calls = []
    handle = vlm.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    events = vtc.compare_events(vlm, IMAGE, tiny.QUESTION, ["full", "random"], max_new_tokens=500)
    while next(events).kind != "token":
        pass
    before = len(calls)
    events.close()
    handle.remove()
    assert len(calls) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ["full", "fastw"]}, "unknown method 'fastw'; did you mean fastv"),
        ({"chosen": ["fastv@2"]}, "out of range"),
        ({"chosen": []}, "at least one"),
        ({"question": ""}, "question is empty"),
        ({"question": "what is the giraffe ?"}, "giraffe"),
        ({"image": b"nothing"}, "not an image"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_new_tokens": "3"}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_input_shows_before_the_first_event(vlm, change, message):
    given = {"image": IMAGE, "question": tiny.QUESTION, "chosen": ["full"]} | change
    with pytest.raises(ValueError, match=message):
        vtc.compare_events(vlm, given.pop("image"), given.pop("question"), given.pop("chosen"), **given)


def test_one_method_needs_no_list(vlm):
    for one in ("random", {"method": "random"}, registry.resolve("random")):
        assert [r.method.card.name for r in vtc.compare(vlm, IMAGE, tiny.QUESTION, one).runs] == ["random"]


def test_seeds(vlm):
    places = [vtc.run(vlm, IMAGE, tiny.QUESTION, "random", seed=s).trace.product().anchor.tolist() for s in (0, 0, 1)]
    assert places[0] == places[1] != places[2]


def test_what_the_model_sees(vlm):
    wide = tiny.image(side=84).resize((168, 84)).crop((0, 0, 168, 84))
    seen = vlm.seen(wide)
    assert seen.size == (84, 84)
    middle = wide.crop((42, 0, 126, 84))
    worst = max(abs(a - b) for a, b in zip(seen.tobytes(), middle.tobytes()))
    assert worst <= 1


def test_a_warm_up_leaves_nothing_behind():
    vlm = tiny.vlm()
    engine.warm_up(vlm)
    assert vlm.workspace.warm and vlm.workspace.get("encoded", Pictures.open(IMAGE).key) is None


# -- loading ------------------------------------------------------------------------------------------------------
def test_loading_a_folder(folder, vlm):
    loaded = vtc.load_vlm(folder)
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
    a, b = (vtc.run(x, IMAGE, tiny.QUESTION, "fastv").token_ids for x in (loaded, vlm))
    assert a == b
    assert vtc.load_vlm(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_half_precision_runs_every_method_without_weights_of_its_own(folder):
    vlm = vtc.load_vlm(folder, dtype=torch.bfloat16)
    names = [card.name for card in vtc.list_methods() if card.training_free]
    c = vtc.compare(vlm, IMAGE, tiny.QUESTION, names, max_new_tokens=3)
    assert [run.error for run in c.runs] == [None] * len(c.runs)
    assert c.environment["dtype"] == "bfloat16"
    assert c.runs[0].kv_bytes == sum(c.runs[0].kv_lengths) * 2 * 32 * 2


def edited(folder, tmp_path, **changes):
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (config[part] if part else config)[name] = value
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vipllava"}, "family is 'vipllava'"),
        ({"model_type": "no_such"}, "cannot load"),
        ({"vision_feature_layer": [-2, -3]}, "several vision layers"),
        ({"vision_feature_layer": -9}, "no layer of its tower"),
        ({"text_config__model_type": "gemma"}, "decoder is gemma"),
        ({"vision_config__model_type": "siglip_vision_model"}, "tower is siglip"),
        ({"text_config__hidden_size": 64}, "cannot load"),
    ],
)
def test_models_that_do_not_run_here(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        vtc.load_vlm(edited(folder, tmp_path, **changes))
    assert "LLaVA" in str(caught.value) and "\n" not in str(caught.value)


def test_broken_weights(folder, tmp_path):
    copy = edited(folder, tmp_path)
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if "q_proj" in n)
    save_file({k: v for k, v in weights.items() if k != name}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="weights are missing"):
        vtc.load_vlm(copy)
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot load"):
        vtc.load_vlm(copy)
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")  # a pickle is never read
    with pytest.raises(ValueError, match="cannot load"):
        vtc.load_vlm(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "nosuch"}, "unknown model 'nosuch'"),
        ({"name": "/no/such/folder"}, "unknown model"),
        ({"name": "owner/name"}, "cannot load owner/name"),
        ({"device": "teapot"}, "device 'teapot'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_loading_what_cannot_be_had(folder, options, message):
    with pytest.raises(ValueError, match=message):
        vtc.load_vlm(**({"name": folder} | options))


def test_a_checkout_without_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "EMBEDDED", tmp_path)
    with pytest.raises(ValueError, match="embedded model is missing"):
        vtc.load_vlm()


# -- the package --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_importing_the_package_is_quick_and_calms_threads():
    code = (
        "import os; [os.environ.pop(k, None) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')]\n"
        "import sys, vtc_demo as vtc\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])\n"
        "import vtc_demo.comparison\n"
        "assert callable(vtc.compare) and callable(vtc.run) and vtc.methods.FastV and vtc.world.sample\n"
        "assert set(vtc.__all__) <= set(dir(vtc))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["passive", "0"]
    with pytest.raises(AttributeError):
        vtc.no_such_name  # noqa: B018
