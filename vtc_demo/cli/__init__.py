"""The shell: `python -m vtc_demo COMMAND`. Bad input prints one line on stderr and exits with 2.

A command is a file of this folder, named as it is typed, with `add_options(parser)` and `run(args)`, which returns the
exit code; its docstring is the description that its --help shows. The file is imported once the command is chosen, so
that help, and a mistake in typing, come at once: torch and transformers take seconds to import.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib import import_module

PROGRAM = "python -m vtc_demo"
COMMANDS = {
    "compare": "run several methods on one image and question",
    "methods": "list the methods and their hyper-parameters",
    "models": "list the models the app offers, and whether they fit here",
    "check": "hold the methods of a folder to the contract; exit code 1 on findings",
    "evaluate": "accuracy on held-out scenes",
    "evaluate zoo": "trained connectors beside methods that need no training",
    "evaluate zoo-training": "the course of the zoo's training, from its log",
    "sweep": "accuracy against tokens, FLOPs and time, many methods",
    "bench": "speed against the full model and model.generate",
    "lab": "time methods at the shapes of real models",
    "train": "train the embedded model, which the repository ships",
    "train zoo": "train the connectors of the zoo",
    "space": "write a Hugging Face Space, ready to push, into a folder",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code. Exits with 2 on bad input."""
    words = joined(sys.argv[1:] if argv is None else argv)
    try:
        args = parser(words).parse_args(words)
        args.command = shlex.join([*words[0].split(), *words[1:]])
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        return 130


def joined(argv: list[str]) -> list[str]:
    """A command of two words as one: ["train", "zoo", "--json"] -> ["train zoo", "--json"]."""
    two = " ".join(argv[:2])
    return [two, *argv[2:]] if two in COMMANDS else argv


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message):
        raise ValueError(message)


def parser(words: list[str]) -> Parser:
    """Of all commands. The one that `words` names has its options; the others are there to be listed."""
    top = Parser(prog=PROGRAM, description="Visual token compression, side by side.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line)
        if name == chosen:
            module = import_module(f".{name.replace(' ', '_').replace('-', '_')}", __name__)
            command.description = module.__doc__
            module.add_options(command)
            command.set_defaults(run=module.run)
    return top
