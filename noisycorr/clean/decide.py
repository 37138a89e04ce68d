"""From scores to verdicts: a rule is a frozen choice, its outcome one row of the ledger for every row that came in.

Deciding reads stored scores only, so `noisycorr decide` with another rule takes seconds and touches no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from noisycorr.clean.signals.image_issues import IMAGE_ISSUES
from noisycorr.clean.signals.text_issues import TEXT_ISSUES
from noisycorr.data.pairs import PROBLEMS
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.mixture import Fit

WORDS = IMAGE_ISSUES | TEXT_ISSUES


@dataclass(frozen=True, kw_only=True)
class Decide:
    """Which pairs to keep.

    Attributes:
        p_threshold: Keep pairs with p_clean at or above this; the default rule.
        precision: Keep as many pairs as possible so that this share of them is expected to be right.
        fraction: Keep this share of the scored pairs, the best round(fraction * n), and ties with the last one.
        threshold: Keep pairs whose raw score `score_pair` is at or above this.
        keep_duplicates: Keep all pairs that have the same image with the same text, instead of one of them.
        keep_issues: Keep pairs with image or text issues; pairs that cannot be read are still dropped.
        review_margin: Pairs whose p_clean is this close to the threshold get the verdict `review`.
    """

    p_threshold: float = 0.5
    precision: float | None = None
    fraction: float | None = None
    threshold: float | None = None
    keep_duplicates: bool = False
    keep_issues: bool = False
    review_margin: float = 0.0

    def __post_init__(self) -> None:
        given = [name for name in ("precision", "fraction", "threshold") if getattr(self, name) is not None]
        if self.p_threshold != Decide.p_threshold:
            given.append("p_threshold")
        if len(given) > 1:
            raise UsageError(f"`{given[0]}` and `{given[1]}` exclude each other: give one of them.")
        if self.threshold is not None and self.threshold != self.threshold:
            raise UsageError("`threshold` is not a number, expected a score.")
        for name in ("p_threshold", "precision", "fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"`{name}` is {value}, expected a number from 0 to 1.")
        if not 0 <= self.review_margin <= 0.5:
            raise UsageError(f"`review_margin` is {self.review_margin}, expected 0 to 0.5.")

    @property
    def rule(self) -> str:
        """The rule in words, as it stands in the ledger."""
        if self.precision is not None:
            return f"precision>={self.precision:g}"
        if self.fraction is not None:
            return f"fraction={self.fraction:g}"
        if self.threshold is not None:
            return f"score_pair>={self.threshold:g}"
        return f"p_clean>={self.p_threshold:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a rule looks at, one row for each pair; codes are None where there is no issue."""

    score: np.ndarray  # float32, higher = better matched
    p_clean: np.ndarray  # float32 in [0, 1], NaN where unknown
    problem: np.ndarray  # object: a code of PROBLEMS or None
    image_issue: np.ndarray  # object
    text_issue: np.ndarray  # object
    is_keeper: np.ndarray  # bool: alone, or the one of its group of equal pairs to keep
    group: np.ndarray  # object: group of equal pairs or None
    label: np.ndarray  # float32: 1 right, 0 wrong by a person's word, NaN unknown


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a rule draws the line."""

    score: float  # keep at or above this score
    p_clean: float  # the same line on the scale of p_clean
    facts: dict[str, Any]


def find_cut(choice: Decide, evidence: Evidence, fit: Fit) -> Cut:
    """Turn a rule into a threshold.

    Args:
        choice: The rule.
        evidence: Scores and probabilities.
        fit: The curve between the two.

    Returns:
        The line on both scales. `facts["expected_precision"]` is the mean p_clean of what is kept,
        `facts["expected_recall"]` the share of right pairs that is kept; both None where nothing is known about
        p_clean. A precision that cannot be reached keeps the best scored pairs only and says so in `facts["note"]`.
        Labels move the line through the curve only: a single judged pair never does.
    """
    known = np.isfinite(evidence.score)
    score, curve = evidence.score[known], fit(evidence.score[known])
    others = ~_dropped_anyway(choice, evidence)[known]
    facts: dict[str, Any] = {"judged": int(known.sum()), "expected_precision": None, "expected_recall": None}
    blind = not len(score) or fit.kind == "constant"
    at: float | None = None
    if choice.threshold is not None:
        cut = choice.threshold
    elif choice.fraction is not None:
        count = round(choice.fraction * len(score))
        cut = float(np.sort(score)[-count]) if count else np.inf
    elif blind:
        cut = -np.inf
        facts["note"] = "the rule was not applied, because nothing is known about p_clean"
    elif choice.precision is not None:
        cut, note = _precision_cut(score[others], curve[others], choice.precision)
        facts |= {"note": note} if note else {}
    else:
        above, at = score[curve >= np.float32(choice.p_threshold)], choice.p_threshold
        cut = float(above.min()) if len(above) else np.inf
    if blind:
        return Cut(float(cut), 0.0, facts)
    label = evidence.label[known]
    p = np.where(np.isnan(label), curve, label).astype(np.float64)
    kept = np.where(np.isnan(label), others & (score >= cut), label == 1)
    facts["expected_precision"] = round(float(p[kept].mean()), 4) if kept.any() else None
    facts["expected_recall"] = round(float(p[kept].sum() / max(p.sum(), 1e-9)), 4)
    if at is None:
        at = float(fit(np.array([cut]))[0]) if np.isfinite(cut) else float(cut > 0)
    return Cut(float(cut), at, facts)


def _dropped_anyway(choice: Decide, evidence: Evidence) -> np.ndarray:
    """bool (n,): pairs that go whatever their score is; of near-duplicates one always stays."""
    out = _some(evidence.problem)
    return out if choice.keep_issues else out | _some(evidence.image_issue) | _some(evidence.text_issue)


def _precision_cut(score: np.ndarray, p: np.ndarray, precision: float) -> tuple[float, str | None]:
    """The lowest score above which the mean of p is at least this, and what to tell if there is none."""
    if not len(score):
        return np.inf, "no pair is left to keep"
    order = np.argsort(-score, kind="stable")
    mean = np.cumsum(p[order], dtype=np.float64) / np.arange(1, len(p) + 1)
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # equal scores share their fate
    enough = last[mean[last] >= precision - 1e-6]
    if len(enough):
        return float(score[order[enough[-1]]]), None
    best = last[0]
    return float(score[order[best]]), f"a precision of {precision:g} cannot be reached: the best is {mean[best]:.3f}"


def decide(choice: Decide, evidence: Evidence, cut: Cut) -> dict[str, np.ndarray]:
    """A verdict and a reason for every pair.

    In this order, the first that applies: unreadable, judged by a person, image issue, text issue, close to the line,
    mismatch, duplicate, without a score, keep. Nothing is ever left without a verdict.

    Args:
        choice: The rule.
        evidence: What is known.
        cut: Its line, from `find_cut`.

    Returns:
        Columns `verdict`, `reason` (object), `sample_weight` (float32 in [0, 1]: p_clean of pairs to keep or to review,
        0 of dropped ones) and `is_mismatch_issue` (bool: below the line, or wrong by a person's word), each (n,).
    """
    n = len(evidence.score)
    verdict, reason = np.full(n, "", object), np.full(n, "", object)

    def set_verdict(rows: np.ndarray, what: str, why: Any) -> None:
        open_ = rows & (verdict == "")
        verdict[open_] = what
        reason[open_] = why[open_] if isinstance(why, np.ndarray) else why

    p, score = evidence.p_clean, evidence.score
    judged = np.isfinite(evidence.label)
    mismatch = np.where(judged, evidence.label == 0, np.isfinite(score) & (score < cut.score))
    set_verdict(_some(evidence.problem), "drop", _reasons(evidence.problem, PROBLEMS))
    set_verdict(evidence.label == 1, "keep", "a person judged this pair as right")
    set_verdict(evidence.label == 0, "drop", "a person judged this pair as wrong")
    if not choice.keep_issues:
        for codes in (evidence.image_issue, evidence.text_issue):
            set_verdict(_some(codes), "drop", _reasons(codes, WORDS))
    near = np.isfinite(p) & (np.abs(p - cut.p_clean) < choice.review_margin)
    set_verdict(near, "review", _numbers(p, "close to the line: p_clean {:.2f}"))
    set_verdict(mismatch, "drop", _numbers(p, "text and image look mismatched: p_clean {:.2f}"))
    if not choice.keep_duplicates:
        set_verdict(~evidence.is_keeper, "drop", _groups(evidence.group, ~evidence.is_keeper))
    set_verdict(~np.isfinite(p), "review", "no score: nothing is known about this pair")
    fits = "kept unjudged: nothing speaks against this pair" if cut.score == -np.inf else "text and image fit"
    set_verdict(np.ones(n, bool), "keep", _numbers(p, fits + ": p_clean {:.2f}"))
    weight = np.where(verdict == "drop", 0.0, np.nan_to_num(p, nan=0.0)).astype(np.float32)
    return {"verdict": verdict, "reason": reason, "sample_weight": weight, "is_mismatch_issue": mismatch}


def _some(codes: np.ndarray) -> np.ndarray:
    return np.fromiter((code is not None for code in codes), bool, len(codes))


def _reasons(codes: np.ndarray, words: dict[str, str]) -> np.ndarray:
    return np.array([words.get(code, code) if code else "" for code in codes], object)


def _numbers(values: np.ndarray, template: str) -> np.ndarray:
    """One string for each distinct two-digit value: a million rows share a hundred strings."""
    before, after = template.split("{:.2f}")
    table = np.array([f"{before}{i / 100:.2f}{after}" for i in range(101)] + [f"{before}unknown{after}"], object)
    place = np.where(np.isfinite(values), np.round(np.nan_to_num(values) * 100), 101).astype(np.int64)
    return table[np.clip(place, 0, 101)]


def _groups(groups: np.ndarray, some: np.ndarray) -> np.ndarray:
    """A reason for some (n,) rows only: the others need no string."""
    out = np.full(len(groups), "", object)
    for row in np.flatnonzero(some).tolist():
        out[row] = f"near-duplicate of the kept pair of group {groups[row]}" if groups[row] else ""
    return out


def issue_codes(column: pa.ChunkedArray) -> np.ndarray:
    """A string column as objects, None for null."""
    return pc.cast(column, pa.string()).to_numpy(zero_copy_only=False) if len(column) else np.zeros(0, object)
