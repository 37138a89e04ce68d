"""The ledger: one row for every row that came in, with its verdict and why. Written by the decide stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.decide import Decide, Evidence, decide, find_cut, issue_codes
from noisycorr.clean.score import read_fit
from noisycorr.clean.signals.duplicates import keepers
from noisycorr.data.readers.given import load_labels
from noisycorr.data.store import pairs_path, part_ranges, read_facts, read_scores
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, read_json
from noisycorr.stats.mixture import Fit, fit_labels

RIGHT = {"1": 1.0, "true": 1.0, "right": 1.0, "yes": 1.0, "match": 1.0, "clean": 1.0,
         "0": 0.0, "false": 0.0, "wrong": 0.0, "no": 0.0, "mismatch": 0.0, "noisy": 0.0}  # fmt: skip
COPIED = ("image_score", "image_issue", "text_score", "text_issue", "near_duplicate_group", "group_kind",
          "near_duplicate_score")  # fmt: skip


def decide_run(choice: Decide, run: Run, labels: Path | None) -> dict[str, Any]:
    """Write `ledger/NNNNN.parquet` from stored scores.

    Args:
        choice: The rule.
        run: A folder whose score stage is done.
        labels: Pairs that a person judged, or None.

    Returns:
        Facts for the stage record and the report; `summary` is what to tell the person.
    """
    scores = read_scores(run)
    score = scores.column("score_pair").to_numpy()
    fit, label, strangers = read_fit(run), np.full(len(scores), np.nan, np.float32), []
    if labels is not None:
        keys = read_facts(run, ["key"]).column("key").to_pylist()
        judged, known = read_judgements(labels), set(keys)
        label, strangers = _labels_of(judged, keys, labels), [key for key in judged if key not in known]
        rows = np.flatnonzero(np.isfinite(label))
        fit = fit_labels(fit, score, label[rows] == 1, rows)
    p_clean = fit(score)
    p_clean[np.isfinite(label)] = label[np.isfinite(label)]
    evidence = Evidence(
        score=score,
        p_clean=p_clean,
        problem=issue_codes(read_facts(run, ["problem"]).column("problem")),
        image_issue=issue_codes(scores.column("image_issue")),
        text_issue=issue_codes(scores.column("text_issue")),
        is_keeper=np.ones(len(scores), bool),
        group=issue_codes(scores.column("near_duplicate_group")),
        label=label,
    )
    cut = find_cut(choice, evidence, fit)
    alone = decide(choice, evidence, cut)["verdict"]
    area, group = scores.column("area").to_numpy(), scores.column("pair_group").to_numpy()
    evidence = dataclasses.replace(evidence, is_keeper=_keepers(group, alone, score, area, _recorded(run)))
    columns = decide(choice, evidence, cut)
    _write(run, scores, evidence, columns, choice.rule if fit.kind != "labels" else f"{choice.rule} (labels)")
    facts = _facts(run, choice, fit, cut.p_clean, cut.facts, columns, p_clean)
    if strangers:
        told = f"of {len(strangers):,} keys in {labels} no pair is in this run, such as {strangers[0]!r}"
        facts["summary"].append(f"warning: {told}: their labels count for nothing")
    return facts


def _keepers(
    group: np.ndarray,
    verdict: np.ndarray,
    score: np.ndarray,
    area: np.ndarray,
    rule: Literal["best_score", "largest", "first"],
) -> np.ndarray:
    """bool (n,): the one of each group to keep, by the rule among those with the best verdict; all that are alone.

    Without the verdicts a group would be lost whose one of best score, say, cannot be read or was judged as wrong.
    """
    rank = np.select([verdict == "keep", verdict == "review"], [2, 1], 0)
    best = np.zeros(len(group) + 1, np.int64)
    np.maximum.at(best, group, rank)  # -1 counts at the end
    candidate = (group < 0) | (rank == best[group])
    return keepers(np.where(candidate, group, -1), score, area, keeper=rule) & candidate


def _recorded(run: Run) -> Any:
    """The keeper rule that the score stage was told."""
    return (run.stage("score") or {})["inputs"]["duplicates"]["keeper"]


def _write(run: Run, scores: pa.Table, evidence: Evidence, columns: dict[str, np.ndarray], rule: str) -> None:
    for index, start, size in part_ranges(run):
        rows = slice(start, start + size)
        known = pq.read_table(pairs_path(run, index), columns=["key", "uid", "text"])
        part = scores.slice(start, size)
        out: dict[str, Any] = {name: known.column(name) for name in known.column_names}
        out["row"] = np.arange(start, start + size)
        for name in part.column_names:
            if name.startswith("score_") or name.endswith("_similarity_score"):
                out[name] = part.column(name)
        p_clean = evidence.p_clean[rows]
        out |= {"p_clean": p_clean, "mismatch_score": p_clean}
        out["is_mismatch_issue"] = columns["is_mismatch_issue"][rows]
        for name in COPIED:
            out[name] = part.column(name)
        out["is_near_duplicate_issue"] = part.column("pair_group").to_numpy() >= 0
        out["is_image_issue"] = pa.array([code is not None for code in evidence.image_issue[rows]], pa.bool_())
        out["is_text_issue"] = pa.array([code is not None for code in evidence.text_issue[rows]], pa.bool_())
        out["is_group_keeper"] = evidence.is_keeper[rows]
        for name in ("verdict", "reason"):
            out[name] = pa.array(columns[name][rows], pa.string())
        out["rule"] = pa.array([rule] * size, pa.string())
        out["stage"] = pa.array(["decide"] * size, pa.string())
        out["sample_weight"] = columns["sample_weight"][rows]
        with atomic_path(run.path("ledger", f"{index:05d}.parquet")) as path:
            pq.write_table(pa.table(out), path, compression="zstd")


def _facts(run: Run, choice: Decide, fit: Fit, line: float, cut: dict[str, Any], columns: dict[str, np.ndarray],
           p_clean: np.ndarray) -> dict[str, Any]:  # fmt: skip
    verdicts = {str(v): int(c) for v, c in zip(*np.unique(columns["verdict"].astype(str), return_counts=True))}
    known = np.isfinite(fit.noise_rate)
    stored = read_json(run.folder / "scores" / "fit.json")
    facts: dict[str, Any] = {
        "pairs": len(p_clean),
        "verdicts": verdicts,
        "mismatch": int(columns["is_mismatch_issue"].sum()),
        "separable": fit.kind != "constant",
        "warning": fit.warning,
        "noise_rate": fit.noise_rate if known else None,
        "noise_rate_low": fit.low if known else None,
        "noise_rate_high": fit.high if known else None,
        "separation": fit.separation if np.isfinite(fit.separation) else None,
        "threshold": line,
        "rule": choice.rule,
        "score": "score_pair",
        "curve": {"score": [float(x) for x in fit.score], "p_clean": [float(x) for x in fit.p_clean]},
        "mixture": {"kind": fit.kind, "density": stored["density"] or None, "params": fit.parameters},
        **cut,
    }
    facts["summary"] = _summary(facts, verdicts, fit)
    return facts


def _summary(facts: dict[str, Any], verdicts: dict[str, int], fit: Fit) -> list[str]:
    lines = [f"{facts['pairs']:,} pairs in, {sum(verdicts.values()):,} in the ledger: "
             + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))]  # fmt: skip
    if facts["noise_rate"] is not None:
        interval = f"95 % interval {fit.low:.1%} to {fit.high:.1%}"
        lines.append(f"estimated share of mismatched pairs: {fit.noise_rate:.1%} ({interval})")
    if facts.get("expected_precision") is not None and facts["separable"]:
        lines.append(f"expected of what was kept by {facts['rule']}: {facts['expected_precision']:.1%} right")
    if fit.warning:
        lines.append(f"warning: {fit.warning}")
    if facts.get("note"):
        lines.append(f"note: {facts['note']}")
    return lines


def read_judgements(path: Path) -> dict[str, float]:
    """What a person said of each key: 1 or 0. `read_labels` describes the file.

    Raises:
        UsageError: If it is no file, columns or values are not as described, a key is judged both ways, or nothing is
            judged.
    """
    judged: dict[str, float] = {}
    for row in load_labels(path):
        key, value = str(row["key"]), str(row["label"] if row["label"] is not None else "").strip().lower()
        if not value:  # of a list that is filled in part
            continue
        if value not in RIGHT:
            raise UsageError(f"`labels` {path}: label {row['label']!r} of key {key!r} is not one of {sorted(RIGHT)}.")
        if judged.setdefault(key, RIGHT[value]) != RIGHT[value]:
            raise UsageError(f"`labels` {path} says both right and wrong of key {key!r}: keep one of them.")
    if not judged:
        raise UsageError(f"`labels` {path} judges no key: its column label is empty.")
    return judged


def read_labels(path: Path, keys: list[str]) -> np.ndarray:
    """Judgements of a person, by key.

    Args:
        path: csv, tsv or jsonl with `key` and `label`; 1, true, right, yes, match or clean means that image and text
            belong together; 0, false, wrong, no, mismatch or noisy that they do not; rows with a blank label are not
            judged.
        keys: n keys of the run.

    Returns:
        float32 (n,): 1, 0, or NaN where nobody judged. A key that stands twice in the run gets its label twice.

    Raises:
        UsageError: If columns or values are not as described, a key is judged both ways, or no key is known.
    """
    return _labels_of(read_judgements(path), keys, path)


def _labels_of(judged: dict[str, float], keys: list[str], path: Path) -> np.ndarray:
    out = np.array([judged.get(key, np.nan) for key in keys], np.float32)
    if not np.isfinite(out).any():
        raise UsageError(f"`labels` {path}: none of its {len(judged)} keys is in this run; keys look like {keys[:2]}.")
    return out


def touched(run: Run) -> bool:
    """True if a recaption, whole or interrupted, changed the ledger."""
    if any((run.folder / "stages" / name).exists() for name in ("recaption.json", "recaption_started.json")):
        return True
    return any("text_proposed" in pq.read_schema(path).names for path in _parts(run))


def _parts(run: Run) -> list[Path]:
    return sorted((run.folder / "ledger").glob("[0-9]*.parquet"))
