"""Write `noisycorr/__init__.pyi`: the front door with all arguments flat, for editors and type checkers.

    python scripts/write_stub.py            # --check writes nothing and only says whether the file is up to date

Functions of the front door take choices, and whoever calls them gives the fields of these (`runtime/signature.py`),
which type checkers cannot see. So the signatures are written out here, from the same source as the flags of the command
line.
"""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import noisycorr
from noisycorr.runtime.signature import parameters

PLACE = Path(noisycorr.__file__).with_suffix(".pyi")
HEAD = '"""The front door with all arguments flat; made by scripts/write_stub.py."""\n\n'
TYPES = {  # where plain types come from
    "Callable": "collections.abc", "Iterable": "collections.abc", "Mapping": "collections.abc",
    "Sequence": "collections.abc", "PathLike": "os", "Path": "pathlib", "Any": "typing", "Literal": "typing",
}  # fmt: skip


def stub() -> str:
    """The text of the file."""
    imports: set[str] = set()
    bodies = []
    for name in sorted(noisycorr.__all__):
        value = getattr(noisycorr, name)
        if name in noisycorr._PACKAGES or (inspect.isfunction(value) and hasattr(value, "__wrapped__")):
            bodies.append(_function(name, value, imports))
        elif name == "score":
            imports |= {f"from {place} import {word} as _{word}" for word, place in noisycorr._SCORERS.items()}
            bodies.append(
                "\n    ".join([f"class {name}:", *(f"{word} = staticmethod(_{word})" for word in dir(value))])
            )
        elif inspect.ismodule(value) and value.__name__ in sys.modules:
            package, _, last = value.__name__.rpartition(".")
            imports.add(f"from {package} import {last} as {name}")
        elif inspect.isfunction(value) and value.__module__ == noisycorr.__name__:
            bodies.append(f"def {name}{inspect.signature(value)}: ...".replace("'", ""))
        elif name != "__version__" and hasattr(value, "__qualname__"):
            imports.add(f"from {value.__module__} import {name} as {name}")
        else:
            bodies.append(f"{name}: {'str' if name == '__version__' else 'Any'}")
    named = set(re.findall(r"\w+", "\n".join(bodies)))
    imports |= {f"from {place} import {name}" for name, place in TYPES.items() if name in named}
    text = HEAD + "\n".join([*sorted(imports), "", *bodies]) + "\n"
    for words in (["check", "--fix", "--quiet", "--select", "I"], ["format"]):
        command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(PLACE), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def _function(name: str, function: Any, imports: set[str]) -> str:
    """A flat signature; the type of what it returns is added to the imports."""
    inner, taken, star = inspect.unwrap(function), [], False
    for item in parameters(inner):
        if not item.positional and not star:
            taken.append("*")
            star = True
        taken.append(f"{item.name}: {shown(item.hint)}" + ("" if item.needed else f" = {item.default!r}"))
    returned = str(inner.__annotations__.get("return", "Any")).strip("'\"")
    for kind in re.findall(r"\b[A-Z]\w+", returned):
        if kind not in ("Any", "None", "Path"):
            imports.add(f"from {_home(inner, kind)} import {kind} as {kind}")
    return f"def {name}({', '.join(taken)}) -> {returned}: ..."


def _home(function: Any, name: str) -> str:
    """The module of a type that a function's module imports, perhaps for type checkers only."""
    if (kind := function.__globals__.get(name)) is not None:
        return str(kind.__module__)
    text = Path(inspect.getfile(function)).read_text(encoding="utf-8")
    match = re.search(rf"from (\S+) import [^\n]*\b{name}\b", text)
    assert match is not None, f"{function.__module__} does not say where {name} is"
    return match[1]


def shown(hint: Any) -> str:
    """A type as it is written."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if origin is typing.Union or type(hint).__name__ == "UnionType":
        return " | ".join(shown(part) for part in parts)
    if origin is collections.abc.Callable:
        return "Callable[..., Any]"
    if parts:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(shown(part) for part in parts)}]"
    return "Any" if hint is Any or getattr(hint, "__module__", "").startswith("noisycorr") else str(hint.__name__)


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not up to date")
    given, text = parser.parse_args(), stub()
    if given.check:
        return int(not PLACE.is_file() or PLACE.read_text(encoding="utf-8") != text)
    PLACE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
