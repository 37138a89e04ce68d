"""Writer of DataComp's subset file: the sorted 128-bit uids of the exported rows as pairs of unsigned integers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from noisycorr.data.writers import Format, Layout, Row
from noisycorr.data.writers.shards import part_names, part_path, write_array

NAME = "uids.npy"
DTYPE = np.dtype("u8,u8")
_UID = re.compile(r"[0-9a-fA-F]{32}")


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write the uids of one shard. One that is not 32 hexadecimal digits cannot stand there: left out, counted."""
    uids: list[tuple[int, int]] = []
    count = 0
    for row in rows:
        uid = str(row.values["uid"])
        count += 1
        if _UID.fullmatch(uid):
            uids.append((int(uid[:16], 16), int(uid[16:], 16)))
    write_array(part_path(folder, index), np.array(uids, DTYPE))
    return {"rows": count, "left_out_not_hex": count - len(uids), "files": part_names(index)}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Sort the uids of all shards; those that stand twice are written once. Memory: 16 bytes a row."""
    parts = [np.load(part_path(folder, index), allow_pickle=False) for index in range(layout.shards)]
    uids = np.unique(np.concatenate(parts))
    write_array(folder / NAME, uids)
    return [NAME]


FORMAT = Format(write=write, finish=finish, owns=(r"uids\.npy", "parts"), images="", new_texts=False)
