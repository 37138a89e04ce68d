"""Writer of the table that open_clip trains from: pairs.csv, separated by tabs, with `filepath` and `title`.

Where the source has files, `filepath` is the file of the source; where it has bytes, they are written to images/.
Paths are absolute, since open_clip takes a relative one from the folder that it was started in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisycorr.data.writers import Format, Layout, Row
from noisycorr.data.writers.names import Names
from noisycorr.data.writers.shards import join_parts, part_names, place_image, text_part
from noisycorr.data.writers.values import cell_line

NAME = "pairs.csv"
COLUMNS = ("filepath", "title", "key", "uid", "p_clean", "verdict")
LABEL = "label_rectified"  # the label that counts, where a run judged labels


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write the lines of one shard and its images. Rows without image or text are of no use here: left out, counted."""
    names = Names(flat=True)
    count = without_image = without_text = 0
    with text_part(folder, index) as (file, images):
        for row in rows:
            if row.image is None or row.text is None:
                without_image, without_text = without_image + (row.image is None), without_text + (row.text is None)
                continue
            place = folder.absolute() / place_image(row, names, images, index)
            rest = [row.values.get(name) for name in _columns(layout)[2:]]
            file.write(cell_line([place, row.text, *rest], "\t"))
            count += 1
    facts = {"rows": count, "left_out_without_image": without_image, "left_out_without_text": without_text}
    return {**facts, "files": part_names(index), **names.facts()}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Join the lines of all shards under one header."""
    join_parts(folder, layout.shards, NAME, cell_line(_columns(layout), "\t"))
    return [NAME]


def _columns(layout: Layout) -> tuple[str, ...]:
    return (*COLUMNS, LABEL) if LABEL in layout.ledger else COLUMNS


FORMAT = Format(write=write, finish=finish, owns=(r"pairs\.csv", "images", "parts"), images="paths")
