"""How benchmarks are told what to run: lists between commas, and methods as NAME+option=value."""

from __future__ import annotations

from typing import Any

from noisycorr.pairs import UsageError


def listed(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def read_spec(spec: str, flag: str) -> tuple[str, dict[str, str]]:
    """Name and options of `NAME+option=value+...`; values as they were written.

    Args:
        spec: One method.
        flag: Whose value it is, for the error.

    Raises:
        UsageError: If a part is no option=value.
    """
    name, *rest = spec.split("+")
    options = {}
    for part in rest:
        key, sign, value = part.partition("=")
        if not sign:
            raise UsageError(f"--{flag}: {part!r} in {spec!r} is no option=value.")
        options[key] = value
    return name, options


def read_value(text: str) -> Any:
    """What YAML says that the value of an option is, and a number where it takes one, such as 1e6, for a word."""
    import yaml

    found = yaml.safe_load(text)
    try:
        return float(text) if found == text else found
    except ValueError:
        return found
