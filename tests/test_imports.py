"""The order of the folders: a module imports from its own folder and from those before it, and nothing in circles."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# "" are the modules of the package itself, on which all stand.
ORDER = ("", "tasks", "backbones", "pruning", "zoo", "voting", "callbacks", "training", "fitting", "export", "study")
FOLDERS = (*ORDER, "apps")
# The package's own names, and the old places of some: whoever asks for them gets what is anywhere.
FRONTS = {"lightning_mvp", "lightning_mvp.modules"}


def imports() -> dict[str, set[str]]:
    """Module → those of the package that it names, in functions and under ``TYPE_CHECKING``, too."""
    found = {}
    for path in (ROOT / "lightning_mvp").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} imports by dots"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {node.module or ""} | {name for name in whole if is_module(name)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[module] = {name for name in named if name.split(".")[0] == "lightning_mvp"}
    return {module: named - {module} for module, named in found.items() if module not in FRONTS}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def folder(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    return module.split(".")[1] if module.count(".") > 1 or (path.is_dir() and module.count(".")) else ""


def test_modules_import_from_folders_before_theirs():
    wrong = [
        f"{module} imports {name}"
        for module, named in imports().items()
        for name in named
        if FOLDERS.index(folder(name)) > FOLDERS.index(folder(module))
    ]
    assert not wrong


def test_nobody_imports_the_package_itself():
    assert [module for module, named in imports().items() if named & FRONTS] == []


def test_no_module_needs_itself():
    # The names that a folder offers are for users: what it imports is no reason for its modules to need each other.
    folders = {"lightning_mvp" + f".{name}" * bool(name) for name in FOLDERS}
    graph = {module: named - folders for module, named in imports().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


def test_names_in_their_old_places_are_there_with_a_warning():
    from lightning_mvp import TaskModule

    with pytest.warns(DeprecationWarning, match=r"modules\.task has moved to lightning_mvp\.training\.task"):
        from lightning_mvp.modules.task import TaskModule as old
    assert old is TaskModule
