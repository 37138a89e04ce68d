"""Every written format, opened with the reader of the tool it is written for."""

from __future__ import annotations

import argparse
import csv
import errno
import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from noisycorr.embed import features_path, pairs_path, read_features
from noisycorr.export import FORMATS, Export, export
from noisycorr.formats import Reader, Source, open_source
from noisycorr.formats.images import BadImage, decode_image
from noisycorr.formats.webdataset import is_unsafe, split_name
from noisycorr.formats.writers.names import Names, image_suffix, safe_name
from noisycorr.formats.writers.shards import table
from noisycorr.formats.writers.values import cell_line, final_type, json_type, merge_types
from noisycorr.pairs import PAIRS, UsageError, content_hash, pair_uid
from noisycorr.run import Run, write_json

LEDGER = pa.schema(
    [
        ("key", pa.string()), ("uid", pa.string()), ("text", pa.string()), ("row", pa.int64()),
        ("score_similarity", pa.float32()), ("p_clean", pa.float32()),
        ("is_mismatch_issue", pa.bool_()), ("mismatch_score", pa.float32()),
        ("is_image_issue", pa.bool_()), ("image_score", pa.float32()), ("image_issue", pa.string()),
        ("verdict", pa.string()), ("reason", pa.string()), ("sample_weight", pa.float32()),
    ]
)  # fmt: skip
TEXTS = ['a red "barn", far away', "line\tone\nline two", "tail\r", "Größe 北京 🐈", " spaces ", "=cmd()", "NA-like"]
WIDTH = 8


def picture(number: int, format_: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, 6), (number * 7 % 256, number * 31 % 256, 90)).save(buffer, format_)
    return buffer.getvalue()


