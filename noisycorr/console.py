"""What a person at the terminal sees, on stderr: one line for each event, bars, and how much of both.

Nothing is shown before `set_up` was called, so that a program which imports the package decides for itself.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LOG = logging.getLogger("noisycorr")
_LIBRARIES = ("transformers", "datasets", "open_clip", "timm", "accelerate", "torch", "PIL", "faiss")


def set_up(*, quiet: bool = False, verbose: bool = False) -> None:
    """Show messages from now on.

    Args:
        quiet: Warnings only, no bars.
        verbose: Details and the warnings of libraries, too.
    """
    for handler in list(_LOG.handlers):
        _LOG.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOG.addHandler(handler)
    _LOG.propagate = False
    _LOG.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    if not verbose:  # libraries tell things that a user can do nothing about
        for name in _LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module=rf"{name}(\..*)?")


def detail(message: str) -> None:
    """A line for those who asked for details."""
    _LOG.debug(message)


def say(message: str) -> None:
    """A line on what happened."""
    _LOG.info(message)


def warn(message: str) -> None:
    """A line that even the quiet want to see."""
    _LOG.warning(message)


def without_numbers(message: str) -> str:
    """What stays the same when a message comes again with other numbers."""
    return re.sub(r"\d[\d.,]*", "#", message)


def is_verbose() -> bool:
    """True if details are wanted."""
    return _LOG.isEnabledFor(logging.DEBUG)


def bar(
    items: Iterable[Any] | None = None,
    *,
    label: str,
    total: int | None = None,
    unit: str = "pair",
    hidden: bool = False,
) -> tqdm:
    """A progress bar on stderr, if that is a terminal and `set_up` did not ask for quiet.

    Args:
        items: Passed through, one step each; None for a bar that is moved by `update`.
        label: What is being done.
        total: Number of steps, if known.
        unit: What a step is.
        hidden: Never show it, as in processes other than the main one.
    """
    disable = True if hidden or not _LOG.isEnabledFor(logging.INFO) else None
    return tqdm(items, total=total, unit=unit, desc=label, disable=disable)
