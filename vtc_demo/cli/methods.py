"""List the methods and their hyper-parameters."""

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser, Namespace

from .common import add_json, add_methods, load_folders


def add_options(parser: ArgumentParser) -> None:
    add_methods(parser, "folders with method files", metavar="FOLDER")
    add_json(parser)


def run(args: Namespace) -> int:
    from vtc_demo import registry

    for name in load_folders(args):
        raise ValueError(f"no folder {name!r} to load methods from")
    cards = registry.list_methods()
    parameters = {card.name: registry.parameters(card.name) for card in cards}
    if args.json:
        told = [dataclasses.asdict(card) | {"parameters": parameters[card.name]} for card in cards]
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        print("\n".join(line for card in cards for line in lines(card, parameters[card.name])))
    return 0


def lines(card, parameters: list[dict]) -> list[str]:
    """A line for the method and one for each of its hyper-parameters."""
    sites = ", ".join(card.sites) or "no site"
    out = [f"{card.name:<14}{card.title}: {card.summary} [{sites}; {card.faithfulness}]"]
    for p in parameters:
        span = f" ({p['low']} to {p['high']})" if p.get("low") is not None else ""
        out.append(f"{'':<14}  {p['name']}={p['default']}{span}: {p['help']}")
    return out
