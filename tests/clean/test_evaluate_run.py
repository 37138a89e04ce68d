"""noisycorr evaluate: numbers against a slow count, truth from the source or from a file, refusals, and end to end."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from noisycorr.clean.embed import Embed
from noisycorr.clean.evaluate import evaluate_run
from noisycorr.clean.inject import Inject, inject
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan
from noisycorr.data.pairs import PAIRS
from noisycorr.data.readers import Source, open_source
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, write_json

NAN = float("nan")
# key, truth (None: unknown), p_clean, score_pair, score_margin, verdict, mismatch
ROWS: list[tuple[Any, ...]] = [
    ("a", False, 0.9, 5.0, 1.0, "keep", False),
    ("b", True, 0.2, 1.0, 9.0, "drop", True),
    ("c", False, 0.8, 4.0, 2.0, "drop", False),
    ("d", True, 0.7, 4.5, 8.0, "keep", False),
    ("e", None, 0.1, 0.5, 0.0, "drop", True),
    ("f", True, NAN, NAN, NAN, "drop", False),
    ("g", False, 0.4, 2.0, 3.0, "drop", True),
]


def make_run(folder: Path, *, truth: bool = True, facts: dict[str, Any] | None = None) -> Run:
    """A decided run of two pieces with the values of `ROWS`."""
    run = Run(folder)
    for index, rows in enumerate((ROWS[:4], ROWS[4:])):
        columns = [{"note": "truth_wrong"} | ({"truth_wrong": row[1]} if truth else {}) for row in rows]
        pairs = [{"key": row[0], "columns": json.dumps(other)} for row, other in zip(rows, columns)]
        pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), run.path("pairs", f"{index:05d}.parquet"))
        write_json(run.path("pairs", f"{index:05d}_stats.json"), {"pairs": len(rows)})
        f32 = {"p_clean": 2, "score_pair": 3, "score_margin": 4}
        ledger = {name: pa.array([row[place] for row in rows], pa.float32()) for name, place in f32.items()}
        ledger |= {"key": [row[0] for row in rows], "verdict": [row[5] for row in rows]}
        ledger |= {"is_mismatch_issue": [row[6] for row in rows]}
        pq.write_table(pa.table(ledger), run.path("ledger", f"{index:05d}.parquet"))
    run.finish("decide", {}, facts if facts is not None else {"noise_rate": 0.25})
    return run


def chance_below(score: list[float], wrong: list[bool]) -> float:
    """AUROC by counting all pairs of a wrong and a right one."""
    wins = [
        (b < a) + (b == a) / 2 for b, bad in zip(score, wrong) if bad for a, worse in zip(score, wrong) if not worse
    ]
    return sum(wins) / len(wins)


def test_numbers_equal_a_count_by_hand(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    body = evaluate_run(run, None)
    judged = [row for row in ROWS if row[1] is not None and row[2] == row[2]]  # a b c d g
    wrong = [row[1] for row in judged]
    assert (body["pairs"], body["excluded"], body["without_truth"]) == (5, 1, 1)
    assert body["noise_rate"] == pytest.approx(2 / 5)
    assert body["noise_rate_estimated"] == pytest.approx(0.25)
    assert body["noise_rate_error"] == pytest.approx(0.15)
    assert body["ranking"]["auroc"] == pytest.approx(chance_below([row[3] for row in judged], wrong))
    assert body["signals"]["score_pair"] == body["ranking"]["auroc"]
    assert body["signals"]["score_margin"] == pytest.approx(chance_below([row[4] for row in judged], wrong))
    assert body["verdicts"]["drop_precision"] == pytest.approx(1 / 3)  # b, c and g were dropped, b is wrong
    assert body["mismatch"]["drop_precision"] == pytest.approx(1 / 2)  # b and g were marked
    assert body["mismatch"]["keep_precision"] == pytest.approx(2 / 3)
    gaps = {0.9: 0.1, 0.2: 0.2, 0.8: 0.2, 0.7: 0.7, 0.4: 0.6}  # each alone in its bin
    assert body["calibration"]["ece"] == pytest.approx(sum(gaps.values()) / 5, abs=1e-6)


def test_what_is_written_is_strict_json_and_what_is_returned(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    body = evaluate_run(run, None)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=refuse) == body
    assert None in [bin["p_clean"] for bin in body["calibration"]["table"]]
    before = (tmp_path / "evaluation.json").read_bytes()
    evaluate_run(run, None)
    assert (tmp_path / "evaluation.json").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_an_estimate_the_mean_of_p_clean_counts(tmp_path: Path) -> None:
    body = evaluate_run(make_run(tmp_path, facts={"noise_rate": None}), None)
    assert body["noise_rate_estimated"] == pytest.approx(1 - np.mean([0.9, 0.2, 0.8, 0.7, 0.4]), abs=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_truth_from_a_file_gives_the_same_numbers(tmp_path: Path, suffix: str) -> None:
    inside = evaluate_run(make_run(tmp_path / "with"), None)
    run, path = make_run(tmp_path / "without", truth=False), tmp_path / f"truth{suffix}"
    rows = [{"key": row[0], "truth_wrong": row[1]} for row in ROWS[::-1]] + [{"key": "unknown", "truth_wrong": True}]
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "," if suffix == ".csv" else "\t"
        words = {True: "1", False: "False", None: ""}
        path.write_text(
            f"key{mark}truth_wrong\n" + "".join(f"{r['key']}{mark}{words[r['truth_wrong']]}\n" for r in rows)
        )
    assert evaluate_run(run, path) == inside | {"truth": path.name}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", truth=False)
    with pytest.raises(UsageError, match="no truth to compare"):
        evaluate_run(run, None)
    bad = {
        "other": ("key,wrong\na,1\n", "needs rows with the columns"),
        "words": ("key,truth_wrong\na,perhaps\n", "'perhaps' of key 'a'"),
        "both": ("key,truth_wrong\na,1\na,0\n", "both true and false"),
        "keys": ("key,truth_wrong\nz,1\n", "no key of .* is in this run"),
        "empty": ("", "no key of"),
    }
    for name, (text, message) in bad.items():
        (tmp_path / f"{name}.csv").write_text(text)
        with pytest.raises(UsageError, match=message):
            evaluate_run(run, tmp_path / f"{name}.csv")
    (tmp_path / "broken.jsonl").write_text('{"key": ')
    for name in ("broken.jsonl", "missing.csv", "missing.parquet"):
        with pytest.raises(UsageError, match="cannot be read"):
            evaluate_run(run, tmp_path / name)
    (run.folder / "ledger" / "00001.parquet").unlink()
    with pytest.raises(UsageError, match="no ledger of piece 1"):
        evaluate_run(run, None)
    with pytest.raises(UsageError, match="no pairs"):
        evaluate_run(Run(tmp_path / "new"), None)
    assert not (run.folder / "evaluation.json").exists()


def test_inject_clean_evaluate(tmp_path: Path) -> None:
    """Pictures of one colour whose text names it: also the tiny encoder finds most of the swapped ones."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 2, (600, 3))
    words = np.array([["dark", "red"], ["murky", "green"], ["dim", "blue"]])
    rows = [
        (int(r) * 200 + i % 5, int(g) * 200 + i // 5 % 5, int(b) * 200 + i // 25) for i, (r, g, b) in enumerate(levels)
    ]
    texts = [" ".join(words[channel, level] for channel, level in enumerate(row)) for row in levels]
    images = [coloured(row) for row in rows]
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "source.parquet")
    facts = inject(
        open_source(Source(path=str(tmp_path / "source.parquet"))), tmp_path / "noisy", Inject(noise_ratio=0.3)
    )
    run = Run(tmp_path / "run")
    clean(Plan(source=Source(path=str(tmp_path / "noisy")), embed=Embed(clip_model="tiny", workers=1)), run,
          stages=("embed", "score", "decide"))  # fmt: skip
    body = evaluate_run(run, None)
    assert body["pairs"] + body["excluded"] == facts["pairs"] == 600
    assert body["noise_rate"] == pytest.approx(facts["wrong"] / 600)
    assert body["ranking"]["auroc"] > 0.8
    assert set(body["signals"]) >= {"score_pair", "score_crossfit"}


def coloured(colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return file.getvalue()
