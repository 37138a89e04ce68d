"""Writer of COCO captions: captions.json with one image entry for each picture and one annotation for each text.

Rows that show the same picture (equal bytes, or one image with several texts) share an entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from noisycorr.data.readers.rows import json_value
from noisycorr.data.writers import Format, Layout, Row
from noisycorr.data.writers.names import Names
from noisycorr.data.writers.shards import join_parts, part_names, place_image, text_part
from noisycorr.data.writers.values import json_line
from noisycorr.runtime.folder import atomic_path

NAME = "captions.json"
_LINES = "lines"  # parts joined, before they are sorted into the two lists
_KEPT = ("key", "uid", "p_clean", "verdict", "reason")


def write(folder: Path, index: int, rows: Iterator[Row], layout: Layout) -> dict[str, Any]:
    """Write one line for each pair: its annotation, and the image entry if no earlier row shows the same picture.

    A row without image or text is no caption: left out and counted. Ids count from 1, since some tools take 0 as none.
    """
    names = Names(flat=True)
    count = pictures = without_image = without_text = 0
    with text_part(folder, index) as (file, images):
        for row in rows:
            if row.image is None or row.text is None:
                without_image, without_text = without_image + (row.image is None), without_text + (row.text is None)
                continue
            first = row.first == row.position
            entry = _image(row, _file_name(row, names, images, index)) if first else None
            file.write(json_line({"image": entry, "annotation": _annotation(row)}) + "\n")
            count, pictures = count + 1, pictures + first
    facts = {"left_out_without_image": without_image, "left_out_without_text": without_text, **names.facts()}
    return {"rows": count, "images": pictures, "files": part_names(index), **facts}


def finish(folder: Path, layout: Layout, shards: list[dict[str, Any]]) -> list[str]:
    """Join all shards to one JSON object, line by line."""
    lines = folder / "parts" / _LINES
    join_parts(lines.parent.parent, layout.shards, f"parts/{_LINES}", "")
    info = {"description": "Image-text pairs with their verdicts, written by noisycorr"}
    with atomic_path(folder / NAME) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for name, member in (("annotations", "annotation"), ("images", "image")):
            file.write(f"{'{' if member == 'annotation' else ','}\n{json.dumps(name)}: [")
            _write_list(file, lines, member)
            file.write("\n]")
        file.write(f',\n"info": {json_line(info)},\n"licenses": []\n}}\n')
    return [NAME]


def _write_list(file: IO[str], lines: Path, member: str) -> None:
    separator = "\n"
    with lines.open(encoding="utf-8", newline="\n") as source:
        for line in source:
            value = json.loads(line)[member]
            if value is not None:
                file.write(separator + json_line(value))
                separator = ",\n"


def _image(row: Row, file_name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": row.first + 1, "file_name": file_name}
    if row.size is not None:
        entry["width"], entry["height"] = row.size
    if row.values.get("image_id") is not None:
        entry["source_image_id"] = json_value(row.values["image_id"])
    return entry


def _annotation(row: Row) -> dict[str, Any]:
    kept = {name: json_value(row.values[name]) for name in _KEPT if name in row.values}
    return {"id": row.position + 1, "image_id": row.first + 1, "caption": row.text, **kept}


def _file_name(row: Row, names: Names, images: Path, index: int) -> str:
    """The name that the source itself gave a file, so that the folder of images stays what it was; else its path."""
    given = row.values.get("file_name")
    if isinstance(row.image, Path) and isinstance(given, str) and given and str(row.image).endswith(f"/{given}"):
        return given
    return place_image(row, names, images, index)


FORMAT = Format(
    write=write, finish=finish, owns=(r"captions\.json", "images", "parts"), images="paths", same_picture=True
)
