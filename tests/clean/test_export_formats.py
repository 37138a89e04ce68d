"""Every written format, opened with the reader of the tool it is written for."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_run import (
    WIDTH,
    build_run,
    go,
    ledger_rows,
    picture,
    rows_of,
    write_files,
    write_parquet,
    write_tars,
)
from PIL import Image

from noisycorr.__main__ import main
from noisycorr.data.readers import Reader, Source, open_source
from noisycorr.data.readers.webdataset import is_unsafe, split_name
from noisycorr.data.store import read_features
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reader]:
    folder = tmp_path_factory.mktemp("tars")
    return build_run(folder / "run", write_tars(folder / "source", rows_of(30)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reader]:
    folder = tmp_path_factory.mktemp("tables")
    return build_run(folder / "run", write_parquet(folder / "source", rows_of(30)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reader]:
    folder = tmp_path_factory.mktemp("files")
    return build_run(folder / "run", write_files(folder / "source", rows_of(30)))


# --- webdataset -------------------------------------------------------------------------------------------------------


def test_webdataset_keeps_bytes_suffixes_and_keys_and_is_read_by_webdataset(
    tars: tuple[Run, Reader], tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")

    facts = go(tars, tmp_path, "webdataset", only="all", number_sample_per_shard=8)
    assert (facts["rows"], facts["shards"], facts["without_text"]) == (30, 4, 1)
    shards = [str(tmp_path / f"{number:05d}.tar") for number in range(4)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    rows, ledger = rows_of(30), ledger_rows(tars[0])
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row, judged in zip(samples, rows, ledger):
        suffix = "png" if row["image"].startswith(b"\x89PNG") else "jpeg"
        assert sample[suffix] == row["image"]
        assert sample.get("txt") == (row["text"].encode() if row["text"] is not None else None)
        fields = json.loads(sample["json"], parse_constant=pytest.fail)
        assert fields["text"] == row["text"]
        assert fields["verdict"] == judged["verdict"]
        assert fields["p_clean"] == (round(judged["p_clean"], 2) if judged["p_clean"] == judged["p_clean"] else None)
        assert (fields["row"], fields["source_row"]) == (judged["row"], row["row"])
        assert (fields["tags"], fields["truth_wrong"]) == (row["tags"], row["truth_wrong"])


def test_pictures_that_open_clip_passes_over_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, suffix in enumerate(("png", "gif", "bmp")):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8))
        picture.save(tmp_path / f"{number}.{suffix}")
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    words = ["--output_folder", str(tmp_path / "run")]
    assert main(["clean", str(tmp_path), *words, "--clip_model", "tiny"]) == 0
    assert main(["export", *words, "--output_path", str(tmp_path / "all"), "--only", "all"]) == 0
    assert "3 pairs in 1 shard, 2 images open clip passes over" in capsys.readouterr().err


def test_webdataset_table_and_sizes_stand_beside_the_tars(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path, "webdataset", number_sample_per_shard=8)
    kept = ledger_rows(tars[0], "keep")
    read = pa.concat_tables(pq.read_table(path) for path in sorted(tmp_path.glob("*.parquet")))
    assert read.column("key").to_pylist() == [row["key"] for row in kept]
    assert read.column("p_clean").to_pylist() == [row["p_clean"] for row in kept]
    types = {field.name: field.type for field in read.schema}
    assert types["width"] == pa.int64() and types["score"] == pa.float64() and types["truth_wrong"] == pa.bool_()
    assert types["tags"] == pa.list_(pa.string()) and types["source_row"] == pa.string()
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert sum(sizes.values()) == len(kept) and set(sizes) == {path.name for path in tmp_path.glob("*.tar")}
    with tarfile.open(tmp_path / "00000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}


def test_webdataset_is_trained_on_by_open_clip(
    tars: tuple[Run, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pytest.importorskip("open_clip_train.data")
    import open_clip
    import torch

    facts = go(tars, tmp_path, "webdataset", number_sample_per_shard=8)
    shards = f"{tmp_path}/{{00000..{facts['shards'] - 1:05d}}}.tar"
    assert data.get_dataset_size(shards) == (facts["rows"], facts["shards"])
    args = argparse.Namespace(
        train_data=shards, val_data=shards, train_num_samples=None, val_num_samples=None, batch_size=4, workers=0,
        world_size=1, seed=0, dataset_resampled=False, train_data_upsampling_factors=None,
    )  # fmt: skip
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def preprocess(image: Image.Image) -> torch.Tensor:
        return torch.tensor(np.array(image.convert("RGB")))

    info = data.get_wds_dataset(args, preprocess, is_train=False, tokenizer=tokenizer)
    images, texts = (torch.cat(parts) for parts in zip(*info.dataloader))
    kept = ledger_rows(tars[0], "keep")
    assert torch.equal(texts, tokenizer([row["text"] for row in kept]))
    pictures = {row["key"]: row["image"] for row in rows_of(30)}
    for image, row in zip(images, kept):
        assert np.array_equal(image.numpy(), np.array(Image.open(io.BytesIO(pictures[row["key"]])).convert("RGB")))
    # webdataset 1.0 marks the end of a shard with an empty sample, on which open_clip 3.3 stumbles whatever the shard.
    monkeypatch.setattr(data, "tar_file_expander", functools.partial(data.tar_file_expander, eof_value=None))
    train = data.get_wds_dataset(args, preprocess, is_train=True, tokenizer=tokenizer)
    assert train.dataloader.num_samples >= facts["rows"] and len(next(iter(train.dataloader))[0]) == 4


def test_webdataset_of_files_is_read_back_by_our_own_reader(files: tuple[Run, Reader], tmp_path: Path) -> None:
    go(files, tmp_path, "webdataset", only="all")
    reader = open_source(Source(path=str(tmp_path)))
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    rows = rows_of(30)
    assert [(pair.key, pair.text, pair.image) for pair in pairs] == [(r["key"], r["text"], r["image"]) for r in rows]
    assert pairs[3].columns["verdict"] == ledger_rows(files[0])[3]["verdict"]


def test_repeated_and_hostile_keys_become_safe_members_and_stay_in_the_json(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")

    keys = ["../x", "/etc/passwd", "a.b.c", "a.b/c", "dup", "dup", "dup_2", "北京/猫", "C:\\w", "__m__/k", "k" * 400,
            "new\nline", ".", "..", "x/../../y", "dup"]  # fmt: skip
    rows = [{"key": key, "image": picture(n), "text": f"text {n}"} for n, key in enumerate(keys)]
    built = build_run(tmp_path / "run", write_parquet(tmp_path / "source", rows))
    facts = go(built, tmp_path / "out", "webdataset", only="all")
    assert (facts["rows"], facts["keys_repeated"]) == (16, 3)
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert stats["renamed_keys"]["dup_2"] == "dup" and stats["renamed_keys"]["dup_2_2"] == "dup_2"
    with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
        names = archive.getnames()
    assert len(set(names)) == len(names) == 48
    assert not any(is_unsafe(name) or split_name(name) is None for name in names)
    assert all(len(part.encode()) < 256 for name in names for part in name.split("/"))
    assert {"a.b/c.jpg", "北京/猫.jpg", "dup.jpg", "dup_3.jpg"} < set(names)
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "00000.tar"), shardshuffle=False))
    assert [json.loads(sample["json"])["key"] for sample in samples] == keys
    assert [sample["txt"].decode() for sample in samples] == [f"text {n}" for n in range(16)]
    with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    go(built, tmp_path / "flat", "jsonl", only="all")
    written = [path for path in (tmp_path / "flat" / "images").rglob("*") if path.is_file()]
    assert len(written) == 16 and {path.parent.name for path in written} == {"00000"}


# --- parquet and hf ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def check_dataset(dataset: Any, rows: list[dict[str, Any]], run: Run) -> None:
    import datasets

    assert isinstance(dataset.features["image"], datasets.Image)
    assert dataset[1]["image"].size == (WIDTH, 6)  # decoded by its own reader
    raw = dataset.cast_column("image", datasets.Image(decode=False))
    assert [item["image"]["bytes"] for item in raw] == [row["image"] for row in rows]
    assert raw["text"][:] == [row["text"] for row in rows]
    assert raw["tags"][:] == [row["tags"] for row in rows]
    assert raw["truth_wrong"][:] == [row["truth_wrong"] for row in rows]
    assert raw["verdict"][:] == [row["verdict"] for row in ledger_rows(run)]
    assert [value is None or value != value for value in raw["p_clean"]] == [n in (20, 21) for n in range(30)]


@pytest.mark.parametrize("kind", ["tables", "files"])
def test_parquet_is_a_table_of_pictures_for_datasets(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, no_cache: Path
) -> None:
    import datasets

    built = request.getfixturevalue(kind)
    facts = go(built, tmp_path / "out", "parquet", only="all", number_sample_per_shard=11)
    assert facts["files"] == ["00000.parquet", "00001.parquet", "00002.parquet", "README.md"]
    for arguments in (("parquet", {"data_files": f"{tmp_path}/out/*.parquet"}), (f"{tmp_path}/out", {})):
        dataset = datasets.load_dataset(arguments[0], split="train", cache_dir=str(no_cache), **arguments[1])
        check_dataset(dataset, rows_of(30), built[0])
    assert pq.read_table(tmp_path / "out" / "00001.parquet").column("image").to_pylist()[0]["path"] == "pair0011.jpg"
    assert [field.name for field in pq.read_schema(tmp_path / "out" / "00000.parquet")][:3] == ["image", "key", "uid"]


def test_hf_folder_is_loaded_from_disk(tables: tuple[Run, Reader], tmp_path: Path, no_cache: Path) -> None:
    import datasets

    go(tables, tmp_path / "out", "hf", only="all", number_sample_per_shard=11)
    check_dataset(datasets.load_from_disk(str(tmp_path / "out")), rows_of(30), tables[0])
    assert not no_cache.exists() and not (tmp_path / "out" / "parts").exists()
    reader = open_source(Source(path=str(tmp_path / "out")))
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    assert [(pair.text, pair.image) for pair in pairs] == [(row["text"], row["image"]) for row in rows_of(30)]


def test_columns_of_mixed_types_become_json_text_and_nothing_is_lost(tmp_path: Path) -> None:
    values: list[Any] = [1, "a", None, 2.5, {"b": [1]}, [1, 2], True, 1 << 62]
    columns = [{"mixed": v, "big": (1 << 60) + n, "none": None, "deep": {"n": n}} for n, v in enumerate(values)]
    folder = tmp_path / "source"
    (folder / "p").mkdir(parents=True)
    lines = []
    for number, extra in enumerate(columns):
        (folder / "p" / f"{number}.jpg").write_bytes(picture(number))
        lines.append(json.dumps({"file_name": f"p/{number}.jpg", "text": f"t{number}", **extra}))
    (folder / "t.jsonl").write_text("\n".join(lines))
    built = build_run(tmp_path / "run", Source(path=str(folder / "t.jsonl")))
    go(built, tmp_path / "out", "parquet", only="all")
    read = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [row["mixed"] for row in read] == ["1", "a", None, "2.5", '{"b": [1]}', "[1, 2]", "true", str(1 << 62)]
    assert [row["big"] for row in read] == [(1 << 60) + n for n in range(8)]
    assert read[3]["deep"] == '{"n": 3}' and read[0]["none"] is None


# --- csv, jsonl, coco -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tars", "files"])
def test_csv_is_trained_on_by_open_clip(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data = pytest.importorskip("open_clip_train.data")
    built = request.getfixturevalue(kind)
    facts = go(built, tmp_path, "csv", number_sample_per_shard=9)
    dataset = data.CsvDataset(
        str(tmp_path / "pairs.csv"), np.array, img_key="filepath", caption_key="title", tokenizer=lambda texts: texts
    )
    kept = ledger_rows(built[0], "keep")
    assert len(dataset) == facts["rows"] == len(kept)
    assert [dataset[n][1] for n in range(len(kept))] == [row["text"] for row in kept]
    pictures = {row["key"]: row["image"] for row in rows_of(30)}
    assert [Path(path).read_bytes() for path in dataset.images] == [pictures[row["key"]] for row in kept]
    assert (tmp_path / "images").exists() == (kind == "tars")
    with (tmp_path / "pairs.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["key"], row["verdict"]) for row in read] == [(row["key"], "keep") for row in kept]
    assert [row["p_clean"] for row in read] == [str(np.float32(row["p_clean"])) for row in kept]


def test_csv_leaves_out_what_cannot_be_trained_on_and_says_so(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    facts = go(tars, tmp_path, "csv", only="review")
    assert (facts["rows"], facts["left_out_without_text"]) == (1, 1)  # the broken image has bytes and a text
    assert not (tmp_path / "parts").exists()


def test_jsonl_holds_every_field_and_is_read_back(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path, "jsonl", only="all", number_sample_per_shard=7)
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [line["source_row"] for line in read] == [row["row"] for row in rows_of(30)]
    reader = open_source(Source(path=str(tmp_path / "pairs.jsonl")))
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    images = [pair.image.read_bytes() for pair in pairs if isinstance(pair.image, Path)]
    assert images == [row["image"] for row in rows_of(30)]
    assert [pair.text for pair in pairs] == [row["text"] for row in rows_of(30)]


def test_json_fields_are_chosen_by_name(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path / "a", "jsonl", json_fields="p_clean, tags")
    first = json.loads((tmp_path / "a" / "pairs.jsonl").read_text().splitlines()[0])
    assert set(first) == {"key", "text", "p_clean", "tags", "file_name"}
    with pytest.raises(UsageError, match="'nothing'"):
        go(tars, tmp_path / "b", "jsonl", json_fields="nothing")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["tars", "files"])
def test_coco_shares_pictures_and_is_read_back(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    built = request.getfixturevalue(kind)
    facts = go(built, tmp_path, "coco", only="all", number_sample_per_shard=5)
    content = json.loads((tmp_path / "captions.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in content["images"]}
    rows = [row for row in rows_of(30) if row["text"] is not None]
    assert facts["rows"] == len(content["annotations"]) == len(rows)
    assert facts["images"] == len(images) == len({row["image"] for row in rows}) < len(rows)
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(rows)
    root = tmp_path if kind == "tars" else built[0].folder.parent / "source"
    for annotation, row in zip(content["annotations"], rows):
        assert (annotation["caption"], annotation["key"]) == (row["text"], row["key"])
        assert (root / images[annotation["image_id"]]["file_name"]).read_bytes() == row["image"]
    assert content["images"][0]["width"] == WIDTH and "p_clean" in content["annotations"][0]
    reader = open_source(Source(path=str(tmp_path / "captions.json"), image_root=str(root)))
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    assert [pair.text for pair in pairs] == [row["text"] for row in rows]
    assert not any(pair.problem for pair in pairs)


# --- uids, clip-retrieval, issues -------------------------------------------------------------------------------------


def test_uids_are_sorted_unique_pairs_of_integers(tmp_path: Path) -> None:
    given = ["f" * 32, "0" * 31 + "1", "139e4a9b22a614771f06c700a8ebe150", "0" * 31 + "1", "not hex", "A" * 32]
    rows = [{"key": str(n), "image": picture(n), "text": "t", "uid": uid} for n, uid in enumerate(given)]
    built = build_run(tmp_path / "run", write_parquet(tmp_path / "source", rows))
    facts = go(built, tmp_path / "out", "uids", only="all", number_sample_per_shard=2)
    read = np.load(tmp_path / "out" / "uids.npy", allow_pickle=False)
    expected = sorted({(int(uid[:16], 16), int(uid[16:], 16)) for uid in given if uid != "not hex"})
    assert read.dtype == np.dtype("u8,u8") and read.tolist() == expected
    assert (facts["rows"], facts["left_out_not_hex"]) == (6, 1)


def test_clip_retrieval_folders_hold_unit_vectors_row_by_row(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    go(tars, tmp_path, "clip-retrieval", number_sample_per_shard=2)
    kept = ledger_rows(tars[0], "keep")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "metadata").glob("metadata_*.parquet"))]
    assert min(path.name for path in (tmp_path / "img_emb").iterdir()) == "img_emb_00.npy"
    metadata = pa.concat_tables(tables).to_pylist()
    assert [row["caption"] for row in metadata] == [row["text"] for row in kept]
    for folder, name in (("img_emb", "image"), ("text_emb", "text")):
        read = np.concatenate([np.load(path) for path in sorted((tmp_path / folder).iterdir())])
        whole = np.concatenate([read_features(tars[0], index, name) for index in (0, 1)]).astype(np.float64)
        whole = whole[[row["row"] for row in kept]]
        assert read.dtype == np.float16
        assert np.allclose(read, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-3)
    reader = open_source(Source(path=str(tmp_path)))
    assert sum(len(list(reader.read(piece))) for piece in reader.pieces()) == len(kept)


def test_issue_table_is_cleanlabs(tars: tuple[Run, Reader], tmp_path: Path) -> None:
    import pandas

    go(tars, tmp_path, "issues", number_sample_per_shard=7)  # those that are dropped have most of the issues
    issues, ledger = pandas.read_csv(tmp_path / "issues.csv"), ledger_rows(tars[0])
    assert list(issues) == ["row", "key", "uid", "is_mismatch_issue", "mismatch_score", "is_image_issue", "image_score"]
    assert issues["is_mismatch_issue"].tolist() == [row["is_mismatch_issue"] for row in ledger]
    expected = np.array([row["mismatch_score"] for row in ledger], np.float32)
    assert np.array_equal(issues["mismatch_score"].astype(np.float32), expected, equal_nan=True)
    summary = pandas.read_csv(tmp_path / "summary.csv").set_index("issue_type")
    assert summary.loc["mismatch", "num_issues"] == sum(row["is_mismatch_issue"] for row in ledger)
    assert summary.loc["mismatch", "score"] == pytest.approx(np.nanmean(expected), rel=1e-6)
