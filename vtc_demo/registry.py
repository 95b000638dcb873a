"""Every method that can be named: of `methods`, of `connectors` and of extra folders. Only this file knows both.

Found by discovery: every card-bearing Method class of a file. A file that cannot be used is left out with a warning and
an entry in `problems`; the others load all the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import get_args

from vtc_demo import connectors, methods
from vtc_demo.core import discovery
from vtc_demo.core.card import Card, Faithfulness
from vtc_demo.core.method import Method
from vtc_demo.core.parameters import build, declared
from vtc_demo.core.tokens import SITE_ORDER
from vtc_demo.methods import contract

problems: dict[str, str] = {}  # file -> why nothing of it was registered
_classes: dict[str, type[Method]] = {}  # name on the card -> class
TRAINED_FOR = "embedded"  # name of the model that connectors are trained for
NOT_LOADED = frozenset({"template"})  # in folders of others


# -- look-up --------------------------------------------------------------------------------------------------------
def list_methods() -> list[Card]:
    """The cards of all methods that can run, in the order of lists."""
    return sorted((c.card for c in _classes.values() if c.available()), key=lambda card: (card.order, card.name))


def trained() -> dict[str, type[Method]]:
    """The methods that need weights of their own, by name, whether these are here or not; in the order of lists."""
    found = [c for c in _classes.values() if c.connector is not None]
    return {c.card.name: c for c in sorted(found, key=lambda c: (c.card.order, c.card.name))}


def suiting(model: str) -> list[Card]:
    """The cards of `list_methods` that can run on a model of that name: connectors are trained for "embedded" alone."""
    return [card for card in list_methods() if model == TRAINED_FOR or card.name not in trained()]


def check_suits(name: str, model: str) -> None:
    """Raise ValueError if `name` ("name" or "name@retention") is a connector and the model is not the embedded one."""
    key = name.partition("@")[0].strip().lower()
    if model != TRAINED_FOR and key in trained():
        title = trained()[key].card.title
        raise ValueError(
            f"{title} has weights of its own, trained for the embedded model alone; {model} is another. Choose the "
            "embedded model, or a method that needs no training"
        )


def get(name: str) -> type[Method]:
    """The class with that name on its card; ValueError with suggestions if there is none that can run."""
    key = name.strip().lower() if isinstance(name, str) else name
    if isinstance(key, str) and key in _classes:
        if not _classes[key].available():
            raise ValueError(f"{key} is not trained here; train it with: python -m vtc_demo train zoo {key}")
        return _classes[key]
    names = [card.name for card in list_methods()]
    near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"methods are {', '.join(names)}"
    raise ValueError(f"unknown method {name!r}; {hint}")


def parameters(name: str) -> list[dict]:
    """The hyper-parameters a user can set: name, default, help, low, high, step, choices. Fixed ones are left out."""
    return declared(get(name))


def resolve(x, **hyper_parameters) -> Method:
    """The method that `x` names: "fastv", "fastv@0.25" (name@retention), {"method": "fastv", "layer": 2}, a Method or
    its class. Keyword arguments overrule what `x` says. ValueError for anything unknown or out of range.
    """
    if isinstance(x, Method):
        return build(type(x), {f.name: getattr(x, f.name) for f in dataclasses.fields(x)} | hyper_parameters)
    if isinstance(x, type) and issubclass(x, Method):
        return build(x, hyper_parameters)
    if isinstance(x, str):
        name, at, retention = x.partition("@")
        given = {"retention": _number(x, retention)} if at else {}
        return build(get(name), given | hyper_parameters)
    if isinstance(x, dict) and "method" in x:
        given = {k: v for k, v in x.items() if k != "method"}
        return build(get(x["method"]), given | hyper_parameters)
    raise ValueError(f'cannot read {x!r} as a method; give "name", "name@retention" or {{"method": "name", ...}}')


def _number(text: str, retention: str) -> float:
    try:
        return float(retention)
    except ValueError:
        raise ValueError(
            f"{text!r}: what follows @ must be a retention, a number between 0.01 and 1.0, as in fastv@0.25"
        ) from None


# -- discovery ------------------------------------------------------------------------------------------------------
def load_folder(path: str | Path) -> list[str]:
    """Register the methods of every .py file of a folder; returns their names.

    template.py and files with a leading underscore are skipped. Loading a folder again reads its files anew. A file
    that fails is reported as a warning and in `problems`. ValueError if there is no such folder. The files are run as
    code.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(path)!r} to load methods from; give an existing folder of .py files")
    home = folder.resolve()
    return _load_files([f for f in discovery.files(home, NOT_LOADED) if f.parent == home], _import_file)


