"""The readers of csv, tsv, jsonl and JSON arrays."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from noisycorr.data.pairs import Pair
from noisycorr.data.readers import Source, open_source, records
from noisycorr.runtime.errors import UsageError


def read(path: Path | str, **options: Any) -> list[Pair]:
    reader = open_source(Source(path=str(path), **options))
    return [pair for piece in reader.pieces() for pair in reader.read(piece)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    return tmp_path


def test_csv_with_quotes_over_lines_and_other_columns(folder: Path) -> None:
    (folder / "x.csv").write_text(
        'uid,filepath,title,n\r\nu1,a.jpg,"two\nlines, ""quoted""",3\r\n\r\nu2,b.jpg,plain 5" nail,\r\n', newline=""
    )
    first, second = read(folder / "x.csv")
    assert (first.key, first.image, first.text) == ("u1", folder / "a.jpg", 'two\nlines, "quoted"')
    assert first.columns == {"uid": "u1", "filepath": "a.jpg", "n": "3"}
    assert (second.text, second.columns["n"], second.problem) == ('plain 5" nail', "", None)


def test_open_clips_csv_has_tabs(folder: Path) -> None:
    (folder / "train.csv").write_text("filepath\ttitle\na.jpg\tone, two\nb.jpg\tthree\n")
    reader = open_source(Source(path=str(folder / "train.csv")))
    assert reader.picked == {"image": "filepath", "text": "title", "delimiter": "tab"}
    assert [pair.text for pair in reader.read(reader.pieces()[0])] == ["one, two", "three"]


def test_tsv_takes_stray_quotes_as_letters(folder: Path) -> None:
    (folder / "x.tsv").write_text('caption\timage\n"hello" she said\ta.jpg\n"open\tb.jpg\n"two\nlines"\tc.jpg\n')
    assert [pair.text for pair in read(folder / "x.tsv")] == ['"hello" she said', '"open', "two\nlines"]


def test_rows_with_bad_quotes_or_too_many_fields_are_unreadable_and_reading_goes_on(folder: Path) -> None:
    rows = ["image,text", "a.jpg,fine", 'b.jpg,"never closed', "c.jpg,good", "a.jpg,too,many", "a.jpg", "b.jpg,last"]
    (folder / "x.csv").write_text("\n".join(rows) + "\n")
    pairs = read(folder / "x.csv")
    assert [(pair.text, pair.problem) for pair in pairs] == [
        ("fine", None), (None, "row_unreadable"), ("good", None), (None, "row_unreadable"), (None, "row_unreadable"),
        ("last", None),
    ]  # fmt: skip
    assert [pair.key for pair in pairs] == [f"{row:09d}" for row in range(6)]
    assert pairs[1].columns == {"raw": 'b.jpg,"never closed\n'}


def test_two_stray_quotes_far_apart_harm_only_their_own_rows(folder: Path) -> None:
    rows = [f"a.jpg,t{n}" for n in range(10)]
    rows[2], rows[7] = 'a.jpg,"open', 'a.jpg,"open too'
    (folder / "x.csv").write_text("\n".join(["image,text", *rows]))
    problems = [pair.problem for pair in read(folder / "x.csv")]
    assert problems == [None, None, "row_unreadable", None, None, None, None, "row_unreadable", None, None]


def test_bytes_that_are_not_utf8_and_a_byte_order_mark(folder: Path) -> None:
    (folder / "x.csv").write_bytes(b"\xef\xbb\xbfimage,text,x\r\na.jpg,caf\xe9,\xff\r\nb.jpg,\xc3\xa9,1\r\n")
    first, second = read(folder / "x.csv")
    assert (first.text, first.problem, first.columns["x"]) == ("caf\ufffd", "text_not_utf8", "\ufffd")
    assert (second.text, second.problem) == ("é", None)


