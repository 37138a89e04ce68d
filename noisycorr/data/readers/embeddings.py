"""Reader of embeddings that were computed before: clip-retrieval's folders, or `image.npy` beside `text.npy`.

    FOLDER/img_emb/img_emb_0.npy  text_emb/text_emb_0.npy  metadata/metadata_0.parquet  (and _1, _2, ...)
    FOLDER/image.npy  text.npy  [pairs.parquet or pairs.csv]

Row i of each belongs together. The pictures themselves are not needed: the embedding stands for the image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.detect import Columns, kind_of_arrow, kind_of_values, merge_kinds, pick_columns
from noisycorr.data.readers.given import load_array
from noisycorr.data.readers.records import Record, csv_header, csv_records, find_delimiter
from noisycorr.data.readers.rows import arrow_rows, clean_text, key_text, other_columns
from noisycorr.data.readers.source import Piece, Reader, Source
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import fingerprint_file

_BATCH_ROWS = 1024
_SAMPLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Files that belong together, row by row."""

    image: Path
    text: Path
    pairs: Path | None  # parquet or csv; None where only the number of a row tells pairs apart
    rows: int
    first: int  # number of its first row in the whole source


class EmbeddingReader(Reader):
    """Stored embeddings and the table of their pairs. One piece is one file, or a range of rows of a large one.

    Args:
        folders: The folders, in order.
        source: What the user said.

    Raises:
        UsageError: If files are missing, are no arrays of numbers, or differ in their number of rows.
    """

    format = "embeddings"

    def __init__(self, folders: list[Path], source: Source) -> None:
        self.source = source
        self._parts: dict[str, _Part] = {}
        widths: set[tuple[int, int]] = set()
        first = 0
        for image, text, pairs in [files for folder in folders for files in _find(folder)]:
            rows, width = _check(image, text, pairs)
            widths.add(width)
            self._parts[str(image)] = _Part(image=image, text=text, pairs=pairs, rows=rows, first=first)
            first += rows
        if len(widths) > 1:
            raise UsageError(f"The embeddings in {source.path} differ in width from file to file: {sorted(widths)}.")
        parts = self._parts.values()
        files = [file for part in parts for file in (part.image, part.text, part.pairs) if file is not None]
        self.identity: list[Any] = [fingerprint_file(file) for file in files]
        kinds: dict[str, list[str]] = {}
        for part in parts:
            for name, kind in _kinds(part.pairs).items():
                kinds.setdefault(name, []).append(kind)
        merged = {name: merge_kinds(found) for name, found in kinds.items()}
        self.columns = pick_columns(merged, source, need_image=False, need_text=False) if merged else Columns()
        self.picked: Mapping[str, str] = {**self.columns.picked(), "image": "stored embedding"}
        if self.columns.text is None:
            self.picked = {**self.picked, "note": "there is no column of texts; the pairs are known by key only"}

    def pieces(self) -> list[Piece]:
        """One piece a file, or ranges of `number_sample_per_shard` rows where a file has more."""
        pieces: list[Piece] = []
        for path, part in self._parts.items():
            for start in range(0, part.rows, self.source.number_sample_per_shard):
                stop = min(part.rows, start + self.source.number_sample_per_shard)
                pieces.append(Piece(len(pieces), path, start, stop))
        return pieces

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a range of rows; `image` is None without being a problem."""
        part = self._parts[piece.path]
        stop = part.rows if piece.stop is None else piece.stop
        rows = itertools.chain(_rows(part.pairs), itertools.repeat({}))  # rows that cannot be read count, too
        for row, values in enumerate(itertools.islice(rows, piece.start, stop), start=piece.start):
            yield self._pair(values, part.first + row)

    def embeddings(self, piece: Piece) -> tuple[np.ndarray, np.ndarray] | None:
        """Image (n, d) and text (n, e) embeddings of a piece, as they were stored, not normalised."""
        part = self._parts[piece.path]
        image, text = (_load(path)[piece.start : piece.stop] for path in (part.image, part.text))
        return np.array(image), np.array(text)

    def _pair(self, values: Mapping[str, Any] | None, row: int) -> Pair:
        if values is None:
            return Pair(key=key_text(None, row), problem="row_unreadable")
        key = key_text(values.get(self.columns.key) if self.columns.key else None, row)
        rest = other_columns(values, self.columns)
        if self.columns.text is None:
            return Pair(key=key, columns=rest)
        text = values.get(self.columns.text)
        if isinstance(text, list):  # one embedding, so one pair: the first text is the one that was embedded
            rest[self.columns.text] = text
            text = text[0] if text else None
        text, problem = clean_text(text)
        return Pair(key=key, text=text, columns=rest, problem=problem)


def _find(folder: Path) -> list[tuple[Path, Path, Path | None]]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, but stored embeddings are a folder of several: name the folder.")
    if (folder / "image.npy").is_file() and (folder / "text.npy").is_file():
        tables = (path for path in (folder / "pairs.parquet", folder / "pairs.csv") if path.is_file())
        return [(folder / "image.npy", folder / "text.npy", next(tables, None))]
    images = _numbered(folder / "img_emb", "img_emb", "npy")
    texts = _numbered(folder / "text_emb", "text_emb", "npy")
    tables_by_number = _numbered(folder / "metadata", "metadata", "parquet")
    if not images:
        raise UsageError(
            f"{folder} has no embeddings: expected image.npy and text.npy, or img_emb/img_emb_0.npy and "
            "text_emb/text_emb_0.npy as clip-retrieval writes them."
        )
    for other, name in ((texts, "text_emb"), (tables_by_number, "metadata")):
        if other.keys() != images.keys() and (other or name == "text_emb"):
            lonely = sorted(images.keys() ^ other.keys())[0]
            raise UsageError(
                f"{folder} has {len(images)} files in img_emb and {len(other)} in {name}, number {lonely} only in one: "
                "every file needs its partner."
            )
    return [(images[number], texts[number], tables_by_number.get(number)) for number in sorted(images)]


def _numbered(folder: Path, prefix: str, suffix: str) -> dict[int, Path]:
    pattern = re.compile(rf"{prefix}_(\d+)\.{suffix}")
    if not folder.is_dir():
        return {}
    return {int(match[1]): path for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))}


def _check(image: Path, text: Path, pairs: Path | None) -> tuple[int, tuple[int, int]]:
    """Number of rows and the two widths."""
    first, second = _load(image), _load(text)
    if len(first) != len(second):
        raise UsageError(f"{image} has {len(first)} rows but {text} has {len(second)}: row i must be the same pair.")
    if pairs is not None and (count := _count(pairs)) != len(first):
        raise UsageError(f"{image} has {len(first)} rows but {pairs} has {count}: row i must be the same pair.")
    return len(first), (first.shape[1], second.shape[1])


def _load(path: Path) -> np.ndarray:
    try:
        array = load_array(path)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as a NumPy array: {error}.") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UsageError(
            f"{path} must be an array of floats with one row for each pair, not {array.dtype} {array.shape}."
        )
    return array


def _count(path: Path) -> int:
    if path.suffix == ".csv":
        return sum(1 for _ in _csv(path))
    with _parquet(path) as parquet:
        return parquet.metadata.num_rows


def _kinds(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    if path.suffix == ".csv":
        rows = [record.values for record in itertools.islice(_csv(path), _SAMPLE) if record.values]
        names = dict.fromkeys(name for row in rows for name in row)
        return {n: kind_of_values((row[n] for row in rows), digits_are_numbers=True) for n in names}
    with _parquet(path) as parquet:
        return {column.name: kind_of_arrow(column.type) for column in parquet.schema_arrow}


def _rows(path: Path | None) -> Iterator[dict[str, Any] | None]:
    if path is None:
        return
    if path.suffix == ".csv":
        for record in _csv(path):
            yield record.values
        return
    with _parquet(path) as parquet:
        done = 0
        try:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                yield from arrow_rows(batch, {})
                done += batch.num_rows
        except (OSError, ValueError, pa.ArrowException):
            yield from (None for _ in range(done, parquet.metadata.num_rows))


def _csv(path: Path) -> Iterator[Record]:
    delimiter = find_delimiter(path)
    names, start = csv_header(path, delimiter)
    return csv_records(path, start, names, delimiter)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as parquet: {str(error)[:200]}.") from None
