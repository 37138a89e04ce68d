"""Published methods, one file each: `load_strategy("coteach")`, or a class of your own, `./mine.py:Mine`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisycorr.runtime.errors import UsageError

if TYPE_CHECKING:
    from noisycorr.models.training.contract import Strategy

USERS = "noisycorr_user_"  # modules of the files of users
BUILT_IN = {
    "best": ("noisycorr.retrieval.strategies.best", "Best"),
    "bicro": ("noisycorr.retrieval.strategies.bicro", "BiCro"),
    "coteach": ("noisycorr.retrieval.strategies.coteach", "CoTeach"),
    "crcl": ("noisycorr.retrieval.strategies.crcl", "CRCL"),
    "cream": ("noisycorr.retrieval.strategies.cream", "CREAM"),
    "decl": ("noisycorr.retrieval.strategies.decl", "DECL"),
    "gsc": ("noisycorr.retrieval.strategies.gsc", "GSC"),
    "in2r": ("noisycorr.retrieval.strategies.in2r", "IN2R"),
    "l2rm": ("noisycorr.retrieval.strategies.l2rm", "L2RM"),
    "ncr": ("noisycorr.retrieval.strategies.ncr", "NCR"),
    "osa": ("noisycorr.retrieval.strategies.osa", "OSA"),
    "pc2": ("noisycorr.retrieval.strategies.pc2", "PC2"),
    "plain": ("noisycorr.models.training.plain", "Plain"),
    "rcl": ("noisycorr.retrieval.strategies.rcl", "RCL"),
    "sps": ("noisycorr.retrieval.strategies.sps", "SPS"),
    "weighted": ("noisycorr.retrieval.strategies.weighted", "Weighted"),
}  # fmt: skip


def find_strategy(name: str) -> type[Strategy]:
    """The class that a name stands for.

    Args:
        name: One of `BUILT_IN`, `./file.py:Class` or `package.module:Class`.

    Raises:
        UsageError: If there is no such class, or it is no strategy.
    """
    from noisycorr.models.training.contract import Strategy

    if name in BUILT_IN:
        module_name, class_name = BUILT_IN[name]
        return getattr(importlib.import_module(module_name), class_name)  # type: ignore[no-any-return]
    place, colon, class_name = name.rpartition(":")
    if not colon:
        raise UsageError(f"the strategy {name!r} is not known: use one of {', '.join(BUILT_IN)}, or ./FILE.py:CLASS.")
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"{place} has no class {class_name} that inherits from noisycorr.Strategy.")
    if not dataclasses.is_dataclass(found):
        raise UsageError(f"{name} must be a dataclass: write @dataclass(frozen=True, kw_only=True) above the class.")
    return found


def class_path(kind: type[Strategy]) -> str:
    """The name that `find_strategy` finds a class by; of one that no import finds, as in a notebook, its own."""
    module, name = kind.__module__, kind.__qualname__
    if known := [key for key, place in BUILT_IN.items() if place == (module, name)]:
        return known[0]
    if "." in name or module == "__main__":  # importing a script again would run it
        return name
    return f"{sys.modules[module].__file__ if module.startswith(USERS) else module}:{name}"


def load_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """The method with these options.

    Raises:
        UsageError: If there is no such method, no such option, or a value that it refuses.
    """
    kind, options = find_strategy(name), dict(options or {})
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [key for key in options if key not in known]:
        have = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise UsageError(f"the strategy {name} has no option {unknown[0]!r}; {have}.")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the strategy {name} refused its options: {error}.") from error


def describe(name: str, strategy: Strategy) -> dict[str, Any]:
    """What the result depends on: the class, its options, and the text of its file if it is no part of the package."""
    kind = type(strategy)
    facts: dict[str, Any] = {"name": name, "class": kind.__qualname__, **dataclasses.asdict(strategy)}  # type: ignore[call-overload]
    if not kind.__module__.startswith("noisycorr."):
        source = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if source:
            facts["source"] = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]
    return facts


def _load_file(path: Path) -> Any:
    """The module of a user's file; it is loaded once.

    Raises:
        UsageError: If there is no such file, or it fails.
    """
    if not path.is_file():
        raise UsageError(f"the strategy's file {path} does not exist.")
    digest = hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"{USERS}{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"the strategy's file {path} is no Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UsageError(f"the strategy's file {path} failed: {type(error).__name__}: {error}.") from error
    return sys.modules[name]


def _import(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ImportError as error:
        raise UsageError(f"the strategy's module {place} cannot be imported: {error}.") from error
