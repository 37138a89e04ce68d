"""Sources that are Python objects: a table, a dataset or a list of (image, text) becomes parquet in the run folder.

    given = take_object(frame, reading)          # None if it is none of those
    given.survey()                               # one pass: digest of the content, columns, types
    given.write(run.folder / "source")           # .../source/<digest>/00000.parquet, if they are not there yet

The parquet reader does the rest. Equal objects give equal files in any process, with equal times of change, so that a
second call finds its work done. Broken rows stay rows: what cannot be an image or a text comes out with a problem.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from noisycorr.data.readers.cells import Picture, Told, plain_value, png, raw, told, unique_names
from noisycorr.data.readers.detect import kind_of_values, pick_columns
from noisycorr.data.readers.rows import arrow_rows, clean_string, is_address, json_value
from noisycorr.data.readers.source import Reading
from noisycorr.data.readers.tables import class_names
from noisycorr.data.writers.shards import BATCH_BYTES, IMAGE, Batches, parquet_options
from noisycorr.data.writers.values import final_type, json_type, merge_types
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import atomic_path

HEAD = 100  # rows from which it is told which columns hold image and text
BATCH_ROWS = 64  # rows that are Python values at one time
RAW = "raw"  # column that keeps what could not be used
_OWN = re.compile("[0-9a-f]{16}")  # folders of ours
_LAYOUT = 1  # raise it when equal objects are written otherwise

Row = dict[str, Any]  # column to None, bool, int, float, str, bytes, list, dict or Picture


@dataclass(slots=True)
class Objects:
    """Pairs that came as an object.

    Attributes:
        kind: dataframe, table, dataset or pairs; for the name of the folder.
        rows: Begins to go through all rows.
        once: True if that can be done a single time.
        reading: How image and text are found.
        total: Number of rows, where it is known before.
        names: Class names of columns of class numbers.
        digest: Of the content, 16 hex digits; "" before `survey`.
        count: Rows.
        types: Arrow types of the columns that are written.
        has_paths: True if image paths are among them that start from nowhere else than the root.
    """

    kind: str
    rows: Callable[[], Iterator[Row]]
    once: bool
    reading: Reading
    total: int | None = None
    names: Mapping[str, list[str]] = field(default_factory=dict)
    digest: str = ""
    count: int = 0
    types: dict[str, pa.DataType] = field(default_factory=dict)
    has_paths: bool = False
    _spool: _Spool | None = None

    def survey(self, folder: Path | None = None) -> str:
        """Go through the object once; nothing that a reader sees is written.

        Args:
            folder: Where rows that can be read a single time wait for `write`; None = they are only counted.

        Returns:
            The digest.

        Raises:
            UsageError: If there are no rows, or image and text cannot be found.
        """
        if self.digest:
            return self.digest
        self._spool = _Spool(folder) if self.once and folder is not None else None
        rows = self.rows()
        head = list(itertools.islice(rows, HEAD))
        if not head:
            raise UsageError(f"The source (a {self.kind}) holds no pairs.")
        roles = _Roles.found(head, self)
        state = xxhash.xxh3_128(
            repr((_LAYOUT, self.kind, self.reading, roles.image, roles.text, dict(self.names))).encode()
        )
        columns: dict[str, _Column] = {}
        every = itertools.chain(head, rows)
        for row in console.bar(every, label="source: reading", total=self.total, hidden=not dist.is_main()):
            row = roles.applied(row)
            text, blobs = _encoded(row, png if self.once else raw)
            for part in (text.encode(), *blobs):
                state.update(len(part).to_bytes(8, "little"))
                state.update(part)
            if self._spool is not None:
                self._spool.add(text, blobs)
            for name, value in row.items():
                columns.setdefault(name, _Column()).see(value)
            self.count += 1
        self.types = {name: column.type(name in (roles.image, roles.text)) for name, column in columns.items()}
        self.has_paths = any(column.paths for column in columns.values()) and self.reading.image_root is None
        roles.check(self, columns)
        self.digest = state.hexdigest()[:16]
        self.rows = self._spool.rows if self._spool is not None else self._applied(self.rows, roles)
        return self.digest

    def place(self, folder: Path) -> Path:
        """Where the shards of this very content are."""
        return folder / self.digest

    def is_written(self, folder: Path) -> bool:
        """True if all shards are there."""
        return all((self.place(folder) / _shard(index)).exists() for index in range(self._shards()))

    def write(self, folder: Path) -> Path:
        """Write the shards that are not there yet; each appears when it is whole.

        Args:
            folder: `source` of a run.

        Returns:
            The folder of the shards.
        """
        place = self.place(folder)
        if self.is_written(folder):
            return place
        rows, size = self.rows(), self.reading.number_sample_per_shard
        with console.bar(label="source: writing", total=self.count) as bar:
            for index in range(self._shards()):
                part = itertools.islice(rows, size)
                if (place / _shard(index)).exists():
                    for _ in part:
                        bar.update()
                else:
                    self._write_shard(place / _shard(index), part, bar.update)
        return place

    def _write_shard(self, path: Path, rows: Iterable[Row], step: Callable[[], Any]) -> None:
        features: dict[str, Any] = {name: {"_type": "ClassLabel", "names": names} for name, names in self.names.items()}
        shown = [name for name, type_ in self.types.items() if type_ == IMAGE]
        features |= {name: {"_type": "Image"} for name in shown}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
        schema = pa.schema(list(self.types.items()), metadata)
        with atomic_path(path) as temporary:
            with pq.ParquetWriter(temporary, schema, **parquet_options(schema)) as writer:
                batches = Batches(schema, writer.write_table)
                for row in rows:
                    values = {name: _stored(value, self.types[name]) for name, value in row.items()}
                    batches.add(values, sum(len(values[name]["bytes"] or b"") for name in shown if values.get(name)))
                    step()
                batches.flush()
            # Readers know a file by name, size and time: this time is that of the content, in any process.
            when = 946_684_800 + 2 * (int(self.digest, 16) % (1 << 28))  # 2000 to 2017
            os.utime(temporary, (when, when))

    def _shards(self) -> int:
        return -(-self.count // self.reading.number_sample_per_shard)

    @staticmethod
    def _applied(rows: Callable[[], Iterator[Row]], roles: _Roles) -> Callable[[], Iterator[Row]]:
        return lambda: (roles.applied(row) for row in rows())


def take_object(source: Any, reading: Reading) -> Objects | None:
    """An object that holds pairs, ready to be gone through; None if it is none.

    Args:
        source: A pandas DataFrame, an Arrow table, batch or reader (or what gives an Arrow stream), a Hugging Face
            dataset, or an iterable of (image, text) or of dicts.
        reading: How image and text are found in it.

    Raises:
        UsageError: If a dataset of several splits has none of the name `hf_split`.
    """
    if _is_a(source, "pandas", "DataFrame"):
        return Objects("dataframe", _cells(lambda: _frame_rows(source)), False, reading, len(source))
    if _is_a(source, "datasets", "DatasetDict", "IterableDatasetDict"):
        if reading.hf_split not in source:
            raise UsageError(
                f"There is no split {reading.hf_split!r} (`hf_split`): there are {', '.join(sorted(map(str, source)))}."
            )
        return take_object(source[reading.hf_split], reading)
    if _is_a(source, "datasets", "Dataset", "IterableDataset"):
        return _dataset(source, reading)
    if isinstance(source, (pa.Table, pa.RecordBatch, pa.RecordBatchReader)) or hasattr(source, "__arrow_c_stream__"):
        return _arrow(source, reading)
    return _pairs(source, reading)


def drop_objects(folder: Path, used: Collection[Path]) -> None:
    """Delete the shards of earlier objects, where a new one has come.

    Args:
        folder: `source` of a run.
        used: Folders that the run reads now; if none of them is in there, nothing is deleted.
    """
    if not any(place.parent == folder.resolve() and _OWN.fullmatch(place.name) for place in used):
        return
    for place in folder.iterdir():
        if place.resolve() not in used and _OWN.fullmatch(place.name) and not place.is_symlink():
            for file in place.glob("*.parquet"):
                file.unlink()
            with contextlib.suppress(OSError):  # somebody keeps something else there
                place.rmdir()


def _is_a(source: Any, package: str, *names: str) -> bool:
    """True for an object of these classes, without importing the package."""
    return any(kind.__name__ in names and kind.__module__.split(".")[0] == package for kind in type(source).__mro__)


def _frame_rows(frame: Any) -> Iterator[Row]:
    """Rows of a DataFrame; levels of its index that have a name are columns."""
    levels = [number for number, name in enumerate(frame.index.names) if name is not None]
    names = unique_names([*frame.columns, *(frame.index.names[number] for number in levels)])
    for start in range(0, len(frame) if names else 0, BATCH_ROWS):
        part = frame.iloc[start : start + BATCH_ROWS]
        values = [part.iloc[:, place].tolist() for place in range(part.shape[1])]
        values += [part.index.get_level_values(number).tolist() for number in levels]
        yield from (dict(zip(names, row)) for row in zip(*values))


def _arrow(source: Any, reading: Reading) -> Objects | None:
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        total, once, batches = len(source), False, lambda: iter(source.to_batches(max_chunksize=BATCH_ROWS))
    else:
        try:
            stream = pa.RecordBatchReader.from_stream(source)
        except (pa.ArrowException, TypeError, ValueError):
            return None  # of one column: no pairs
        source, total, once, batches = stream, None, True, lambda: iter(stream)
    names = unique_names(source.schema.names)

    def rows() -> Iterator[Row]:
        for batch in batches():
            renamed = pa.Table.from_batches([batch]).rename_columns(names)
            for small in renamed.to_batches(max_chunksize=BATCH_ROWS):
                yield from arrow_rows(small, {})

    return Objects("table", _cells(rows), once, reading, total, class_names(source.schema))


def _dataset(dataset: Any, reading: Reading) -> Objects:
    """A Hugging Face dataset. Images stay encoded."""
    from datasets import ClassLabel
    from datasets import Image as Encoded

    features = dict(dataset.features or {})
    for name, feature in features.items():
        if isinstance(feature, Encoded):
            dataset = dataset.cast_column(name, Encoded(decode=False))
    names = {name: list(f.names) for name, f in features.items() if isinstance(f, ClassLabel) and f.names}
    if not hasattr(dataset, "__len__"):
        return Objects("dataset", _cells(lambda: (dict(row) for row in dataset)), True, reading, None, names)
    table = dataset.with_format("arrow")

    def rows() -> Iterator[Row]:
        for start in range(0, len(table), BATCH_ROWS):
            yield from arrow_rows(table[start : start + BATCH_ROWS], {})

    return Objects("dataset", _cells(rows), False, reading, len(table), names)


def _pairs(source: Any, reading: Reading) -> Objects | None:
    """An iterable of (image, text) or of dicts, by what its first items are."""
    refused = (str, bytes, bytearray, memoryview, Mapping, set, frozenset, np.ndarray, Image.Image, PathLike)
    if isinstance(source, refused):  # sets have another order in each process
        return None
    whole, once = _iterated(source)
    if whole is None:
        return None
    first = whole()
    head = list(itertools.islice(first, HEAD))
    if head and not any(isinstance(item, Mapping) or _is_pair(item) for item in head):
        return None
    begun = itertools.chain(head, first)
    as_dicts = any(isinstance(item, Mapping) for item in head)
    total = len(source) if hasattr(source, "__len__") else None
    rows = (lambda: begun) if once else whole
    return Objects("pairs", _cells(lambda: (_item_row(item, as_dicts) for item in rows())), once, reading, total)


def _iterated(source: Any) -> tuple[Callable[[], Iterator[Any]] | None, bool]:
    """How to go through an iterable, and whether that can be done once only."""
    if not hasattr(source, "__iter__") and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return lambda: (source[place] for place in range(len(source))), False  # a map-style dataset of PyTorch
    try:
        return lambda: iter(source), iter(source) is source
    except TypeError:
        return None, False


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2


def _item_row(item: Any, as_dicts: bool) -> Row:
    if isinstance(item, Mapping):
        return dict(zip(unique_names(item), item.values()))
    if _is_pair(item):
        return {"image": item[0], "text": item[1]}
    return ({} if as_dicts else {"image": None, "text": None}) | {RAW: told(item)}


def _cells(rows: Callable[[], Iterator[Row]]) -> Callable[[], Iterator[Row]]:
    return lambda: ({name: plain_value(value) for name, value in row.items()} for row in rows())


@dataclass(frozen=True, slots=True)
class _Roles:
    """Which columns make a pair, and what their values must be.

    `numbers`: the text is a number in all rows that were looked at, such as a class; else a number is no text.
    """

    image: str | None
    text: str | None
    numbers: bool
    base: str | None  # folder that relative image paths start from; None = they stay as they are

    @staticmethod
    def found(head: Sequence[Row], objects: Objects) -> _Roles:
        """By the names and values of the first rows.

        Raises:
            UsageError: If there are none, and no later row can change that.
        """
        values: dict[str, list[Any]] = {}
        for row in head:
            for name, value in row.items():
                values.setdefault(name, []).append(value)
        kinds = {name: _kind(found, name in objects.names) for name, found in values.items()}
        reading = objects.reading
        image, text = reading.image_col or "image", reading.caption_col or "text"
        try:
            columns = pick_columns(kinds, reading.at(f"the {objects.kind}"))
            image, text = columns.image or image, columns.text or text
        except UsageError:
            if "null" not in kinds.values() and not {"image", "text"} <= kinds.keys():
                raise
        numbers = not any(isinstance(value, (str, bytes, list)) for value in values.get(text, []))  # in all of them
        return _Roles(image, text, numbers, str(Path.cwd()) if reading.image_root is None else None)

    def check(self, objects: Objects, columns: Mapping[str, _Column]) -> None:
        """Refuse an object without image or text before it is written."""
        kinds = {name: "string" if name in objects.names else column.kind(name == self.image)
                 for name, column in columns.items()}  # fmt: skip
        pick_columns(kinds, objects.reading.at(f"the {objects.kind}"))

    def applied(self, row: Row) -> Row:
        """The row with an image and a text of the right kinds; what is of another kind is told in a column."""
        out = dict(row)
        if self.image in out:
            out[self.image] = self._image(out[self.image])
        if self.text is not None and self.text in out and self.text != self.image:
            value = out[self.text]
            out[self.text] = self._text(value)
            if out[self.text] is None and value is not None:
                out.setdefault(RAW, "<picture>" if isinstance(value, Picture) else told(value))
        return out

    def _image(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return Picture(data=value)
        if isinstance(value, str) and not isinstance(value, Told):
            return Picture(path=self._absolute(value)) if value else None
        if isinstance(value, Picture) and value.data is None and value.path:
            return Picture(pixels=value.pixels, path=self._absolute(value.path))
        if value is None or isinstance(value, Picture):
            return value
        return Picture(data=f"no image but {told(value)[:100]}".encode())  # which is image_unreadable

    def _absolute(self, path: str) -> str:
        return path if self.base is None or is_address(path) else os.path.normpath(Path(self.base, path))

    def _text(self, value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, Told):
            # Arrow holds no lone surrogates; as bytes they come to the reader, which says so.
            return value if clean_string(value) == value else value.encode("utf-8", "surrogatepass")
        if isinstance(value, list):
            return [_list_text(item) for item in value]
        return value if isinstance(value, bytes) or (self.numbers and isinstance(value, (int, float))) else None


def _list_text(item: Any) -> str | None:
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    return clean_string(item) if isinstance(item, str) and not isinstance(item, Told) else None


def _kind(values: Sequence[Any], is_class: bool) -> str:
    """What a column holds, as far as some rows tell; a few strange values do not count."""
    if is_class:
        return "string"
    if any(isinstance(value, Picture) for value in values):
        return "image"
    if any(isinstance(value, bytes) for value in values):
        return "bytes"
    texts = [value for value in values if isinstance(value, str) and not isinstance(value, Told)]
    lists = [value for value in values if isinstance(value, list) and any(isinstance(item, str) for item in value)]
    return ("strings" if lists else "string") if texts or lists else kind_of_values(values)


@dataclass(slots=True)
class _Column:
    """What has been seen of a column."""

    found: pa.DataType = field(default_factory=pa.null)
    texts: bool = False
    bytes: bool = False
    others: bool = False
    pictures: bool = False
    paths: bool = False

    def see(self, value: Any) -> None:
        """One more value."""
        if isinstance(value, Picture):
            self.pictures |= value.data is not None or value.pixels is not None
            self.paths |= value.data is None and value.pixels is None and value.path is not None
        elif isinstance(value, bytes):
            self.bytes = True
        elif isinstance(value, str):
            self.texts = True
        elif value is not None:
            self.others = True
            self.found = merge_types(self.found, json_type(json_value(value)))

    def type(self, chosen: bool) -> pa.DataType:
        """Of the column as it is written; `chosen` for image and text."""
        if self.pictures:
            return IMAGE
        if self.bytes and not (self.others or self.paths):
            return pa.binary()
        if chosen and pa.types.is_list(self.found):
            return pa.list_(pa.string())
        if self.texts or self.bytes or self.paths:
            return pa.string()
        return final_type(self.found)

    def kind(self, is_image: bool) -> str:
        """What a reader will take it for."""
        type_ = self.type(is_image)
        if type_ == IMAGE or pa.types.is_binary(type_):
            return "image" if type_ == IMAGE else "bytes"
        if pa.types.is_list(type_):
            return "strings" if pa.types.is_string(type_.value_type) else "other"
        return "integer" if pa.types.is_integer(type_) else "string" if pa.types.is_string(type_) else "other"


def _stored(value: Any, type_: pa.DataType) -> Any:
    """A value as its column holds it."""
    if isinstance(value, Picture):
        data = png(value) if value.data is None and value.pixels is not None else value.data
        return {"bytes": data, "path": _utf8(value.path)} if type_ == IMAGE else _utf8(value.path)
    if value is None:
        return None
    if type_ == IMAGE:  # of another column than that of the image
        return {"bytes": value, "path": None} if isinstance(value, bytes) else {"bytes": None, "path": told(value)}
    if pa.types.is_binary(type_):
        return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    if type_ == pa.list_(pa.string()) and not isinstance(value, list):
        return [_list_text(value)]
    return json_value(value)


def _utf8(path: str | None) -> str | None:
    return None if path is None else clean_string(path)


def _encoded(row: Row, pixels: Callable[[Picture], bytes]) -> tuple[str, list[bytes]]:
    """A row as JSON, and the bytes that it refers to."""
    blobs: list[bytes] = []
    cells: list[list[Any]] = []
    for name, value in row.items():
        if isinstance(value, Picture):
            if value.data is not None or value.pixels is not None:
                blobs.append(value.data if value.data is not None else pixels(value))
            cells.append([name, "picture", value.path, value.data is not None or value.pixels is not None])
        elif isinstance(value, bytes):
            blobs.append(value)
            cells.append([name, "bytes"])
        else:
            cells.append([name, "value", json_value(value) if isinstance(value, (list, dict)) else value])
    return json.dumps(cells), blobs


class _Spool:
    """Rows that could be read a single time, in a file without a name: it goes with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as this is
        self.schema = pa.schema([("row", pa.string()), ("blobs", pa.list_(pa.binary()))])
        self.writer = pa.ipc.new_stream(self.file, self.schema)
        self.waiting: list[tuple[str, list[bytes]]] = []
        self.size = 0

    def add(self, text: str, blobs: list[bytes]) -> None:
        """Keep one row."""
        self.waiting.append((text, blobs))
        self.size += sum(map(len, blobs))
        if len(self.waiting) >= BATCH_ROWS or self.size >= BATCH_BYTES:
            self._flush()

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        self._flush()
        self.writer.close()
        self.file.seek(0)
        for batch in pa.ipc.open_stream(self.file):
            for row in batch.to_pylist():
                yield _decoded(row["row"], row["blobs"])

    def _flush(self) -> None:
        if self.waiting:
            columns = [pa.array(list(values), type_) for values, type_ in zip(zip(*self.waiting), self.schema.types)]
            self.writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self.waiting, self.size = [], 0


def _decoded(text: str, blobs: Sequence[bytes]) -> Row:
    rest = iter(blobs)
    row: Row = {}
    for name, tag, *values in json.loads(text):
        if tag == "picture":
            row[name] = Picture(data=next(rest) if values[1] else None, path=values[0])
        else:
            row[name] = next(rest) if tag == "bytes" else values[0]
    return row


def _shard(index: int) -> str:
    return f"{index:05d}.parquet"
