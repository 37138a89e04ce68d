"""Writer of webdataset shards: KEY.jpg with the original bytes, KEY.txt, KEY.json; a table and stats beside each tar.

The layout is that of img2dataset: NNNNN.tar, NNNNN.parquet with everything but the pictures, NNNNN_stats.json.
"""

from __future__ import annotations

import collections
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisycorr.data.writers import Format, Layout, Row, shard_files
from noisycorr.data.writers.names import Names
from noisycorr.data.writers.shards import CARD, parquet_file, write_card
from noisycorr.data.writers.values import json_line, json_record
from noisycorr.runtime.folder import atomic_path, write_json

OPEN_CLIP = ("jpg", "png", "jpeg", "webp")  # open_clip 3.3 passes over samples whose picture is named otherwise
SIZES = "sizes.json"  # where open_clip looks for the number of samples of each shard


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write one tar and its table. Members of one pair stand together, sorted by suffix; all times and owners are 0.

    A pair without image or without text has just the other members: nothing is dropped.
    """
    names = Names()
    counts: collections.Counter[str] = collections.Counter()
    suffixes: collections.Counter[str] = collections.Counter()
    with (
        atomic_path(folder / f"{index:05d}.tar") as tar_path,
        parquet_file(folder / f"{index:05d}.parquet", layout.schema) as table,
        tarfile.open(tar_path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive,
    ):
        for row in rows:
            name = names.take(row.key)
            members = {"json": json_line(json_record(row, layout)).encode()}
            if row.text is not None:
                members["txt"] = row.text.encode()
            if isinstance(row.image, bytes):
                members[row.suffix] = row.image
                suffixes[row.suffix] += 1
            for suffix, data in sorted(members.items()):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))
            table.add(row.values)
            counts.update(rows=1, without_image=int(row.image is None), without_text=int(row.text is None))
    return {
        "rows": counts["rows"],
        "without_image": counts["without_image"],
        "without_text": counts["without_text"],
        "suffixes": dict(suffixes),
        "images_open_clip_passes_over": sum(n for suffix, n in suffixes.items() if suffix not in OPEN_CLIP),
        "files": [f"{index:05d}.tar", f"{index:05d}.parquet"],
        **names.facts(),
    }


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Write the sizes of all shards, so that open_clip needs no --train-num-samples."""
    write_json(folder / SIZES, {shard["files"][0]: shard["rows"] for shard in shards})
    write_card(folder, "*.tar")
    return [*shard_files(folder, layout, shards), SIZES, CARD]


FORMAT = Format(write=write, finish=finish, owns=(r"\d{5,}\.(tar|parquet)", r"sizes\.json", r"README\.md"))
