"""What the fuzzers try: for each kind of bytes that come from outside, small sound inputs and what must hold for any.

`TARGETS[name].run(data, folder)` writes the bytes into an empty folder and reads them as noisycorr does. It raises if
they crash anything, lose a row, or come out as something that cannot be written. `scripts/fuzz_bytes.py` drives these
by coverage; `tests/faults/test_fuzz_bytes.py` runs them on their seeds and on every input that once failed. Where a
target reads several formats the first byte chooses among them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from noisycorr.data.pairs import PROBLEMS, Pair
from noisycorr.data.readers import Source, open_source
from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.runtime.errors import UsageError

MAX_PIXELS = 1_000_000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PLACES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
         "socket.getaddrinfo", "pickle.find_class")  # fmt: skip


class Breach(BaseException):
    """Something was done that no input may bring about; no handler of ordinary errors holds it back."""


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of input.

    Attributes:
        seeds: Small sound inputs.
        run: Reads one input from an empty folder; raises if anything is wrong.
    """

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Path], None]


_watched: list[Path] = []
_breaches: list[str] = []
_hooked: list[bool] = []


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """While inside, writing outside of the folder, starting a program, a connection or a pickle is a `Breach`."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    _watched.append(folder.resolve())
    try:
        yield
    finally:
        _watched.clear()
    if _breaches:
        found = ", ".join(_breaches)
        _breaches.clear()
        raise Breach(found)


def _audit(event: str, args: tuple[object, ...]) -> None:
    if not _watched:
        return
    if event in NEVER:
        _breaches.append(f"{event} {args!r:.200}")
    elif event in PLACES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
        for place in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
            inside = not isinstance(place, (str, bytes, os.PathLike)) or _inside(os.fsdecode(place))
            if not inside and os.fsdecode(place) != os.devnull:  # type: ignore[arg-type]
                _breaches.append(f"{event} {place!r:.200}")


def _inside(place: str) -> bool:
    return os.path.realpath(place).startswith(f"{_watched[0]}{os.sep}")


def read_all(path: Path, *, size: int = 7, input_format: str = "auto") -> list[Pair] | None:
    """All pairs of a source, or None if it is refused in one sentence; what must hold for each is checked."""
    try:
        reader = open_source(Source(path=str(path), number_sample_per_shard=size, input_format=input_format))
        found = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 6000, "a refusal is one sentence"
        return None
    root = path.resolve() if path.is_dir() else path.parent.resolve()
    for pair in found:
        assert pair.problem is None or pair.problem in PROBLEMS
        assert input_format != "webdataset" or not pair.key.startswith("/")
        assert pair.text is None or len(pair.text) <= 10_000
        assert not isinstance(pair.image, Path) or pair.image.resolve().is_relative_to(root)
        for written in (pair.key, pair.text or "", json.dumps(pair.columns, allow_nan=False, ensure_ascii=False)):
            written.encode()
    return found


def read_twice(path: Path, input_format: str = "auto") -> None:
    """The same rows come out whether a file is one piece or many."""
    many, one = (read_all(path, size=size, input_format=input_format) for size in (2, 10_000))
    assert (many is None) == (one is None)
    told = [[(pair.key, pair.text, pair.problem) for pair in found or []] for found in (many, one)]
    assert told[0] == told[1], "pieces change the rows"


def _refused(work: Callable[[], object]) -> None:
    """Run it; a refusal is one sentence."""
    try:
        work()
    except UsageError as error:
        assert "\n" not in str(error), "a refusal is one sentence"


def picture(form: str = "PNG", **options: object) -> bytes:
    """A small one."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (200, 30, 90)).save(buffer, form, **options)
    return buffer.getvalue()


