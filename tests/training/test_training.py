"""The recipe of the embedded VLM: training computes what the transformers class computes, and resumes exactly."""

from functools import partial

import numpy as np
import pytest
import torch

from vtc_demo import world
from vtc_demo.training import build
from vtc_demo.training.data import IGNORE, DenseScenes, PackedQuestions, loader, normalise, window_positions
from vtc_demo.training.loop import Stage, run_stage
from vtc_demo.training.muon import build_optimizer, orthogonalise
from vtc_demo.training.objectives import AnswerObjective, DenseObjective


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    processor = build.build_processor()
    return build.build_model(processor).eval(), processor


def answer_objective(model, processor):
    images = processor.image_processor
    return AnswerObjective(model, images.image_mean, images.image_std, processor.tokenizer.encode("user:"))


def test_packed_training_computes_what_the_transformers_model_computes(parts):
    model, processor = parts
    data = PackedQuestions(5, 1, 24, processor.tokenizer, split="eval")
    batch = next(iter(loader(data, 1, 0)))
    objective = answer_objective(model, processor)
    with torch.no_grad():
        pixels = normalise(batch["pixels"], objective.mean, objective.std)
        features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        packed = model.lm_head(objective.decode(objective.projector(features), batch)[0])[0]
    scene = world.sample(5, split="eval", size=336)
    inputs = processor(images=scene.image, text="user: <image>", return_tensors="pt")
    for number in (0, 3):
        here = (batch["block"][0] == number).nonzero().flatten()
        ids = torch.cat([inputs["input_ids"], batch["ids"][:, here]], 1)
        with torch.no_grad():
            alone = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]
            ).logits
        torch.testing.assert_close(packed[here], alone[0, -len(here) :], atol=2e-4, rtol=1e-3)


def test_prompt_of_training_is_the_chat_template(parts):
    processor = parts[1]
    data = PackedQuestions(5, 1, 24, processor.tokenizer, split="eval")
    item, question = data[0], world.ask(world.sample(5, split="eval"), np.random.default_rng(5), n=24)
    tokens = processor.tokenizer
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a heart?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = tokens(text).input_ids
    assert ids == tokens.encode("user:") + [4] + data.encode("Is there a heart?") + data.encode("assistant:")
    first = item["ids"][item["block"] == 0]
    assert question, "the scene has questions"
    assert tokens.unk_token_id not in first


def test_targets_spell_the_answers(parts):
    tokens = parts[1].tokenizer
    item = PackedQuestions(11, 1, 12, tokens)[0]
    for number in range(item["block"].max() + 1):
        target = item["target"][item["block"] == number]
        spelled = target[target != IGNORE]
        assert spelled[-1] == tokens.eos_token_id and tokens.eos_token_id not in spelled[:-1]
        assert tokens.decode(spelled[:-1])


def test_tokenizer_round_trip_and_unknown_words(parts):
    tokens = parts[1].tokenizer
    for text in ("407", "10", "red", "how many hearts do you see?"):
        assert tokens.decode(tokens.encode(text, add_special_tokens=False)) == text
    assert tokens.unk_token_id in tokens.encode("Is there a giraffe?")
    assert tokens.unk_token_id not in tokens.encode("  IS there\na   Heart ?")


def test_window_positions_are_a_square_of_the_grid():
    places = window_positions(12, np.random.default_rng(3)).reshape(12, 12)
    rows, cols = places // 24, places % 24
    assert (np.diff(rows, axis=0) == 1).all() and (np.diff(cols, axis=1) == 1).all() and places.max() < 576


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.4


def test_adamw_part_equals_torch():
    torch.manual_seed(0)
    mine = torch.nn.Linear(5, 3)
    theirs = torch.nn.Linear(5, 3)
    theirs.load_state_dict(mine.state_dict())
    a = build_optimizer(mine, 1e-2)
    b = torch.optim.AdamW(
        [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01,
    )  # fmt: skip
    for _ in range(4):
        x = torch.randn(7, 5)
        for net, opt in ((mine, a), (theirs, b)):
            opt.zero_grad()
            net(x).square().sum().backward()
            opt.step()
    torch.testing.assert_close(mine.weight, theirs.weight)
    torch.testing.assert_close(mine.bias, theirs.bias)


@pytest.mark.slow
def test_stopping_and_resuming_gives_the_same_weights(tmp_path):
    def train(folder, stops):
        torch.manual_seed(0)
        processor = build.build_processor()
        model = build.build_model(processor)
        images = processor.image_processor
        objective = DenseObjective(model.model.vision_tower, images.image_mean, images.image_std)
        for at in stops:
            data = partial(stop_at, at=at) if at < 4 else lambda start, length: DenseScenes(start, length, 8)
            stage = Stage("t", 4, 2, 1e-3, data, warmup=2, log_every=2)
            try:
                run_stage(stage, objective, folder, workers=0)
            except KeyboardInterrupt:
                assert at < 4
        return {k: v.clone() for k, v in objective.state_dict().items()}

    whole, resumed = train(tmp_path / "a", [4]), train(tmp_path / "b", [2, 4])
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def stop_at(start, length, at):
    class Interrupted(DenseScenes):
        def __getitem__(self, i):
            if (self.start + i) // 2 >= at:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    return Interrupted(start, length, 8)


@pytest.mark.slow
def test_a_few_steps_lower_both_losses(parts, tmp_path):
    torch.manual_seed(0)
    processor = build.build_processor()
    model = build.build_model(processor)
    images = processor.image_processor
    dense = DenseObjective(model.model.vision_tower, images.image_mean, images.image_std)
    answers = answer_objective(model, processor)
    for objective, data in (
        (dense, DenseScenes(0, 4, 8)),
        (answers, PackedQuestions(0, 4, 8, processor.tokenizer, text=96)),
    ):
        batch = next(iter(loader(data, 4, 0)))
        optimizer = build_optimizer(objective, 2e-3)
        losses = []
        for _ in range(6):
            loss, scores = objective(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] * 0.9
        assert all(0 <= float(torch.as_tensor(s).mean()) <= 1 for s in scores.values() if torch.as_tensor(s).numel())


def test_words_that_name_one_item_know_its_place(parts):
    tokens = parts[1].tokenizer
    scene = world.Scene(
        (
            world.Item("heart", "red", 40, 100, 50),
            world.Item("heart", "blue", 40, 30, 200),
            world.Item("key", "blue", 40, 200, 300),
        ),
        None,
        world.Background("plain", 0.1, 0),
    )
    data = PackedQuestions(0, 1, 24, tokens)
    named = lambda text: [(k, item.thing, item.colour) for k, item in data.named(data.encode(text), scene)]  # noqa: E731
    assert named("Is the red heart left of the key?") == [(3, "heart", "red"), (7, "key", "blue")]
    assert named("Is there a heart?") == [] and named("Is there a green key?") == []
    item = PackedQuestions(4, 1, 12, tokens)[0]
    known = item["row"] != IGNORE
    assert known.any() and (known == (item["column"] != IGNORE)).all()
    corner, places = item["places"][0], item["places"]
    inside = (item["row"][known] * 24 + item["column"][known])[:, None] == places[None]
    assert inside.any(1).all() and corner == places.min()
