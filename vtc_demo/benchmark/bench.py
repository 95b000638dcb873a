"""Speed of methods against the full model, and of the engine against `model.generate`: the record.

Every method runs in a loop with the full model, pass by pass in turn, and a ratio is the median over such pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vtc_demo import registry
from vtc_demo.core.images import load_rgb
from vtc_demo.core.method import Method
from vtc_demo.engine import compiled
from vtc_demo.models import VLM

from . import references, timing
from .budgets import at_budgets
from .measurements import Measurements

TOKENS = (192, 128, 64)


def bench(
    vlm: VLM,
    image,
    question: str,
    names=None,
    tokens=TOKENS,
    *,
    with_references=False,
    with_compiled=False,
    progress=None,
    **options,
) -> dict:
    """A JSON-ready record. names: methods (default: all that suit the model); tokens: budgets, visual tokens that each
    method is to leave.

    with_references: also beside the references of the module of that name, where a method has one. with_compiled: also
    beside the same model with compiled decoder layers. options: new_tokens, warmups, repeats. A method that the model
    does not suit has a row with `error`. progress: is called with a line before each part. Raises ValueError for a bad
    argument, and for a trained connector on any model but the embedded.
    """
    job = Measurements(vlm, load_rgb(image), vlm.check_question(question), **options)
    for name in names or ():
        registry.check_suits(name, vlm.name)
    names = names or [card.name for card in registry.suiting(vlm.name) if card.name != "full"]
    columns = [column for name in names for column in at_budgets(name, tokens, vlm.shape.patches)]
    progress = progress or (lambda line: None)
    twin = replace(job, vlm=compiled.compile_vlm(vlm)) if with_compiled else None  # before hours of work: it may fail
    environment = timing.surroundings(vlm.device, vlm.dtype)
    progress("generate")
    record: dict[str, Any] = {
        "model": vlm.name,
        "question": job.question,
        "new_tokens": job.new_tokens,
        "warmups": job.warmups,
        "repeats": job.repeats,
        "environment": environment,
        "generate": job.against_generate(),
        "full": job.without_reduction(),
        "rows": [],
    }
    for budget, method in columns:
        progress(f"{method.card.name} at {budget} tokens")
        record["rows"].append(attempt(budget, method, lambda m: job.against_full(m, environment)))
    if with_references:
        record["references"] = []
        for budget, method in (column for column in columns if column[1].card.name in references.NAMES):
            progress(f"{method.card.name} at {budget} tokens beside its reference")
            record["references"].append(attempt(budget, method, job.against_reference))
    if twin is not None:
        record["compiled"] = []
        for budget, method in [(vlm.shape.patches, job.full), *columns]:
            progress(f"{method.card.name} at {budget} tokens beside its compiled layers")
            record["compiled"].append(attempt(budget, method, lambda m: job.against_compiled(m, twin)))
    return record


def attempt(budget: int, method: Method, work: Callable[[Method], dict]) -> dict:
    """A row of the record: what `work` found, or the reason why it could not."""
    row = {"method": method.spec(), "title": method.card.title, "budget": budget}
    try:
        return row | work(method)
    except ValueError as error:
        return row | {"error": str(error)}
