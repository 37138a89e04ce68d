"""The same few pairs in every format that can be read, for the tests from end to end."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import noisycorr

DATA = Path(__file__).parents[1].parent / "shared" / "data"
Row = dict[str, Any]  # key, image (bytes), title, and what else stands in the shipped sample


def sample_rows(count: int, start: int = 0) -> list[Row]:
    """Rows of the set that comes with the package."""
    path = next((Path(noisycorr.__file__).parent / "data" / "sample").glob("*.parquet"))
    return pq.read_table(path).slice(start, count).to_pylist()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar of these members, with equal bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def parquet(folder: Path, rows: list[Row]) -> list[str]:
    """Two files with bytes in a column."""
    folder.mkdir()
    half = len(rows) // 2
    pq.write_table(pa.Table.from_pylist(rows[:half]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[half:]), folder / "b.parquet")
    return [str(folder)]


def webdataset(folder: Path, rows: list[Row]) -> list[str]:
    """Two shards, named by a brace pattern."""
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        members: list[tuple[str, bytes]] = []
        for row in part:
            facts = {name: value for name, value in row.items() if name not in ("image", "title")}
            members.append((f"{row['key']}.png", row["image"]))
            members.append((f"{row['key']}.txt", (row["title"] or "").encode()))
            members.append((f"{row['key']}.json", json.dumps(facts, default=str).encode()))
        write_tar(folder / f"{number:05d}.tar", members)
    return [str(folder / "{00000..00001}.tar")]


def _images(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(parents=True)
    for row in rows:
        (folder / f"{row['key']}.png").write_bytes(row["image"])


def files(folder: Path, rows: list[Row]) -> list[str]:
    """Images with a .txt beside each."""
    _images(folder, rows)
    for row in rows:
        (folder / f"{row['key']}.txt").write_text(row["title"] or "", encoding="utf-8")
    return [str(folder)]


def csv_paths(folder: Path, rows: list[Row]) -> list[str]:
    """A csv with names of images in another folder."""
    _images(folder / "images", rows)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "caption", "creator"])
        writer.writerows([f"{row['key']}.png", row["title"], row["creator"]] for row in rows)
    return [str(folder / "rows.csv"), "--image_root", str(folder / "images")]


def jsonl(folder: Path, rows: list[Row]) -> list[str]:
    """JSON lines with paths beside the file, and columns that must be named."""
    _images(folder, rows)
    lines = [json.dumps({"pic": f"{row['key']}.png", "legend": row["title"], "id": row["key"]}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [str(folder / "rows.jsonl"), "--image_col", "pic", "--caption_col", "legend"]


def coco(folder: Path, rows: list[Row]) -> list[str]:
    """COCO captions, two of each image."""
    _images(folder / "images", rows[::2])
    images = [{"id": n, "file_name": f"{row['key']}.png"} for n, row in enumerate(rows[::2])]
    annotations = [{"id": n, "image_id": n // 2, "caption": row["title"]} for n, row in enumerate(rows)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return [str(folder / "captions.json"), "--image_root", str(folder / "images")]


def saved(folder: Path, rows: list[Row]) -> list[str]:
    """A dataset of Hugging Face, saved to disk."""
    from datasets import Dataset

    Dataset.from_list([{"image": row["image"], "text": row["title"], "key": row["key"]} for row in rows]).save_to_disk(
        folder
    )
    return [str(folder)]


SOURCES: dict[str, Callable[[Path, list[Row]], list[str]]] = {
    "parquet": parquet, "webdataset": webdataset, "files": files, "csv": csv_paths, "jsonl": jsonl, "coco": coco,
    "hf": saved,
}  # fmt: skip
