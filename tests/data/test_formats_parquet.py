"""The reader of parquet files."""

from __future__ import annotations

import datetime
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisycorr.data.pairs import Pair
from noisycorr.data.readers import Source, open_source
from noisycorr.runtime.errors import UsageError


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(path: Path | str, **options: Any) -> list[Pair]:
    reader = open_source(Source(path=str(path), **options))
    return [pair for piece in reader.pieces() for pair in reader.read(piece)]


def image_folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"A")
    (tmp_path / "secret.jpg").write_bytes(b"S")
    return tmp_path / "pictures"


def test_embedded_bytes_texts_and_other_columns(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 1, 2, 3, 4, 5)
    path = write(
        tmp_path / "a.parquet",
        {
            "uid": ["u1"], "image": [b"I"], "caption": ["hi"], "score": [float("nan")], "when": [when],
            "blob": [b"12345"], "nested": [{"a": [1.5, float("inf")], "b": "x"}], "n": [np.int32(3)],
        },
    )  # fmt: skip
    [pair] = read(path)
    assert (pair.key, pair.image, pair.text, pair.problem) == ("u1", b"I", "hi", None)
    assert pair.columns == {
        "uid": "u1", "score": None, "when": "2024-01-02T03:04:05", "blob": "<5 bytes>",
        "nested": {"a": [1.5, None], "b": "x"}, "n": 3,
    }  # fmt: skip
    json.dumps(pair.columns, allow_nan=False)


def test_struct_of_hugging_face(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [{"bytes": b"I", "path": "x.jpg"}], "text": ["t"]})
    [pair] = read(tmp_path / "a.parquet")
    assert (pair.image, pair.columns) == (b"I", {"image_path": "x.jpg"})


def test_class_numbers_get_the_names_that_hugging_face_stores(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [b"I"] * 3, "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [(p.text, p.problem) for p in read(tmp_path / "a.parquet")] == [
        ("dog", None), ("cat", None), (None, "text_missing"),
    ]  # fmt: skip


def test_paths_start_from_the_folder_of_the_file_or_the_root_and_never_leave_it(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    paths = ["a.jpg", str(folder / "a.jpg"), "../secret.jpg", str(tmp_path / "secret.jpg"), "none.jpg", "", "a\0b"]
    write(folder / "a.parquet", {"image_path": paths, "text": list("abcdefg")})
    problems = [None, None, "name_unsafe", "name_unsafe", "image_missing", "image_missing", "image_missing"]
    pairs = read(folder / "a.parquet")
    assert [pair.problem for pair in pairs] == problems
    assert pairs[0].image == pairs[1].image == folder / "a.jpg"
    assert pairs[2].image is None and pairs[2].columns == {"image_path": "../secret.jpg"}
    wider = read(folder / "a.parquet", image_root=str(tmp_path))
    assert wider[3].image == tmp_path / "secret.jpg"
    assert read(folder / "a.parquet", image_root="/")[3].problem is None


def test_addresses_are_kept_and_never_fetched(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"URL": ["http://127.0.0.1:9/x.jpg"], "TEXT": ["t"]})
    reader = open_source(Source(path=str(tmp_path)))
    [pair] = reader.read(reader.pieces()[0])
    assert (pair.image, pair.problem, pair.columns) == (None, "image_missing", {"URL": "http://127.0.0.1:9/x.jpg"})
    assert "never fetched" in reader.picked["note"]


def test_a_list_of_texts_gives_one_pair_each(tmp_path: Path) -> None:
    columns = {"image": [b"I", b"J", b"K"], "captions": [["a", None], [], None], "id": [7, 8, 9]}
    pairs = read(write(tmp_path / "a.parquet", columns))
    assert [(p.key, p.text, p.problem) for p in pairs] == [
        ("7#0", "a", None), ("7#1", None, "text_missing"), ("8", None, "text_missing"), ("9", None, "text_missing"),
    ]  # fmt: skip
    assert pairs[0].columns == {"id": 7, "image_key": "7"}
    assert pairs[0].image == pairs[1].image == b"I"


def test_pieces_cut_across_row_groups(tmp_path: Path) -> None:
    columns = {"image": [b"I"] * 103, "text": [f"t{n}" for n in range(103)]}
    write(tmp_path / "a.parquet", columns, row_group_size=10)
    write(tmp_path / "b.parquet", columns, row_group_size=1000)
    reader = open_source(Source(path=str(tmp_path), number_sample_per_shard=25))
    pieces = reader.pieces()
    parts = [list(reader.read(piece)) for piece in pieces]
    assert [len(part) for part in parts] == [25, 25, 25, 25, 3] * 2
    assert [pair.text for part in parts for pair in part] == columns["text"] * 2
    assert [pair.key for part in parts for pair in part] == [f"{row:09d}" for row in range(206)]
    assert list(open_source(reader.source).read(pieces[7])) == parts[7]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 60), group=st.integers(1, 70), size=st.integers(1, 70))