def _load_files(files: Iterable[Path], load: Callable[[Path], ModuleType]) -> list[str]:
    names = []
    for file in files:
        problems.pop(str(file), None)
        try:
            names += _register(load(file))
        except (Exception, SystemExit) as error:  # whatever somebody's file does, the others must load
            problems[str(file)] = f"{type(error).__name__}: {error}"
            warnings.warn(f"method file {file} is left out: {problems[str(file)]}", stacklevel=3)
    return names


def _import_file(file: Path) -> ModuleType:
    name = f"vtc_methods_{hashlib.sha1(str(file).encode()).hexdigest()[:8]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # of a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _register(module: ModuleType) -> list[str]:
    """Check and register the Method classes that a module defines; all or none. Helper modules define none."""
    found: dict[str, type[Method]] = {}
    for cls in vars(module).values():
        own = isinstance(cls, type) and issubclass(cls, Method) and cls.__module__ == module.__name__
        if own and "card" in vars(cls):
            _check_class(cls)
            name = cls.card.name
            holder = found.get(name) or _classes.get(name)
            if holder is not None and holder is not cls and inspect.getfile(holder) != module.__file__:
                raise ValueError(f"the name {name!r} is taken by {inspect.getfile(holder)}; give the card another name")
            same = [c for c in _classes.values() if c.__name__ == cls.__name__ and c.card.name != name]
            if same:
                raise ValueError(f"another method's class is called {cls.__name__} too; give it a name of its own")
            if name in found:
                raise ValueError(f"two methods of this file are called {name!r}")
            found[name] = cls
    _classes.update(found)
    return list(found)


def _check_class(cls: type[Method]) -> None:
    """Raise ValueError with what is missing if the class cannot serve as a method."""
    card, where = cls.card, cls.__name__
    if not isinstance(card, Card):
        raise ValueError(f"{where}.card must be a Card")
    if not isinstance(card.name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", card.name):
        raise ValueError(f"{where}: card name {card.name!r} must be lower-case letters, digits, - and _")
    empty = [k for k in ("title", "family", "summary") if not getattr(card, k)]
    if empty:
        raise ValueError(f"{where}: the card lacks {', '.join(empty)}")
    if card.faithfulness not in get_args(Faithfulness):
        raise ValueError(f"{where}: faithfulness must be one of {', '.join(get_args(Faithfulness))}")
    if isinstance(card.sites, str) or not set(card.sites) <= set(SITE_ORDER):
        raise ValueError(f"{where}: sites must be a tuple of {', '.join(SITE_ORDER)}")
    if "__dataclass_params__" not in vars(cls) or not vars(cls)["__dataclass_params__"].frozen:
        raise ValueError(f"{where} must be decorated with @dataclass(frozen=True)")
    if inspect.isabstract(cls):
        raise ValueError(f"{where} lacks {' and '.join(sorted(cls.__abstractmethods__))}")
    cls()  # every hyper-parameter needs a default within its range


for _package in (methods, connectors):
    _files = discovery.files(Path(_package.__path__[0]), _package.NOT_METHODS)
    _load_files(_files, partial(discovery.load, package=_package))


# -- folders of others ------------------------------------------------------------------------------------------------
def extra_methods() -> dict[str, Path]:
    """The methods that came from folders outside the package: name -> file, in the order of lists."""
    home = Path(__file__).parent
    files = {card.name: Path(inspect.getfile(get(card.name))) for card in list_methods()}
    return {name: file for name, file in files.items() if home not in file.parents}


def check_folder(folder: str | Path) -> dict[str, list[contract.Finding]]:
    """Load the methods of a folder and check each: name of the method, or of a file that failed -> findings.

    Raises ValueError if there is no such folder or no method in it. The files are run as code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file left out is a finding here
        names = load_folder(folder)
    out = {name: contract.check(get(name)) for name in names}
    for file, problem in problems.items():
        if Path(file).parent == Path(folder).resolve():
            out[Path(file).name] = [contract.Finding(Path(file).name, "load", in_words(problem))]
    if not out:
        raise ValueError(f"no method in {str(folder)!r}; copy {Path(contract.__file__).with_name('template.py')} there")
    return out


WORDS = {
    "SyntaxError": "the file is not valid Python: {}",
    "IndentationError": "the file is not valid Python: {}",
    "ModuleNotFoundError": "the file imports what is not installed: {}",
    "ImportError": "an import fails: {}",
    "SystemExit": "the file ends the program when it is loaded (exit code {}); take that line out",
    "ValueError": "{}",
}


def in_words(problem: str) -> str:
    """An entry of `problems` ("ErrorType: text") as a sentence for somebody who wrote the file."""
    kind, _, text = problem.partition(": ")
    return WORDS.get(kind, f"the file stops with {kind} when it is loaded: {{}}").format(text)
