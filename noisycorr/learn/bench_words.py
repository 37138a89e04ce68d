"""How benchmarks are told what to run: lists between commas, and methods as NAME+option=value."""

from __future__ import annotations

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
