"""Passes that are measured: alike in the engine and in `generate`, none sharing a vision pass; their memory."""

import families
import pytest
import tiny
import torch

from vtc_demo.benchmark.generate import without_eos
from vtc_demo.benchmark.measurements import Measurements
from vtc_demo.benchmark.peak_memory import peak_bytes


@pytest.mark.parametrize("family", families.BUILDERS)
def test_generate_is_the_baseline_of_every_family(family):
    job = Measurements(families.vlm(family), tiny.image(2, side=56), tiny.QUESTION, new_tokens=3, warmups=0, repeats=1)
    assert job.against_generate()["same_answer"]


def test_generate_runs_on_past_the_end_and_the_settings_are_put_back():
    vlm = tiny.vlm()
    job = Measurements(vlm, tiny.image(), tiny.QUESTION, new_tokens=6)
    with without_eos(vlm):
        times, free = job.generate()
    assert len(free) == 6 and 0 < times["preprocess"] < times["ttft"] < times["wall"]
    settings = vlm.model.generation_config
    settings.eos_token_id = free[1]  # now the answer would end early
    with without_eos(vlm):
        assert job.generate()[1] == free
        assert job.run(job.full)[1].token_ids == free
    assert vlm.model.generation_config is settings and settings.eos_token_id == free[1]


def test_every_pass_makes_its_own_vision_pass():
    job = Measurements(tiny.vlm(), tiny.image(), tiny.QUESTION)
    for _ in range(2):
        times, run = job.run(job.full)
        assert not run.vision_shared and times["vision"] > 0 and len(run.token_ids) == job.new_tokens


def test_peak_memory_is_that_of_tensors_at_their_most():
    def work():
        a = torch.empty(1_000_000, dtype=torch.uint8)
        b = torch.empty(2_000_000, dtype=torch.uint8)
        del a, b
        return torch.empty(1_500_000, dtype=torch.uint8)

    assert 3_000_000 <= peak_bytes(work, torch.device("cpu")) < 3_010_000
