"""The reader of webdataset shards, on sound and on hostile archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisycorr.data.pairs import Pair
from noisycorr.data.readers import Source, open_source, webdataset
from noisycorr.data.readers.webdataset import is_unsafe, safe_key, split_name
from noisycorr.runtime.errors import UsageError

JPG = b"\xff\xd8\xff picture"


def tar_bytes(members: list[tuple[str, bytes]], format_: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    keys = [f"{number:05d}" for number in range(first, first + count)]
    return [item for key in keys for item in ((f"{key}.jpg", JPG), (f"{key}.txt", f"text {key}".encode()))]


def read(path: Path | str, **options: Any) -> list[Pair]:
    reader = open_source(Source(path=str(path), **options))
    return [pair for piece in reader.pieces() for pair in reader.read(piece)]


def read_members(folder: Path, members: list[tuple[str, bytes]], **options: Any) -> list[Pair]:
    (folder / "a.tar").write_bytes(tar_bytes(members))
    return read(folder / "a.tar", **options)


def test_image_text_and_json_fields_make_a_pair(tmp_path: Path) -> None:
    fields = {"uid": "ab", "width": 3, "score": float("nan"), "key": "0", "tags": ["x", {"y": None}]}
    members = [("0.jpg", JPG), ("0.txt", "Größe\n".encode()), ("0.json", json.dumps(fields).encode()), ("0.cls", b"7")]
    [pair] = read_members(tmp_path, members)
    assert (pair.key, pair.image, pair.text, pair.problem) == ("0", JPG, "Größe\n", None)
    assert pair.columns == {"uid": "ab", "width": 3, "score": None, "tags": ["x", {"y": None}], "cls": "7"}


def test_key_ends_at_the_first_dot_of_the_base_name_and_keeps_folders(tmp_path: Path) -> None:
    assert split_name("a.b/c/0001.left.JPG") == ("a.b/c/0001", "left.jpg")
    assert split_name("./x.txt") == ("./x", "txt")
    assert split_name("noext") is split_name("dir/.hidden") is split_name("__meta__/x.json") is None
    pairs = read_members(tmp_path, [("a/0.jpg", JPG), ("a/0.txt", b"one"), ("b/0.jpg", JPG), ("b/0.txt", b"two")])
    assert [(pair.key, pair.text) for pair in pairs] == [("a/0", "one"), ("b/0", "two")]


def test_patterns_joins_and_folders_give_the_same_pairs_in_order(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:05d}.tar").write_bytes(tar_bytes(samples(2, 2 * number)))
    expected = [f"{number:05d}" for number in range(24)]
    pattern = f"{tmp_path}/{{00000..00010}}.tar::{tmp_path}/00011.tar"
    for path in (str(tmp_path), pattern, f"{tmp_path}/*.tar"):
        assert [pair.key for pair in read(path)] == expected
    assert len(open_source(Source(path=pattern)).pieces()) == 12


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archives(tmp_path: Path, mode: str) -> None:
    suffix = mode.removeprefix("w:")
    with tarfile.open(tmp_path / f"a.tar.{suffix}", mode) as archive:
        for name, data in samples(3):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert [pair.text for pair in read(tmp_path / f"a.tar.{suffix}")] == ["text 00000", "text 00001", "text 00002"]


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, format_: int) -> None:
    key = "ordner-ü/" + "very-long-" * 30 + "end"
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{key}.jpg", JPG), (f"{key}.txt", b"hi")], format_))
    [pair] = read(tmp_path / "a.tar")
    assert (pair.key, pair.text) == (key, "hi")


def test_text_from_alternatives_and_from_json_fields(tmp_path: Path) -> None:
    members = [("0.jpg", JPG), ("0.caption", b"member"), ("1.jpg", JPG), ("1.json", b'{"caption": "field", "n": 1}')]
    pairs = read_members(tmp_path, members, wds_caption_key="txt;caption")
    assert [pair.text for pair in pairs] == ["member", "field"]
    assert pairs[1].columns == {"n": 1}


def test_text_is_found_in_json_by_its_name_and_said_so(tmp_path: Path) -> None:
    members = [("0.jpg", JPG), ("0.json", b'{"TEXT": "from json", "truth_text": "never"}')]
    assert [pair.text for pair in read_members(tmp_path, members)] == ["from json"]
    reader = open_source(Source(path=str(tmp_path / "a.tar")))
    assert reader.picked["text"] == "TEXT"
    assert "JSON" in reader.picked["note"]


def test_a_list_of_texts_gives_one_pair_each(tmp_path: Path) -> None:
    members = [("0.jpg", JPG), ("0.json", b'{"captions": ["a", "b"]}')]
    pairs = read_members(tmp_path, members)
    assert [(pair.key, pair.text, pair.columns) for pair in pairs] == [
        ("0#0", "a", {"image_key": "0"}),
        ("0#1", "b", {"image_key": "0"}),
    ]


def test_first_image_alternative_wins(tmp_path: Path) -> None:
    members = [("0.png", b"P"), ("0.jpg", b"J"), ("0.webp", b"WW"), ("0.txt", b"t")]
    [pair] = read_members(tmp_path, members)
    assert (pair.image, dict(pair.columns)) == (b"J", {"png": "<1 bytes>", "webp": "<2 bytes>"})
    assert read_members(tmp_path, members, wds_image_key="webp;jpg")[0].image == b"WW"


def test_id_col_is_a_field_of_the_json(tmp_path: Path) -> None:
    members = [("0.jpg", JPG), ("0.txt", b"t"), ("0.json", b'{"SAMPLE_ID": 12}')]
    assert read_members(tmp_path, members, id_col="SAMPLE_ID")[0].key == "12"
    with pytest.raises(UsageError, match="no JSON field 'nope'"):
        read_members(tmp_path, members, id_col="nope")


def test_image_without_text_and_text_without_image(tmp_path: Path) -> None:
    pairs = read_members(tmp_path, [("0.jpg", JPG), ("1.txt", b"alone"), ("2.jpg", JPG), ("2.txt", b" \n")])
    assert [(p.key, p.image, p.text, p.problem) for p in pairs] == [
        ("0", JPG, None, "text_missing"),
        ("1", None, "alone", "image_missing"),
        ("2", JPG, None, "text_missing"),
    ]


def test_duplicate_keys_are_kept_as_rows(tmp_path: Path) -> None:
    pairs = read_members(tmp_path, [*samples(1), *samples(1), ("x.jpg", JPG), ("x.txt", b"x"), *samples(1)])
    assert [pair.key for pair in pairs] == ["00000", "00000", "x", "00000"]
    assert all(pair.problem is None for pair in pairs)


def test_truncated_in_a_member(tmp_path: Path) -> None:
    whole = tar_bytes([*samples(3), ("broken.jpg", b"x" * 5000), ("broken.txt", b"never seen")])
    (tmp_path / "a.tar").write_bytes(whole[: 6 * 1024 + 512 + 2000])
    pairs = read(tmp_path / "a.tar")
    assert [(pair.key, pair.problem) for pair in pairs] == [
        ("00000", None), ("00001", None), ("00002", None), ("broken", "archive_truncated"),
    ]  # fmt: skip


def test_truncated_between_the_members_of_a_sample(tmp_path: Path) -> None:
    for extra in (0, 100):  # at the end of a block, and in the middle of the next header
        (tmp_path / "a.tar").write_bytes(tar_bytes(samples(2))[: 3 * 1024 + extra])
        assert [(p.key, p.problem) for p in read(tmp_path / "a.tar")] == [
            ("00000", None),
            ("00001", "archive_truncated"),
        ]


def test_missing_end_mark_alone_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(samples(2))[: 4 * 1024])
    assert [pair.problem for pair in read(tmp_path / "a.tar")] == [None, None]


def test_damaged_header_in_the_middle_is_not_silent(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(samples(4)))
    data[4 * 1024 + 150] ^= 0xFF  # the checksum of the fifth header
    (tmp_path / "a.tar").write_bytes(bytes(data))
    assert [(p.key, p.problem) for p in read(tmp_path / "a.tar")] == [
        ("00000", None), ("00001", None), ("a@end", "archive_truncated"),
    ]  # fmt: skip


def test_truncated_gzip(tmp_path: Path) -> None:
    noise = bytes(i * 7919 % 251 for i in range(3000))
    packed = gzip.compress(tar_bytes([*samples(2), ("b.jpg", noise * 100), ("b.txt", b"x")]))
    (tmp_path / "a.tar.gz").write_bytes(packed[: len(packed) - 60])
    pairs = read(tmp_path / "a.tar.gz")
    assert [pair.problem for pair in pairs[:2]] == [None, None]
    assert pairs[-1].problem == "archive_truncated"


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100])
def test_what_is_no_archive_gives_one_row(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    (tmp_path / "1.tar").write_bytes(tar_bytes(samples(1)))
    assert [(p.key, p.problem) for p in read(tmp_path)] == [("0@end", "archive_truncated"), ("00000", None)]


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a/../../x", "C:\\x", "a\\..\\..\\x"])
def test_unsafe_names_are_marked_and_their_keys_made_safe(tmp_path: Path, name: str) -> None:
    pair, good = read_members(tmp_path, [(f"{name}.jpg", JPG), (f"{name}.txt", b"t"), *samples(1)])
    assert (pair.problem, pair.columns["member_name"]) == ("name_unsafe", f"{name}.jpg")
    assert not is_unsafe(pair.key)
    assert (good.key, good.problem) == ("00000", None)


@given(st.text("aC:./\\ü", max_size=12))
def test_safe_keys_are_safe(name: str) -> None:
    assert safe_key(name)
    assert not is_unsafe(safe_key(name))


def test_members_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("0.jpg", tarfile.SYMTYPE), ("p.txt", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("0.txt")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"hi"))
    assert [(p.key, p.image, p.problem) for p in read(tmp_path / "a.tar")] == [("0", None, "image_missing")]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    [pair] = read_members(tmp_path, [("0.jpg", JPG), ("0.txt", "café".encode("latin-1"))])
    assert (pair.text, pair.problem) == ("caf\ufffd", "text_not_utf8")


def test_text_that_is_too_long_is_cut(tmp_path: Path) -> None:
    [pair] = read_members(tmp_path, [("0.jpg", JPG), ("0.txt", "日".encode() * 400_000)])
    assert (pair.text, pair.problem) == ("日" * 10_000, "text_too_long")


def test_damaged_json_is_no_reason_to_lose_a_pair(tmp_path: Path) -> None:
    first, second = read_members(
        tmp_path, [("0.jpg", JPG), ("0.txt", b"t"), ("0.json", b"{"), ("1.jpg", JPG), ("1.json", b"[" * 100_000)]
    )
    assert (first.text, first.problem, first.columns) == ("t", None, {"json": "<1 bytes>"})
    assert second.problem == "row_unreadable"


def test_json_with_lone_surrogates_and_deep_nesting_becomes_storable(tmp_path: Path) -> None:
    deep = b'{"caption": "a \\ud800 b", "k\\udc80": "\\udfff", "d": ' + b"[" * 400 + b"]" * 400 + b"}"
    [pair] = read_members(tmp_path, [("0.jpg", JPG), ("0.json", deep)])
    assert (pair.text, pair.problem) == ("a \ufffd b", "text_not_utf8")
    json.dumps(dict(pair.columns), ensure_ascii=False, allow_nan=False).encode()


def test_huge_image_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size = 300 * 1024 * 1024
    with (tmp_path / "a.tar").open("wb") as file:  # a sparse file: no disk is used
        file.write(info.tobuf())
        file.seek(512 + info.size)
        file.write(tar_bytes([("0.txt", b"big"), *samples(1)]))
    tracemalloc.start()
    big, good = read(tmp_path / "a.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (big.text, big.image, big.problem) == ("big", None, "image_too_large")
    assert good.problem is None
    assert peak < 20_000_000


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.jpg")
    info.size = 250 * 1024 * 1024
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"x" * 1000)
    tracemalloc.start()
    pairs = read(tmp_path / "a.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(pair.key, pair.problem) for pair in pairs] == [("0", "archive_truncated")]
    assert peak < 20_000_000


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_large_shard_is_split_without_losing_or_doubling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: int
) -> None:
    members = [*samples(25), ("n" * 150 + ".jpg", JPG), ("n" * 150 + ".txt", b"long"), *samples(5, 30)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members, format_))
    whole = read(tmp_path / "a.tar")
    monkeypatch.setattr(webdataset, "SPLIT_BYTES", 1000)
    reader = open_source(Source(path=str(tmp_path / "a.tar"), number_sample_per_shard=5))
    pieces = reader.pieces()
    parts = [list(reader.read(piece)) for piece in pieces]
    assert [len(part) for part in parts] == [5, 5, 5, 5, 5, 5, 1]
    assert [pair for part in parts for pair in part] == whole
    other = open_source(Source(path=str(tmp_path / "a.tar"), number_sample_per_shard=5))
    assert list(other.read(pieces[3])) == parts[3]  # a piece is readable by itself


def test_wrong_keys_are_a_usage_error_that_names_the_suffixes(tmp_path: Path) -> None:
    members = [(f"{n}.{suffix}", b"x") for n in range(12) for suffix in ("photo", "words")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(UsageError, match="`wds_image_key`; the suffixes are: photo, words"):
        open_source(Source(path=str(tmp_path)))
    with pytest.raises(UsageError, match="`wds_caption_key`"):
        open_source(Source(path=str(tmp_path), wds_image_key="photo"))
    assert len(read(tmp_path, wds_image_key="photo", wds_caption_key="words")) == 12
    assert len(read(tmp_path, image_col="photo", caption_col="words")) == 12


def test_memory_and_open_files_do_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    data = tar_bytes([(name, body * 20_000 if name.endswith("jpg") else body) for name, body in samples(4)])
    for number in range(30):
        (tmp_path / f"{number:02d}.tar").write_bytes(data)
    process = psutil.Process()

    def run(count: int) -> tuple[int, int]:
        reader = open_source(Source(path=f"{tmp_path}/{{00..{count - 1:02d}}}.tar"))
        files = 0
        tracemalloc.start()
        for piece in reader.pieces():
            for _ in reader.read(piece):
                files = max(files, process.num_fds())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, files

    run(3)
    (few, few_files), (many, many_files) = run(3), run(30)
    assert many < few * 1.3 + 50_000
    assert many_files <= few_files


def test_the_same_pairs_as_webdataset_itself(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    members = [*samples(3), ("dir.x/1.jpg", b"J"), ("dir.x/1.txt", b"T"), ("__skip__/2.txt", b"no")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    theirs = wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    expected = [(sample["__key__"], sample["jpg"], sample["txt"].decode()) for sample in theirs]
    assert [(pair.key, pair.image, pair.text) for pair in read(tmp_path / "a.tar")] == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12_000), st.lists(st.tuples(st.integers(0, 10_239), st.integers(0, 255)), max_size=5))
def test_any_damage_gives_pairs_and_never_an_error(
    tmp_path_factory: pytest.TempPathFactory, length: int, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(tar_bytes(samples(4)))
    for place, value in damage:
        data[place] = value
    path = tmp_path_factory.mktemp("damage") / "a.tar"
    path.write_bytes(bytes(data[:length]))
    pairs = read(path)
    assert len(pairs) <= 10
    assert all(pair.problem is not None or (pair.image and pair.text) for pair in pairs)
    "".join(pair.key for pair in pairs).encode()
