"""Compare the ledger of a run with known truth: `noisycorr evaluate`.

Besides the report this is the only reader of truth (law 4), and it writes nothing that a later stage reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.report.frequency_sketch import plain
from noisycorr.data.readers.given import load_rows
from noisycorr.data.store import pairs_path, parts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, write_json
from noisycorr.stats.detection import auroc, detection, verdict_quality

TRUTH = "truth_wrong"
_RIGHT, _WRONG, _UNKNOWN = 0, 1, -1
_WORDS = {"1": _WRONG, "true": _WRONG, "yes": _WRONG, "0": _RIGHT, "false": _RIGHT, "no": _RIGHT, "": _UNKNOWN}


def evaluate_run(run: Run, truth: Path | None) -> dict[str, Any]:
    """Evaluate a decided run where the truth is known, and write `evaluation.json` into its folder.

    Args:
        run: With its ledger in place.
        truth: csv, tsv, jsonl or parquet with `key` and `truth_wrong` (1 or true: image and text do not belong
            together); None takes the column `truth_wrong` of the source, as `noisycorr inject` writes it.

    Returns:
        JSON, undefined numbers as None: `pairs` evaluated, `excluded` (p_clean unknown), `without_truth`; `noise_rate`,
        `noise_rate_estimated` and `noise_rate_error`; `ranking` by score_pair, `calibration` of p_clean, `verdicts`
        (dropped, for whatever reason, or given a new text: truth is about the old one) and `mismatch` (what was
        marked as mismatched); and `signals`: the AUROC of each score column, higher = better.

    Raises:
        UsageError: If there is no ledger, no truth, or a file of truth that does not fit.
    """
    ledger = _read_ledger(run)
    known = truth_of_source(run) if truth is None else _truth_of_file(truth, ledger.column("key").to_pylist())
    rows = np.flatnonzero(known != _UNKNOWN)
    if not len(rows):
        source = "the source has no column truth_wrong" if truth is None else f"no key of {truth} is in this run"
        raise UsageError(
            f"There is no truth to compare {run.folder} with: {source}; give `truth` FILE with both columns."
        )
    wrong = known[rows] == _WRONG
    scores = {name: ledger.column(name).to_numpy()[rows] for name in ledger.column_names if name.startswith("score_")}
    p_clean = ledger.column("p_clean").to_numpy()[rows].astype(np.float64)
    measured = detection(
        p_clean,
        wrong,
        score=scores.get("score_pair"),
        dropped=np.isin(ledger.column("verdict").to_numpy(zero_copy_only=False)[rows], ("drop", "recaption")),
        noise_rate=((run.stage("decide") or {}).get("facts") or {}).get("noise_rate"),
    )
    marked = ledger.column("is_mismatch_issue").to_numpy()[rows]
    judged = ~np.isnan(p_clean)
    body = dataclasses.asdict(measured) | {
        "without_truth": len(known) - len(rows),
        "mismatch": dataclasses.asdict(verdict_quality(marked[judged], wrong[judged])),
        "signals": {name: auroc(values, wrong) for name, values in scores.items()},
        "truth": TRUTH if truth is None else truth.name,
    }
    body = plain(body)
    write_json(run.path("evaluation.json"), body)
    return body


def _read_ledger(run: Run) -> pa.Table:
    """Key, scores, p_clean, verdict and mismatch flag of all pairs, in row order."""
    tables = []
    for index in parts(run):
        path = run.folder / "ledger" / f"{index:05d}.parquet"
        if not path.exists():
            raise UsageError(f"{run.folder} has no ledger of piece {index}: run `noisycorr clean` into it first.")
        names = [n for n in pq.read_schema(path).names if n.startswith("score_")]
        tables.append(pq.read_table(path, columns=["key", "p_clean", "verdict", "is_mismatch_issue", *names]))
    if not tables:
        raise UsageError(f"{run.folder} holds no pairs: run `noisycorr clean` into it first.")
    return pa.concat_tables(tables)


def truth_of_source(run: Run) -> np.ndarray:
    """int8 (n,) from the input columns of the pairs: 1 wrong, 0 right, -1 unknown. Only for evaluation (law 4)."""
    out = [np.zeros(0, np.int8)]
    for index in parts(run):
        columns = pq.read_table(pairs_path(run, index), columns=["columns"]).column("columns").to_pylist()
        found = (json.loads(text).get(TRUTH) if text and TRUTH in text else None for text in columns)
        out.append(np.fromiter((_truth(value) for value in found), np.int8, len(columns)))
    return np.concatenate(out)


def _truth_of_file(path: Path, keys: Sequence[str]) -> np.ndarray:
    """int8 (n,) for n keys of the run; a key that stands twice there gets its truth twice."""
    judged: dict[str, int] = {}
    for row in _rows(path):
        if not isinstance(row, dict) or not {"key", TRUTH} <= set(row):
            raise UsageError(f"`truth` {path} needs rows with the columns key and {TRUTH}.")
        key, value = str(row["key"]), _truth(row[TRUTH])
        if value == _UNKNOWN and str(row[TRUTH] if row[TRUTH] is not None else "").strip():
            raise UsageError(f"`truth` {path}: {row[TRUTH]!r} of key {key!r} is neither true (1) nor false (0).")
        if judged.setdefault(key, value) != value:
            raise UsageError(f"`truth` {path} says both true and false of key {key!r}: keep one of them.")
    return np.fromiter((judged.get(key, _UNKNOWN) for key in keys), np.int8, len(keys))


def _rows(path: Path) -> Sequence[Any]:
    try:
        return load_rows(path, ["key", TRUTH])
    except ValueError as error:
        raise UsageError(
            f"`truth` {path} cannot be read ({error}); expected key and {TRUTH} in csv or jsonl."
        ) from error


def _truth(value: Any) -> int:
    """Wrong, right or unknown."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _WORDS.get("" if value is None else str(value).strip().lower(), _UNKNOWN)
