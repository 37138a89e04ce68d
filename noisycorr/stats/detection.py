"""How well wrong pairs were found, when the truth is known. The only place besides the report that reads truth.

Every function takes a score that is higher for better matched pairs, and `wrong`, the truth. Wrong pairs are the
positive class. Scores that are NaN are left out (`detection` counts them). Where a quantity is not defined, for
instance because no pair is wrong, it is NaN: never 0 and never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well the score puts wrong pairs below right ones; no threshold is involved.

    Attributes:
        auroc: Chance that a wrong pair scores below a right one; ties count half. 0.5 is chance, 1 is perfect.
        auprc: Average precision of wrong pairs; chance is their share.
        fpr_at_95_tpr: Share of right pairs lost when at least 95 % of the wrong ones go. 0 is perfect.
    """

    auroc: float
    auprc: float
    fpr_at_95_tpr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Quality of the decision itself.

    Attributes:
        dropped: Number of pairs dropped.
        drop_precision: Share of dropped pairs that are wrong.
        drop_recall: Share of wrong pairs that were dropped.
        keep_precision: Share of kept pairs that are right; 1 minus it is the noise left in the kept set.
        keep_recall: Share of right pairs that were kept.
    """

    dropped: int
    drop_precision: float
    drop_recall: float
    keep_precision: float
    keep_recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One row of a reliability table: pairs with `low` <= p_clean < `high` (the last bin includes 1).

    `p_clean` is what was said, `right` the share of pairs that really are right; both NaN where `count` is 0.
    """

    low: float
    high: float
    count: int
    p_clean: float
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far probabilities are from frequencies; all in [0, 1], 0 is perfect.

    Attributes:
        ece: Mean gap over 15 equal-width bins, weighted by count (expected calibration error).
        ace: The same over bins of equal count (adaptive); equal probabilities never stand in two bins.
        mce: Largest gap of the equal-width bins that hold anything.
        table: The equal-width bins.
    """

    ece: float
    ace: float
    mce: float
    table: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """Everything that is known about one detection run.

    Attributes:
        pairs: Pairs that could be evaluated.
        excluded: Pairs left out because their score is NaN.
        noise_rate: Share of wrong pairs among the evaluated ones.
        noise_rate_estimated: What the method believed: 1 minus the mean of p_clean, or the given estimate.
        noise_rate_error: Absolute difference of the two.
    """

    pairs: int
    excluded: int
    noise_rate: float
    noise_rate_estimated: float
    noise_rate_error: float
    ranking: Ranking
    verdicts: Verdicts
    calibration: Calibration


def detection(
    p_clean: np.ndarray,
    wrong: np.ndarray,
    *,
    threshold: float = 0.5,
    score: np.ndarray | None = None,
    dropped: np.ndarray | None = None,
    noise_rate: float | None = None,
) -> Detection:
    """Evaluate one run.

    Args:
        p_clean: (n,) probability in [0, 1] that the pair belongs together; NaN where it is unknown.
        wrong: bool (n,): the truth.
        threshold: Pairs with p_clean < threshold count as dropped, unless `dropped` is given.
        score: (n,) ranks pairs in place of p_clean (which may have ties); higher = better matched. A pair is left out
            if either is NaN.
        dropped: bool (n,): the verdicts, where they follow another rule.
        noise_rate: The method's own estimate of the share of wrong pairs.

    Returns:
        All metrics.

    Raises:
        ValueError: If shapes differ or p_clean lies outside [0, 1].
    """
    p_clean, wrong, known = _checked(p_clean, wrong)
    ranked = p_clean
    if score is not None:
        ranked, _, scored = _checked(score, wrong)
        known = known & scored
    if dropped is not None and np.shape(dropped) != wrong.shape:
        raise ValueError(f"dropped has shape {np.shape(dropped)}, expected {wrong.shape}")
    gone = p_clean < threshold if dropped is None else np.asarray(dropped, bool)
    truth, belief = wrong[known], p_clean[known]
    true_rate = float(truth.mean()) if len(truth) else float("nan")
    if noise_rate is None:
        noise_rate = float(1 - belief.mean()) if len(belief) else float("nan")
    return Detection(
        pairs=len(truth),
        excluded=len(wrong) - len(truth),
        noise_rate=true_rate,
        noise_rate_estimated=noise_rate,
        noise_rate_error=abs(noise_rate - true_rate),
        ranking=Ranking(
            auroc=auroc(ranked[known], truth),
            auprc=average_precision(ranked[known], truth),
            fpr_at_95_tpr=fpr_at_tpr(ranked[known], truth, tpr=0.95),
        ),
        verdicts=verdict_quality(gone[known], truth),
        calibration=calibration(belief, truth),
    )


def auroc(score: np.ndarray, wrong: np.ndarray) -> float:
    """Chance that a random wrong pair scores below a random right one; ties count half.

    Args:
        score: (n,) higher = better matched; NaN rows are left out.
        wrong: bool (n,).

    Returns:
        In [0, 1], higher = better; NaN unless both kinds exist.
    """
    from scipy.stats import rankdata

    score, wrong, known = _checked(score, wrong)
    score, wrong = score[known], wrong[known]
    positives = int(wrong.sum())
    negatives = len(wrong) - positives
    if not positives or not negatives:
        return float("nan")
    above = rankdata(score)[~wrong].sum() - negatives * (negatives + 1) / 2
    return float(above / positives / negatives)


def average_precision(score: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the precision-recall curve of wrong pairs as a sum of steps; tied scores make one step.

        AP = sum_t (recall_t - recall_{t-1}) * precision_t      over distinct scores t, worst first

    Args:
        score: (n,) higher = better matched; NaN rows are left out.
        wrong: bool (n,).

    Returns:
        In [0, 1], higher = better; NaN if no pair is wrong.
    """
    hits, misses = _curve(score, wrong)
    if not len(hits) or not hits[-1]:
        return float("nan")
    steps = np.diff(hits, prepend=0) / hits[-1]
    return float((steps * (hits / (hits + misses))).sum())


