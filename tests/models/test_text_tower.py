"""A CLIP text tower beside a VLM, against CLIPModel's own features."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import tiny
import torch
from counting import counter
from oracle import Spy, card, close
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from vtc_demo import engine
from vtc_demo.core.tokens import Site
from vtc_demo.models import load_vlm
from vtc_demo.models.text_tower import TextTower

SITES = [Site("projector"), Site("llm_input"), Site("llm_layer", 1)]
LONG = "what is left of the red heart ? " * 8


def clip(width=32):
    torch.manual_seed(5)
    text = CLIPTextConfig(
        vocab_size=len(tiny.SPECIAL + tiny.WORDS),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=20,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)).eval()
    with torch.no_grad():  # so that words, and parts of the tower, count
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of the tiny VLM, of a CLIP model for its tower, and of one for another."""
    root = tmp_path_factory.mktemp("towers")
    vlm = tiny.vlm(eos=False)
    vlm.model.save_pretrained(root / "vlm")
    vlm.processor.save_pretrained(root / "vlm")
    for name, width in (("clip", 32), ("other", 48)):
        clip(width).save_pretrained(root / name)
        words = tiny.processor(84).tokenizer
        words.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def vlm(folders):
    return load_vlm(folders / "vlm", device="cpu", text_tower=folders / "clip")


def ids(tower, text):
    return torch.tensor([tower.tokenizer(text)["input_ids"][:20]])


def test_features_equal_those_of_the_clip_model(vlm):
    model, tower = clip(), vlm.text_tower
    with torch.no_grad():
        for text in (tiny.QUESTION, "the red key", "the blue key"):
            out = model.text_model(input_ids=ids(tower, text))
            features = model.get_text_features(input_ids=ids(tower, text))
            features = getattr(features, "pooler_output", features)[0]
            assert close(tower.sentence(text), normalize(features, dim=-1))
            expected = model.text_projection(out.last_hidden_state[0])
            assert close(tower.tokens(text), normalize(expected, dim=-1))
        patches = torch.randn(7, 32)
        expected = model.visual_projection(model.vision_model.post_layernorm(patches))
        assert close(tower.align(patches), normalize(expected, dim=-1))
        picture = torch.randn(1, 3, 28, 28)
        pooled = model.vision_model(picture)
        features = model.get_image_features(picture)
        features = getattr(features, "pooler_output", features)
        assert close(tower.align(pooled.last_hidden_state[:, 0]), normalize(features, dim=-1))
    assert not close(tower.sentence("the red key"), tower.sentence("the blue key"))


def test_a_long_question_is_cut(vlm):
    tower = vlm.text_tower
    assert len(tower.ids(LONG)) == 20 and tower.tokens(LONG).shape == (20, 16)
    assert torch.isfinite(tower.sentence(LONG)).all()


@dataclass(frozen=True)
class Watcher(Spy):
    card: ClassVar = card("watcher")


def watch(vlm, look, question=tiny.QUESTION, sites=SITES):
    method = Watcher(plan=dict.fromkeys(sites), look=look)
    return engine.run(vlm, tiny.image(), question, method, max_new_tokens=1)


def test_hooks_see_the_features_and_pay_once(vlm):
    """The text is read once per pass however often it is asked for; every projection of patches is booked."""
    tower, seen = vlm.text_tower, []

    def look(context):
        question = context.question
        seen.append(question.features)
        assert close(question.features, tower.sentence(tiny.QUESTION))
        assert close(question.token_features, tower.tokens(tiny.QUESTION))
        if context.site == SITES[0]:
            assert close(question.aligned(context.hidden), tower.align(context.hidden))

    run = watch(vlm, look)
    again = watch(vlm, look)
    assert len(seen) == 6 and run.flops["compression"] == again.flops["compression"]
    assert run.flops["compression"] == tower.flops(tiny.QUESTION) + tower.align_flops(37)
    assert watch(vlm, lambda context: None).flops["compression"] == 0
    with counter() as mode, torch.inference_mode():
        fresh = TextTower.__new__(TextTower)
        fresh.__dict__ |= tower.__dict__
        fresh._run(tiny.QUESTION)
        fresh.align(torch.randn(37, 32))
    assert run.flops["compression"] == mode.get_total_flops()


def test_a_model_without_one_says_what_to_do(folders):
    plain = load_vlm(folders / "vlm", device="cpu")
    asked = ("features", "token_features")
    for name in asked:
        with pytest.raises(ValueError, match=r"loaded without one; give load_vlm\(\.\.\., text_tower="):
            watch(plain, lambda context, name=name: getattr(context.question, name))
    with pytest.raises(ValueError, match="text tower"):
        watch(plain, lambda context: context.question.aligned(context.hidden))


def test_towers_that_cannot_be_had(folders, tmp_path):
    with pytest.raises(ValueError, match="other is a CLIP model for 48 wide vision features, the model's tower has 32"):
        load_vlm(folders / "vlm", device="cpu", text_tower=folders / "other")
    with pytest.raises(ValueError, match=r"unknown model .*nowhere"):
        load_vlm(folders / "vlm", device="cpu", text_tower=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"cannot load .*empty"):
        load_vlm(folders / "vlm", device="cpu", text_tower=tmp_path / "empty")
    with pytest.raises(ValueError, match="it is no CLIP model; its family is 'llava'"):
        load_vlm(folders / "vlm", device="cpu", text_tower=folders / "vlm")
    part = clip()
    kept = {name: value for name, value in part.state_dict().items() if not name.startswith("text_projection")}
    part.save_pretrained(tmp_path / "part", state_dict=kept)
    tiny.processor(84).tokenizer.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match="weights are missing, among them text_projection"):
        load_vlm(folders / "vlm", device="cpu", text_tower=tmp_path / "part")
