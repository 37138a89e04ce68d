"""Labels and arrays that the user names beside a source: whatever is wrong with them is told in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from noisycorr.runtime.errors import UsageError


def load_array(path: Path) -> np.ndarray:
    """A .npy file, mapped into memory and never larger than the file.

    Raises:
        ValueError: If it cannot be read, is an archive of several arrays, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            several = file.read(2) == b"PK"
        if not several:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of the parser of its header, which is that of Python
        raise _line(error) from None
    raise ValueError("it is an archive of several arrays")


def load_rows(path: Path, columns: Sequence[str] | None = None) -> list[Any]:
    """The rows of a small table: parquet, one JSON value a line, tsv, or else csv.

    Args:
        path: Its suffix tells the format.
        columns: Of a parquet, the only ones that are read.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=None if columns is None else list(columns)).to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ","))
    except Exception as error:  # of pyarrow, csv, json, the file system, or a value that Python cannot hold
        raise _line(error) from None


def load_labels(path: Path) -> list[dict[str, Any]]:
    """The rows of the file of `labels`, each with `key` and `label`, of which nothing else is known.

    Raises:
        UsageError: If it is no file, cannot be read, or has no rows with these columns.
    """
    if not path.is_file():
        raise UsageError(f"`labels` {path} is not a file; expected a csv, tsv, jsonl or parquet with key and label.")
    try:
        rows = load_rows(path)
    except ValueError as error:
        raise UsageError(f"`labels` {path} could not be parsed: {error}.") from error
    if not rows or not all(isinstance(row, dict) and {"key", "label"} <= set(row) for row in rows):
        raise UsageError(f"`labels` {path} needs rows with the columns key and label.")
    return rows


def _line(error: Exception) -> ValueError:
    return ValueError(" ".join(str(error).split())[:200] or type(error).__name__)
