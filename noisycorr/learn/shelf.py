"""Find the picture of every pair again: the files of a source as they are, bytes out of archives in one large file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from noisycorr import dist
from noisycorr.embed import part_sizes, read_facts
from noisycorr.formats import Reader
from noisycorr.learn.pictures import Shelf
from noisycorr.pairs import UsageError
from noisycorr.run import Run, atomic_path, fingerprint, read_json, write_array, write_json


def open_shelf(run: Run, reader: Reader, folder: Path) -> Shelf:
    """Where the pictures of a run are.

    A source of bytes (an archive, a parquet file) is read once more, in order, and each distinct picture is copied to
    `folder`, so that training may ask for them in any order. A source of files is not copied.

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
    done = marker.is_file() and read_json(marker) == fingerprint([embedded["fingerprint"], len(hashes)])
    if dist.is_main() and not done:
        _copy(reader, sizes, hashes, spool)
        write_json(marker, fingerprint([embedded["fingerprint"], len(hashes)]))
    dist.wait()
    files = _files(reader, sizes, hashes)
    spans = np.load(spool.with_suffix(".npy"), allow_pickle=False)
    return Shelf(files=files, spool=spool, spans=spans)


def _copy(reader: Reader, sizes: Mapping[int, int], hashes: Sequence[str | None], spool: Path) -> None:
    """The large file, and for each row where its picture begins and how long it is; files are left where they are."""
    spans, known, end = np.zeros((len(hashes), 2), np.int64), dict[str, tuple[int, int]](), 0
    with atomic_path(spool) as path, path.open("wb") as out:
        for row, image in _images(reader, sizes):
            digest = hashes[row]
            if not isinstance(image, bytes) or digest is None:
                continue
            if digest not in known:
                known[digest] = end, len(image)
                out.write(image)
                end += len(image)
            spans[row] = known[digest]
    write_array(spool.with_suffix(".npy"), spans)


def _files(reader: Reader, sizes: Mapping[int, int], hashes: Sequence[str | None]) -> list[Path | None]:
    files: list[Path | None] = [None] * len(hashes)
    for row, image in _images(reader, sizes):
        if isinstance(image, Path):
            files[row] = image
    return files


def _images(reader: Reader, sizes: Mapping[int, int]) -> Iterator[tuple[int, bytes | Path | None]]:
    """Number of each row, and its picture."""
    row = 0
    for piece in sorted(reader.pieces(), key=lambda piece: piece.index):
        count = 0
        for pair in reader.read(piece):
            yield row + count, pair.image
            count += 1
        if count != sizes.get(piece.index):
            raise UsageError(f"piece {piece.index} of {piece.path} holds {count} pairs, but {sizes.get(piece.index)} "
                             "were embedded: the source changed.")  # fmt: skip
        row += count
