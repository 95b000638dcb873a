"""The shipped model: loads with plain transformers offline, answers as recorded, and its table is the record."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc_demo as vtc
from vtc_demo.evaluation import page as part
from vtc_demo.evaluation.accuracy import evaluate, markdown

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "assets" / "models" / "embedded"
RECORD = ROOT / "assets" / "measurements" / "embedded_accuracy.json"


@pytest.fixture(scope="module")
def vlm():
    return vtc.load_vlm("embedded")


@pytest.mark.slow
def test_plain_transformers_gives_the_engine_s_answers(vlm):
    processor = AutoProcessor.from_pretrained(FOLDER, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, local_files_only=True, dtype=torch.float32).eval()
    for seed in range(3):
        scene = vtc.world.sample(seed=seed)
        for question in scene.questions[:4]:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(images=scene.image, text=prompt, return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert vtc.run(vlm, scene.image, question.text, method="full").token_ids == out.tolist()


def test_geometry_is_that_of_llava_15(vlm):
    shape = vlm.shape
    assert (shape.grid, shape.patch_size, shape.has_cls) == ((24, 24), 14, True)
    assert shape.feature_layer == shape.vision_layers - 2 and shape.llm_layers >= 6


def test_no_file_above_10_mb():
    files = [f for f in (ROOT / "assets").rglob("*") if f.is_file()]
    assert files and max(f.stat().st_size for f in files) < 10_000_000


@pytest.mark.slow
def test_accuracy_is_the_recorded_one(vlm):
    recorded = json.loads(RECORD.read_text())["rows"][0]["all"]
    assert recorded["n"] >= 2000
    fresh = evaluate(vlm, [vtc.registry.resolve("full")], 160, progress=False)["rows"][0]["all"]
    assert fresh["low"] <= recorded["high"] and fresh["high"] >= recorded["low"], "the record is of another model"


@pytest.mark.parametrize(
    ("page", "record"), [("README.md", RECORD.name), ("docs/accuracy.md", "embedded_64_tokens.json")]
)
def test_pages_show_the_records(page, record):
    table = part.read(ROOT / page, "accuracy")
    assert table == markdown(json.loads((RECORD.parent / record).read_text())).strip()
