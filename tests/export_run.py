"""Runs as `clean` leaves them, made without a model, for the tests of exports."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

from noisycorr.clean.export import Export, export
from noisycorr.data.pairs import PAIRS, content_hash, pair_uid
from noisycorr.data.readers import Reader, Source, open_source
from noisycorr.data.readers.images import BadImage, decode_image
from noisycorr.data.store import features_path, pairs_path
from noisycorr.runtime.folder import Run, write_json

LEDGER = pa.schema(
    [
        ("key", pa.string()), ("uid", pa.string()), ("text", pa.string()), ("row", pa.int64()),
        ("score_similarity", pa.float32()), ("p_clean", pa.float32()),
        ("is_mismatch_issue", pa.bool_()), ("mismatch_score", pa.float32()),
        ("is_image_issue", pa.bool_()), ("image_score", pa.float32()), ("image_issue", pa.string()),
        ("verdict", pa.string()), ("reason", pa.string()), ("sample_weight", pa.float32()),
    ]
)  # fmt: skip
TEXTS = ['a red "barn", far away', "line\tone\nline two", "tail\r", "Größe 北京 🐈", " spaces ", "=cmd()", "NA-like"]
WIDTH = 8


def picture(number: int, format_: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, 6), (number * 7 % 256, number * 31 % 256, 90)).save(buffer, format_)
    return buffer.getvalue()


def rows_of(count: int) -> list[dict[str, Any]]:
    """Pairs with everything that makes trouble: repeated pictures, no text, broken images, odd columns."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        format_ = "PNG" if number % 5 == 0 else "JPEG"
        row: dict[str, Any] = {
            "key": f"pair{number:04d}",
            "image": picture(number - number % 3 if number < 12 else number, format_ if number >= 12 else "JPEG"),
            "text": f"{TEXTS[number % len(TEXTS)]} {number}",
            "width": 640 + number,
            "score": number / 8 if number % 2 else None,
            "tags": ["x", "y"][: number % 3],
            "row": f"given {number}",
            "truth_wrong": number % 4 == 0,
        }
        rows.append(row)
    rows[20]["text"] = None
    rows[21]["image"] = b"<html>404</html>"
    return rows


def write_tars(folder: Path, rows: list[dict[str, Any]]) -> Source:
    folder.mkdir(parents=True)
    half = len(rows) // 2
    for shard, part in enumerate((rows[:half], rows[half:])):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for row in part:
                rest = {name: value for name, value in row.items() if name not in ("key", "image", "text")}
                suffix = "png" if row["image"].startswith(b"\x89PNG") else "jpeg"
                members = {suffix: row["image"], "json": json.dumps(rest).encode()}
                if row["text"] is not None:
                    members["txt"] = row["text"].encode()
                for name, data in members.items():
                    info = tarfile.TarInfo(f"{row['key']}.{name}")
                    info.size, info.mtime = len(data), 1_600_000_000
                    archive.addfile(info, io.BytesIO(data))
    return Source(path=str(folder))


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Source:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return Source(path=str(folder), number_sample_per_shard=17)


def write_files(folder: Path, rows: list[dict[str, Any]]) -> Source:
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for row in rows:
        name = f"pictures/{row['key']}.jpg"
        (folder / name).write_bytes(row["image"])
        lines.append({**row, "image": None, "file_name": name})
    body = "".join(json.dumps({n: v for n, v in line.items() if n != "image"}) + "\n" for line in lines)
    (folder / "table.jsonl").write_text(body)
    return Source(path=str(folder / "table.jsonl"))


def build_run(folder: Path, source: Source) -> tuple[Run, Reader]:
    """A run as `clean` leaves it: facts, embeddings and ledger of every piece, without a model."""
    run, reader = Run(folder), open_source(source)
    rng = np.random.default_rng(0)
    row = 0
    for piece in reader.pieces():
        facts: list[dict[str, Any]] = []
        ledger: list[dict[str, Any]] = []
        for pair in reader.read(piece):
            data = pair.image if isinstance(pair.image, bytes) else pair.image.read_bytes() if pair.image else None
            fact: dict[str, Any] = {"key": pair.key, "text": pair.text, "problem": pair.problem}
            fact["columns"] = json.dumps(dict(pair.columns), sort_keys=True)
            if data is not None:
                fact["image_hash"] = content_hash(data)
                try:
                    decoded = decode_image(data)
                    fact |= {"width": decoded.width, "height": decoded.height, "image_format": decoded.format}
                except BadImage as error:
                    fact["problem"] = error.code
            fact["uid"] = str(pair.columns.get("uid") or pair_uid(fact.get("image_hash"), pair.text))
            p_clean = float("nan") if fact["problem"] else round((row * 37 % 100) / 100, 2)
            verdict = "review" if fact["problem"] else "drop" if p_clean < 0.3 else "keep"
            facts.append(fact)
            ledger.append(
                {"key": pair.key, "uid": fact["uid"], "text": pair.text, "row": row, "score_similarity": p_clean / 2,
                 "p_clean": p_clean, "is_mismatch_issue": verdict == "drop", "mismatch_score": p_clean,
                 "is_image_issue": bool(fact["problem"]), "image_score": 0.0 if fact["problem"] else 1.0,
                 "image_issue": fact["problem"], "verdict": verdict, "reason": f"because {p_clean}",
                 "sample_weight": 0.5}
            )  # fmt: skip
            row += 1
        vectors = rng.normal(size=(2, len(facts), 4)).astype(np.float16)
        for path in (pairs_path(run, piece.index), features_path(run, piece.index), ledger_path(run, piece.index)):
            path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(facts, PAIRS), pairs_path(run, piece.index))
        pq.write_table(pa.Table.from_pylist(ledger, LEDGER), ledger_path(run, piece.index))
        save_file({"image": vectors[0], "text": vectors[1]}, features_path(run, piece.index))
        write_json(run.path("pairs", f"{piece.index:05d}_stats.json"), {"pairs": len(facts)})
    return run, reader


def ledger_path(run: Run, index: int) -> Path:
    return run.folder / "ledger" / f"{index:05d}.parquet"


def ledger_rows(run: Run, *verdicts: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((run.folder / "ledger").glob("*.parquet"))]
    return [row for row in pa.concat_tables(tables).to_pylist() if not verdicts or row["verdict"] in verdicts]


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def go(built: tuple[Run, Reader], folder: Path, format_: str, **options: Any) -> dict[str, Any]:
    return export(*built, Export(output_format=format_, output_path=str(folder), **options))
