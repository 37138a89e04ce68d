"""Exports as a whole: which rows, into which folder, killed, on a full disk, from a source that changed."""

from __future__ import annotations

import errno
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from export_run import (
    build_run,
    go,
    hashes,
    ledger_path,
    picture,
    rows_of,
    write_parquet,
    write_tars,
)

from noisycorr.clean.export import FORMATS, Export, export
from noisycorr.data.readers import Reader, Source, open_source
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reader]:
    folder = tmp_path_factory.mktemp("tars")
    return build_run(folder / "run", write_tars(folder / "source", rows_of(30)))


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


# --- which rows, and into which folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_same_export_twice_is_left_alone_and_equal_elsewhere(
    format_: str, tars: tuple[Run, Reader], tmp_path: Path
) -> None:
    facts = go(tars, tmp_path / "a", format_, number_sample_per_shard=6)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert go(tars, tmp_path / "a", format_, number_sample_per_shard=6) == facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    (tmp_path / "a").rename(tmp_path / "b")
    go(tars, tmp_path / "a", format_, number_sample_per_shard=6)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def interrupt(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> None:
    """Make the export fail when its rows are being written: at the given image."""
    import noisycorr.clean.export

    original, seen = noisycorr.clean.export.image_suffix, [0]

    def fail(*arguments: Any) -> str:
        seen[0] += 1
        if seen[0] == calls:
            raise error
        return original(*arguments)

    monkeypatch.setattr(noisycorr.clean.export, "image_suffix", fail)


@pytest.mark.parametrize("format_", FORMATS)
def test_killed_export_is_continued_to_the_same_bytes(
    format_: str, tars: tuple[Run, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tars, tmp_path / "out", format_, number_sample_per_shard=6)
    whole = hashes(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            go(tars, tmp_path / "out", format_, number_sample_per_shard=6)
    done = tmp_path / "out" / "00000_stats.json"
    first = done.stat().st_mtime_ns
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "00001" in path.name]
    assert not left and not [*(tmp_path / "out").rglob(".*.tmp"), *(tmp_path / "out").rglob(".*.partial")]
    (tmp_path / "out" / ".00001.tar.1.tmp").write_bytes(b"half")  # what kill -9 leaves
    if format_ in ("csv", "jsonl", "coco"):
        (tmp_path / "out" / "images" / ".00001.partial").mkdir()
        (tmp_path / "out" / "images" / ".00001.partial" / "pair0008.jpeg").write_bytes(b"half")
    Run(tmp_path / "out")  # an export inside a run folder must not stop the run from being opened
    go(tars, tmp_path / "out", format_, number_sample_per_shard=6)
    assert hashes(tmp_path / "out") == whole
    assert done.stat().st_mtime_ns == first  # the finished shard was not written again


def test_missing_shard_is_written_again_and_the_others_stay(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path, "webdataset", number_sample_per_shard=6)
    before, first = hashes(tmp_path), (tmp_path / "00000.tar").stat().st_mtime_ns
    (tmp_path / "00002.tar").unlink()
    go(tars, tmp_path, "webdataset", number_sample_per_shard=6)
    assert hashes(tmp_path) == before and (tmp_path / "00000.tar").stat().st_mtime_ns == first


@pytest.mark.parametrize("format_", ["webdataset", "parquet", "hf", "csv", "coco"])
def test_full_disk_is_explained_and_leaves_no_half_file(
    format_: str, tars: tuple[Run, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 9, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match=r"disk of .* is full.*free space and run the command again") as caught:
            go(tars, tmp_path, format_, number_sample_per_shard=6)
    assert caught.value.errno == errno.ENOSPC
    assert not [path for path in tmp_path.rglob("*") if "00001" in path.name or path.suffix in (".tmp", ".partial")]
    assert go(tars, tmp_path, format_, number_sample_per_shard=6)["complete"]


def test_full_disk_in_the_middle_of_a_tar(
    tars: tuple[Run, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tarfile.TarFile.addfile

    def addfile(self: tarfile.TarFile, info: tarfile.TarInfo, data: Any = None) -> None:
        if info.name.startswith("pair0007"):
            original(self, info, data)
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, info, data)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", addfile)
        with pytest.raises(OSError, match="is full"):
            go(tars, tmp_path, "webdataset")
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_other_settings_replace_what_an_export_wrote_and_nothing_else(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path, "webdataset", number_sample_per_shard=4)
    (tmp_path / "notes.txt").write_text("mine")
    go(tars, tmp_path, "webdataset", only="drop")
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["00000.tar"]
    assert len(list(tmp_path.glob("*_stats.json"))) == 1
    facts = go(tars, tmp_path, "csv", only="drop,review")
    assert not list(tmp_path.glob("*.tar")) and not (tmp_path / "sizes.json").exists()
    assert facts["only"] == ["drop", "review"] and (tmp_path / "notes.txt").read_text() == "mine"


def test_foreign_folders_are_refused(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="no export wrote"):
        go(tars, tmp_path, "webdataset")
    (tmp_path / "export.json").write_text('{"tool": "another"}')
    with pytest.raises(UsageError, match="no export wrote"):
        go(tars, tmp_path, "webdataset")
    with pytest.raises(UsageError, match="is a file"):
        go(tars, tmp_path / "photo.jpg", "webdataset")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "photo.jpg"]


def test_an_export_that_became_the_source_is_not_deleted(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path / "first", "webdataset")
    again = build_run(tmp_path / "run", Source(path=str(tmp_path / "first")))
    with pytest.raises(UsageError, match="holds the source itself"):
        go(again, tmp_path / "first", "parquet")
    facts = go(again, tmp_path / "second", "jsonl", only="all")
    line = json.loads((tmp_path / "second" / "pairs.jsonl").read_text().splitlines()[0])
    assert facts["rows"] > 0 and line["source_verdict"] == "keep"
    assert (line["source_row"], line["source_source_row"]) == ("given 1", 1)  # earlier facts are kept


def test_default_folder_is_in_the_run(tars: tuple[Run, Reader]) -> None:
    facts = export(*tars, Export(output_format="uids"))
    assert facts["folder"] == str(tars[0].folder / "export" / "uids") and facts["files"] == ["uids.npy"]


def test_nothing_to_write_gives_an_empty_export_that_opens(tmp_path: Path, no_cache: Path) -> None:
    import datasets

    rows = [{"key": "a", "image": picture(0), "text": "t", "n": 1}]
    built = build_run(tmp_path / "run", write_parquet(tmp_path / "source", rows))
    for format_ in FORMATS:
        assert go(built, tmp_path / format_, format_, only="review")["rows"] == 0
    assert len(datasets.load_from_disk(str(tmp_path / "hf"))) == 0
    assert pq.read_table(tmp_path / "parquet" / "00000.parquet").num_rows == 0
    with tarfile.open(tmp_path / "webdataset" / "00000.tar") as archive:
        assert archive.getnames() == []
    assert json.loads((tmp_path / "coco" / "captions.json").read_text())["images"] == []
    assert np.load(tmp_path / "uids" / "uids.npy").shape == (0,)


# --- the source must be what it was -----------------------------------------------------------------------------------


def changed(tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> tuple[Run, Reader]:
    rows = rows_of(30)
    run, _ = build_run(tmp_path / "run", write_parquet(tmp_path / "source", rows))
    change(rows)
    return run, open_source(write_parquet(tmp_path / "changed", rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "there is nothing"),
        (lambda rows: rows.append({**rows[0], "key": "new"}), "one more row, 'new'"),
        (lambda rows: rows.insert(0, rows.pop(4)), "there is key 'pair0004'"),
        (lambda rows: rows[29].update(text="other"), "there is another text"),
        (lambda rows: rows[17].update(image=picture(99)), "image of 'pair0017'"),
        (lambda rows: rows.extend(rows[:20]), "has 3 pieces, the run has 2"),
    ],
)
def test_a_changed_source_is_refused(
    change: Callable[[list[dict[str, Any]]], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{message}.*the source changed since it was embedded"):
        go(changed(tmp_path, change), tmp_path / "out", "parquet", only="all")
    assert not list((tmp_path / "out").glob("*.tmp")) and "complete" not in (tmp_path / "out/export.json").read_text()


def test_a_run_without_ledger_is_refused(tmp_path: Path) -> None:
    run, reader = build_run(tmp_path / "run", write_parquet(tmp_path / "source", rows_of(30)))
    ledger_path(run, 1).unlink()
    with pytest.raises(UsageError, match="no ledger of piece 1: run clean first"):
        go((run, reader), tmp_path / "out", "uids")
    with pytest.raises(UsageError, match="no ledger: run clean first"):
        go((Run(tmp_path / "empty"), reader), tmp_path / "out", "uids")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_format": "zip"}, "'zip'.*webdataset, parquet"),
        ({"only": "keep,bad"}, "'bad' is no verdict"),
        ({"only": ""}, "'' is no verdict"),
        ({"number_sample_per_shard": 0}, "must be at least 1"),
        ({"output_format": "coco", "json_fields": "p_clean"}, "`json_fields` is for webdataset and jsonl"),
    ],
)
def test_wrong_choices_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Export(**options)
