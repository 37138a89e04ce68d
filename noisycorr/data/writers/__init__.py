"""Writers: one file for each format that pairs are exported to. A writer is a pair of plain functions.

    write(folder, index, rows, layout) -> facts      one shard: its rows stream in, its files appear atomically
    finish(folder, layout, shards) -> names          after the last shard: what belongs to the whole export

The caller (`noisycorr.clean.export`) writes the marker NNNNN_stats.json after `write` has returned, so a shard that was
interrupted is written again from its first row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

VERDICTS = ("keep", "recaption", "relabel", "drop", "review")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One exported pair.

    Attributes:
        position: Number among the exported rows, from 0.
        key: The source's own name of the pair; not necessarily unique, nor fit for a file name.
        text: The caption, as it came in or repaired, or None.
        image: Encoded bytes exactly as they came in; a path where the format can point to a file; None if there is
            no image or the format needs none.
        suffix: Extension that fits the image, without a dot; "" where there is no image.
        values: Every column of the ledger and of the input by its name in the export; numbers may be NaN.
        size: Width and height in pixels, or None where the picture could not be decoded.
        embedding: Image (d,) and text (e,) embedding, where the format asks for them.
        first: Position of the first exported row that shows the same picture, where the format asks for it.
    """

    position: int
    key: str
    text: str | None
    image: bytes | Path | None
    suffix: str
    values: Mapping[str, Any]
    size: tuple[int, int] | None
    embedding: tuple[np.ndarray, np.ndarray] | None = None
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all shards of one export share.

    Attributes:
        schema: Columns of the ledger, then of the input, with the types that hold every row of the run.
        ledger: Names of the columns of the ledger.
        fields: Names of the JSON fields to write, or None for all.
        shards: Number of shards, >= 1.
        fingerprint: Stands for the content; 16 hexadecimal digits.
    """

    schema: pa.Schema
    ledger: tuple[str, ...]
    fields: frozenset[str] | None
    shards: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Format:
    """One written format.

    Attributes:
        write: Writes one shard; returns its facts: `rows`, `files` (names that must exist) and counts.
        finish: Writes what belongs to all shards; returns the names of the files of the export.
        owns: Patterns (`re.fullmatch`) of the names in the export folder that belong to this format.
        takes: Names of columns that the format fills itself; an input column of that name is renamed.
        images: "bytes" if it needs them, "paths" if the path of a file will do, "" if it needs no image.
        embeddings: True if it needs them.
        same_picture: True if it needs to know which rows show the same picture.
        new_texts: False if a new text has no place in it: pairs are named alone, or stand beside embeddings of the
            given text.
        every: True if it tells of all pairs unless a verdict is named, since those that are dropped are what it is for.
    """

    write: Callable[[Path, int, Iterator[Row], Layout], dict[str, Any]]
    finish: Callable[[Path, Layout, list[dict[str, Any]]], list[str]]
    owns: tuple[str, ...]
    takes: tuple[str, ...] = ()
    images: str = "bytes"
    embeddings: bool = False
    same_picture: bool = False
    new_texts: bool = True
    every: bool = False

    @property
    def verdicts(self) -> frozenset[str]:
        """Which pairs it holds if nobody says."""
        if self.every:
            return frozenset(VERDICTS)
        return frozenset(("keep", "recaption", "relabel") if self.new_texts else ("keep",))


def shard_files(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """The files of all shards: the whole `finish` of a format that has nothing else."""
    return [name for shard in shards for name in shard["files"]]
