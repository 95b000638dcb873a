"""The house keeps its shape: arrows between the rooms run one way, and no import hides from the tool that looks."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vtc_demo"
# They find methods and connectors in folders, or fetch the package's own names, and the shell's own commands, when they
# are first used.
MAY_IMPORT_BY_NAME = {"__init__.py", "cli/__init__.py", "core/discovery.py", "registry.py"}


def modules():
    """(path within the package, syntax tree) of every module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE), ast.parse(file.read_text(encoding="utf-8"))


def names_of(tree):
    """Every name, attribute and imported name of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def leaves_its_room(path, node):
    """Whether a relative import points out of the room of the module at `path`."""
    return len(path.parts) > 1 and node.level >= len(path.parts)


def names_its_own_room(path, node):
    """Whether an absolute import points into the room of the module at `path`."""
    if len(path.parts) == 1 or node.level:
        return False
    imported = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return any(f"{name}.".startswith(f"vtc_demo.{path.parts[0]}.") for name in imported)


def test_arrows_between_the_rooms_run_one_way(capsys, monkeypatch):
    """import-linter's contract in pyproject.toml; its report names each import against the arrows."""
    monkeypatch.chdir(ROOT)
    broken = lint_imports(no_cache=True, no_logo=True)
    report = capsys.readouterr().out
    if broken:
        pytest.fail(report, pytrace=False)
    assert "1 kept, 0 broken" in report


def test_no_module_is_imported_by_its_name_as_a_string():
    found = {path.as_posix() for path, tree in modules() if {"import_module", "__import__"} & set(names_of(tree))}
    assert found <= MAY_IMPORT_BY_NAME, f"import by a statement, which the arrows' check sees: {found}"


def test_imports_are_relative_within_a_room_and_absolute_between_rooms():
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                where = f"{path}:{node.lineno}"
                assert not leaves_its_room(path, node), f"{where}: write 'from vtc_demo.<room> import ...'"
                assert not names_its_own_room(path, node), f"{where}: within a room, write 'from .<module> import ...'"