def fpr_at_tpr(score: np.ndarray, wrong: np.ndarray, *, tpr: float = 0.95) -> float:
    """Least share of right pairs that is lost when at least `tpr` of the wrong ones go; ties go together.

    Args:
        score: (n,) higher = better matched; NaN rows are left out.
        wrong: bool (n,).
        tpr: In (0, 1].

    Returns:
        In [0, 1], lower = better; NaN unless both kinds exist.
    """
    hits, misses = _curve(score, wrong)
    if not len(hits) or not hits[-1] or not misses[-1]:
        return float("nan")
    first = int(np.argmax(hits >= tpr * hits[-1] - 1e-9))
    return float(misses[first] / misses[-1])


def verdict_quality(dropped: np.ndarray, wrong: np.ndarray) -> Verdicts:
    """Precision and recall of what was dropped and of what was kept.

    Args:
        dropped: bool (n,).
        wrong: bool (n,).

    Returns:
        Shares in [0, 1], higher = better; NaN where nothing was dropped, kept, wrong or right.
    """
    dropped, wrong = np.asarray(dropped, bool), np.asarray(wrong, bool)
    if dropped.shape != wrong.shape:
        raise ValueError(f"dropped has shape {dropped.shape}, wrong has {wrong.shape}; they must be equal")
    caught, kept_right = int((dropped & wrong).sum()), int((~dropped & ~wrong).sum())
    return Verdicts(
        dropped=int(dropped.sum()),
        drop_precision=_share(caught, int(dropped.sum())),
        drop_recall=_share(caught, int(wrong.sum())),
        keep_precision=_share(kept_right, int((~dropped).sum())),
        keep_recall=_share(kept_right, int((~wrong).sum())),
    )


def calibration(p_clean: np.ndarray, wrong: np.ndarray, *, bins: int = BINS) -> Calibration:
    """Compare probabilities with frequencies.

    Args:
        p_clean: (n,) in [0, 1]; NaN rows are left out.
        wrong: bool (n,).
        bins: Number of bins, >= 1.

    Returns:
        Errors in [0, 1], NaN without pairs; and the reliability table.

    Raises:
        ValueError: If p_clean lies outside [0, 1] or bins < 1.
    """
    p_clean, wrong, known = _checked(p_clean, wrong)
    p_clean, right = p_clean[known], ~wrong[known]
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    if len(p_clean) and (p_clean.min() < 0 or p_clean.max() > 1):
        raise ValueError(f"p_clean lies in {p_clean.min()}..{p_clean.max()}, expected 0 to 1")
    edges = np.arange(bins + 1) / bins
    counts, said, seen = _means(np.searchsorted(edges[1:-1], p_clean, side="right"), p_clean, right, bins)
    table = tuple(
        Bin(low=float(edges[b]), high=float(edges[b + 1]), count=int(counts[b]), p_clean=float(said[b]),
            right=float(seen[b])) for b in range(bins)
    )  # fmt: skip
    if not len(p_clean):
        return Calibration(ece=float("nan"), ace=float("nan"), mce=float("nan"), table=table)
    order = np.sort(p_clean)
    cuts = np.unique(order[(np.arange(1, bins) * len(order)) // bins])
    adaptive = _means(np.searchsorted(cuts, p_clean, side="right"), p_clean, right, len(cuts) + 1)
    return Calibration(
        ece=_gap(counts, said, seen), ace=_gap(*adaptive), mce=float(np.nanmax(np.abs(said - seen))), table=table
    )


def _checked(score: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 score, bool truth, and where the score is known."""
    score, wrong = np.asarray(score, np.float64), np.asarray(wrong, bool)
    if score.ndim != 1 or score.shape != wrong.shape:
        raise ValueError(f"score has shape {score.shape}, wrong has {wrong.shape}; both must be (n,)")
    return score, wrong, ~np.isnan(score)


def _curve(score: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wrong and right pairs at or below each distinct score, worst score first."""
    score, wrong, known = _checked(score, wrong)
    distinct, place = np.unique(score[known], return_inverse=True)
    hits = np.bincount(place, weights=wrong[known], minlength=len(distinct)).cumsum()
    return hits, np.bincount(place, minlength=len(distinct)).cumsum() - hits


def _means(place: np.ndarray, said: np.ndarray, seen: np.ndarray, bins: int) -> tuple[np.ndarray, ...]:
    """Count, mean probability and mean outcome of each bin; NaN where it is empty."""
    counts = np.bincount(place, minlength=bins)
    safe = np.where(counts, counts, np.nan)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (said, seen)]
    return counts, sums[0] / safe, sums[1] / safe


def _gap(counts: np.ndarray, said: np.ndarray, seen: np.ndarray) -> float:
    return float(np.nansum(counts * np.abs(said - seen)) / counts.sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