def archive(members: list[tuple[str, bytes, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of (name, type, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue().rstrip(b"\0") + bytes(1024)


def _archive_seeds() -> list[bytes]:
    file = tarfile.REGTYPE
    plain = archive([("a.png", file, picture()), ("a.txt", file, b"a dog"), ("a.json", file, b'{"title": "x"}')])
    up = archive([("../../up.png", file, b"x"), ("../../up.txt", file, b"y"), ("l.png", tarfile.SYMTYPE, b"")])
    pax = archive([("é" * 120 + ".png", file, b"x"), ("b.txt", file, b"y")], tarfile.PAX_FORMAT)
    return [plain, up, pax, archive([("n" * 150 + ".txt", file, b"x")]), gzip.compress(plain, mtime=0)]


def _archive_run(data: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(data)
    read_all(folder / "a.tar", input_format="webdataset")


def _parquet_seeds() -> list[bytes]:
    png = picture()
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    tables = [
        pa.table({"image": [png, None], "text": ["a", None], "key": ["k", "l"]}),
        pa.table({"image": [{"bytes": png, "path": None}], "caption": [["a", "b"]], "n": [[{"x": [1.5]}]]}),
        pa.table({"image": [png, png], "label": [0, 1]}).replace_schema_metadata({"huggingface": json.dumps(features)}),
    ]
    out = []
    for table in tables:
        for options in ({"compression": "none", "use_dictionary": False}, {}):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, store_schema=False, **options)
            out.append(buffer.getvalue())
    return out


def _parquet_run(data: bytes, folder: Path) -> None:
    (folder / "a.parquet").write_bytes(data)
    read_twice(folder / "a.parquet", "parquet")


TABLES = ("csv", "tsv", "jsonl", "json", "csv.gz", "jsonl.gz")


def _table_seeds() -> list[bytes]:
    rows = [{"image": "a.png", "title": "a dog", "id": 1}, {"image": "b.png", "title": ["x", "y"], "n": {"m": 1e9}}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    csv = b'image,title,id\na.png,"a ""big""\ndog",1\nb.png,=1+1,2\n'
    bodies = [csv, csv.replace(b",", b"\t"), lines, json.dumps(rows, indent=1).encode(), gzip.compress(csv, mtime=0),
              gzip.compress(lines, mtime=0)]  # fmt: skip
    return [bytes([number]) + body for number, body in enumerate(bodies)] + [b"\0" + csv.replace(b",", b";")]


def _table_run(data: bytes, folder: Path) -> None:
    if not data:
        return
    suffix = TABLES[data[0] % len(TABLES)]
    (folder / f"a.{suffix}").write_bytes(data[1:])
    (folder / "a.png").write_bytes(b"")
    read_twice(folder / f"a.{suffix}", suffix.partition(".")[0])


def _coco_seeds() -> list[bytes]:
    images = [{"id": 1, "file_name": "a.png", "width": 3}, {"id": 2, "file_name": "../up.png"}]
    notes = [{"id": 7, "image_id": 1, "caption": "a dog"}, {"id": 8, "image_id": 9, "caption": None}]
    karpathy = [{"filename": "a.png", "filepath": "x", "cocoid": 3, "sentences": [{"raw": "a dog", "sentid": 1}, 3]}]
    return [json.dumps({"images": images, "annotations": notes}).encode(), json.dumps({"images": karpathy}).encode()]


def _coco_run(data: bytes, folder: Path) -> None:
    (folder / "a.json").write_bytes(data)
    read_twice(folder / "a.json", "coco")
    read_all(folder)


def _picture_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    frames = [Image.new("P", (5, 5), number) for number in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], transparency=0)
    sixteen = io.BytesIO()
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6)).save(sixteen, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    forms = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")
    lossless = picture("WEBP", lossless=True)
    return [*map(picture, forms), buffer.getvalue(), sixteen.getvalue(), picture("JPEG", exif=turned), lossless]


def _picture_run(data: bytes, folder: Path) -> None:
    try:
        decoded = decode_image(data, max_pixels=MAX_PIXELS)
    except BadImage as error:
        assert error.code in PROBLEMS
        return
    assert decoded.image.mode == "RGB" and 0 < decoded.width * decoded.height <= MAX_PIXELS
    assert decoded.image.size == (decoded.width, decoded.height)


def _yaml_seeds() -> list[bytes]:
    config = b"seed: 1\nlr: 1.0e-3\nnames: [a, b]\nwhen: 2001-12-14\nneg: {a: ~, b: yes}\n"
    lines = b"cat\tan animal\ndog\n"
    words = json.dumps({"word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 4}, "idx": 5})
    classes = [b"cat: an animal\ndog: [one, two]\n", b"- cat\n- {name: dog, definition: x}\n", b"classes: [a, b]\n"]
    bodies = [(0, config), *((1, body) for body in classes), (2, lines), (3, words.encode()), (4, classes[0])]
    return [bytes([kind]) + body for kind, body in bodies]


def _yaml_run(data: bytes, folder: Path) -> None:
    from noisycorr.classify.audit.class_list import read_classes
    from noisycorr.data.readers.regions import read_vocabulary
    from noisycorr.runtime.flags import read_config

    if not data:
        return
    kind = data[0] % 5
    path = folder / ("c.yaml", "c.yaml", "c.txt", "c.json", "c.yaml")[kind]
    path.write_bytes(data[1:])
    if kind == 4:
        from noisycorr.classify.classes import read_definitions

        _refused(lambda: read_definitions(path))
        return
    _refused(lambda: (read_config, read_classes, read_classes, read_vocabulary)[kind](path))


def _array(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def _array_seeds() -> list[bytes]:
    zipped = io.BytesIO()
    np.savez(zipped, a=np.zeros(2))
    table = b"text,key\na,1\nb,2\nc,3\n"
    bodies = [_array(np.ones((3, 2), np.float16)), table, _array(np.ones((2, 3, 4), np.float32)), b"a dog\na cat\n",
              _array(np.arange(3))]  # fmt: skip
    seeds = [bytes([number]) + body for number, body in enumerate(bodies)] + [b"\5[0, 1]\n[2]\n"]
    return [*seeds, *(bytes([number]) + zipped.getvalue() for number in (0, 2, 4))]


def _array_run(data: bytes, folder: Path) -> None:
    from noisycorr.data.noise.recipes import _load_index
    from noisycorr.data.readers.regions import read_regions

    if not data:
        return
    kind, body = data[0] % 6, data[1:]
    files = {"image.npy": _array(np.ones((3, 2))), "text.npy": _array(np.ones((3, 2))), "pairs.csv": b"text\na\nb\nc\n"}
    regions = {
        "train_ims.npy": _array(np.ones((2, 3, 4))),
        "train_caps.txt": b"a\nb\n",
        "train_caps_bpe.txt": b"1\n2\n",
    }
    if kind < 2:
        for name, content in {**files, ("image.npy", "pairs.csv")[kind]: body}.items():
            (folder / name).write_bytes(content)
        read_twice(folder, "embeddings")
        return
    if kind == 4:
        (folder / "n.npy").write_bytes(body)
        _refused(lambda: _load_index(folder / "n.npy", "--noise_file n.npy"))
        return
    name = {2: "train_ims.npy", 3: "train_caps.txt", 5: "train_caps_bpe.txt"}[kind]
    for other, content in {**regions, name: body}.items():
        (folder / other).write_bytes(content)
    _refused(lambda: read_regions(folder, "train", "bpe" if kind == 5 else "words"))


def _weight_seeds() -> list[bytes]:
    from safetensors.numpy import save

    facts = {"encoder": "e", "names": ["a", "b"], "context": "class"}
    tensors = {"context": np.ones((2, 1, 3), np.float32)}
    prompt = save(tensors, metadata={"noisycorr_prompt": json.dumps(facts)})
    head = save({"0.weight": np.ones((2, 3), np.float32), "0.bias": np.ones(2, np.float32)})
    return [b"\0" + prompt, b"\1" + head, b"\1" + save({"0.weight": np.ones((9, 3), np.float32)})]


def _weight_run(data: bytes, folder: Path) -> None:
    import torch

    from noisycorr.models.encoders.backbones import _fill
    from noisycorr.prompt.keep import load_prompt

    if not data:
        return
    path = folder / "w.safetensors"
    path.write_bytes(data[1:])
    if data[0] % 2:
        _refused(lambda: _fill(torch.nn.Sequential(torch.nn.Linear(3, 2)), path, ()))
    else:
        _refused(lambda: load_prompt(path, encoder="e", names=["a", "b"]))


LABELS = ("csv", "tsv", "jsonl", "parquet")


def _label_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"key": ["a", "b"], "label": ["1", "0"], "truth_wrong": [True, None]}), buffer)
    csv = b"key,label,truth_wrong,caption\na,1,0,a dog\nb,no,1,x\n"
    lines = b'{"key": "a", "label": 1, "truth_wrong": 0, "caption": ["x"]}\n{"key": "b", "label": "no"}\n'
    return [bytes([n]) + body for n, body in enumerate((csv, csv.replace(b",", b"\t"), lines, buffer.getvalue()))]


def _label_run(data: bytes, folder: Path) -> None:
    from noisycorr.caption import score as caption_score
    from noisycorr.clean import evaluate as evaluate_run
    from noisycorr.clean import ledger
    from noisycorr.prompt import task

    if not data:
        return
    path = folder / f"l.{LABELS[data[0] % len(LABELS)]}"
    path.write_bytes(data[1:])
    _refused(lambda: ledger.read_labels(path, ["a", "b"]))
    _refused(lambda: task.read_labels(path, ["a", "b"], ["1", "0"]))
    _refused(lambda: caption_score._read(path, "captions"))
    _refused(lambda: evaluate_run._truth_of_file(path, ["a", "b"]))


TARGETS = {
    "archive": Target(_archive_seeds, _archive_run),
    "parquet": Target(_parquet_seeds, _parquet_run),
    "table": Target(_table_seeds, _table_run),
    "coco": Target(_coco_seeds, _coco_run),
    "picture": Target(_picture_seeds, _picture_run),
    "yaml": Target(_yaml_seeds, _yaml_run),
    "array": Target(_array_seeds, _array_run),
    "labels": Target(_label_seeds, _label_run),
    "weights": Target(_weight_seeds, _weight_run),
}
