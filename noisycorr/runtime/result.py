"""What a job gives back: a folder, what it says in a few lines, and how a notebook shows it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import ClassVar

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


class Result:
    """A run folder as an object. Everything is on disk: a result can be opened again at any time.

    Attributes:
        kind: What such a folder holds, for errors.
        run: The folder as the stages see it.
    """

    kind: ClassVar[str] = "a run"

    def __init__(self, folder: str | Path) -> None:
        self.run = Run(folder)

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.run.folder

    @property
    def report(self) -> Path:
        """The page that a person reads."""
        return self.folder / "report.html"

    @property
    def summary(self) -> str:
        """What came out, in a few lines."""
        return ""

    def write_report(self) -> Path:
        """Write the page again.

        Raises:
            UsageError: If this kind of result has no page of its own.
        """
        raise UsageError(f"{self.folder} holds {self.kind}, of which there is no page to write again.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})\n{self.summary}".rstrip()

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.summary.splitlines())
        page = html.escape(str(self.report))
        return f"<div><b>{html.escape(str(self.folder))}</b>{lines}<p>Report: <code>{page}</code></p></div>"