def test_utf16_and_empty_files_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,text\na.jpg,x\n", encoding="utf-16")
    with pytest.raises(UsageError, match="UTF-16: save it as UTF-8"):
        open_source(Source(path=str(tmp_path / "x.csv")))
    for name in ("y.csv", "y.jsonl", "y.json"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UsageError, match="no readable row"):
            open_source(Source(path=str(tmp_path / name)))


def test_headers_that_repeat_or_are_empty_become_unique(folder: Path) -> None:
    (folder / "x.csv").write_text(",image,text,text\n0,a.jpg,one,two\n")
    [pair] = read(folder / "x.csv")
    assert (pair.text, dict(pair.columns)) == ("one", {"column_0": "0", "image": "a.jpg", "text_2": "two"})


def test_class_numbers_are_the_last_resort(folder: Path) -> None:
    (folder / "x.csv").write_text("image,label\na.jpg,3\n")
    reader = open_source(Source(path=str(folder / "x.csv")))
    assert [pair.text for pair in reader.read(reader.pieces()[0])] == ["3"]
    assert "class number" in reader.picked["note"]


def test_paths_outside_of_the_folder_are_unsafe(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "x.csv").write_text("image,text\n../a.jpg,x\n/etc/hostname,y\n../deep/none.jpg,z\n")
    found = read(folder / "deep" / "x.csv")
    assert [p.problem for p in found] == ["name_unsafe", "name_unsafe", "image_missing"]
    assert [p.detail for p in found] == ["../a.jpg", "/etc/hostname", "no such file: ../deep/none.jpg"]
    inside = read(folder / "deep" / "x.csv", image_root=str(folder))
    assert inside[0].problem == "name_unsafe"  # relative paths start from the root
    (folder / "deep" / "x.csv").write_text(f"image,text\n{folder}/a.jpg,x\n")
    assert read(folder / "deep" / "x.csv", image_root=str(folder))[0].image == folder / "a.jpg"


def test_jsonl_with_lists_missing_values_and_damage(folder: Path) -> None:
    lines = ['{"image": "a.jpg", "caption": ["x", "y"], "m": {"k": [1]}}', "{broken", "", "[1]", '{"image": "b.jpg"}',
             '{"caption": "t", "extra": NaN}', "[" * 100_000]  # fmt: skip
    (folder / "x.jsonl").write_text("\n".join(lines))
    assert [(p.key, p.text, p.problem) for p in read(folder / "x.jsonl")] == [
        ("000000000#0", "x", None), ("000000000#1", "y", None), ("000000001", None, "row_unreadable"),
        ("000000002", None, "row_unreadable"), ("000000003", None, "text_missing"),
        ("000000004", "t", "image_missing"), ("000000005", None, "row_unreadable"),
    ]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1])
