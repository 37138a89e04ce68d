"""Methods by name; each in a file of its own."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from noisycorr.classify.webly.contract import Method
from noisycorr.runtime.errors import UsageError

BUILT_IN = {
    "capro": "CAPro",
    "capro_tags": "CAProTags",
    "confident": "Confident",
    "elr": "ELR",
    "elr_plus": "ELRPlus",
    "mopro": "MoPro",
    "nested": "Nested",
    "plain": "Plain",
    "pls": "PLS",
    "pls_lsa": "PLSLSA",
}


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: If there is none of this name.
    """
    if name not in BUILT_IN:
        raise UsageError(f"there is no method {name!r} for classes; expected one of {', '.join(BUILT_IN)}.")
    found: type[Method] = getattr(importlib.import_module(f"noisycorr.classify.webly.methods.{name}"), BUILT_IN[name])
    return found


def load_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method with options, which are the fields of its class.

    Raises:
        UsageError: If there is no such method or option.
    """
    kind = find_method(name)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for option in options or {}:
        if option not in known:
            raise UsageError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}.")
    return kind(**dict(options or {}))
