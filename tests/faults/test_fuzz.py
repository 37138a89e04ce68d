"""Input made by chance: no crash, nothing outside its folder, nothing without bound. A slice of `scripts/fuzz.py`.

Whatever a reader is given it either refuses with one sentence or gives every row, with a problem where there is one.
What once failed stands as an `example`, so that it stays tested.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
import tempfile
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from noisycorr.data.pairs import PROBLEMS, Pair
from noisycorr.data.readers import Source, open_source
from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.data.writers.values import cell_line, harmless
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import read_config

EXAMPLES = int(os.environ.get("NOISYCORR_FUZZ_EXAMPLES", "12"))
some = settings(max_examples=EXAMPLES, deadline=None, derandomize="NOISYCORR_FUZZ_EXAMPLES" not in os.environ,
                suppress_health_check=list(HealthCheck))  # fmt: skip
NASTY = st.sampled_from(["../../up.png", "/abs.txt", "a/../../b.png", "", ".", "..", "a\\..\\b.png", "x" * 300 + ".png",
                         "nul\0.png", "\u202ecod.png", "con.txt", "a.png/", "a.b.c.json", ".hidden.png"])  # fmt: skip
NAMES = st.one_of(NASTY, st.text(max_size=12).map(lambda stem: stem + ".png"), st.text(max_size=12))
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                         tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "<script>", "a\0b", "\u202eabc",
                     "a\r\nb", '"', "\ud800", "'=", "%0A", "|ls"]),
)  # fmt: skip


def read_all(path: Path) -> list[Pair] | None:
    """All pairs of a source, or None if it is refused; what must hold for each is checked."""
    try:
        reader = open_source(Source(path=str(path), number_sample_per_shard=7))
        found = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    except UsageError as error:
        assert "\n" not in str(error)
        return None
    for pair in found:
        assert pair.problem is None or pair.problem in PROBLEMS
        assert not pair.key.startswith("/") and ".." not in Path(pair.key).parts
        assert pair.text is None or len(pair.text) <= 10_000
        if isinstance(pair.image, Path):
            assert pair.image.resolve().is_relative_to(path.resolve() if path.is_dir() else path.parent.resolve())
    return found


@some
@given(
    members=st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=40)), max_size=8),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
)
@example(members=[("../../up.png", tarfile.REGTYPE, b"x"), ("../../up.txt", tarfile.REGTYPE, b"y")], cut=1.0, flips=[])
def test_archives(members: list[tuple[str, bytes, bytes]], cut: float, flips: list[tuple[int, int]]):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as tar:
        for name, kind, data in members:
            member = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
            member.type, member.linkname, member.size = kind, "/etc/passwd", len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
    raw = bytearray(buffer.getvalue())
    for place, value in flips:
        raw[place % len(raw)] = value
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        (folder / "a.tar").write_bytes(bytes(raw[: round(cut * len(raw))]))
        read_all(folder)
        assert [path.name for path in Path(name).rglob("*")] == ["in", "a.tar"], "nothing is unpacked"


@pytest.mark.parametrize("size", [10**8, 10**15])
def test_a_header_that_promises_much_takes_no_memory(size: int, tmp_path: Path):
    member = tarfile.TarInfo("a.png")
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        member.type, member.size = kind, size
        (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"x" * 2000)
        tracemalloc.start()
        read_all(tmp_path / "a.tar")
        assert tracemalloc.get_traced_memory()[1] < 30e6
        tracemalloc.stop()


def seeds() -> list[bytes]:
    """One small picture in each format."""
    out = []
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 30), (200, 30, 90)).save(buffer, form)
        out.append(buffer.getvalue())
    return out


@some
@given(
    seed=st.sampled_from(seeds()),
    flips=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=5),
    cut=st.floats(0.05, 1),
)
@example(seed=seeds()[0], flips=[(16, b"\x7f\xff\xff\xff")], cut=1.0)
def test_pictures(seed: bytes, flips: list[tuple[int, bytes]], cut: float):
    raw = bytearray(seed)
    for place, data in flips:
        raw[place % len(raw) : place % len(raw) + len(data)] = data
    try:
        decoded = decode_image(bytes(raw[: round(cut * len(raw))]), max_pixels=10_000)
    except BadImage as error:
        assert error.code in PROBLEMS
        return
    assert decoded.image.mode == "RGB" and decoded.width * decoded.height <= 10_000


COLUMNS = st.sampled_from([
    pa.array([b"x", None, b""]), pa.array(["a", None, ""]), pa.array([1, None, 3]), pa.array([1.5, float("nan"), None]),
    pa.array([[1], [], None]), pa.array([{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "../up.png"}]),
    pa.array([{"a": {"b": [1]}}, None, None]), pa.array([True, None, False]), pa.array(["=1+1", "x" * 10**6, "\0"]),
    pa.array([None, None, None]), pa.array(["a", "b", "a"]).dictionary_encode(),
])  # fmt: skip


@some
@given(image=COLUMNS, text=COLUMNS, key=COLUMNS, extra=COLUMNS)
def test_tables(image: pa.Array, text: pa.Array, key: pa.Array, extra: pa.Array):
    with tempfile.TemporaryDirectory() as name:
        pq.write_table(pa.table({"image": image, "text": text, "key": key, "extra": extra}), Path(name) / "a.parquet")
        found = read_all(Path(name) / "a.parquet")
        assert found is None or len(found) == 3, "counts in are counts out"


@some
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_cells_come_back_and_are_no_formulas(texts: list[str]):
    texts = [text.encode("utf-8", "replace").decode().replace("\0", "") for text in texts]
    line = cell_line(texts, ",")
    assert next(csv.reader(io.StringIO(line, newline=""))) == texts or not any(texts)
    for text in texts:
        assert not re.match(r"\s*[=+\-@|%]", harmless(text))
        assert harmless(text).removeprefix("'") == text.removeprefix("'") or harmless(text) == text


@some
@given(body=st.one_of(st.text(max_size=60), st.binary(max_size=60), TEXTS))
@example(body="a: &x [1]\nb: *x\n")
@example(body="!!python/object/apply:os.system ['true']")
@example(body="[" * 5000)
def test_configs(body: str | bytes):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "c.yaml"
        path.write_bytes(body if isinstance(body, bytes) else body.encode("utf-8", "replace"))
        try:
            assert isinstance(read_config(path), dict)
        except UsageError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_a_config_that_unfolds_is_refused_at_once(tmp_path: Path):
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    (tmp_path / "long.yaml").write_text("#" * 2_000_000)
    started = time.process_time()
    with pytest.raises(UsageError, match="line 2 has an alias"):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="2,000,000 bytes"):
        read_config(tmp_path / "long.yaml")
    assert time.process_time() - started < 60
