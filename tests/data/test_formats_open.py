"""Which reader a source gets, and what is said when there is none."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisycorr.data.pairs import PROBLEMS
from noisycorr.data.readers import Piece, Source, locate, open_source
from noisycorr.runtime.errors import UsageError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real data, ../shared/data, is absent")


def parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [b"I"], "text": ["t"], "url": ["http://x"]}), path)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("0.jpg", "0.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))


@needs_data
@pytest.mark.parametrize(
    ("name", "format_", "image", "text", "pieces"),
    [
        ("fashion", "parquet", "image", "title", 6),
        ("fashion/wds", "webdataset", "jpg", "txt", 1),
        ("fashion/train-{000..003}.parquet", "parquet", "image", "title", 4),
        ("openclipart", "parquet", "image", "title", 1),
        ("emoji", "parquet", "image", "label", 1),
        ("caltech101", "parquet", "image", "class_name", 4),
        ("cifar10n", "parquet", "image", "aggre_label", 3),
        ("cifar10n/train.parquet", "parquet", "image", "aggre_label", 2),
        ("nlvr", "parquet", "image", "sentence", 2),
        ("coco_mini", "parquet", "image", "captions", 1),
    ],
)
def test_real_data_opens_by_itself(name: str, format_: str, image: str, text: str, pieces: int) -> None:
    reader = open_source(Source(path=str(DATA / name)))
    assert reader.format == format_
    assert (reader.picked["image"], reader.picked["text"]) == (image, text)
    assert len(reader.pieces()) == pieces
    pairs = list(itertools.islice(reader.read(reader.pieces()[0]), 5))
    assert len(pairs) == 5
    assert all(isinstance(pair.image, bytes) and pair.image for pair in pairs)
    for pair in pairs:
        json.dumps(dict(pair.columns), allow_nan=False)
    lacks_text = name in ("caltech101", "cifar10n")  # their first file (background, test) has no such column
    assert [pair.problem for pair in pairs] == ["text_missing" if lacks_text else None] * 5
    assert reader.embeddings(reader.pieces()[0]) is None


@needs_data
def test_real_data_without_images_is_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"label_errors holds no image-text pairs.*\.json, \.npy\)\.$") as caught:
        open_source(Source(path=str(DATA / "label_errors")))
    assert "\n" not in str(caught.value)


@needs_data
def test_every_row_of_a_real_set_comes_out_once() -> None:
    reader = open_source(Source(path=str(DATA / "nlvr"), number_sample_per_shard=300))
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    assert len(pairs) == len({pair.key for pair in pairs}) == 1979
    assert {pair.problem for pair in pairs} == {None}


def test_what_img2dataset_wrote_is_read_from_its_tars_or_files(tmp_path: Path) -> None:
    parquet(tmp_path / "tars" / "00000.parquet")
    tar(tmp_path / "tars" / "00000.tar")
    assert open_source(Source(path=str(tmp_path / "tars"))).format == "webdataset"
    parquet(tmp_path / "files" / "00000.parquet")
    (tmp_path / "files" / "00000").mkdir()
    (tmp_path / "files" / "00000" / "000000000.jpg").write_bytes(b"I")
    (tmp_path / "files" / "00000" / "000000000.txt").write_text("t")
    assert open_source(Source(path=str(tmp_path / "files"))).format == "files"
    parquet(tmp_path / "files" / "pairs.parquet")
    assert open_source(Source(path=str(tmp_path / "files"))).format == "parquet"


def test_formats_of_folders_and_files(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "text": "t"}]
    for name, content in {
        "1/x.csv": "image,text\na.jpg,t\n",
        "2/x.jsonl": json.dumps(rows[0]),
        "3/x.json": json.dumps(rows),
        "4/x.json": json.dumps({"images": [], "annotations": [{"caption": "c"}]}),
        "5/a.jpg": "I",
        "5/a.json": json.dumps({"text": "t"}),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    readers = [open_source(Source(path=str(tmp_path / str(number)))) for number in range(1, 6)]
    assert [reader.format for reader in readers] == ["csv", "jsonl", "json", "coco", "files"]
    for reader in readers:  # worker processes get a copy
        copy = pickle.loads(pickle.dumps(reader))
        assert [list(copy.read(p)) for p in copy.pieces()] == [list(reader.read(p)) for p in reader.pieces()]
    (tmp_path / "1" / "x.txt").write_text("image,text\na.jpg,t\n")
    assert open_source(Source(path=str(tmp_path / "1" / "x.txt"), input_format="csv")).format == "csv"
    with pytest.raises(UsageError, match="`input_format`"):
        open_source(Source(path=str(tmp_path / "1" / "x.txt")))


def test_paths_with_strange_letters_are_taken_as_they_are(tmp_path: Path) -> None:
    parquet(tmp_path / "a {1} [b]" / "x{0..1}.parquet")
    for path in (tmp_path / "a {1} [b]", tmp_path / "a {1} [b]" / "x{0..1}.parquet"):
        assert len(open_source(Source(path=str(path))).pieces()) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/x.tar", "nowhere/x.tar does not exist: check the path; a dataset of the hub is written hf://NAME"),
        ("s/{0..3}.tar", r"s/0\.tar does not exist \(and 3 more of 4\)"),
        ("s/*.tar", "Nothing matches the pattern"),
        ("a.csv::", "empty part beside '::'"),
        ("https://x/y.tar", "is not a local path: download it first"),
        ("pipe:cat x.tar", "is not a local path"),
        ("s/{0..999999999999}.tar", "names more than 1000000 files"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        open_source(Source(path=path))


def test_values_out_of_range() -> None:
    for options, message in (
        ({"path": " "}, "path is empty"),
        ({"path": "x", "input_format": "xml"}, "'xml', but must be one of: auto, webdataset"),
        ({"path": "x", "number_sample_per_shard": 0}, "is 0, but must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            Source(**options)  # type: ignore[arg-type]


def test_folders_with_nothing_readable_say_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no file"):
        open_source(Source(path=str(tmp_path)))
    parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(UsageError, match=r"but .*/data has 1: name that folder"):
        open_source(Source(path=str(tmp_path)))
    with pytest.raises(UsageError, match=r"has no \.csv"):
        open_source(Source(path=str(tmp_path), input_format="csv"))


def test_sources_that_do_not_go_together(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet")
    tar(tmp_path / "b.tar")
    with pytest.raises(UsageError, match="joins sources of one format only"):
        open_source(Source(path=f"{tmp_path}/a.parquet::{tmp_path}/b.tar"))
    with pytest.raises(UsageError, match="stands twice"):
        open_source(Source(path=f"{tmp_path}/a.parquet::{tmp_path}/a.parquet"))
    with pytest.raises(UsageError, match=r"image_root .* is not a folder"):
        open_source(Source(path=f"{tmp_path}/a.parquet", image_root=str(tmp_path / "none")))


def test_the_shipped_sample_is_there_or_said_to_be_absent() -> None:
    try:
        reader = open_source(Source(path="sample"))
    except UsageError as error:
        assert "has no sample" in str(error)
        assert not list((Path(locate.__file__).parents[1] / "sample").glob("*.parquet"))
    else:
        assert next(iter(reader.read(reader.pieces()[0]))).problem is None


def test_problems_that_readers_use_are_all_known() -> None:
    used = set()
    for file in Path(locate.__file__).parent.glob("*.py"):
        text = file.read_text()
        used |= {code for code in PROBLEMS if f'"{code}"' in text}
    assert used == set(PROBLEMS)
    assert Piece(0, "x") == Piece(index=0, path="x", start=0, stop=None)
