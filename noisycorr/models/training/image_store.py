"""Find the picture of every pair again: the files of a source as they are, bytes out of archives in one large file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from noisycorr.data.readers import Piece, Reader
from noisycorr.data.store import part_sizes, read_facts
from noisycorr.models.training.pictures import ImageStore
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, fingerprint, read_json, write_array, write_json

EVERY = 30.0  # seconds between the points from which a killed command goes on


def open_image_store(run: Run, reader: Reader, folder: Path) -> ImageStore:
    """Where the pictures of a run are.

    A source of bytes (an archive, a parquet file) is read once, in order, and each distinct picture is copied to
    `folder`, so that training may ask for them in any order; a killed copy goes on where it was. A source of files is
    not copied.

    Args:
        run: Its embed stage is done.
        reader: Of the same source.
        folder: For the copies; kept for the next time.

    Raises:
        UsageError: If the source changed since.
    """
    embedded, sizes = run.stage("embed") or {}, part_sizes(run)
    if embedded["inputs"]["source"] != json.loads(json.dumps(reader.identity, default=str)):
        raise UsageError(
            f"the source of {run.folder} changed since it was embedded: run `noisycorr clean` on it again."
        )
    hashes = read_facts(run, ["image_hash"]).column("image_hash").to_pylist()
    spool, marker = folder / "pictures.bin", folder / "pictures.json"
    name = fingerprint([embedded["fingerprint"], len(hashes)])
    if dist.is_main() and not (marker.is_file() and _has(read_json(marker), name)):
        marker.unlink(missing_ok=True)  # the table of an old copy is written over
        write_json(marker, {"name": name, "files": _copy(reader, sizes, hashes, spool, name)})
    dist.wait()
    files: Sequence[Path | None] = [None] * len(hashes)
    if read_json(marker)["files"]:
        files = _files(reader, sizes, len(hashes))
    return ImageStore(files=files, spool=spool, spans=np.load(spool.with_suffix(".npy"), allow_pickle=False))


@dataclass(slots=True)
class _Copied:
    """What of a source is copied: pieces and rows, bytes of the large file, and whether there were files."""

    name: str
    pieces: int = 0
    rows: int = 0
    end: int = 0
    files: bool = False


def _copy(reader: Reader, sizes: Mapping[int, int], hashes: Sequence[str | None], spool: Path, name: str) -> bool:
    """Write the large file, and for each row where its picture begins and how long it is; True if there are files."""
    part, place, table = spool.with_suffix(".part"), spool.with_suffix(".part.json"), spool.with_suffix(".npy")
    state, spans = _resume(part, place, table, name, len(hashes))
    held = zip(hashes[: state.rows], spans[: state.rows].tolist())
    known = {digest: (begin, length) for digest, (begin, length) in held if digest is not None and length}
    bar = console.bar(label="pictures", total=len(hashes))
    with bar, part.open("r+b" if state.rows else "wb") as out:
        out.truncate(state.end)
        out.seek(state.end)
        bar.update(state.rows)
        saved = time.monotonic()
        for piece in _ordered(reader)[state.pieces :]:
            for row, image in enumerate(_images(reader, piece, sizes), start=state.rows):
                digest = hashes[row]
                state.files |= isinstance(image, Path)
                if isinstance(image, bytes) and digest is not None:
                    if digest not in known:
                        known[digest] = state.end, len(image)
                        state.end += out.write(image)
                    spans[row] = known[digest]
                bar.update()
            state.pieces, state.rows = state.pieces + 1, state.rows + sizes[piece.index]
            if time.monotonic() - saved > EVERY:
                _save(out, place, table, spans, state)
                saved = time.monotonic()
        _save(out, place, table, spans, state)
    part.replace(spool)
    place.unlink(missing_ok=True)
    return state.files


def _resume(part: Path, place: Path, table: Path, name: str, n: int) -> tuple[_Copied, np.ndarray]:
    """Where a killed copy of the same pictures stands, or a new beginning."""
    spans = np.zeros((n, 2), np.int64)
    if place.is_file() and part.is_file() and table.is_file():
        state = _Copied(**read_json(place))
        if state.name == name and part.stat().st_size >= state.end:
            spans[: state.rows] = np.load(table, allow_pickle=False)[: state.rows]  # rows beyond may be there, too
            return state, spans
    part.parent.mkdir(parents=True, exist_ok=True)
    return _Copied(name), spans


def _save(out: BinaryIO, place: Path, table: Path, spans: np.ndarray, state: _Copied) -> None:
    out.flush()
    os.fsync(out.fileno())
    write_array(table, spans)
    write_json(place, asdict(state))  # last: it names what is there


def _has(body: object, name: str) -> bool:
    """True if the marker is of these pictures; an older version wrote another one."""
    return isinstance(body, dict) and body.get("name") == name


def _files(reader: Reader, sizes: Mapping[int, int], n: int) -> list[Path | None]:
    images = (image for piece in _ordered(reader) for image in _images(reader, piece, sizes))
    bar = console.bar(images, label="image files", total=n, hidden=not dist.is_main())
    return [image if isinstance(image, Path) else None for image in bar]


def _ordered(reader: Reader) -> list[Piece]:
    return sorted(reader.pieces(), key=lambda piece: piece.index)


def _images(reader: Reader, piece: Piece, sizes: Mapping[int, int]) -> Iterator[bytes | Path | None]:
    """The pictures of one piece, as many as were embedded."""
    count, size = 0, sizes.get(piece.index)
    for pair in reader.read(piece):
        count += 1
        if size is None or count > size:
            break
        yield pair.image
    if count != size:
        raise UsageError(f"piece {piece.index} of {piece.path} holds other pairs than the {size} that were embedded: "
                         "the source changed.")  # fmt: skip
