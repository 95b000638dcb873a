"""The shell: `python -m vtc_demo COMMAND`. Bad input prints one line on stderr and exits with 2."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from importlib import import_module
from pathlib import Path

OWN_OPTIONS = {  # commands that read their own options
    "train": "training",
    "evaluate": "evaluation",
    "sweep": "evaluation.sweep_command",
    "bench": "benchmark.bench",
    "lab": "benchmark.lab",
}
DEFAULT_METHODS = ["full", "random@0.25", "fastervlm@0.25", "fastv@0.25"]


class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(message)


def fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] and argv[0] in OWN_OPTIONS:
            return import_module(f".{OWN_OPTIONS[argv[0]]}", __package__).main(argv[1:]) or 0
        args = parser().parse_args(argv)
        return args.run(args)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        return 130


def parser() -> Parser:
    top = Parser(prog="python -m vtc_demo", description="Visual token compression, side by side.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    compare = commands.add_parser("compare", help="run several methods on one image and question")
    compare.add_argument("names", nargs="*", metavar="METHOD", help="name or name@retention, e.g. full fastervlm@0.25")
    compare.add_argument("--model", default="embedded", help="embedded, a folder or a hub id (default: embedded)")
    compare.add_argument("--image", type=Path, help="an image file")
    compare.add_argument("--scene", type=int, metavar="SEED", help="a generated scene in place of an image")
    compare.add_argument("--question", help="default with --scene: the scene's first question")
    compare.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (default: 16)")
    compare.add_argument("--seed", type=int, default=0, help="for methods that draw at random (default: 0)")
    compare.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    compare.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32 on a CPU, else bfloat16)")
    compare.add_argument(
        "--match", metavar="MEASURE", help='compare at equal cost: "final tokens", "equivalent tokens" or "flops"'
    )
    compare.add_argument("--tokens", type=int, metavar="N", help="with --match: the cost of N tokens before the LLM")
    compare.add_argument("--target", type=float, metavar="X", help="with --match: the cost itself, in tokens or FLOPs")
    compare.add_argument(
        "--methods", nargs="+", default=[], metavar="METHOD|FOLDER", help="more methods, or folders with method files"
    )
    compare.set_defaults(run=run_compare)
    methods = commands.add_parser("methods", help="list the methods and their hyper-parameters")
    methods.add_argument("--methods", nargs="+", default=[], metavar="FOLDER", help="folders with method files")
    methods.set_defaults(run=run_methods)
    models = commands.add_parser("models", help="list the models the app offers, and whether they fit here")
    models.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    models.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32 on a CPU, else bfloat16)")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=run_models)
    space = commands.add_parser("space", help="write a Hugging Face Space, ready to push, into a folder")
    space.add_argument("kind", choices=("docker", "zerogpu"), help="docker: CPU or a GPU of its own; zerogpu: shared")
    space.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty, or the checkout of such a Space")
    space.add_argument("--name", metavar="OWNER/SPACE", help="where it will be pushed to, for the printed command")
    space.set_defaults(run=run_space)
    check = commands.add_parser("check", help="hold the methods of a folder to the contract; exit code 1 on findings")
    check.add_argument("folder", metavar="FOLDER", help="a folder with method files")
    check.set_defaults(run=run_check)
    commands.add_parser("train", help="train what the repository ships (see train --help)", add_help=False)
    commands.add_parser("evaluate", help="accuracy on held-out scenes (see evaluate --help)", add_help=False)
    commands.add_parser(
        "sweep", help="accuracy against tokens, FLOPs and time, many methods (see sweep --help)", add_help=False
    )
    commands.add_parser(
        "bench", help="speed against the full model and model.generate (see bench --help)", add_help=False
    )
    commands.add_parser("lab", help="time methods at the shapes of real models (see lab --help)", add_help=False)
    for command in (compare, methods):
        command.add_argument("--methods-dir", action="append", default=[], metavar="FOLDER", help="a folder of methods")
    for command in (compare, methods, check):
        command.add_argument("--json", action="store_true", help="print JSON")
    return top


def load_folders(args) -> list[str]:
    """Load the method folders named in the arguments; what is left of `--methods` are names of methods."""
    from vtc_demo import registry

    names = [m for m in args.methods if not Path(m).is_dir()]
    for folder in [*args.methods_dir, *(m for m in args.methods if m not in names)]:
        registry.load_folder(folder)
    return names


def run_methods(args) -> int:
    from vtc_demo import registry

    for name in load_folders(args):
        raise ValueError(f"no folder {name!r} to load methods from")
    cards = registry.list_methods()
    if args.json:
        print(json.dumps([card_dict(card) for card in cards], indent=1, ensure_ascii=False))
        return 0
    for card in cards:
        print(
            f"{card.name:<14}{card.title}: {card.summary} [{', '.join(card.sites) or 'no site'}; {card.faithfulness}]"
        )
        for p in registry.parameters(card.name):
            span = f" ({p['low']} to {p['high']})" if p.get("low") is not None else ""
            print(f"{'':<14}  {p['name']}={p['default']}{span}: {p['help']}")
    return 0


def run_check(args) -> int:
    from vtc_demo import registry
    from vtc_demo.methods import contract

    results = registry.check_folder(args.folder)
    if args.json:
        print(json.dumps({name: [vars(f) for f in findings] for name, findings in results.items()}, indent=1))
    else:
        print(contract.report(results))
    return int(any(results.values()))


def run_models(args) -> int:
    from vtc_demo import models

    rows, table = models.offers(args.device, args.dtype)
    print(json.dumps(rows, indent=1) if args.json else table)
    return 0


def run_space(args) -> int:
    from vtc_demo.deploy import spaces

    spaces.write(args.kind, args.folder, args.name)
    print(spaces.next_steps(args.kind, args.folder, args.name))
    return 0


def card_dict(card) -> dict:
    import dataclasses

    from vtc_demo import registry

    return {**dataclasses.asdict(card), "parameters": registry.parameters(card.name)}


def run_compare(args) -> int:
    names = [*args.names, *load_folders(args)] or DEFAULT_METHODS
    image, question, expected = picture_and_question(args)
    from vtc_demo import models, registry
    from vtc_demo.comparison import events as compare
    from vtc_demo.comparison import matching

    chosen = [registry.resolve(name) for name in names]  # before the model is loaded: a wrong name shows at once
    cost = {"match": args.match, "tokens": args.tokens, "target": args.target}
    matching.check(**cost)
    quiet(bars=args.model != "embedded" and not Path(args.model).is_dir())
    vlm = models.load_vlm(args.model, device=args.device, dtype=args.dtype)
    c = compare.compare(vlm, image, question, chosen, max_new_tokens=args.max_new_tokens, seed=args.seed, **cost)
    if args.json:
        print(json.dumps(c.to_dict() | {"expected": expected}, indent=1, ensure_ascii=False))
    else:
        print(table(c, expected))
    errors = [run.error for run in c.runs]
    if all(errors):
        fail(errors[0])
    return 0


def picture_and_question(args):
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


def quiet(bars: bool = False) -> None:
    """No advice of libraries between our lines; bars: but those of progress, as a model of the hub takes minutes."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if not bars:
        transformers.logging.disable_progress_bar()


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


if __name__ == "__main__":
    sys.exit(main())
