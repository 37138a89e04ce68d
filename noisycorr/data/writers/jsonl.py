"""Writer of pairs.jsonl: one JSON object a line with the input columns, the ledger and `file_name`.

`file_name` is the file of the source where it has files; where it has bytes, they are written to images/ and the path
starts from the folder of pairs.jsonl. Images themselves never stand in the JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisycorr.data.writers import Format, Layout, Row
from noisycorr.data.writers.names import Names
from noisycorr.data.writers.shards import join_parts, part_names, place_image, text_part
from noisycorr.data.writers.values import json_line, json_record

NAME = "pairs.jsonl"


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write the lines of one shard and its images; `file_name` is null where there is no image."""
    names = Names(flat=True)
    count = without_image = 0
    with text_part(folder, index) as (file, images):
        for row in rows:
            place = None if row.image is None else place_image(row, names, images, index)
            file.write(json_line({**json_record(row, layout), "file_name": place}) + "\n")
            count, without_image = count + 1, without_image + (place is None)
    return {"rows": count, "without_image": without_image, "files": part_names(index), **names.facts()}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Join the lines of all shards."""
    join_parts(folder, layout.shards, NAME, "")
    return [NAME]


FORMAT = Format(
    write=write, finish=finish, owns=(r"pairs\.jsonl", "images", "parts"), takes=("file_name",), images="paths"
)
