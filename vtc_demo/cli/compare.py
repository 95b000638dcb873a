"""Run several methods on one image and question, side by side."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .common import add_json, add_methods, add_model, add_number, add_option, load_folders, load_model

DEFAULT_METHODS = ["full", "random@0.25", "fastervlm@0.25", "fastv@0.25"]


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="METHOD", help="name or name@retention, e.g. full fastervlm@0.25")
    add_option(parser, "--image", "an image file", type=Path, metavar="FILE")
    add_option(parser, "--scene", "a generated scene in place of an image", type=int, metavar="SEED")
    add_option(parser, "--question", "default with --scene: the scene's first question", metavar="TEXT")
    add_number(parser, "--max-new-tokens", "longest answer", 16)
    add_number(parser, "--seed", "for methods that draw at random", 0, low=0)
    about = 'compare at equal cost: "final tokens", "equivalent tokens" or "flops"'
    add_option(parser, "--match", about, metavar="MEASURE")
    add_option(parser, "--tokens", "with --match: the cost of N tokens before the LLM", type=int, metavar="N")
    add_option(parser, "--target", "with --match: the cost itself, in tokens or FLOPs", type=float, metavar="X")
    add_methods(parser, "more methods, or folders with method files")
    add_model(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    names = [*args.names, *load_folders(args)] or DEFAULT_METHODS
    image, question, expected = picture_and_question(args)
    from vtc_demo.comparison import compare
    from vtc_demo.comparison.request import Settings, resolved

    chosen = resolved(names)  # before the model is loaded: a wrong name or budget shows at once
    given = {name: getattr(args, name) for name in ("max_new_tokens", "seed", "match", "tokens", "target")}
    settings = Settings.parse(given).model_dump()
    c = compare(load_model(args), image, question, chosen, **settings)
    if args.json:
        print(json.dumps(c.to_dict() | {"expected": expected}, indent=1, ensure_ascii=False))
    else:
        print(table(c, expected))
    errors = [run.error for run in c.runs]
    if all(errors):
        raise ValueError(errors[0])
    return 0


def picture_and_question(args: Namespace):
    """(image, question, expected answer or None)."""
    if (args.image is None) == (args.scene is None):
        raise ValueError("give either --image FILE or --scene SEED")
    if args.image is not None:
        if args.question is None:
            raise ValueError("--image needs --question TEXT")
        from vtc_demo.core.images import load_rgb

        return load_rgb(args.image), args.question, None
    from vtc_demo import world

    scene = world.sample(seed=args.scene)
    question = scene.questions[0].text if args.question is None else args.question
    known = {q.text.lower(): q.answer for q in scene.questions}
    return scene.image, question, known.get(question.strip().lower())


def table(c, expected: str | None) -> str:
    """The comparison as lines of text."""
    from vtc_demo.comparison import matching

    lines = [f"question: {c.question}" + (f"   expected: {expected}" if expected is not None else "")]
    lines.append(f"{'method':<22}{'answer':<16}{'tokens':>7}{'TTFT ms':>9}{'prefill':>9}{'GFLOPs':>9}{'KV kB':>9}")
    for run in c.runs:
        spec = run.method.spec()
        name = f"{spec['method']}@{spec['retention']:g}"
        if run.error:
            lines.append(f"{name:<22}{run.error}")
            continue
        lines.append(
            f"{name:<22}{run.answer[:15]:<16}{run.visual_tokens:>7}{run.timings['ttft']:>9.1f}"
            f"{run.timings['prefill']:>9.1f}{run.flops['total'] / 1e9:>9.2f}{run.kv_bytes / 1e3:>9.0f}"
        )
    lines += [matching.line(run.matched) for run in c.runs if run.matched]
    e = c.environment
    lines.append(f"{c.model} on {e['device']}, {e['dtype']}, {e['threads']} threads, torch {e['torch']}; one run each")
    return "\n".join(lines)
