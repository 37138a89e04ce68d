"""Writer of parquet shards: the encoded picture in the column `image`, which Hugging Face datasets show as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisycorr.data.writers import Format, Layout, Row, shard_files
from noisycorr.data.writers.shards import CARD, Batches, image_values, parquet_file, with_image, write_card


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write one file: `image` {bytes, path}, the columns of the ledger, the columns of the input."""
    name = f"{index:05d}.parquet"
    with parquet_file(folder / name, with_image(layout.schema)) as batches:
        facts = add_rows(rows, batches)
    return {**facts, "files": [name]}


def add_rows(rows: Iterator[Row], batches: Batches) -> dict[str, Any]:
    """Add every row with its picture; returns the counts."""
    count = without_image = 0
    for row in rows:
        picture = row.image if isinstance(row.image, bytes) else b""
        batches.add(image_values(row), len(picture))
        count, without_image = count + 1, without_image + (row.image is None)
    return {"rows": count, "without_image": without_image}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Write the card that tells `datasets.load_dataset(folder)` which files are the data."""
    write_card(folder, "*.parquet")
    return [*shard_files(folder, layout, shards), CARD]


FORMAT = Format(write=write, finish=finish, owns=(r"\d{5,}\.parquet", r"README\.md"), takes=("image",))