def test_json_array_and_json_of_lines(folder: Path, indent: int | None) -> None:
    rows = [{"image": f"{name}.jpg", "caption": f"größe {name}"} for name in "abc"]
    (folder / "x.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
    (folder / "y.json").write_text("\n".join(map(json.dumps, rows)))
    expected = [f"größe {name}" for name in "abc"]
    assert [pair.text for pair in read(folder / "x.json")] == expected
    assert [pair.text for pair in read(folder / "x.json", number_sample_per_shard=1)] == expected
    assert [pair.text for pair in read(folder / "y.json")] == expected


def test_damaged_json_array_gives_the_rows_before(folder: Path) -> None:
    whole = json.dumps([{"image": "a.jpg", "caption": "x"}, 5, {"image": "b.jpg", "caption": "y"}])
    (folder / "x.json").write_text(whole[:-8])
    assert [(p.text, p.problem) for p in read(folder / "x.json")] == [
        ("x", None), (None, "row_unreadable"), (None, "row_unreadable"),
    ]  # fmt: skip


def test_a_json_array_longer_than_a_chunk(folder: Path) -> None:
    rows = [{"image": "a.jpg", "caption": f"{n} é" + "x" * (n % 7) * 300, "id": n} for n in range(3000)]
    (folder / "x.json").write_text(json.dumps(rows, ensure_ascii=False))
    assert (folder / "x.json").stat().st_size > 2 * (1 << 20)
    pairs = read(folder / "x.json", number_sample_per_shard=700)
    assert [pair.key for pair in pairs] == [str(n) for n in range(3000)]
    assert [pair.text for pair in pairs] == [row["caption"] for row in rows]


def test_lines_without_end_are_not_read_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_LIMIT", 64)
    (folder / "x.csv").write_text(f"image,text\na.jpg,x\nb.jpg,{'y' * 200}\nc.jpg,z\n")
    assert [(p.text, p.problem) for p in read(folder / "x.csv")] == [
        ("x", None), (None, "row_unreadable"), ("z", None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz"])
def test_gzip_and_truncated_gzip(folder: Path, name: str) -> None:
    lines = ["image,text", *(f"a.jpg,t{n * n * n}" for n in range(3000))]
    if "json" in name:
        lines = [json.dumps({"image": "a.jpg", "text": f"t{n * n * n}"}) for n in range(3000)]
    packed = gzip.compress("\n".join(lines).encode())
    (folder / name).write_bytes(packed)
    assert [pair.text for pair in read(folder / name, number_sample_per_shard=1000)][-1] == f"t{2999**3}"
    (folder / name).write_bytes(packed[: len(packed) // 2])
    pairs = read(folder / name)
    assert 100 < len(pairs) < 3000
    assert [pair.problem for pair in pairs[:-1]] == [None] * (len(pairs) - 1)
    assert pairs[-1].problem == "row_unreadable"


def test_several_files_with_different_columns(folder: Path) -> None:
    (folder / "1.csv").write_text("image,text\na.jpg,x\n")
    (folder / "2.csv").write_text("image,other\nb.jpg,y\n")
    assert [(p.key, p.text, p.problem) for p in read(f"{folder}/{{1..2}}.csv")] == [
        ("000000000", "x", None), ("000000001", None, "text_missing"),
    ]  # fmt: skip


values = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@example(rows=[("0", "")], size=1)  # a caption of digits is no class
@given(rows=st.lists(st.tuples(values, values), min_size=1, max_size=20), size=st.integers(1, 7))
def test_what_csv_writes_comes_back_and_pieces_join(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], size: int
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["image", "text", "other"])
    writer.writerows([("a.jpg", *row) for row in rows])
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    pairs = read(path, number_sample_per_shard=size)
    assert [(pair.text or "", pair.columns["other"]) for pair in pairs] == [
        (text if text.strip() else "", other) for text, other in rows
    ]
    assert [pair.key for pair in pairs] == [f"{row:09d}" for row in range(len(rows))]


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["csv", "tsv", "jsonl", "json"]))
def test_any_bytes_are_rows_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    head = b"image,text\na.jpg,x\n" if suffix == "csv" else b"image\ttext\na.jpg\tx\n"
    head = b'{"image": "a", "text": "x"}\n' if suffix == "jsonl" else head
    head = b'[{"image": "a", "text": "x"},' if suffix == "json" else head
    path = tmp_path_factory.mktemp("bytes") / f"x.{suffix}"
    path.write_bytes(head + content)
    whole = read(path)
    assert whole[0].text == "x"
    assert read(path, number_sample_per_shard=1) == whole


def test_memory_does_not_grow_with_the_file(folder: Path) -> None:
    def peak(name: str, rows: int) -> int:
        row = {"image": "a.jpg", "text": "t" * 4000}
        text = json.dumps([row] * rows) if name.endswith("json") else "image,text\n" + f"a.jpg,{'t' * 4000}\n" * rows
        (folder / name).write_text(text)
        reader = open_source(Source(path=str(folder / name)))
        tracemalloc.start()
        assert sum(1 for piece in reader.pieces() for _ in reader.read(piece)) == rows
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    for name in ("x.csv", "x.json"):
        assert peak(name, 4_000) < peak(name, 1_500) * 1.3 + 100_000
