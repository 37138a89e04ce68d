"""Writer of a saved Hugging Face dataset: a folder that `datasets.load_from_disk` maps into memory.

Each shard is one Arrow file, written as a stream; nothing goes to a cache in the user's home.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from noisycorr.data.writers import Format, Layout, Row, shard_files
from noisycorr.data.writers.parquet import add_rows
from noisycorr.data.writers.shards import Batches, part_path, remove, with_image
from noisycorr.runtime.folder import atomic_path, write_json

INFO, STATE = "dataset_info.json", "state.json"


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write one Arrow file with the columns of the parquet export."""
    name, schema = f"data-{index:05d}.arrow", with_image(layout.schema)
    with (
        atomic_path(folder / name) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, schema) as stream,
    ):
        batches = Batches(schema, stream.write_table)
        facts = add_rows(rows, batches)
        batches.flush()
    return {**facts, "files": [name]}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Write the two JSON files that make the folder a dataset; `state.json` comes last."""
    from datasets import DatasetInfo, Features  # slow to import

    files = shard_files(folder, layout, shards)
    written = part_path(folder, 0)
    written.mkdir(parents=True, exist_ok=True)
    features = Features.from_arrow_schema(with_image(layout.schema))
    DatasetInfo(features=features).write_to_directory(str(written))
    (written / INFO).replace(folder / INFO)
    remove(written.parent)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": layout.fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / STATE, state)
    return [*files, INFO, STATE]


FORMAT = Format(
    write=write,
    finish=finish,
    owns=(r"data-\d{5,}\.arrow", r"dataset_info\.json", r"state\.json", "parts"),
    takes=("image",),
)
