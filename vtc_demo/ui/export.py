"""A comparison to take along: as JSON, as the API gives it, and as a Python snippet that repeats it."""

from __future__ import annotations

import json

from vtc_demo.figures import pictures

from .source import Source


def as_json(comparison: dict) -> str:
    return json.dumps(comparison, ensure_ascii=False, indent=1)


def snippet(model: str, source: Source, question: str, specs: list[dict], options: dict) -> str:
    """Python that repeats a comparison with `vtc.compare`. options: its further keyword arguments."""
    lines = [
        "import vtc_demo as vtc",
        "",
        f"vlm = vtc.load_vlm({_literal(model)})",
        *_picture(source),
        "c = vtc.compare(",
        "    vlm,",
        "    image,",
        f"    {_literal(question)},",
        "    [",
        *(f"        {_literal(spec)}," for spec in specs),
        "    ],",
        *(f"    {name}={_literal(value)}," for name, value in options.items()),
        ")",
        "for run in c.runs:",
        '    print(run.method.card.title, "->", run.error or run.answer)',
    ]
    return "\n".join(lines) + "\n"


def _literal(value) -> str:
    """Python for plain data, texts in double quotes: what JSON writes for a text, Python reads."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _picture(source: Source) -> list[str]:
    if source.scene is None:
        return [
            "from vtc_demo.figures.pictures import square",
            "",
            "# The picture is your own and is not part of this text: put its file name here.",
            f'image = square(vtc.load_rgb("picture.png"), {2 * pictures.SIDE})',
        ]
    if source.seed is None:
        return [f"image = vtc.world.Scene.from_dict({_literal(source.scene.to_dict())}).image"]
    return [f"image = vtc.world.sample(seed={source.seed}).image"]