def test_pieces_join_to_the_whole(tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, size: int) -> None:
    path = tmp_path_factory.mktemp("t") / "a.parquet"
    write(path, {"image": [b"I"] * rows, "text": [str(n) for n in range(rows)]}, row_group_size=group)
    assert [pair.text for pair in read(path, number_sample_per_shard=size)] == [str(n) for n in range(rows)]


def test_files_that_lack_the_text_column_give_text_missing(tmp_path: Path) -> None:
    write(tmp_path / "background.parquet", {"key": ["b"], "image": [b"I"]})
    write(tmp_path / "train.parquet", {"key": ["t"], "image": [b"I"], "class_name": ["cat"]})
    assert [(p.key, p.text, p.problem) for p in read(tmp_path)] == [("b", None, "text_missing"), ("t", "cat", None)]
    assert "background.parquet" in open_source(Source(path=str(tmp_path))).picked["note"]


def test_a_column_that_no_file_has_is_a_usage_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"I"], "words": ["w"]})
    with pytest.raises(UsageError, match=r"`caption_col`; the columns are: image, words"):
        open_source(Source(path=str(tmp_path)))
    with pytest.raises(UsageError, match=r"no column 'nope' \(`caption_col`\).* image, words"):
        open_source(Source(path=str(tmp_path), caption_col="nope"))
    write(tmp_path / "a.parquet", {"text": ["w"]})
    with pytest.raises(UsageError, match="`image_col`"):
        open_source(Source(path=str(tmp_path)))


def test_truth_is_never_picked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hidden truth"):
        Source(path="x", caption_col="truth_text")
    write(tmp_path / "a.parquet", {"image": [b"I"], "truth_label": ["cat"], "clean_label": ["cat"]})
    with pytest.raises(UsageError, match="No text column"):
        open_source(Source(path=str(tmp_path)))


def test_bad_utf8_in_one_value_does_not_harm_the_others(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 5, 7], np.int32)), pa.py_buffer(b"ab\xff\xfexcd")]
    )
    pq.write_table(pa.table({"image": [b"I"] * 3, "text": texts}), tmp_path / "a.parquet")
    assert [(p.text, p.problem) for p in read(tmp_path)] == [
        ("ab", None), ("\ufffd\ufffdx", "text_not_utf8"), ("cd", None),
    ]  # fmt: skip


def test_text_as_bytes_and_dates_beyond_python(tmp_path: Path) -> None:
    far = pa.array([10**15], pa.timestamp("ms"))
    write(tmp_path / "a.parquet", {"jpg": [b"I"], "text": [b"caf\xc3\xa9"], "when": far})
    [pair] = read(tmp_path)
    assert (pair.image, pair.text, pair.problem, dict(pair.columns)) == (b"I", "café", None, {"when": None})


def test_damaged_page_gives_unreadable_rows_and_reading_goes_on(tmp_path: Path) -> None:
    columns = {"image": [b"I" * 50] * 30, "text": [f"text {n}" for n in range(30)]}
    path = write(tmp_path / "a.parquet", columns, row_group_size=10, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[place : place + 60] = b"\xff" * 60
    path.write_bytes(bytes(data))
    pairs = read(path)
    assert len(pairs) == 30
    assert [pair.problem for pair in pairs] == [None] * 10 + ["row_unreadable"] * 10 + [None] * 10
    assert pairs[29].text == "text 29"


def test_damaged_footer_is_one_row_beside_sound_files_and_an_error_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"I"], "text": ["t"]})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        open_source(Source(path=str(path)))
    write(tmp_path / "b.parquet", {"image": [b"I"], "text": ["t"]})
    assert [(p.key, p.problem) for p in read(tmp_path)] == [("000000000", "row_unreadable"), ("000000001", None)]


def test_a_note_says_when_no_image_path_leads_to_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"filepath": ["x/1.jpg", "x/2.jpg"], "title": ["a", "b"]})
    assert "`image_root`" in open_source(Source(path=str(tmp_path))).picked["note"]


def test_one_large_row_group_is_read_in_little_memory(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
    path, columns = tmp_path / "a.parquet", {"image": [picture] * 1000, "text": ["t"] * 1000}
    write(path, columns, use_dictionary=False, write_batch_size=32)  # pages of 1.6 MB in one row group
    reader = open_source(Source(path=str(tmp_path)))
    arrow_before = pa.total_allocated_bytes()
    arrow_peak = 0
    tracemalloc.start()
    count = 0
    for _ in reader.read(reader.pieces()[0]):
        count += 1
        arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - arrow_before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1000
    assert peak < 12_000_000  # of 50 MB
    assert arrow_peak < 12_000_000


def test_identity_follows_the_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"I"], "text": ["t"]})
    before = open_source(Source(path=str(tmp_path))).identity
    assert open_source(Source(path=str(tmp_path))).identity == before
    write(tmp_path / "a.parquet", {"image": [b"I", b"J"], "text": ["t", "u"]})
    assert open_source(Source(path=str(tmp_path))).identity != before
