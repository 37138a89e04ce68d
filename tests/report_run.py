"""A made-up finished run for the tests of the report: shapes on white, a fifth of them mismatched, hostile texts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from noisycorr.clean.report import write_report
from noisycorr.data.pairs import PAIRS
from noisycorr.runtime.folder import Run

SHAPES = ("circle", "square", "triangle", "bar")
COLOURS = {"red": (196, 60, 52), "blue": (52, 98, 190), "green": (66, 150, 80), "yellow": (222, 180, 60)}
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></script><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)' x=\"",
    "شجرة خضراء \u202e reversed",
    "a red circle 🟥👩‍👩‍👧",
    "NUL\x00inside\x1b[31m",
    "{{ 7*7 }} {% raw %} &lt;b&gt;",
    "long " * 200_000,
]


def thumbnail(shape: str, colour: str, side: int = 72) -> bytes:
    """A small JPEG of one shape."""
    image = Image.new("RGB", (side, side - 12), (250, 250, 248))
    draw, box = ImageDraw.Draw(image), (14, 8, side - 14, side - 20)
    {
        "circle": lambda: draw.ellipse(box, fill=COLOURS[colour]),
        "square": lambda: draw.rectangle(box, fill=COLOURS[colour]),
        "triangle": lambda: draw.polygon([(36, 8), (60, 52), (12, 52)], fill=COLOURS[colour]),
        "bar": lambda: draw.rectangle((8, 26, side - 8, 36), fill=COLOURS[colour]),
    }[shape]()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


THUMBNAILS = {(shape, colour): thumbnail(shape, colour) for shape in SHAPES for colour in COLOURS}


def density(x: np.ndarray, mean: float, spread: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / 2 / spread**2) / spread / np.sqrt(2 * np.pi)


def decide_facts() -> dict[str, Any]:
    """Facts as the decide stage records them."""
    x = np.linspace(-0.1, 0.5, 80)
    clean, noise = 0.8 * density(x, 0.29, 0.05), 0.2 * density(x, 0.1, 0.05)
    lines = (x, clean, noise, clean + noise)
    return {
        "separable": True, "warning": None, "noise_rate": 0.2, "noise_rate_low": 0.18, "noise_rate_high": 0.22,
        "threshold": 0.5, "rule": "p_clean < 0.5",
        "curve": {"score": x.tolist(), "p_clean": np.maximum.accumulate(clean / (clean + noise)).tolist()},
        "mixture": {
            "kind": "two gaussians", "weights": [0.8, 0.2], "params": [[0.29, 0.05], [0.1, 0.05]],
            "density": {name: line.tolist() for name, line in zip(("x", "clean", "noise", "total"), lines)},
        },
    }  # fmt: skip


def make_run(
    folder: Path, rows: int = 600, *, seed: int = 0, piece: int = 250, truth: bool = True, hostile: bool = True,
    columns: list[dict[str, Any]] | None = None, facts: Mapping[str, Any] | None = None,
) -> Run:  # fmt: skip
    """A finished run of `rows` pairs in pieces of `piece`, a fifth of them mismatched."""
    rng, run = np.random.default_rng(seed), Run(folder)
    wrong = rng.random(rows) < 0.2
    score = np.where(wrong, rng.normal(0.1, 0.05, rows), rng.normal(0.29, 0.05, rows)).astype(np.float32)
    p_clean = 1 / (1 + np.exp(-(score - 0.19) * 60))
    pairs, ledger = [], []
    for i in range(rows):
        shape, colour = SHAPES[int(rng.integers(4))], list(COLOURS)[int(rng.integers(4))]
        said = (SHAPES[int(rng.integers(4))], list(COLOURS)[int(rng.integers(4))]) if wrong[i] else (shape, colour)
        text: str | None = f"a {said[1]} {said[0]} on white, number {i % 97}"
        if hostile and i % 37 == 5 and i // 37 < len(HOSTILE):
            text, p_clean[i] = HOSTILE[i // 37], 1e-9 * (1 + i // 37)
        problem = "image_unreadable" if i % 83 == 11 else "text_missing" if i % 97 == 13 else None
        text = None if problem == "text_missing" else text
        no_picture, p = problem == "image_unreadable", np.nan if problem else float(p_clean[i])
        other: dict[str, Any] = {"folder": f"drawings/{shape}", "year": 2000 + i % 7, "licence": "CC0"}
        other |= {"truth_wrong": bool(wrong[i])} if truth else {}
        other = other if columns is None else columns[i]
        pairs.append({
            "key": f"{i:06d}" if i % 50 else f"<b>{i}</b>", "uid": f"{i:032x}", "text": text,
            "columns": json.dumps(other), "problem": problem, "image_hash": None if no_picture else f"{i % 500:032x}",
            "width": None if no_picture else 128, "height": None if no_picture else 96 + i % 64, "image_format": "PNG",
            "image_frames": 1, "thumbnail": None if no_picture else THUMBNAILS[shape, colour],
        })  # fmt: skip
        if problem:
            verdict, rule, reason = "drop", "unreadable", "the image could not be decoded" if no_picture else "no text"
        elif abs(p - 0.5) < 0.1:
            verdict, rule, reason = "review", "borderline", f"p_clean {p:.3f} is close to the threshold"
        elif p < 0.5:
            verdict, rule, reason = "drop", "p_clean < 0.5", f"the text fits no better than chance (p_clean {p:.3f})"
        else:
            verdict, rule, reason = "keep", "p_clean >= 0.5", "picture and text belong together"
        group = f"g{i // 100}" if i % 100 < 3 else None
        ledger.append({
            "key": pairs[-1]["key"], "uid": pairs[-1]["uid"], "text": text, "row": i,
            "score_similarity": float(score[i]) * 0.8, "score_margin": float(rng.normal(0.1, 0.2)),
            "score_pair": np.nan if problem else float(score[i]), "p_clean": p,
            "is_mismatch_issue": bool(p < 0.5), "mismatch_score": p, "is_near_duplicate_issue": group is not None,
            "near_duplicate_score": 0.1 if group else 1.0, "is_image_issue": i % 29 == 3, "image_score": (i % 31) / 31,
            "image_issue": "blank" if i % 58 == 3 else "tiny" if i % 29 == 3 else None, "is_text_issue": i % 41 == 7,
            "text_score": 0.2, "text_issue": "only_digits" if i % 41 == 7 else None, "near_duplicate_group": group,
            "is_group_keeper": i % 100 == 0, "group_kind": ("pair", "image")[i // 100 % 2] if group else None,
            "verdict": verdict, "reason": reason, "rule": rule, "stage": "decide", "sample_weight": 1.0,
        })  # fmt: skip
    for number, start in enumerate(range(0, rows, piece)):
        stop = start + piece
        table = pa.Table.from_pylist(pairs[start:stop], schema=PAIRS)
        pq.write_table(table, run.path("pairs", f"{number:05d}.parquet"), row_group_size=100)
        opinion = pa.Table.from_pylist(ledger[start:stop])
        pq.write_table(opinion, run.path("ledger", f"{number:05d}.parquet"), row_group_size=64)
    run.path("config.yaml").write_text("source:\n  path: shapes.parquet\noutput_folder: out\n", encoding="utf-8")
    run.path("provenance.json").write_text('{"noisycorr": "0.1.0", "threads": 1}\n', encoding="utf-8")
    run.finish("embed", {"encoder": "embedded", "picked": {"image": "image", "text": "title"}, "format": "parquet"})
    run.finish("score", {"signals": ["similarity"]})
    run.finish("decide", {"rule": "auto"}, decide_facts() if facts is None else facts)
    return run


def report_of(run: Run) -> dict[str, Any]:
    """Write the report and read report.json strictly: NaN is not JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    write_report(run)
    return json.loads((run.folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
