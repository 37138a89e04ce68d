"""House rules that a program can check: imports go down, files and functions are short, some words never appear."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import noisycorr

ROOT = Path(noisycorr.__file__).parent
FLOORS = (
    ("run", "dist", "console"),
    ("pairs", "columns", "formats", "noise", "noise_swaps", "noise_labels", "lock", "strict_yaml"),
    ("encoders", "embed", "index", "inverted"),
    ("mixture", "transport", "score", "scoring", "decide", "ledger", "explain", "rectify", "evaluate", "evaluate_run",
     "export", "inject", "recall", "partition", "posterior", "caption_metrics", "caption_score", "recaption",
     "class_metrics"),
    ("losses", "learn", "strategies", "webly", "prompt", "captioner"),
    ("report", "cli", "flags", "plan_flags", "verbs", "stages", "train_verbs", "train_stage",
     "train_pairs", "train_evaluate",
     "train_towers", "train_regions",
     "bench", "testing", "__main__", "recaption_stage", "recaption_verbs",
     "audit", "audit_verbs", "tune_verbs", "tune_stage", "tune_lora", "annotate",
     "webly_bench", "webly_choice", "webly_samples", "classes", "classify_stage", "classify_verbs",
     "prompt_verbs", "prompt_stage", "prompt_baselines", "prompt_images", "prompt_summary", "bench_prompt",
     "doctor", "doctor_verbs", "status", "on_ray", "caption_stage", "caption_verbs", "caption_bench", "caption_noise",
     "caption_tables",
     "caption_images"),
)  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
FORBIDDEN = (".cuda(", "pickle.load", "weights_only=False", "trust_remote_code=True")
LINES, FUNCTION = 400, 60


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """Parts of noisycorr that these statements import, also inside functions; not what is for type checkers only."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imported(node.orelse)
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("noisycorr."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "noisycorr":
            parts = node.module.split(".")[1:]
            yield from parts[:1] or (name.name for name in node.names if not name.name.startswith("__"))
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports hide the floor"
            yield from imported(
                [child for child in ast.walk(node) if child is not node and isinstance(child, ast.stmt)]
            )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_only_go_down(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").parts[0]
    if here == "__init__":
        return
    assert here in FLOOR, f"{here} stands on no floor: give it one in FLOORS"
    for there in imported(ast.parse(path.read_text(encoding="utf-8")).body):
        assert FLOOR[there] <= FLOOR[here], f"{here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})"


def test_the_check_sees_imports_wherever_they_stand() -> None:
    source = """
import noisycorr.stages
from noisycorr import report, __version__
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from noisycorr.cli import main
def late():
    if True:
        from noisycorr.score.view import View
"""
    assert list(imported(ast.parse(source).body))[:2] == ["stages", "report"]
    assert set(imported(ast.parse(source).body)) == {"stages", "report", "score"}
    with pytest.raises(AssertionError, match="relative"):
        list(imported(ast.parse("from . import run").body))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_are_short_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= LINES, f"{path.name} has {text.count(chr(10))} lines"
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
