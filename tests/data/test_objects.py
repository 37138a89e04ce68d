"""Sources that are Python objects: counts in = counts out, equal objects give equal files, nothing broken is fatal."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import noisycorr as nc
from noisycorr.clean.sources import folder_for, path_of
from noisycorr.data.pairs import Pair
from noisycorr.data.readers import Reading, open_source
from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.data.readers.objects import take_object
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

COLOURS = ((200, 10, 10), (10, 200, 10), (10, 10, 200), (240, 240, 0), (0, 200, 200))


def array(number: int) -> np.ndarray:
    """A small picture, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    pixels[2:9, 2:8] = COLOURS[number % len(COLOURS)]
    return pixels


def encoded(number: int, suffix: str = "jpeg") -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(array(number)).save(buffer, suffix)
    return buffer.getvalue()


def read(source: Any, folder: Path, **reading: Any) -> list[Pair]:
    """The pairs of an object, by way of the run folder."""
    choice = Reading(**reading)
    reader = open_source(choice.at(path_of(source, Run(folder), choice)))
    return [pair for piece in reader.pieces() for pair in reader.read(piece)]


def problem(pair: Pair) -> str | None:
    """What is wrong with a pair, its picture included."""
    if pair.problem is None and pair.image is not None:
        try:
            decode_image(pair.image)
        except BadImage as error:
            return error.code
    return pair.problem


def shards(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Names with digest, bytes and time of change."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted((folder / "source").rglob("*.parquet"))}  # fmt: skip


def frame(count: int = 5) -> pd.DataFrame:
    return pd.DataFrame({"image": [encoded(i) for i in range(count)], "caption": [f"text {i}" for i in range(count)],
                         "id": [f"k{i}" for i in range(count)], "width": range(count)})  # fmt: skip


def test_every_kind_of_object_gives_its_pairs(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, IterableDataset

    rows = frame().to_dict("records")
    table = pa.Table.from_pandas(frame())
    whole = Dataset.from_list(rows)
    sources = {
        "frame": frame(), "arrow frame": frame().convert_dtypes(dtype_backend="pyarrow"), "table": table,
        "batch": table.to_batches()[0],
        "reader": pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2)),
        "dataset": whole, "shuffled": whole.select([0, 1, 2, 3, 4]), "dict": DatasetDict(train=whole, test=whole),
        "stream": IterableDataset.from_generator(lambda: iter(rows)), "list": rows, "generator": (r for r in rows),
        "map-style": _Indexed(rows),
    }  # fmt: skip
    for name, source in sources.items():
        pairs = read(source, tmp_path / name)
        assert [(p.key, p.text) for p in pairs] == [(f"k{i}", f"text {i}") for i in range(5)], name
        assert [p.image for p in pairs] == [encoded(i) for i in range(5)], name
        assert [p.columns["width"] for p in pairs] == list(range(5)), name
        assert not any(p.problem for p in pairs), name


