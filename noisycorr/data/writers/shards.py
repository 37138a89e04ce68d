"""What several writers need: tables written in small batches, parts of one file, folders of images."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from noisycorr.data.writers import Row
from noisycorr.data.writers.names import Names, safe_name
from noisycorr.data.writers.values import table
from noisycorr.runtime.folder import atomic_path

BATCH_ROWS = 1000
BATCH_BYTES = 32 * 1024 * 1024  # encoded images that are in memory at one time
PARTS = "parts"  # folder of the pieces of one big file, until they are joined
IMAGES = "images"
CARD = "README.md"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Enough for Hugging Face datasets to show the column as pictures; the other columns are known by their types.
_HUGGINGFACE = {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}


def with_image(schema: pa.Schema) -> pa.Schema:
    """The schema with a first column `image` {bytes, path} that Hugging Face datasets take as pictures."""
    return pa.schema([pa.field("image", IMAGE), *schema], metadata=_HUGGINGFACE)


def image_values(row: Row) -> dict[str, Any]:
    """The values of a row for `with_image`; without a picture, image is null."""
    name = f"{safe_name(row.key, flat=True)}.{row.suffix}"
    return {**row.values, "image": None if row.image is None else {"bytes": row.image, "path": name}}


def write_card(folder: Path, pattern: str) -> None:
    """Write the README.md by which Hugging Face datasets know the data from the other files of the folder."""
    card = f"""---
configs:
- config_name: default
  data_files: "{pattern}"
---
Image-text pairs with their verdicts, written by noisycorr. What was exported stands in `export.json`.
"""
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")


class Batches:
    """Collects rows and hands them on as tables of at most `BATCH_ROWS` rows or about `BATCH_BYTES` of images.

    Args:
        schema: Of the tables.
        sink: Takes each table.
    """

    def __init__(self, schema: pa.Schema, sink: Callable[[pa.Table], Any]) -> None:
        self._schema = schema
        self._sink = sink
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, values: Mapping[str, Any], size: int = 0) -> None:
        """Add one row; `size` is the number of bytes of its image."""
        self._rows.append(values)
        self._bytes += size
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand on what has been collected."""
        if self._rows:
            self._sink(table(self._rows, self._schema))
        self._rows, self._bytes = [], 0


@contextlib.contextmanager
def parquet_file(path: Path, schema: pa.Schema) -> Iterator[Batches]:
    """Write a parquet file atomically; rows are added to the yielded `Batches`."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, **parquet_options(schema)) as writer:
        batches = Batches(schema, writer.write_table)
        yield batches
        batches.flush()


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How columns are packed: encoded pictures are not, because that costs time and gains nothing."""
    plain = [name for name, type_ in zip(schema.names, schema.types) if not pa.types.is_struct(type_)]
    pictures = {f"{name}.bytes" for name in schema.names if name not in plain}
    compression = {leaf: "none" if leaf in pictures else "zstd" for leaf in _leaves(schema)}
    return {"compression": compression, "use_dictionary": plain, "write_statistics": plain}


def parquet_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Chosen columns of a parquet file, row by row.

    float32 comes as the shortest decimal number that stands for it, so that 0.3 is written as 0.3 in a text.
    """
    with pq.ParquetFile(path) as file:
        known = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=known, use_threads=False):
            lists = [
                column.to_numpy(zero_copy_only=False).astype(str).astype(float).tolist()
                if pa.types.is_float32(column.type)
                else column.to_pylist()
                for column in batch.columns
            ]
            for values in zip(*lists):
                yield dict(zip(batch.schema.names, values))


@contextlib.contextmanager
def image_folder(folder: Path, index: int) -> Iterator[Path]:
    """Yield a temporary folder for the images of one shard; it appears as images/NNNNN if any were written."""
    final = folder / IMAGES / f"{index:05d}"
    temporary = final.with_name(f".{index:05d}.partial")
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        remove(final)
        if any(temporary.iterdir()):
            temporary.replace(final)
    finally:
        remove(temporary)
        with contextlib.suppress(OSError):  # not empty
            final.parent.rmdir()


def place_image(row: Row, names: Names, temporary: Path, index: int) -> str:
    """Where the image of a row stands: an absolute path for a file of the source, else a path below the export.

    Bytes are written into `temporary`, the folder of `image_folder`.
    """
    if isinstance(row.image, Path):
        return str(row.image)
    name = f"{names.take(row.key)}.{row.suffix}"
    (temporary / name).write_bytes(row.image or b"")
    return f"{IMAGES}/{index:05d}/{name}"


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically. (`np.save` hides from its caller that the disk is full.)"""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).view(np.uint8).data)


def part_path(folder: Path, index: int) -> Path:
    """Where the part of one shard waits to be joined."""
    return folder / PARTS / f"{index:05d}"


@contextlib.contextmanager
def text_part(folder: Path, index: int) -> Iterator[tuple[IO[str], Path]]:
    """Yield the part of one shard, a file of text that appears when it is whole, and the folder of its images."""
    with (
        image_folder(folder, index) as images,
        atomic_path(part_path(folder, index)) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        yield file, images


def join_parts(folder: Path, shards: int, name: str, head: str) -> None:
    """Join the parts of all shards to one file, atomically, after a first line `head` ("" for none)."""
    with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
        file.write(head.encode())
        for index in range(shards):
            with part_path(folder, index).open("rb") as part:
                shutil.copyfileobj(part, file, 1 << 20)


def part_names(shard: int) -> list[str]:
    """The name of a part, as the facts of a shard list it."""
    return [f"{PARTS}/{shard:05d}"]


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there. A link is deleted, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _leaves(schema: pa.Schema) -> list[str]:
    return [leaf for name, type_ in zip(schema.names, schema.types) for leaf in _leaf_names(name, type_)]


def _leaf_names(name: str, type_: pa.DataType) -> list[str]:
    if pa.types.is_struct(type_):
        return [f"{name}.{field.name}" for field in type_]
    if pa.types.is_list(type_):
        return _leaf_names(f"{name}.list.element", type_.value_type)
    return [name]


def picture_key(facts: Mapping[str, Any], columns: Mapping[str, Any], place: int) -> bytes:
    """16 bytes, equal for rows that show one picture. A row without text is never exported as one: it stands alone."""
    name = facts["image_hash"] or columns.get("image_key")
    alone = facts["text"] is None or name is None
    return xxhash.xxh3_128_digest((f"row {place}" if alone else f"picture {name}").encode())


def first_of_each(pictures: bytearray) -> np.ndarray:
    """For each row (n,) the first row with equal 16 bytes."""
    _, first, inverse = np.unique(np.frombuffer(pictures, "S16"), return_index=True, return_inverse=True)
    return first[inverse]
