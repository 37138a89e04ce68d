"""Input that nobody vouches for, from end to end: every row comes out with a reason, and none of it gets anywhere."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sources import sample_rows, write_tar
from test_end_to_end import TINY, check_run

from noisycorr.__main__ import main
from noisycorr.runtime.folder import Run

SCRIPT = "<script>alert(1)</script>"
TEXTS: dict[str, str | bytes] = {
    "script": f"</title></style></textarea>{SCRIPT}<img src=x onerror=alert(1)> {{{{7*7}}}} {{% raw %}}",
    "attribute": "\"' onmouseover='alert(1)' x=\"` javascript:alert(1)",
    "bare_script": SCRIPT,
    "control": "bell \x07 escape \x1b[2J\x1b]0;owned\x07 nul \x00 back\x08space",
    "direction": "evil \u202egnp.exe\u202c and zero\u200bwidth",
    "binary": bytes(range(128, 256)) * 4,
    "half_utf8": b"a good start \xc3\x28 and a bad end \xff",
    "megabyte": "word " * 200_000,
    "one_line": "x" * 1_000_000,
    "blank": " \t\n ",
    "empty": "",
    "surrogate": "\ud800 alone".encode("utf-8", "surrogatepass"),
    "formula": "=cmd|'/c calc'!A1",
    "digits": "20240131 000042",
    "address": "https://example.org/a/b/c?d=e",
}


def encode(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(*shape: int, high: int = 255) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def pictures() -> dict[str, tuple[bytes, str | None]]:
    """Encoded pictures by name, each with the problem that it is."""
    rgb = Image.fromarray(noise(40, 50, 3).astype(np.uint8))
    whole = encode(rgb, "JPEG")
    frames = [Image.new("RGB", (40, 40), (30 * n, 99, 200 - 30 * n)) for n in range(5)]
    sixteen = Image.fromarray(noise(40, 40, high=65_535).astype(np.uint16))
    return {
        "cut": (whole[: len(whole) // 2], "image_unreadable"),
        "zero_bytes": (b"", "image_unreadable"),
        "no_image": (b"<html>404 Not Found</html>" + b"\0" * 50, "image_unreadable"),
        "svg": (f"<svg xmlns='http://www.w3.org/2000/svg'>{SCRIPT}</svg>".encode(), "image_unreadable"),
        "bomb": (bomb(60_000, 60_000), "image_too_large"),
        "wide_bomb": (bomb(2**31 - 1, 1), "image_too_large"),
        "wrong_pixels": (bomb(100, 100)[:60] + b"\xff" * 200, "image_unreadable"),
        "animated": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
        "cmyk": (encode(rgb.convert("CMYK"), "JPEG"), None),
        "sixteen_bits": (encode(sixteen), None),
        "transparent": (encode(Image.fromarray(noise(40, 40, 4).astype(np.uint8), "RGBA")), None),
        "palette": (encode(rgb.convert("P")), None),
        "one_pixel": (encode(Image.new("RGB", (1, 1))), None),
        "thin": (encode(Image.new("RGB", (3000, 2), (9, 9, 200))), None),
        "blank": (encode(Image.new("RGB", (64, 64), (255, 255, 255))), None),
    }


def good(count: int) -> list[tuple[str, bytes, str]]:
    return [(row["key"], row["image"], row["title"]) for row in sample_rows(count)]


def by_key(folder: Path) -> dict[str, dict[str, object]]:
    """Ledger and facts of each row of a checked run, by key; of equal keys the last one."""
    ledger = check_run(folder).to_pylist()
    names = sorted((folder / "pairs").glob("*.parquet"))
    facts = pa.concat_tables(
        [pq.read_table(name, columns=["problem", "image_format", "image_frames"]) for name in names]
    )
    return {row["key"]: {**row, **fact} for row, fact in zip(ledger, facts.to_pylist())}


class Page(HTMLParser):
    """The elements of a page as a browser sees them, with what could act or fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.acting: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.add(tag)
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith(("javascript:", "vbscript:")):
                self.acting.append(f"{tag} {name}={value}")
            if name in ("src", "href", "action", "data", "srcset") and not (value or "").startswith(
                ("data:image/", "data:,", "#")
            ):
                self.fetched.append(f"{tag} {name}={value}")