class _Indexed:
    """As PyTorch's map-style datasets are: neither a list nor iterable."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


def test_images_may_be_paths_bytes_pictures_or_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    Path("pics/a.jpg").write_bytes(encoded(0))
    rgb = Image.fromarray(array(1))
    sources = ["pics/a.jpg", Path("pics/a.jpg"), str((tmp_path / "pics/a.jpg").absolute()), encoded(0), rgb,
               np.asarray(rgb), np.asarray(rgb)[:, :, 0], bytearray(encoded(0)), rgb.convert("P"), rgb.convert("LA"),
               rgb.convert("CMYK"), rgb.convert("F"), rgb.convert("I"), rgb.convert("HSV")]  # fmt: skip
    pairs = read([(image, f"text {i}") for i, image in enumerate(sources)], tmp_path / "run")
    assert [p.key for p in pairs] == [f"{i:09d}" for i in range(len(sources))]
    assert [problem(p) for p in pairs] == [None] * len(sources)
    assert {p.image for p in pairs[:3]} == {tmp_path / "pics/a.jpg"}
    assert pairs[3].image == pairs[7].image == encoded(0)
    for pair in pairs[4:6]:
        assert (np.asarray(decode_image(pair.image).image) == array(1)).all()
    assert decode_image(pairs[5].image).format == "PNG" and decode_image(pairs[10].image).format == "TIFF"


def test_only_paths_start_from_the_root_and_image_root_keeps_them_in(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(0, "png"))
    run = Run(tmp_path / "run")
    assert Reading().at(path_of([("a.png", "text")], run)).image_root == tmp_path.anchor
    assert Reading().at(path_of([(encoded(0), "text")], run)).image_root is None
    paths = [(str(tmp_path / "a.png"), "inside"), ("a.png", "relative"), ("../a.png", "outside"),
             ("https://x.org/a.png", "never fetched"), ("", "none"), ("no\0pe", "odd")]  # fmt: skip
    pairs = read(paths, tmp_path / "kept", image_root=str(tmp_path))
    assert [p.problem for p in pairs] == [None, None, "name_unsafe", "image_missing", "image_missing", "image_missing"]
    assert "never fetched" in (pairs[3].detail or "")


def test_a_photo_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    upright = Image.new("RGB", (20, 10), (9, 9, 9))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "side.jpg", exif=exif)
    pairs = read([(Image.open(tmp_path / "side.jpg"), "a"), (str(tmp_path / "side.jpg"), "b")], tmp_path / "run")
    assert {decode_image(pair.image).image.size for pair in pairs} == {(10, 20)}


def test_broken_rows_become_pairs_with_a_problem(tmp_path: Path) -> None:
    good = encoded(0)
    broken: list[Any] = [
        (good, "fine"), (good, 5), (good, None), (good, float("nan")), (good, "  "), (good, {"a": 1}), (good, object()),
        (5, "a"), (None, "b"), (object(), "c"), (np.zeros((3, 3)), "d"), (b"", "e"), (b"<html>", "f"), ([], "g"),
        None, 7, "xy", (1, 2, 3), (), (good, good), (good, "\ud800 surrogate"), (good, Image.new("L", (2, 2))),
    ]  # fmt: skip
    pairs = read(broken, tmp_path)
    assert len(pairs) == len(broken)
    missing, unreadable = "image_missing", "image_unreadable"
    assert [problem(p) for p in pairs] == [
        None, *["text_missing"] * 6, unreadable, missing, unreadable, unreadable, unreadable, unreadable, unreadable,
        *[missing] * 5, "text_not_utf8", "text_not_utf8", "text_missing",
    ]  # fmt: skip
    raw = [p.columns["raw"] for p in pairs]
    assert raw[1] == "5" and raw[5] == "{'a': 1}" and raw[6] == "<object>" and raw[14] == "None" and raw[16] == "xy"


def test_lists_of_texts_are_one_pair_each(tmp_path: Path) -> None:
    pairs = read([(encoded(0), ["a", "b"]), (encoded(1), "alone"), (encoded(2), []), (encoded(3), ["c", 5, None]),
                  (encoded(4), None), (encoded(4), ("t", "u")), (encoded(4), np.array(["n"]))], tmp_path)  # fmt: skip
    assert [p.text for p in pairs] == ["a", "b", "alone", None, "c", None, None, None, "t", "u", "n"]
    assert pairs[0].key == "000000000#0" and pairs[1].columns["image_key"] == "000000000"


def hostile() -> dict[str, list[Any]]:
    """Columns that make trouble, three values each."""
    return {
        "huge": [10**5000, -(10**30), 5], "mixed": [1, "two", [3.5]], "nested": [{"a": {1: {2, 3}}}, [], None],
        "nan": [float("nan"), float("inf"), 1.5], "when": [datetime.date(1, 1, 1), datetime.timedelta(1), None],
        "money": [decimal.Decimal("1.10"), 1j, object()], "data": [b"\xff", bytearray(b"x"), None],
        "flag": [True, None, False], "vector": [np.arange(3.0), None, np.arange(2)], "mask": [array(0), None, "none"],
        "np": [np.float32(1.5), np.int8(3), np.datetime64("2020-01-01")], "truth_wrong": [True, False, True],
        "<b>bold</b>": ["<script>", "&amp;", None], "odd": ["\udfff", "x", "y"],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["frame", "dicts", "generator"])
def test_every_other_column_is_carried(kind: str, tmp_path: Path) -> None:
    columns = {"image": [encoded(i) for i in range(3)], "text": ["<img src=x onerror=alert(1)>", "b", "c"], **hostile()}
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    source = {"frame": lambda: pd.DataFrame({n: pd.Series(v, dtype=object) for n, v in columns.items()}),
              "dicts": lambda: rows, "generator": lambda: (row for row in rows)}[kind]  # fmt: skip
    pairs = read(source(), tmp_path)
    assert [p.text for p in pairs] == columns["text"] and not any(p.problem for p in pairs)
    first, second, third = (json.loads(json.dumps(dict(p.columns))) for p in pairs)
    assert first["huge"] == "<int>" and second["huge"] == str(-(10**30)) and third["huge"] == "5"
    assert (first["mixed"], second["mixed"], json.loads(third["mixed"])) == ("1", "two", [3.5])
    assert json.loads(first["nested"]) == {"a": {"1": [2, 3]}}
    assert (first["nan"], second["nan"], third["nan"]) == (None, None, 1.5)
    assert first["when"] == "0001-01-01" and first["money"] == "1.10" and third["money"] == "<object>"
    assert (first["flag"], second["flag"]) == (True, None) and first["vector"] == [0.0, 1.0, 2.0]
    assert first["truth_wrong"] is True and first["<b>bold</b>"] == "<script>" and first["odd"] == "\ufffd"
    assert set(first) >= {"huge", "mask", "np", "data"}
    found = shards(tmp_path)
    assert read(source(), tmp_path) == pairs and shards(tmp_path) == found


def test_frames_with_odd_columns_and_indexes(tmp_path: Path) -> None:
    plain = frame(4)
    sources = {
        "duplicate index": plain.set_axis([0, 0, 1, 1]),
        "filtered": frame(8).iloc[[0, 1, 2, 3]].sort_index(ascending=True),
        "key as index": plain.set_index("id"),
        "several indexes": plain.set_index(["id", "width"]),
        "categorical": plain.assign(caption=plain["caption"].astype("category")),
        "string dtype": plain.assign(caption=plain["caption"].astype("string"), width=plain["width"].astype("Int64")),
        "bytes text": plain.assign(caption=[text.encode() for text in plain["caption"]]),
        "some bytes": plain.assign(caption=pd.Series([b"text 0", "text 1", b"text 2", "text 3"], dtype=object)),
        "MultiIndex columns": plain.set_axis(pd.MultiIndex.from_tuples(
            [("image", ""), ("caption", ""), ("id", ""), ("size", "width")]), axis=1),
    }  # fmt: skip
    for name, source in sources.items():
        pairs = read(source, tmp_path / name)
        assert [(p.key, p.text) for p in pairs] == [(f"k{i}", f"text {i}") for i in range(4)], name
        assert pairs[3].columns["size_width" if "Multi" in name else "width"] == 3, name
    twice = pd.concat([plain, plain[["width"]]], axis=1)
    assert read(twice, tmp_path / "twice")[1].columns["width_2"] == 1
    numbers = plain.set_axis([0, 1, 2, 3], axis=1)
    pairs = read(numbers, tmp_path / "numbers", image_col="0", caption_col="1", id_col="2")
    assert [(p.key, p.text) for p in pairs] == [(f"k{i}", f"text {i}") for i in range(4)]
    gone = plain.assign(caption=pd.Series(["a", pd.NA, None, float("nan")], dtype=object))
    assert [p.problem for p in read(gone, tmp_path / "gone")] == [None, *["text_missing"] * 3]


def test_class_names_of_a_dataset_are_texts(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Shown

    features = Features({"image": Shown(), "label": ClassLabel(names=["cat", "dog"])})
    dataset = Dataset.from_dict({"image": [encoded(0), encoded(1)], "label": [1, 0]}, features=features)
    assert [p.text for p in read(dataset, tmp_path / "memory")] == ["dog", "cat"]
    table = dataset.data.table
    assert [p.text for p in read(table, tmp_path / "arrow")] == ["dog", "cat"]
    with pytest.raises(UsageError, match=r"no split 'train' \(`hf_split`\): there are test"):
        from datasets import DatasetDict

        path_of(DatasetDict(test=dataset), Run(tmp_path / "no"))
    assert len(read(DatasetDict(test=dataset), tmp_path / "test", hf_split="test")) == 2


def test_numbers_alone_are_texts_of_digits(tmp_path: Path) -> None:
    assert [p.text for p in read([(encoded(0), 2008), (encoded(1), 7)], tmp_path)] == ["2008", "7"]


@pytest.mark.parametrize("source", [5, None, 2.5, object(), {"image": [], "text": []}, np.zeros((3, 2)), b"x",
                                    {(1, 2)},
                                    [1, 2], range(3), ("a.jpg", "text"), pd.Series(["a"]), len,
                                    Image.new("L", (2, 2)), pa.chunked_array([[1]])])  # fmt: skip
def test_what_is_no_source_is_refused_with_what_is_taken(source: Any, tmp_path: Path) -> None:
    for ask in (lambda: path_of(source, Run(tmp_path)), lambda: folder_for(source, None)):
        with pytest.raises(
            UsageError, match=rf"^the source is a {type(source).__name__}, expected a path, .*DataFrame"
        ):
            ask()
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("source", [[], pd.DataFrame(), frame(0), pa.table({"image": []}), iter([])])
def test_nothing_is_no_source(source: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pairs"):
        path_of(source, Run(tmp_path))


def test_columns_that_are_not_there_are_told_before_anything_is_written(tmp_path: Path) -> None:
    for options, words in (({"caption_col": "legend"}, r"no column 'legend' \(`caption_col`\) in the dataframe"),
                           ({"image_col": "photo"}, "no column 'photo'")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            read(frame(), tmp_path, **options)
    with pytest.raises(UsageError, match="No text column was found in the dataframe"):
        read(frame()[["image", "width"]], tmp_path)
    late = [{"image": None, "caption": f"text {i}"} for i in range(150)] + [{"image": encoded(0), "caption": "last"}]
    pairs = read(late, tmp_path / "late")
    assert len(pairs) == 151 and [p.problem for p in pairs[-2:]] == ["image_missing", None]
    assert [p.problem for p in read(late[:150], tmp_path / "none")] == ["image_missing"] * 150
    with pytest.raises(UsageError, match="expected a path"):
        path_of((i for i in range(3)), Run(tmp_path))
    assert not list(tmp_path.glob("source/*/*"))


def test_equal_objects_give_equal_files_and_others_another_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    read(frame(), first)
    read(frame().copy(deep=True), second)
    assert shards(first) == shards(second) != {}
    assert [pa_.stat().st_mtime % 2 for pa_ in first.rglob("*.parquet")] == [0]
    assert folder_for(frame(), None) == folder_for(frame(), None) != folder_for(frame(4), None)
    assert Path(folder_for(frame(), None)).name.startswith("dataframe-")
    assert len(Path(folder_for(frame(), None)).name) == len("dataframe-") + 8
    assert folder_for(frame(), tmp_path) == str(tmp_path)
    assert folder_for([(array(0), "a")], None) != folder_for([(array(1), "a")], None)


def test_pieces_are_shards_and_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    rows = [(array(i), f"text {i}") for i in range(25)]
    pairs = read(rows, tmp_path, number_sample_per_shard=10)
    found = shards(tmp_path)
    assert [Path(name).name for name in found] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    middle = tmp_path / list(found)[1]
    middle.unlink()  # as if the process had been killed
    (middle.parent / ".00001.parquet.999999999.tmp").write_bytes(b"rest")
    inode = (tmp_path / next(iter(found))).stat().st_ino
    Run(tmp_path).sweep()
    assert read(rows, tmp_path, number_sample_per_shard=10) == pairs
    assert shards(tmp_path) == found and (tmp_path / next(iter(found))).stat().st_ino == inode
    assert sorted(path.name for path in middle.parent.iterdir()) == [Path(name).name for name in found]


def test_a_generator_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[Any, str]]:
        for i in range(200):
            yield array(i % 5), f"text {i}"
        raise RuntimeError("the network went away")

    with pytest.raises(RuntimeError, match="network"):
        path_of(broken(), Run(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_image_of_the_caller_that_cannot_be_loaded_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(encoded(0, "png")[:150])
    pairs = read([(Image.open(tmp_path / "cut.png"), "a"), (array(0), "b")], tmp_path / "run")
    assert [problem(p) for p in pairs] == ["image_unreadable", None]


def test_nothing_is_imported_for_other_objects() -> None:
    code = """import sys
