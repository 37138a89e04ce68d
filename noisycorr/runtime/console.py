"""What a person at the terminal sees, on stderr: one line for each event, bars, and how much of both.

Nothing is shown before `set_up` was called, so that a program which imports the package decides for itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

_LOG = logging.getLogger("noisycorr")
_LIBRARIES = ("transformers", "datasets", "open_clip", "timm", "accelerate", "torch", "PIL", "faiss")


_PHRASE: list[Callable[[str], str]] = []  # how the command line writes the names of arguments
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the numbers of progress."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        body = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(body | getattr(record, "numbers", {}), ensure_ascii=False)


def set_up(
    *, quiet: bool = False, verbose: bool = False, log_format: str = "text", phrase: Callable[[str], str] | None = None
) -> None:
    """Show messages from now on.

    Args:
        quiet: Warnings only, no bars.
        verbose: Details and the warnings of libraries, too.
        log_format: text, or json for one object a line; then there are no bars, but lines of progress.
        phrase: Makes of `argument` in a message what the person at the terminal types.
    """
    _PHRASE[:] = [phrase] if phrase else []
    for handler in list(_LOG.handlers):
        _LOG.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter("%(message)s"))
    _LOG.addHandler(handler)
    _LOG.propagate = False
    _LOG.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    if not verbose:  # libraries tell things that a user can do nothing about
        for name in _LIBRARIES:
            logging.getLogger(name).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module=rf"{name}(\..*)?")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Show nothing for a while: for work that is only a test."""
    before = _LOG.level
    _LOG.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        _LOG.setLevel(before)


def detail(message: str) -> None:
    """A line for those who asked for details."""
    _LOG.debug(_phrased(message))


def say(message: str) -> None:
    """A line on what happened."""
    _LOG.info(_phrased(message))


def warn(message: str) -> None:
    """A line that even the quiet want to see."""
    _LOG.warning(_phrased(message))


def fail(message: str) -> None:
    """A line on why it ended."""
    _LOG.error(message)


def _phrased(message: str) -> str:
    return _PHRASE[0](message) if _PHRASE else message


def without_numbers(message: str) -> str:
    """What stays the same when a message comes again with other numbers."""
    return re.sub(r"\d[\d.,]*", "#", message)


def is_verbose() -> bool:
    """True if details are wanted."""
    return _LOG.isEnabledFor(logging.DEBUG)


class _Lines(tqdm):
    """Progress for a log file: now and then a line, nothing that moves."""

    monitor_interval = 0
    _told = 0.0

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Say how far it is, if the last time is long ago."""
        now = time.monotonic()
        self._told = self._told or now
        if now - self._told < LINE_EVERY:
            return
        self._told = now
        found = self.format_dict
        rate = self.n / max(found["elapsed"], 1e-9)
        numbers: dict[str, Any] = {"event": "progress", "stage": self.desc.rstrip(": "), "done": self.n,
                                   "total": self.total, "rate": round(rate, 2)}  # fmt: skip
        line = f"{numbers['stage']}: {self.n:,}" + (f" of {self.total:,}" if self.total else "")
        line += f" {self.unit}s, {rate:,.1f} {self.unit}s/s"
        if self.total and rate:
            numbers["seconds_left"] = round((self.total - self.n) / rate)
            line += f", {numbers['seconds_left']:,} s left"
        _LOG.info(line, extra={"numbers": numbers})


def is_json() -> bool:
    """True if lines are JSON objects."""
    return any(isinstance(handler.formatter, JsonLines) for handler in _LOG.handlers)


def bar(
    items: Iterable[Any] | None = None,
    *,
    label: str,
    total: int | None = None,
    unit: str = "pair",
    hidden: bool = False,
) -> tqdm:
    """A progress bar on stderr, or a line now and then where that is no terminal; none if `set_up` asked for quiet.

    Args:
        items: Passed through, one step each; None for a bar that is moved by `update`.
        label: What is being done.
        total: Number of steps, if known.
        unit: What a step is.
        hidden: Never show it, as in processes other than the main one.
    """
    if hidden or not _LOG.isEnabledFor(logging.INFO):
        return tqdm(items, total=total, unit=unit, desc=label, disable=True)
    if sys.stderr.isatty() and not is_json():
        return tqdm(items, total=total, unit=unit, desc=label)
    return _Lines(items, total=total, unit=unit, desc=label, mininterval=min(1.0, LINE_EVERY), file=io.StringIO())