def check_page(folder: Path) -> None:
    """Nothing of the data is markup in the report, and it fetches nothing."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "figure" in page.tags or "img" in page.tags
    assert not page.tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert page.acting == [] and page.fetched == []
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202e]", text)


def clean(source: Path | str, folder: Path, *more: str) -> None:
    assert main(["clean", str(source), "--output_folder", str(folder), *TINY, *more]) == 0


def check_trouble(rows: dict[str, dict[str, object]], *, binary_texts: bool) -> None:
    """What must be said of the pairs that `trouble` makes."""
    for name, (_, problem) in pictures().items():
        row = rows[f"picture_{name}"]
        assert row["problem"] == problem, name
        if problem is not None:
            assert row["verdict"] == "drop" and row["is_image_issue"] and np.isnan(float(str(row["p_clean"]))), name
    assert rows["picture_animated"]["image_frames"] == 5
    assert rows["picture_one_pixel"]["image_issue"] == rows["picture_blank"]["image_issue"] == "blank"
    assert rows["picture_thin"]["verdict"] == "drop"
    for name in ("blank", "empty"):
        assert rows[f"text_{name}"]["problem"] == "text_missing" and rows[f"text_{name}"]["text"] is None
    for name in ("megabyte", "one_line"):
        assert rows[f"text_{name}"]["problem"] == "text_too_long" and len(str(rows[f"text_{name}"]["text"])) == 10_000
    for name in ("binary", "half_utf8", "surrogate") if binary_texts else ():
        assert rows[f"text_{name}"]["problem"] == "text_not_utf8" and "\ufffd" in str(rows[f"text_{name}"]["text"]), (
            name
        )
    for name in ("digits", "address", "bare_script"):
        assert rows[f"text_{name}"]["is_text_issue"] and rows[f"text_{name}"]["verdict"] == "drop", name


def trouble() -> Iterator[tuple[str, bytes, str | bytes]]:
    """Key, picture and text of pairs of which one side is bad."""
    sound = good(1)[0]
    yield from ((f"picture_{name}", data, f"a picture of {name}") for name, (data, _) in pictures().items())
    yield from ((f"text_{name}", sound[1], text) for name, text in TEXTS.items())


# ---- shards


def test_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    members: list[tuple[str, bytes]] = []
    for key, image, text in [*good(100), *trouble()]:
        members += [(f"{key}.png", image), (f"{key}.txt", text if isinstance(text, bytes) else text.encode())]
    sound = good(1)[0][1]
    odd = [
        ("only_image.png", sound), ("only_text.txt", b"a text without a picture"),
        ("../../outside.png", sound), ("../../outside.txt", b"a way up"),
        ("/tmp/absolute.png", sound), ("/tmp/absolute.txt", b"from the root"),
        ("twice.png", sound), ("twice.txt", b"the first"), ("twice.png", sound), ("twice.txt", b"the second"),
        ("bad_json.png", sound), ("bad_json.txt", b"its facts are broken"), ("bad_json.json", b'{"a": '),
        (f"{SCRIPT}.png".replace("/", "_"), sound), (f"{SCRIPT}.txt".replace("/", "_"), b"markup for a key"),
    ]  # fmt: skip
    folder = tmp_path / "shards"
    write_tar(folder / "00000.tar", members)
    write_tar(folder / "00001.tar", odd)
    write_tar(folder / "00002.tar", members[:60])
    whole = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "00003.tar").write_bytes(b"this is no archive" * 100)
    (folder / "00004.tar").write_bytes(b"")
    with tarfile.open(folder / "00005.tar", "w") as tar:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("device.png", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)

    clean(folder, tmp_path / "out", "--number_sample_per_shard", "40", "--output_format", "webdataset")
    rows = by_key(tmp_path / "out")
    check_trouble(rows, binary_texts=True)
    assert rows["only_image"]["problem"] == "text_missing" and rows["only_text"]["problem"] == "image_missing"
    unsafe = [key for key, row in rows.items() if row["problem"] == "name_unsafe"]
    assert len(unsafe) == 2 and not any(key.startswith(("/", "..")) for key in rows)
    assert sum(row["problem"] == "archive_truncated" for row in rows.values()) >= 1
    keys = pq.ParquetDataset(tmp_path / "out" / "ledger").read().column("key").to_pylist()
    assert keys.count("twice") == 2 and set(keys) >= {key for key, _, _ in good(100)}
    assert len(keys) >= 100 + len(list(trouble())) + 7
    check_page(tmp_path / "out")
    for path in (tmp_path / "out" / "export" / "webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert all(re.fullmatch(r"[^/\\]+", name) and ".." not in name for name in tar.getnames())
    assert not (tmp_path / "outside.png").exists() and not Path("/tmp/absolute.png").exists()
    check_explain(tmp_path / "out", keys, capsys)


def check_explain(folder: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Explaining any strange pair works and steers no terminal."""
    for key in [*[key for key in keys if key.startswith("text_")][:8], "twice", "only_text", "picture_bomb"]:
        capsys.readouterr()
        assert main(["explain", "--output_folder", str(folder), "--", key]) == 0
        told = capsys.readouterr().out
        assert "verdict" in told and not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", told)


# ---- tables and folders