from noisycorr.data.readers import Reading
from noisycorr.data.readers.objects import take_object
take_object([(b'', 'a')], Reading()).survey()
print([name for name in ('pandas', 'datasets', 'torch') if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


SCRIPT = """
import numpy as np, pandas as pd, noisycorr as nc
rows = [(np.random.default_rng(i).integers(0, 256, (12, 10, 3)).astype(np.uint8), f"picture {i}") for i in range(24)]
images, texts = zip(*rows)
frame = pd.DataFrame({"photo": list(images), "legend": texts, "truth_wrong": [i % 3 == 0 for i in range(24)]})
runs = [nc.clean(frame, image_col="photo", caption_col="legend"), nc.clean(zip(images, texts), stages="embed")]
print(*(run.folder for run in runs), len(runs[0].to_arrow()), "truth_wrong" in runs[0].to_arrow().column_names)
"""


def test_the_same_calls_in_another_process_find_their_work_done(tmp_path: Path) -> None:
    def call() -> list[str]:
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True,
                              cwd=tmp_path, env=os.environ)  # fmt: skip
        return done.stdout.split()

    def work() -> list[str]:
        return [(tmp_path / folder / "metrics.jsonl").read_text() for folder in found[:2]]

    found = call()
    assert [Path(folder).name.partition("-")[0] for folder in found[:2]] == ["dataframe", "pairs"]
    assert found[2:] == ["24", "False"]
    before = work()
    assert call() == found and work() == before  # nothing was done again
    assert {path.name for path in (tmp_path / "noisycorr_out").iterdir()} == {Path(folder).name for folder in found[:2]}


def test_another_object_in_the_folder_is_refused_and_overwrite_takes_it(tmp_path: Path) -> None:
    folder, stages = tmp_path / "run", "embed"
    nc.clean([(array(i), f"text {i}") for i in range(5)], folder, stages=stages)
    found = shards(folder)
    other = [(array(i), f"other {i}") for i in range(4)]
    with pytest.raises(UsageError, match=r"holds embeddings of other data.*`overwrite`"):
        nc.clean(other, folder, stages=stages)
    assert shards(folder) == found
    run = nc.clean(other, folder, stages=stages, overwrite=True)
    assert run.run.stage("embed")["facts"]["pairs"] == 4 and len(shards(folder)) == 1 and shards(folder) != found
    found = shards(folder)
    path = next((folder / "source").iterdir())
    nc.clean(path, folder, stages=stages, overwrite=True)  # what the run itself has written may be its source
    assert shards(folder) == found
    (folder / "source" / "mine").mkdir()
    pq.write_table(pa.Table.from_pandas(frame()), folder / "source" / "mine" / "a.parquet")
    nc.clean(folder / "source" / "mine", folder, stages=stages, overwrite=True)
    assert shards(folder).keys() > found.keys()  # no object came, so none goes


def test_a_lost_source_is_written_again_and_the_run_goes_on(tmp_path: Path) -> None:
    rows = [(array(i), f"text {i}") for i in range(4)]
    nc.clean(rows, tmp_path, stages="embed")
    found = shards(tmp_path)
    for name in found:
        (tmp_path / name).unlink()
    nc.clean(rows, tmp_path, stages="embed")
    assert shards(tmp_path) == found
    assert (tmp_path / "metrics.jsonl").read_text().count('"embed"') == 1


def test_noise_goes_into_objects_too(tmp_path: Path) -> None:
    rows = [(array(i), f"text {i}") for i in range(10)]
    for _ in range(2):
        folder = nc.inject(rows, tmp_path, noise_ratio=0.4)
    table = pq.read_table(folder / "00000.parquet")
    assert len(table) == 10 and sum(table.column("truth_changed").to_pylist()) == 4


def test_a_result_gives_its_folder(tmp_path: Path) -> None:
    run = nc.CleanRun(tmp_path / "some run")
    assert path_of(run, Run(tmp_path)) == str(tmp_path / "some run")
    assert folder_for(run, None) == str(Path("noisycorr_out") / "some_run")
    assert path_of(tmp_path / "x", Run(tmp_path)) == str(tmp_path / "x") and take_object(7, Reading()) is None
