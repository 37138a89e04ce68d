"""The readers of image folders, COCO files and stored embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisycorr.data.pairs import Pair
from noisycorr.data.readers import Source, open_source
from noisycorr.runtime.errors import UsageError


def read(path: Path | str, **options: Any) -> list[Pair]:
    reader = open_source(Source(path=str(path), **options))
    return [pair for piece in reader.pieces() for pair in reader.read(piece)]


def fill(folder: Path, files: dict[str, bytes | str | dict[str, Any] | list[Any]]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, (dict, list)):
            content = json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


# --- folders of images ---


def test_text_beside_the_image_is_txt_else_json(tmp_path: Path) -> None:
    files = {
        "b/2.jpg": b"2", "b/2.json": {"caption": "from json", "n": 2}, "a.v1.png": b"1", "a.v1.txt": "from txt",
        "a.v1.json": {"caption": "kept", "uid": "u"}, "c.JPG": b"3", "lonely.txt": "no image",
        "stats.json": {"caption": "x"}, ".hidden.jpg": b"h", "__pycache__.dat": b"",
    }  # fmt: skip
    pairs = read(fill(tmp_path, files))
    assert [(p.key, p.text, p.problem) for p in pairs] == [
        ("a.v1", "from txt", None), ("b/2", "from json", None), ("c", None, "text_missing"),
        ("lonely", "no image", "image_missing"),
    ]  # fmt: skip
    assert pairs[0].columns == {"caption": "kept", "uid": "u", "file_name": "a.v1.png"}
    assert pairs[1].columns == {"n": 2, "file_name": "b/2.jpg"}
    assert pairs[2].image == tmp_path / "c.JPG"


def test_folders_of_classes(tmp_path: Path) -> None:
    fill(tmp_path, {"red_panda/1.jpg": b"1", "red_panda/2.jpg": b"2", "x/owl/3.jpg": b"3", "top.jpg": b"t"})
    reader = open_source(Source(path=str(tmp_path)))
    pairs = list(reader.read(reader.pieces()[0]))
    assert [(p.key, p.text) for p in pairs] == [
        ("red_panda/1", "red panda"), ("red_panda/2", "red panda"), ("top", None), ("x/owl/3", "owl"),
    ]  # fmt: skip
    assert reader.picked["text"] == "name of the folder"


def test_one_sidecar_is_enough_for_no_classes(tmp_path: Path) -> None:
    pairs = read(fill(tmp_path, {"red/1.jpg": b"1", "red/1.txt": "one", "blue/2.jpg": b"2"}))
    assert [(p.key, p.text) for p in pairs] == [("blue/2", None), ("red/1", "one")]


def test_damaged_sidecars(tmp_path: Path) -> None:
    files = {"1.jpg": b"1", "1.json": b"{", "2.jpg": b"2", "2.txt": b"\xff", "3.jpg": b"3", "3.txt": "y" * 60_000}
    assert [p.problem for p in read(fill(tmp_path, files))] == ["row_unreadable", "text_not_utf8", "text_too_long"]


def test_same_stem_with_two_extensions_is_two_rows(tmp_path: Path) -> None:
    pairs = read(fill(tmp_path, {"1.jpg": b"1", "1.png": b"2", "1.txt": "t"}))
    assert [(p.key, p.text, p.columns["file_name"]) for p in pairs] == [("1", "t", "1.jpg"), ("1", "t", "1.png")]


def test_slices_of_folders_join(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {f"{side}/{n:02d}.{kind}": f"{side}{n}" for side in "ab" for n in range(10) for kind in ("jpg", "txt")},
    )
    path = f"{tmp_path}/a::{tmp_path}/b"
    reader = open_source(Source(path=path, number_sample_per_shard=7))
    parts = [list(reader.read(piece)) for piece in reader.pieces()]
    assert [len(part) for part in parts] == [7, 7, 6]
    assert [pair for part in parts for pair in part] == read(path)
    assert [p.text for p in read(path)] == [f"{side}{n}" for side in "ab" for n in range(10)]


def test_columns_given_for_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"1.jpg": b"1", "1.txt": "txt", "1.json": {"alt": "alt text", "no": 5}})
    [pair] = read(tmp_path, caption_col="alt", id_col="no")
    assert (pair.key, pair.text) == ("5", "alt text")
    with pytest.raises(UsageError, match="the fields are: alt, no"):
        open_source(Source(path=str(tmp_path), caption_col="nope"))
    with pytest.raises(UsageError, match="`image_col` names a column"):
        open_source(Source(path=str(tmp_path), image_col="x"))


def test_no_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no image file"):
        open_source(Source(path=str(fill(tmp_path, {"1.txt": "t"})), input_format="files"))


def test_identity_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    fill(tmp_path, {"1.jpg": b"1", "1.txt": "t"})
    before = open_source(Source(path=str(tmp_path))).identity
    assert open_source(Source(path=str(tmp_path))).identity == before
    fill(tmp_path, {"1.txt": "longer"})
    assert open_source(Source(path=str(tmp_path))).identity != before


# --- COCO ---

COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 1, "file_name": "1.jpg", "height": 3},
        {"id": 2, "file_name": "gone.jpg"},
        {"id": 3, "file_name": "1.jpg"},
        {"id": 4, "file_name": "../secret.jpg"},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "caption": "one"},
        {"id": 11, "image_id": 2, "caption": "two"},
        {"id": 12, "image_id": 1, "caption": ""},
        {"id": 13, "image_id": 99, "caption": "nowhere"},
        {"id": 14, "image_id": 4, "caption": "leak"},
        "damage",
    ],
}


def test_coco_captions(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", {"captions.json": COCO, "1.jpg": b"1", "../secret.jpg": b"s"})
    pairs = read(folder / "captions.json")
    assert [(p.key, p.text, p.problem) for p in pairs] == [
        ("10", "one", None), ("11", "two", "image_missing"), ("12", None, "text_missing"),
        ("13", "nowhere", "image_missing"), ("14", "leak", "name_unsafe"), ("000000005", None, "image_missing"),
        ("3", None, "text_missing"),
    ]  # fmt: skip
    assert pairs[0].image == folder / "1.jpg"
    assert pairs[0].columns == {"image_id": 1, "file_name": "1.jpg", "height": 3}
    assert read(folder / "captions.json", number_sample_per_shard=2) == pairs


def test_coco_with_images_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path, {"annotations/captions.json": COCO, "val2017/1.jpg": b"1"})
    reader = open_source(Source(path=f"{tmp_path}/annotations/captions.json"))
    assert "`image_root`" in reader.picked["note"]
    assert read(f"{tmp_path}/annotations/captions.json", image_root=f"{tmp_path}/val2017")[0].problem is None


def test_karpathy_split(tmp_path: Path) -> None:
    images = [
        {"filepath": "val2014", "filename": "1.jpg", "split": "test", "cocoid": 7, "sentids": [1],
         "sentences": [{"raw": "one", "sentid": 1, "tokens": ["one"]}, {"raw": "two"}]},
        {"filename": "2.jpg", "split": "train", "imgid": 1, "sentences": []},
    ]  # fmt: skip
    fill(tmp_path, {"dataset.json": {"images": images, "dataset": "coco"}, "val2014/1.jpg": b"1", "2.jpg": b"2"})
    pairs = read(tmp_path / "dataset.json")
    assert [(p.key, p.text, p.problem) for p in pairs] == [
        ("1", "one", None), ("7#1", "two", None), ("1", None, "text_missing"),
    ]  # fmt: skip
    assert pairs[0].image == tmp_path / "val2014" / "1.jpg"
    assert pairs[0].columns["split"] == "test"
    assert pairs[0].columns["image_id"] == 7


def test_json_that_is_no_coco(tmp_path: Path) -> None:
    fill(tmp_path, {"instances.json": {"images": [], "annotations": [{"bbox": []}]}, "cut.json": b'{"images": ['})
    with pytest.raises(UsageError, match="has no captions"):
        open_source(Source(path=str(tmp_path / "instances.json")))
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        open_source(Source(path=str(tmp_path / "cut.json")))


# --- stored embeddings ---


def clip_retrieval(folder: Path, counts: list[int]) -> Path:
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    first = 0
    for number, count in enumerate(counts):
        rows = np.arange(first, first + count, dtype=np.float16)[:, None]
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows * np.ones((1, 4), np.float16))
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", -rows * np.ones((1, 3), np.float16))
        texts = [f"t{n}" for n in range(first, first + count)]
        table = pa.table({"image_path": ["x/y.jpg"] * count, "caption": texts})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        first += count
    return folder


def test_clip_retrieval_folders(tmp_path: Path) -> None:
    reader = open_source(Source(path=str(clip_retrieval(tmp_path, [5] * 11)), number_sample_per_shard=4))
    assert reader.format == "embeddings"
    assert reader.picked["text"] == "caption"
    row = 0
    for piece in reader.pieces():
        pairs, stored = list(reader.read(piece)), reader.embeddings(piece)
        assert stored is not None
        image, text = stored
        assert image.shape == (len(pairs), 4) and text.shape == (len(pairs), 3)
        for place, pair in enumerate(pairs):
            assert (pair.key, pair.text, pair.image, pair.problem) == (f"{row:09d}", f"t{row}", None, None)
            assert (image[place] == row).all() and (text[place] == -row).all()
            row += 1
    assert row == 55


def test_folder_of_two_arrays_with_a_table_or_without(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "text.npy", np.ones((3, 5), np.float32))
    assert [(p.key, p.text, p.problem) for p in read(tmp_path)] == [(f"{n:09d}", None, None) for n in range(3)]
    fill(tmp_path, {"pairs.csv": "id,text\nx,one\ny,\nz,1,2\n"})
    assert [(p.key, p.text, p.problem) for p in read(tmp_path)] == [
        ("x", "one", None), ("y", None, "text_missing"), ("000000002", None, "row_unreadable"),
    ]  # fmt: skip


def test_lengths_that_differ_are_told_with_both_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "text.npy", np.ones((4, 2), np.float32))
    with pytest.raises(UsageError, match=r"has 3 rows but .* has 4"):
        open_source(Source(path=str(tmp_path)))
    np.save(tmp_path / "text.npy", np.ones((3, 2), np.float32))
    fill(tmp_path, {"pairs.csv": "id,text\nx,one\n"})
    with pytest.raises(UsageError, match=r"has 3 rows but .* has 1"):
        open_source(Source(path=str(tmp_path)))


def test_pickles_and_other_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.ones((1, 2), np.float32))
    for bad in (np.array([[{}]], dtype=object), np.ones(3, np.float32), np.ones((1, 2), np.int64)):
        np.save(tmp_path / "image.npy", bad, allow_pickle=True)
        with pytest.raises(UsageError, match=r"image\.npy"):
            open_source(Source(path=str(tmp_path)))


def test_files_without_a_partner(tmp_path: Path) -> None:
    (clip_retrieval(tmp_path, [2, 2]) / "text_emb" / "text_emb_1.npy").unlink()
    with pytest.raises(UsageError, match="2 files in img_emb and 1 in text_emb, number 1"):
        open_source(Source(path=str(tmp_path)))
