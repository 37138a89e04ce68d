"""What `scripts/fuzz_bytes.py` tries, on its seeds, on a few changes of them, and on every input that once failed."""

from __future__ import annotations

import random
import resource
import socket
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import fuzz_bytes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_targets import TARGETS, Breach, archive, guarded
from safetensors.numpy import save

BITS = (b"\xc2\xb2", b"[", b"9" * 20, b"NaN", b"1e999", b"\xff", b"&a", b"*a", b"\\ud800", b"\r", b"\0", b"{", b"\n")


def prompt(facts: bytes) -> bytes:
    """A prompt whose facts are these bytes."""
    return b"\0" + save({"context": np.ones((1, 1, 1), np.float32)}, metadata={"noisycorr_prompt": facts.decode()})


def zipped(version: int) -> bytes:
    """An archive of that version of zip."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", b"")
    return buffer.getvalue().replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3" + bytes([version]))


def header(text: bytes) -> bytes:
    """The beginning of a .npy with this description."""
    return b"\x93NUMPY\1\0v\0" + text.ljust(117) + b"\n"


def pax_size(text: str) -> bytes:
    """An archive with an extended header that tells the size of a member."""
    record = f" size={text}\n".encode()
    body = str(len(record) + 2).encode() + record
    raw = bytearray(archive([("h", b"0", body), ("a.png", b"0", b"x")]))
    raw[156:157] = b"x"
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 256 + sum(raw[156:512]))
    return bytes(raw)


def parquet(place: int, body: bytes) -> bytes:
    """The first seed with other bytes in one place."""
    seed = TARGETS["parquet"].seeds()[0]
    return seed[:place] + body + seed[place + 1 :]


def named(column: str) -> bytes:
    """A parquet whose columns have other names than the expected ones."""
    buffer = BytesIO()
    pq.write_table(pa.table({column: ["a"], "text": ["b"]}), buffer)
    return buffer.getvalue()


REGRESSIONS = [
    ("archive", pax_size("²")),  # a digit to str.isdigit, not to int
    *(("yaml", bytes([kind]) + body) for kind in (0, 1, 4) for body in (
        b"!!timestamp x", b"a: !!int ''\n", b"!!bool x", b"? [a]\n: b\n", b"a: &x [1]\nb: *x\n", b"- &a [*a]\n",
        b"- 0o8\n- 2001-99-99\n", b"!!float ''", b"!!binary 'x'", b"[" * 900, b"\xff\xfe\0",
    )),
    ("yaml", b"\t{ -btanaet\r\r\r\rdo}\n"),  # a name with line breaks
    ("yaml", b'\3{"word2idx": {"<start>": 1e999, "<end>": 1, "<unk>": 2}}'),
    ("yaml", b'\3{"word2idx": {"<start>": 0, "<end>": 1, "<unk>": 99999999999}}'),
    ("yaml", b"\3" + b"[" * 100_000),
    *(("array", bytes([kind]) + body) for kind in (0, 2, 4) for body in (
        b"PK\3\4", zipped(101), header(b"{'descr': '<f4', ("), header(b"{'descr': '|O', 'shape': (1,)}") + b"cos\n.",
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 4)}"),
    )),
    ("array", b"\3\xff\xfe"),
    *(("parquet", parquet(place, b"\xfe\xff\xff\xff\x0f")) for place in (10, 11)),  # a page of two gigabytes
    *(("parquet", named(column)) for column in ("a\nb", "a" * 9000)),
    ("labels", b'\2{"a\\nb": 1}\n'),
    ("labels", b"\2" + b"[" * 100_000),
    ("labels", b"\3PAR1"),
    ("weights", prompt(b"{")),
    ("weights", prompt(b"[]")),
    ("weights", prompt(b'{"encoder": "e"}')),
]  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_them(name: str, tmp_path: Path):
    target, chance = TARGETS[name], random.Random(0)
    inputs = target.seeds()
    for _ in range(40):
        data = bytearray(chance.choice(target.seeds()))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(1, len(data) + 1)
            data[place : place + chance.randrange(3)] = chance.choice(BITS)
        inputs.append(bytes(data))
    warm(name, tmp_path)
    for number, data in enumerate([*inputs, b""]):
        folder = make(tmp_path / str(number))
        with guarded(folder):
            target.run(data, folder)


def warm(name: str, folder: Path) -> None:
    """Let everything be imported: nothing is guarded yet, and imports start programs."""
    for number, seed in enumerate(TARGETS[name].seeds()):
        TARGETS[name].run(seed, make(folder / f"warm{number}"))


def make(folder: Path) -> Path:
    """The folder, made."""
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("name", "data"), REGRESSIONS)
def test_what_once_failed(name: str, data: bytes, tmp_path: Path):
    warm(name, tmp_path)
    folder, before = make(tmp_path / "in"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with guarded(folder):
        TARGETS[name].run(data, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB of memory"


def test_the_guard_sees_what_is_forbidden(tmp_path: Path):
    inside, outside = make(tmp_path / "in"), tmp_path / "out"
    with guarded(inside):
        (inside / "a").write_text("x")
        (inside / "a").rename(inside / "b")
    for forbidden in (lambda: outside.write_text("x"), (tmp_path / "new").mkdir,
                      lambda: (inside / "b").rename(tmp_path / "up"),
                      lambda: (inside / ".." / "up2").mkdir(), lambda: subprocess.run([sys.executable, "-c", ""]),
                      lambda: socket.getaddrinfo("localhost", 1)):  # fmt: skip
        with pytest.raises(Breach), guarded(inside):
            forbidden()


def test_how_to_install_the_fuzzer_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(fuzz_bytes.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["fuzz_bytes.py"])
    assert fuzz_bytes.main() == 2
    assert "pip install" in capsys.readouterr().err
