"""Copies of pictures: read once, in order, each picture once, and a killed copy goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_checkpoints import pictures

from noisycorr.__main__ import main
from noisycorr.clean.plan import stored_reader
from noisycorr.data.pairs import Pair
from noisycorr.data.readers import Piece
from noisycorr.data.readers.tables import ParquetReader
from noisycorr.models.training import image_store
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[bytes]]:
    """A run of nine pairs in pieces of two, one without a picture, two with the same."""
    folder = tmp_path_factory.mktemp("image_store")
    encoded = []
    for picture in pictures(7):
        picture.save(buffer := BytesIO(), "PNG")
        encoded.append(buffer.getvalue())
    column = [*encoded[:4], None, *encoded[4:7], encoded[1]]
    table = pa.table({"image": column, "text": [f"text {i}" for i in range(9)]})
    pq.write_table(table, folder / "a.parquet")
    assert main(["embed", str(folder / "a.parquet"), "--output_folder", str(folder / "run"), "--clip_model", "tiny",
                 "--number_sample_per_shard", "2", "-q"]) == 0  # fmt: skip
    return Run(folder / "run"), [image or b"" for image in column]


def test_every_row_has_its_picture(made: tuple[Run, list[bytes]], tmp_path: Path):
    run, column = made
    found = image_store.open_image_store(run, stored_reader(run), tmp_path)
    assert [found.read(row) for row in range(9)] == column
    assert (tmp_path / "pictures.bin").stat().st_size == sum(map(len, set(column)))
    assert {path.name for path in tmp_path.iterdir()} == {"pictures.bin", "pictures.npy", "pictures.json"}


def test_a_killed_copy_goes_on(made: tuple[Run, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, column = made
    read, seen = ParquetReader.read, []

    def counted(self: ParquetReader, piece: Piece) -> Iterator[Pair]:
        seen.append(piece.index)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(self, piece)

    monkeypatch.setattr(image_store, "EVERY", 0)
    monkeypatch.setattr(ParquetReader, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        image_store.open_image_store(run, stored_reader(run), tmp_path)
    with (tmp_path / "pictures.part").open("ab") as file:
        file.write(b"more than was saved")
    found = image_store.open_image_store(run, stored_reader(run), tmp_path)
    assert [found.read(row) for row in range(9)] == column
    assert seen == [0, 1, 2, 3, 3, 4], "pieces that were copied are not read again"
    image_store.open_image_store(run, stored_reader(run), tmp_path)
    assert len(seen) == 6, "a source of bytes is read once"


@pytest.mark.parametrize("lost", ["pictures.part", "pictures.npy"])
def test_what_is_left_of_a_copy_is_not_trusted(
    made: tuple[Run, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
):
    run, column = made
    monkeypatch.setattr(image_store, "EVERY", 0)
    with monkeypatch.context() as broken:
        broken.setattr(image_store, "_save", after(image_store._save, 3))
        with pytest.raises(KeyboardInterrupt):
            image_store.open_image_store(run, stored_reader(run), tmp_path)
    assert read_json(tmp_path / "pictures.part.json")["pieces"] == 3
    if lost == "pictures.part":
        (tmp_path / lost).write_bytes((tmp_path / lost).read_bytes()[:-9])
    else:
        (tmp_path / lost).unlink()
    found = image_store.open_image_store(run, stored_reader(run), tmp_path)
    assert [found.read(row) for row in range(9)] == column


def test_the_table_of_another_run_is_not_taken(made: tuple[Run, list[bytes]], tmp_path: Path):
    run, column = made
    place, reader = tmp_path / "pictures", stored_reader(run)
    image_store.open_image_store(run, reader, place)
    other = shutil.copytree(run.folder, tmp_path / "other")
    stage = other / "stages" / "embed.json"
    stage.write_text(stage.read_text().replace(read_json(stage)["fingerprint"], "0" * 16))
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(image_store, "_save", after(image_store._save, 0))
        with pytest.raises(KeyboardInterrupt):
            image_store.open_image_store(Run(other), reader, place)
    assert not (place / "pictures.json").exists()
    found = image_store.open_image_store(run, reader, place)
    assert [found.read(row) for row in range(9)] == column


def test_another_count_of_pairs_is_refused(
    made: tuple[Run, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, _ = made
    read = ParquetReader.read
    monkeypatch.setattr(ParquetReader, "read", lambda self, piece: iter([*read(self, piece)] * 2))
    with pytest.raises(UsageError, match="holds other pairs than the 2 that were embedded"):
        image_store.open_image_store(run, stored_reader(run), tmp_path)


def after(work: object, times: int) -> object:
    """The function, stopped after so many calls."""
    left = [times]

    def limited(*given: object) -> None:
        work(*given)  # type: ignore[operator]
        left[0] -= 1
        if left[0] <= 0:
            raise KeyboardInterrupt

    return limited