def test_parquet(tmp_path: Path):
    rows = [{"key": key, "image": image, "text": text, "size": 1} for key, image, text in good(100)]
    for key, image, text in trouble():
        rows.append({"key": key, "image": image, "text": text, "size": 2})
    rows += [{"key": "twice", "image": rows[0]["image"], "text": "one of two", "size": 3}] * 2
    rows += [{"key": None, "image": None, "text": None, "size": None}]
    for row in rows:
        row["text"] = row["text"].encode("utf-8") if isinstance(row["text"], str) else row["text"]
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    pq.write_table(pa.table({"key": ["no_text"], "image": [rows[0]["image"]]}), folder / "b.parquet")
    pq.write_table(pa.table({"key": ["no_image"], "text": [b"a text alone"]}), folder / "c.parquet")
    (folder / "d.parquet").write_bytes((folder / "a.parquet").read_bytes()[:5000])
    clean(folder, tmp_path / "out", "--output_format", "parquet")
    found = by_key(tmp_path / "out")
    check_trouble(found, binary_texts=True)
    assert found["no_text"]["problem"] == "text_missing" and found["no_image"]["problem"] == "image_missing"
    ledger = pq.ParquetDataset(tmp_path / "out" / "ledger").read()
    assert len(ledger) >= len(rows) + 2 and ledger.column("key").to_pylist().count("twice") == 2
    assert "row_unreadable" in {row["problem"] for row in found.values()}, "the damaged file is in the ledger"
    check_page(tmp_path / "out")


def test_folder(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for key, image, text in [*good(100), *trouble()]:
        (folder / f"{key}.png").write_bytes(image)
        (folder / f"{key}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "only_text.txt").write_text("nothing to see")
    (folder / "only_image.png").write_bytes(good(1)[0][1])
    (folder / "link.png").symlink_to("/etc/passwd")
    (folder / "nowhere.png").symlink_to(tmp_path / "missing")
    os.mkfifo(folder / "pipe.png")
    clean(folder, tmp_path / "out", "--output_format", "csv")
    rows = by_key(tmp_path / "out")
    check_trouble(rows, binary_texts=True)
    assert rows["only_text"]["problem"] == "image_missing"
    assert len(rows) >= 100 + len(list(trouble())) + 2
    assert "/bin/" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8"), "the linked file stays unread"
    check_page(tmp_path / "out")


def test_paths_in_tables_stay_inside(tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(good(1)[0][1])
    folder = tmp_path / "table"
    folder.mkdir()
    lines = []
    for key, image, text in good(20):
        (folder / f"{key}.png").write_bytes(image)
        lines.append({"key": key, "image": f"{key}.png", "text": text})
    outside = ("../secret.png", str(tmp_path / "secret.png"), "/etc/passwd", "file:///etc/passwd")
    for name in (*outside, "a\x00b.png", "", ".", "no/such/file.png", "https://example.org/x.png", "x" * 5000):
        lines.append({"key": f"odd {len(lines)}", "image": name, "text": f"{SCRIPT} {len(lines)}"})
    body = "\n".join(json.dumps(line) for line in lines) + '\n{"broken": \nnull\n[1, 2]\n'
    (folder / "rows.jsonl").write_text(body)
    clean(folder / "rows.jsonl", tmp_path / "out", "--output_format", "jsonl")
    rows = by_key(tmp_path / "out")
    assert len(rows) >= len(lines) + 3
    odd = [row for key, row in rows.items() if key.startswith("odd ")]
    assert len(odd) == 10 and all(row["problem"] in ("image_missing", "name_unsafe") for row in odd)
    assert sum(row["problem"] == "row_unreadable" for row in rows.values()) == 3
    check_page(tmp_path / "out")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"image": b"", "text": "a"}],
        [{"image": None, "text": None}] * 3,
        [{"image": good(1)[0][1], "text": "one pair"}],
        [{"image": good(1)[0][1], "text": "the same pair"}] * 150,
        [{"image": image, "text": None} for _, image, _ in good(30)],
        [{"image": b"x", "text": f"text {n}"} for n in range(30)],
    ],
    ids=["no rows", "one broken", "nothing at all", "one", "one many times", "no texts", "no images"],
)
def test_sets_that_are_hardly_any(rows: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    schema = pa.schema([("image", pa.binary()), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet")
    words = ["clean", str(tmp_path / "rows.parquet"), "--output_folder", str(tmp_path / "out"), *TINY]
    if not rows:
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
        return
    assert main([*words, "--output_format", "webdataset"]) == 0
    assert len(check_run(tmp_path / "out")) == len(rows)


# ---- a disk that is full


@pytest.mark.parametrize("good_writes", [0, 1, 4, 9, 14, 18])
def test_a_full_disk_is_told_and_continued(
    good_writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = [{"key": key, "image": image, "text": text} for key, image, text in good(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    more = [*TINY, "--number_sample_per_shard", "20", "--output_format", "parquet"]
    words = ["clean", str(tmp_path / "rows.parquet"), "--output_folder", "out", *more]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert main(words) == 0
    monkeypatch.chdir(tmp_path / "b")
    real, count = os.fsync, 0

    def fsync(file: int) -> None:
        nonlocal count
        count += 1
        if count > good_writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    capsys.readouterr()
    assert main(words) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("noisycorr: the disk is full") and "run the same command again" in told
    assert not list(Path("out").rglob("*.tmp"))
    monkeypatch.setattr(os, "fsync", real)
    assert main(words) == 0
    same = {path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    left = tmp_path / "a" / "out"
    for name, data in same.items():
        assert name.name == "metrics.jsonl" or data == (left / name).read_bytes(), name
    assert Run("out").stage("report") is not None
