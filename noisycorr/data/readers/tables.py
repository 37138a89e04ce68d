"""Readers of tables: parquet, csv, tsv, jsonl and JSON arrays. The image is a column of bytes or of paths."""

from __future__ import annotations

import codecs
import contextlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.detect import kind_of_arrow, kind_of_values, merge_kinds, pick_columns
from noisycorr.data.readers.records import (
    Record,
    csv_header,
    csv_records,
    find_delimiter,
    json_records,
    jsonl_records,
    open_bytes,
)
from noisycorr.data.readers.rows import arrow_rows, bad_row, image_root, resolve_image, row_pairs
from noisycorr.data.readers.source import Piece, Reader, Source
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import fingerprint_file

BATCH_ROWS = 64  # rows that are Python values at one time
_BUFFER = 1 << 20  # bytes of a parquet column read at once, instead of the whole column of a row group
_WHOLE = 1 << 23  # bytes of a file up to which whole columns are read
_SAMPLE = 100  # rows of a text table from which the kinds of its columns are told
_DELIMITER_NAMES = {"\t": "tab", ";": "semicolon", "|": "bar"}
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError)


class ParquetReader(Reader):
    """Parquet files with the same or different columns. One piece is a range of rows of one file.

    Args:
        files: The files, in order.
        source: What the user said.

    Raises:
        UsageError: If no file is readable, or image or text is in none of them.
    """

    format = "parquet"

    def __init__(self, files: list[Path], source: Source) -> None:
        self.source = source
        self.identity: list[Any] = [fingerprint_file(file) for file in files]
        self._counts: dict[str, int | None] = {}  # None: the footer cannot be read
        self._columns: dict[str, list[str]] = {}  # of the readable files
        self._class_names: dict[str, dict[str, list[str]]] = {}
        kinds: dict[str, list[str]] = {}
        for file in files:
            try:
                with pq.ParquetFile(file) as parquet:
                    schema, count = parquet.schema_arrow, parquet.metadata.num_rows
            except _ARROW_ERRORS:
                self._counts[str(file)] = None
                continue
            self._counts[str(file)] = count
            self._columns[str(file)] = schema.names
            self._class_names[str(file)] = class_names(schema)
            for column in schema:
                named = column.name in self._class_names[str(file)]
                kinds.setdefault(column.name, []).append("string" if named else kind_of_arrow(column.type))
        if not self._columns:
            raise UsageError(f"{source.path} cannot be read as parquet: the file is damaged or of another format.")
        merged = {name: merge_kinds(found) for name, found in kinds.items()}
        self.columns = pick_columns(merged, source)
        lacking = [path for path, columns in self._columns.items() if self.columns.text not in columns]
        self.picked: Mapping[str, str] = self.columns.picked()
        if lacking:
            names = ", ".join(Path(path).name for path in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            self.picked = add_note(self.picked, f"{names} has no column {self.columns.text}: its texts are missing")
        if self.columns.image is not None and merged[self.columns.image] == "string":
            self.picked = with_path_note(self.picked, self._first_paths(), source)

    def pieces(self) -> list[Piece]:
        """Ranges of `number_sample_per_shard` rows, file after file."""
        size = self.source.number_sample_per_shard
        pieces: list[Piece] = []
        for path, count in self._counts.items():
            rows = 1 if count is None else count
            for start in range(0, rows, size):
                pieces.append(Piece(len(pieces), path, start, min(rows, start + size)))
        return pieces

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a range of rows. Rows of a damaged row group come out as row_unreadable."""
        base = _rows_before(piece.path, {path: 1 if count is None else count for path, count in self._counts.items()})
        root = image_root(self.source, Path(piece.path))
        for row, values in enumerate(self._rows(piece), start=base + piece.start):
            if values is None:
                yield bad_row(row, "")
            else:
                yield from row_pairs(values, self.columns, root, row)

    def _rows(self, piece: Piece) -> Iterator[dict[str, Any] | None]:
        count = self._counts[piece.path]
        stop = piece.stop if piece.stop is not None else 1 if count is None else count
        try:
            # Without a buffer a whole column of a row group is in memory at once, which may be gigabytes of images;
            # with one, a damaged page that claims gigabytes gets them before it is found to be shorter.
            buffer = _BUFFER if Path(piece.path).stat().st_size > _WHOLE else 0
            parquet = pq.ParquetFile(piece.path, buffer_size=buffer, pre_buffer=False)
        except _ARROW_ERRORS:
            yield from (None for _ in range(piece.start, stop))
            return
        with parquet:
            first = 0
            for group in range(parquet.metadata.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                low, high = max(piece.start - first, 0), min(stop - first, rows)
                if low < high:
                    yield from self._group_rows(parquet, group, low, high, piece.path)
                first += rows

    def _group_rows(
        self, parquet: pq.ParquetFile, group: int, low: int, high: int, path: str
    ) -> Iterator[dict[str, Any] | None]:
        names, position = self._class_names[path], low
        for batch in _slices(parquet, group, low, high):
            yield from arrow_rows(batch, {name: names[name] for name in (self.columns.text,) if name in names})
            position += batch.num_rows
        yield from (None for _ in range(position, high))

    def _first_paths(self) -> Iterator[tuple[Path, str]]:
        image = self.columns.image
        for path in (path for path, columns in self._columns.items() if image in columns):
            with pq.ParquetFile(path) as parquet, contextlib.suppress(*_ARROW_ERRORS):
                batch = next(parquet.iter_batches(batch_size=_SAMPLE, columns=[image]), None)
                values = batch.column(0).to_pylist() if batch is not None else []
                yield from ((Path(path), value) for value in values if isinstance(value, str))


class TextTableReader(Reader):
    """csv, tsv, jsonl or JSON array files. One piece is a range of bytes that holds whole rows.

    Args:
        files: The files, in order.
        source: What the user said.
        format_: csv, tsv, jsonl or json. A json file of one object a line is read as jsonl.

    Raises:
        UsageError: If there is no row, or image or text is in none of the files.
    """

    def __init__(self, files: list[Path], source: Source, format_: str) -> None:
        self.format = format_
        self.source = source
        self.identity: list[Any] = [fingerprint_file(file) for file in files]
        self._pieces: list[Piece] | None = None
        self._first_rows: dict[tuple[str, int], int] = {}
        self._layouts: dict[str, _Layout] = {str(file): _layout(file, format_) for file in files}
        kinds: dict[str, list[str]] = {}
        samples: list[tuple[Path, dict[str, Any]]] = []
        for file in files:
            rows = [values for record, _ in zip(self._records(str(file)), range(_SAMPLE)) if (values := record.values)]
            samples += [(file, row) for row in rows[: _SAMPLE - len(samples)]]
            for name in dict.fromkeys([*self._layouts[str(file)].names, *(name for row in rows for name in row)]):
                kind = kind_of_values((row.get(name) for row in rows), digits_are_numbers=format_ in ("csv", "tsv"))
                kinds.setdefault(name, []).append(kind)
        if not kinds:
            raise UsageError(f"{source.path} has no readable row: is it {format_} in UTF-8, with column names?")
        merged = {name: merge_kinds(found) for name, found in kinds.items()}
        self.columns = pick_columns(merged, source)
        self.picked: Mapping[str, str] = self.columns.picked()
        delimiters = {_DELIMITER_NAMES.get(layout.delimiter, "") for layout in self._layouts.values()} - {""}
        if format_ == "csv" and delimiters:
            self.picked = {**self.picked, "delimiter": ", ".join(sorted(delimiters))}
        image = self.columns.image
        if image is not None:
            paths = ((file, row[image]) for file, row in samples if isinstance(row.get(image), str))
            self.picked = with_path_note(self.picked, paths, source)

    def pieces(self) -> list[Piece]:
        """Ranges of about `number_sample_per_shard` rows. Reads through the files once, the first time."""
        if self._pieces is None:
            pieces: list[Piece] = []
            row = 0
            for path in self._layouts:
                starts: list[int] = []
                for count, record in enumerate(self._records(path)):
                    if count % self.source.number_sample_per_shard == 0:
                        starts.append(record.offset)
                        self._first_rows[path, record.offset] = row
                    row += 1
                for start, stop in zip(starts, [*starts[1:], None]):
                    pieces.append(Piece(len(pieces), path, start, stop))
            self._pieces = pieces
        return self._pieces

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a range of bytes. Rows that cannot be parsed come out as row_unreadable."""
        self.pieces()  # fills _first_rows
        root = image_root(self.source, Path(piece.path))
        first = self._first_rows[piece.path, piece.start]
        for row, record in enumerate(self._records(piece.path, piece.start), start=first):
            if piece.stop is not None and record.offset >= piece.stop:
                return
            if record.values is None:
                yield bad_row(row, record.raw)
            else:
                yield from row_pairs(record.values, self.columns, root, row)

    def _records(self, path: str, start: int | None = None) -> Iterator[Record]:
        layout = self._layouts[path]
        start = layout.first if start is None else start
        if layout.format == "jsonl":
            return jsonl_records(Path(path), start)
        if layout.format == "json":
            return json_records(Path(path), start)
        return csv_records(Path(path), start, layout.names, layout.delimiter)


def has_pairs(path: Path) -> bool:
    """True if a JSON file is a table with images and texts, by the names of its columns."""
    try:
        return TextTableReader([path], Source(path=str(path)), "json").columns.image is not None
    except UsageError:
        return False


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes in columns of class numbers, where a parquet of Hugging Face datasets brings them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {n: list(map(str, f["names"])) for n, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def with_path_note(picked: Mapping[str, str], paths: Iterable[tuple[Path, str]], source: Source) -> dict[str, str]:
    """`picked`, with a note if none of the first image paths leads to a file.

    Args:
        picked: What was detected.
        paths: Pairs of the file that names an image, and the path it names; the first 20 are looked at.
        source: Gives the image root.
    """
    tried = [(file, value) for (file, value), _ in zip(paths, range(20))]
    if not tried or any(resolve_image(value, image_root(source, file))[0] is not None for file, value in tried):
        return dict(picked)
    root = image_root(source, tried[0][0])
    note = f"none of the first {len(tried)} image paths is a file in {root}: give the right `image_root`"
    return add_note(picked, note)


def add_note(picked: Mapping[str, str], note: str) -> dict[str, str]:
    """`picked` with one more thing that the user should know."""
    return {**picked, "note": "; ".join(part for part in (picked.get("note", ""), note) if part)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How one text table is written."""

    format: str
    names: list[str] = field(default_factory=list)  # columns of a csv
    first: int = 0  # offset of its first row
    delimiter: str = ""


def _layout(path: Path, format_: str) -> _Layout:
    try:
        with open_bytes(path) as file:
            head = file.read(4096)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be opened: {error}.") from None
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{path} is UTF-16: save it as UTF-8.")
    if format_ in ("csv", "tsv"):
        delimiter = find_delimiter(path) if format_ == "csv" else "\t"
        names, first = csv_header(path, delimiter)
        return _Layout(format=format_, names=names, first=first, delimiter=delimiter)
    is_array = head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    return _Layout(format="json" if format_ == "json" and is_array else "jsonl")


def _slices(parquet: pq.ParquetFile, group: int, low: int, high: int) -> Iterator[pa.RecordBatch]:
    """Rows low to high of one row group in small batches; ends early where the data is damaged."""
    position = 0
    batches = parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], use_threads=False)
    while position < high:
        try:
            batch = next(batches, None)
        except _ARROW_ERRORS:
            return
        if batch is None:
            return
        first, last = max(low - position, 0), min(high - position, batch.num_rows)
        if first < last:
            yield batch.slice(first, last - first)
        position += batch.num_rows


def _rows_before(path: str, counts: Mapping[str, int]) -> int:
    before = 0
    for other, count in counts.items():
        if other == path:
            break
        before += count
    return before
