"""Errors of use: one sentence each, and the checks that several choices share."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping


class UsageError(ValueError):
    """Something was asked for wrongly: one clear sentence. The command line ends with status 2.

    Arguments stand in backticks by their names in Python; the command line writes them as flags.

    Names and values that data brought stand in it, so what would break the line or steer the terminal is shown as an
    escape.
    """

    def __str__(self) -> str:
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in super().__str__())


def listed(names: Iterable[str]) -> str:
    """Names that data brought (columns, fields, suffixes), sorted, for one sentence of an error.

    At most 40, of 60 characters each.
    """
    found = sorted(names)
    short = [name if len(name) <= 60 else f"{name[:59]}…" for name in found[:40]]
    more = f" and {len(found) - 40} more" if len(found) > 40 else ""
    return ", ".join(name or "(none)" for name in short) + more or "none"


def check_words(choice: object) -> None:
    """Refuse values that are not among the words of a field.

    Raises:
        UsageError: If one is not.
    """
    hints = typing.get_type_hints(type(choice))
    for one in dataclasses.fields(choice):  # type: ignore[arg-type]
        words, value = typing.get_args(hints[one.name]), getattr(choice, one.name)
        if typing.get_origin(hints[one.name]) is typing.Literal and value not in words:
            raise UsageError(f"`{one.name}` is {value!r}, expected one of {', '.join(words)}.")


def check_least(choice: object, least: Mapping[str, float]) -> None:
    """Refuse a choice of which a field lies below its least value, or is no number.

    Raises:
        UsageError: Naming the flag, its value, and what was expected.
    """
    for name, low in least.items():
        if not getattr(choice, name) >= low:
            raise UsageError(f"`{name}` is {getattr(choice, name)}, expected at least {low}.")
