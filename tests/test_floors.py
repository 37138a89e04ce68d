"""House rules that a program can check: imports go down, no circles, functions are short, some words never appear."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import noisycorr

ROOT = Path(noisycorr.__file__).parent
# From the ground. A folder may import what stands below it and itself; the four capabilities never import each other.
FLOORS = (
    ("runtime",), ("data",), ("stats",), ("models",), ("clean",), ("caption", "retrieval", "classify", "prompt"),
    ("__init__",), ("__main__",),
)  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
MODULES = {".".join(("noisycorr", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
FORBIDDEN = (".cuda(", "pickle.load", "weights_only=False", "trust_remote_code=True")
FUNCTION, ENTRIES, FOLDER = 60, 12, 25


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of noisycorr that a file imports: anywhere in it, also for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "noisycorr")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the floor"
            if (node.module or "").split(".")[0] == "noisycorr":
                yield from (f"{node.module}.{name.name}" for name in node.names)


def file_of(name: str) -> str:
    """The module that holds a dotted name; the package itself for what its front door gives."""
    while name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return name if name in MODULES else f"{name}.__init__"


def floor_of(module: str) -> int:
    """Number of the floor that a module stands on."""
    return FLOOR[module.split(".")[1]]


GRAPH = {
    module: {file_of(name) for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    for module, path in MODULES.items()
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    own = module.split(".")[1]
    for there in GRAPH[module]:
        assert there.split(".")[1] == own or floor_of(there) < floor_of(module), f"{module} imports {there}"


def test_no_files_import_each_other_in_a_circle() -> None:
    # A package's __init__ gives its parts' names: reaching them through it is no circle of its own.
    graphlib.TopologicalSorter({name: found - {name} for name, found in GRAPH.items()}).prepare()


def test_the_check_sees_imports_wherever_they_stand() -> None:
    source = """
import noisycorr.clean.pipeline
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from noisycorr.runtime.flags import Parser
def late():
    if True:
        from noisycorr.clean import report, nothing
"""
    assert {file_of(name) for name in imported(ast.parse(source))} == {
        "noisycorr.clean.pipeline", "noisycorr.runtime.flags", "noisycorr.clean.report.__init__",
        "noisycorr.clean.__init__",
    }  # fmt: skip
    with pytest.raises(AssertionError, match="relative"):
        list(imported(ast.parse("from . import run")))


def test_folders_read_like_a_table_of_contents() -> None:
    top = [path for path in ROOT.iterdir() if path.name not in ("py.typed", "__pycache__")]
    assert len(top) <= ENTRIES, sorted(path.name for path in top)
    for folder in {path.parent for path in FILES}:
        held = [path.name for path in folder.iterdir() if path.is_file() and path.suffix in (".py", ".html", ".css")]
        assert len(held) <= FOLDER, f"{folder.name} holds {len(held)} files"
    depths = sorted(len(path.relative_to(ROOT).parts) - 1 for path in FILES)
    assert depths[len(depths) // 2] <= 3


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_functions_are_short_and_all_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, f"{path.name} does not say what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length < FUNCTION, f"{path.name}: {node.name} has {length} lines"
    for node in public(tree.body):
        assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes and methods."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@pytest.mark.parametrize("word", FORBIDDEN)
def test_forbidden_words_do_not_appear(word: str) -> None:
    found = [name for name, path in zip(NAMES, FILES) if word in path.read_text(encoding="utf-8").replace(" ", "")]
    assert not found, f"{word} in {', '.join(found)}"
