"""The link that restores a comparison: what is compared, as the query of the page's address.

    ?scene=12&ask=What number is written?&tokens=64&match=flops&column=fastv,tokens:128,layer:3&column=random

`made` takes the place of `scene` for a composed scene, as JSON; an upload stands as `picture=own`, without the picture.
`?method=NAME` alone opens the first view with that method beside the full model. Language and colours stay the
visitor's own. Nothing in a link is believed: every value is checked where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

from vtc_demo import registry
from vtc_demo.comparison.request import MATCHES

from .components import composer
from .source import Source

LONGEST = 30_000  # characters of a query; a composed scene of twelve objects takes about 2500
QUESTION = 1000  # characters
COLUMNS = 3  # beside the full model
KEYS = {"scene", "made", "picture", "ask", "tokens", "match", "column", "method"}


@dataclass(frozen=True)
class View:
    """What a visitor compares. columns: the values of the heads of the columns that are shown, the full model left out:
    {"method", "own", "tokens", "params"}, where own says whether the column has its own number of tokens.
    source: None for an upload that was read from a link, and for a link that names no picture.
    """

    source: Source | None
    question: str
    tokens: int
    match: str
    columns: list[dict]
    uploaded: bool = False


def fewest(total: int) -> int:
    """Tokens that are kept at least: methods keep 1 % or more."""
    return max(1, -(-total // 100))


# -- writing --------------------------------------------------------------------------------------------------------
def query(view: View) -> str:
    """The view as a query, with its question mark."""
    pairs = [_picture(view.source), ("ask", view.question), ("tokens", view.tokens)]
    pairs += [("match", view.match)] if view.match != MATCHES[0] else []
    pairs += [("column", _column(head)) for head in view.columns]
    return "?" + urlencode(pairs, quote_via=quote, safe=",:{}[]?@")


def _picture(source: Source | None) -> tuple[str, str | int]:
    if source is None or source.scene is None:
        return "picture", "own"
    return ("made", composer.to_text(source.scene)) if source.seed is None else ("scene", source.seed)


def _column(head: dict) -> str:
    given = {"tokens": head["tokens"]} if head.get("own") else {}
    given |= {name: str(value).lower() if isinstance(value, bool) else value for name, value in head["params"].items()}
    return ",".join([head["method"], *(f"{name}:{quote(str(value), safe='')}" for name, value in given.items())])


# -- reading --------------------------------------------------------------------------------------------------------
def read(text: str, first: View, total: int) -> View | None:
    """The view of a query; None if it names nothing of a comparison. first: the view it departs from.

    total: visual tokens of the full model. Raises ValueError with what is wrong, in words for a visitor.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} characters")
    pairs = [(name, value) for name, value in parse_qsl(text.removeprefix("?")) if name in KEYS]
    if not pairs:
        return None
    given = dict(pairs)
    columns = [_head(value, first.tokens, total) for name, value in pairs if name == "column"]
    if len(columns) > COLUMNS:
        raise ValueError(f"it names {len(columns)} methods beside the full model; {COLUMNS} fit")
    if "method" in given and not columns:
        columns = _beside(registry.get(given["method"]).card.name, first.columns)
    source, question = _source(given), given.get("ask", "")
    if len(question) > QUESTION:
        raise ValueError(f"its question is longer than {QUESTION} characters")
    return View(
        source,
        question or (source.suggestions()[0] if source else first.question),
        _tokens(given.get("tokens", first.tokens), total),
        _match(given.get("match", MATCHES[0])),
        columns or first.columns,
        uploaded="picture" in given,
    )


def _source(given: dict) -> Source | None:
    if "made" in given:
        scene = composer.from_text(given["made"])
        return Source(scene.image, scene)
    if "scene" in given:
        return Source.of(_whole("scene", given["scene"]))
    return None


def _head(text: str, tokens: int, total: int) -> dict:
    """One column: its method, own tokens and hyper-parameters, each known and in its range."""
    name, *given = text.split(",")
    method = registry.get(name)
    known = {p["name"]: p["default"] for p in registry.parameters(method.card.name)}
    pairs = dict(pair.partition(":")[::2] for pair in given)
    own = pairs.pop("tokens", None)
    params = {key: _value(key, unquote(value), known.get(key)) for key, value in pairs.items()}
    registry.resolve({"method": method.card.name, **params})  # refuses what is unknown or out of range
    kept = tokens if own is None else _tokens(own, total)
    return {"method": method.card.name, "own": own is not None, "tokens": kept, "params": params, "on": True}


def _value(name: str, text: str, default):
    """The text as the kind of value that the default is; what is no such value stays text, for `resolve` to refuse."""
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text, text)
    if isinstance(default, int | float):
        return _number(name, text, type(default))
    return text


def _number(name: str, text: str, kind: type = float):
    try:
        return kind(text) if len(text) < 30 else kind("")
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text[:30]!r}") from None


def _whole(name: str, value) -> int:
    return _number(name, str(value), int)


def _tokens(value, total: int) -> int:
    tokens, least = _whole("tokens", value), fewest(total)
    if not least <= tokens <= total:
        raise ValueError(f"tokens must be between {least} and {total}, got {tokens}")
    return tokens


def _match(value: str) -> str:
    if value not in MATCHES:
        raise ValueError(f"match must be one of {', '.join(MATCHES)}; got {value[:30]!r}")
    return value


def _beside(name: str, columns: list[dict]) -> list[dict]:
    """The columns of the first view with that method in front."""
    head = {"method": name, "own": False, "tokens": columns[0]["tokens"], "params": {}, "on": True}
    others = [c for c in columns if c["method"] != name]
    return [head, *others][: len(columns)] if name != "full" else columns