def rows_of(count: int) -> list[dict[str, Any]]:
    """Pairs with everything that makes trouble: repeated pictures, no text, broken images, odd columns."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        format_ = "PNG" if number % 5 == 0 else "JPEG"
        row: dict[str, Any] = {
            "key": f"pair{number:04d}",
            "image": picture(number - number % 3 if number < 12 else number, format_ if number >= 12 else "JPEG"),
            "text": f"{TEXTS[number % len(TEXTS)]} {number}",
            "width": 640 + number,
            "score": number / 8 if number % 2 else None,
            "tags": ["x", "y"][: number % 3],
            "row": f"given {number}",
            "truth_wrong": number % 4 == 0,
        }
        rows.append(row)
    rows[20]["text"] = None
    rows[21]["image"] = b"<html>404</html>"
    return rows


def write_tars(folder: Path, rows: list[dict[str, Any]]) -> Source:
    folder.mkdir(parents=True)
    half = len(rows) // 2
    for shard, part in enumerate((rows[:half], rows[half:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for row in part:
                rest = {name: value for name, value in row.items() if name not in ("key", "image", "text")}
                suffix = "png" if row["image"].startswith(b"\x89PNG") else "jpeg"
                members = {suffix: row["image"], "json": json.dumps(rest).encode()}
                if row["text"] is not None:
                    members["txt"] = row["text"].encode()
                for name, data in members.items():
                    info = tarfile.TarInfo(f"{row['key']}.{name}")
                    info.size, info.mtime = len(data), 1_600_000_000
                    archive.addfile(info, io.BytesIO(data))
    return Source(path=str(folder))


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Source:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return Source(path=str(folder), number_sample_per_shard=17)


def write_files(folder: Path, rows: list[dict[str, Any]]) -> Source:
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for row in rows:
        name = f"pictures/{row['key']}.jpg"
        (folder / name).write_bytes(row["image"])
        lines.append({**row, "image": None, "file_name": name})
    body = "".join(json.dumps({n: v for n, v in line.items() if n != "image"}) + "\n" for line in lines)
    (folder / "table.jsonl").write_text(body)
    return Source(path=str(folder / "table.jsonl"))


def build_run(folder: Path, source: Source) -> tuple[Run, Reader]:
    """A run as `clean` leaves it: facts, embeddings and ledger of every piece, without a model."""
    run, reader = Run(folder), open_source(source)
    rng = np.random.default_rng(0)
    row = 0
    for piece in reader.pieces():
        facts: list[dict[str, Any]] = []
        ledger: list[dict[str, Any]] = []
        for pair in reader.read(piece):
            data = pair.image if isinstance(pair.image, bytes) else pair.image.read_bytes() if pair.image else None
            fact: dict[str, Any] = {"key": pair.key, "text": pair.text, "problem": pair.problem}
            fact["columns"] = json.dumps(dict(pair.columns), sort_keys=True)
            if data is not None:
                fact["image_hash"] = content_hash(data)
                try:
                    decoded = decode_image(data)
                    fact |= {"width": decoded.width, "height": decoded.height, "image_format": decoded.format}
                except BadImage as error:
                    fact["problem"] = error.code
            fact["uid"] = str(pair.columns.get("uid") or pair_uid(fact.get("image_hash"), pair.text))
            p_clean = float("nan") if fact["problem"] else round((row * 37 % 100) / 100, 2)
            verdict = "review" if fact["problem"] else "drop" if p_clean < 0.3 else "keep"
            facts.append(fact)
            ledger.append(
                {"key": pair.key, "uid": fact["uid"], "text": pair.text, "row": row, "score_similarity": p_clean / 2,
                 "p_clean": p_clean, "is_mismatch_issue": verdict == "drop", "mismatch_score": p_clean,
                 "is_image_issue": bool(fact["problem"]), "image_score": 0.0 if fact["problem"] else 1.0,
                 "image_issue": fact["problem"], "verdict": verdict, "reason": f"because {p_clean}",
                 "sample_weight": 0.5}
            )  # fmt: skip
            row += 1
        vectors = rng.normal(size=(2, len(facts), 4)).astype(np.float16)
        for path in (pairs_path(run, piece.index), features_path(run, piece.index), ledger_path(run, piece.index)):
            path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(facts, PAIRS), pairs_path(run, piece.index))
        pq.write_table(pa.Table.from_pylist(ledger, LEDGER), ledger_path(run, piece.index))
        save_file({"image": vectors[0], "text": vectors[1]}, features_path(run, piece.index))
        write_json(run.path("pairs", f"{piece.index:05d}_stats.json"), {"pairs": len(facts)})
    return run, reader


def ledger_path(run: Run, index: int) -> Path:
    return run.folder / "ledger" / f"{index:05d}.parquet"


def ledger_rows(run: Run, *verdicts: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((run.folder / "ledger").glob("*.parquet"))]
    return [row for row in pa.concat_tables(tables).to_pylist() if not verdicts or row["verdict"] in verdicts]


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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


def go(built: tuple[Run, Reader], folder: Path, format_: str, **options: Any) -> dict[str, Any]:
    return export(*built, Export(output_format=format_, output_path=str(folder), **options))


# --- webdataset -------------------------------------------------------------------------------------------------------


def test_webdataset_keeps_bytes_suffixes_and_keys_and_is_read_by_webdataset(
    tars: tuple[Run, Reader], tmp_path: Path
) -> None:
    import webdataset

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
    import webdataset

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

    go(tars, tmp_path, "issues", only="all", number_sample_per_shard=7)
    issues, ledger = pandas.read_csv(tmp_path / "issues.csv"), ledger_rows(tars[0])
    assert list(issues) == ["row", "key", "uid", "is_mismatch_issue", "mismatch_score", "is_image_issue", "image_score"]
    assert issues["is_mismatch_issue"].tolist() == [row["is_mismatch_issue"] for row in ledger]
    expected = np.array([row["mismatch_score"] for row in ledger], np.float32)
    assert np.array_equal(issues["mismatch_score"].astype(np.float32), expected, equal_nan=True)
    summary = pandas.read_csv(tmp_path / "summary.csv").set_index("issue_type")
    assert summary.loc["mismatch", "num_issues"] == sum(row["is_mismatch_issue"] for row in ledger)
    assert summary.loc["mismatch", "score"] == pytest.approx(np.nanmean(expected), rel=1e-6)


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
    import noisycorr.export

    original, seen = noisycorr.export.image_suffix, [0]

    def fail(*arguments: Any) -> str:
        seen[0] += 1
        if seen[0] == calls:
            raise error
        return original(*arguments)

    monkeypatch.setattr(noisycorr.export, "image_suffix", fail)


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
        ({"output_format": "coco", "json_fields": "p_clean"}, "json_fields is for webdataset and jsonl"),
    ],
)
def test_wrong_choices_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Export(**options)


# --- small parts ------------------------------------------------------------------------------------------------------


def test_flat_names_are_one_part_and_differ_in_more_than_capitals() -> None:
    names = Names(flat=True)
    assert [names.take(key) for key in ("a/b", "A", "a", "con?.jpg", " x ", "")] == [
        "a%2Fb", "A", "a_2", "con%3F%2Ejpg", "%20x%20", "_",
    ]  # fmt: skip
    assert safe_name("train/0001#2") == "train/0001#2"  # a sound key stays


def test_suffix_is_the_sources_own_where_it_is_known() -> None:
    jpeg = picture(0)
    assert image_suffix(jpeg, "JPEG", ("jpeg", "png")) == "jpeg"
    assert image_suffix(jpeg, None, ()) == "jpg"
    assert image_suffix(jpeg, "JPEG", ("img",)) == "img"
    assert image_suffix(picture(0, "PNG"), "PNG", ("jpg",)) == "png"
    assert image_suffix(Path("x/y.JPEG"), "JPEG", ()) == "jpeg"
    assert image_suffix(Path("x/y.php"), "PNG", ()) == "png"
    assert [image_suffix(*case) for case in ((b"<", None, ("jpeg", "png")), (b"<", None, ()), (None, None, ()))] == [
        "jpeg", "bin", "",
    ]  # fmt: skip


def test_types_of_json_columns_hold_every_value() -> None:
    def found(*values: Any) -> pa.DataType:
        kind = pa.null()
        for value in values:
            kind = merge_types(kind, json_type(value))
        return final_type(kind)

    assert found(None, None) == pa.string()
    assert found(1, None, True) == pa.string()
    assert found(1, 2.5) == pa.float64()
    assert found((1 << 60), 2.5) == pa.string()  # float64 would change the integer
    assert found(1 << 63) == pa.string()
    assert found([1], [], [2.5]) == pa.list_(pa.float64())
    assert found([], None) == pa.list_(pa.string())
    assert table([{"a": 1 << 63}, {}], pa.schema([("a", pa.string())])).to_pylist() == [
        {"a": str(1 << 63)},
        {"a": None},
    ]


def test_cells_survive_pandas() -> None:
    import pandas

    texts = ["a\tb", 'say "x"', "a\rb", "a\nb", " pad ", "'", ","]
    lines = cell_line(("t", "n"), "\t") + "".join(cell_line((text, float("nan")), "\t") for text in texts)
    read = pandas.read_csv(io.StringIO(lines, newline=""), sep="\t")
    assert read["t"].tolist() == texts and read["n"].isna().all()
