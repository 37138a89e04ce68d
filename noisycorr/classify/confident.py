"""Confident learning: which labels are wrong, and how often which class is given in place of which.

    t_k   = mean of P[i,k] over the rows with label k
    B_i   = { k : P[i,k] >= t_k };   guess_i = the only one, or the likeliest of B_i; none if B_i is empty
    C_ab  = number of rows with label a and guess b;   Q = C with its rows scaled to class counts, / n

P must come from a model that did not see the row's label: `score/discriminant.py` has one.

Source: Northcutt, Jiang and Chuang (JAIR 2021); Northcutt, Athalye and Mueller (NeurIPS 2021). The tests compare with
cleanlab. It over-counts where noise of one pair of classes nears 50 %: `Joint.warning` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from noisycorr.runtime.errors import UsageError

RULES = (
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
    "low_self_confidence", "low_normalized_margin",
)  # fmt: skip
FLOOR, SLACK, UNREACHABLE = 2e-6, 1e-6, 2.0
CHUNK = 8192  # rows at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """What confident learning counts.

    Attributes:
        threshold: (c,) mean confidence of each class; 2 for classes without a row.
        guess: int64 (n,): the class that the model is confident in, -1 = none.
        counts: int64 (c, c): C, given class (row) by guess; the diagonal is at least 1.
        calibrated: int64 (c, c): as `counts`, scaled so that row a sums to the rows of class a.
        warning: Which pair of classes is confused so much that the counts cannot be trusted, or None.
    """

    threshold: np.ndarray
    guess: np.ndarray
    counts: np.ndarray
    calibrated: np.ndarray
    warning: str | None

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels, in [0, 1]."""
        return float(1 - np.trace(self.calibrated) / max(self.calibrated.sum(), 1))


def confident_joint(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Joint:
    """Count confident disagreement.

    Args:
        probabilities: Out-of-sample, rows sum to 1.
        labels: Given classes, 0..c-1.

    Raises:
        UsageError: If shapes do not fit or a label is out of range.
    """
    return _joint(*_checked(probabilities, labels))[0]


def label_issues(
    probabilities: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    *,
    filter_by: str = "prune_by_noise_rate",
    frac_noise: float = 1.0,
    min_examples_per_class: int = 1,
) -> Bool[np.ndarray, " n"]:
    """Rows whose label looks wrong.

    Args:
        probabilities: Out-of-sample.
        labels: Given classes.
        filter_by: One of `RULES`.
        frac_noise: Share of the estimated errors to take, in (0, 1]; the rules that begin with `low_` take as many rows
            as `confident_learning` counts, the pruning rules as many as the calibrated joint says.
        min_examples_per_class: Rows of each class that pruning leaves.

    Raises:
        UsageError: If a choice is not one of those.
    """
    if filter_by not in RULES:
        raise UsageError(f"`filter_by` is {filter_by!r}, expected one of {', '.join(RULES)}.")
    if not 0 < frac_noise <= 1 or min_examples_per_class < 0:
        raise UsageError(f"frac_noise is {frac_noise}, expected above 0 and at most 1; and no negative examples.")
    p, y = _checked(np.asarray(probabilities), labels)
    if filter_by == "predicted_neq_given":
        return np.concatenate([p[part].argmax(axis=1) != y[part] for part in _chunks(len(y))])
    joint, predicted = _joint(p, y)
    counted = (joint.guess >= 0) & (joint.guess != y) & (predicted != y)
    if filter_by == "confident_learning":
        return counted
    if filter_by.startswith("low_"):
        score = self_confidence(p, y) if filter_by == "low_self_confidence" else normalized_margin(p, y)
        return _lowest(score, round(frac_noise * int(counted.sum())))
    prune = _pruned(joint.calibrated, frac_noise, min_examples_per_class)
    out = np.zeros(len(y), bool)
    order = np.argsort(y, kind="stable")
    ends = np.cumsum(np.bincount(y, minlength=p.shape[1]))
    for a, rows in enumerate(np.split(order, ends[:-1])):
        if len(rows) > min_examples_per_class:
            out[rows] = _prune(p[rows], a, prune[a], filter_by)
    return out & (predicted != y)


def label_quality(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How much the model believes each given label, in [0, 1], lower = more suspicious.

    Args:
        probabilities: Out-of-sample, rows sum to 1.
        labels: Given classes, 0..c-1.

    Raises:
        UsageError: If shapes do not fit or a label is out of range.

    Source: self-confidence (Northcutt et al., JAIR 2021; Kuan and Mueller, 2022), which cleanlab ranks by, too.
    """
    p, y = _checked(np.asarray(probabilities), labels)
    return self_confidence(p, y)


def self_confidence(p: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """P[i, y_i], in [0, 1], lower = more suspicious."""
    return p[np.arange(len(labels)), labels]


def normalized_margin(p: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """(P[i, y_i] - max_{k != y_i} P[i, k] + 1) / 2, in [0, 1], lower = more suspicious."""
    own, other = self_confidence(p, labels), np.empty(len(labels), p.dtype)
    for part in _chunks(len(labels)):
        others = p[part].copy()
        others[np.arange(len(others)), labels[part]] = -np.inf
        other[part] = others.max(axis=1)
    return (own - other + 1) / 2


def confidence_weighted_entropy(p: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """log(x + 1) / x of x = normalised entropy / self-confidence, in [0, 1], lower = more suspicious.

    Source: the rescaling is cleanlab's.
    """
    small = np.finfo(np.float64).tiny
    entropy = -(p * np.log(np.maximum(p, small))).sum(axis=1) / np.log(p.shape[1])
    x = np.maximum(entropy / np.maximum(self_confidence(p, labels), 1e-6), 1e-12)
    return np.log1p(x) / x


def overlapping_classes(joint: Joint, count: int = 20) -> list[tuple[int, int, float]]:
    """Pairs of classes by the share of all rows that are one and called the other, Q_ab + Q_ba, most confused first."""
    share = joint.calibrated / max(joint.calibrated.sum(), 1)
    both = np.triu(share + share.T, 1)
    one, two = np.nonzero(both)
    order = np.lexsort((two, one, -both[one, two]))[:count]
    return [(int(one[i]), int(two[i]), float(both[one[i], two[i]])) for i in order]


def _checked(p: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = np.asarray(labels)
    if p.ndim != 2 or len(p) != len(y) or not len(y):
        raise UsageError(f"{y.shape} labels do not fit probabilities of shape {p.shape}: one row for each label.")
    if y.min() < 0 or y.max() >= p.shape[1]:
        wrong = y[(y < 0) | (y >= p.shape[1])][0]
        raise UsageError(f"label {wrong} is outside of the {p.shape[1]} classes: leave such rows out first.")
    p = np.asarray(p)
    return p if p.dtype in (np.float32, np.float64) else p.astype(np.float64), y.astype(np.int64)


def _chunks(n: int) -> list[slice]:
    """Rows that fit into the cache together."""
    return [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]


def _joint(p: np.ndarray, y: np.ndarray) -> tuple[Joint, np.ndarray]:
    """The counts, and int64 (n,): the likeliest class of each row."""
    c = p.shape[1]
    size = np.bincount(y, minlength=c)
    mean = np.bincount(y, self_confidence(p, y), minlength=c) / np.maximum(size, 1)
    threshold = np.where(size > 0, np.maximum(mean, FLOOR), UNREACHABLE)
    predicted, guess = np.empty(len(y), np.int64), np.empty(len(y), np.int64)
    least = (threshold - SLACK).astype(p.dtype)
    for part in _chunks(len(y)):
        confident = p[part] >= least
        predicted[part] = p[part].argmax(axis=1)
        first, last = confident.argmax(axis=1), c - 1 - confident[:, ::-1].argmax(axis=1)
        some = confident[np.arange(len(first)), first]
        guess[part] = np.where(some, np.where(first == last, first, predicted[part]), -1)
    counted = guess >= 0
    counts = np.bincount(y[counted] * c + guess[counted], minlength=c * c).reshape(c, c)
    np.fill_diagonal(counts, np.maximum(np.diagonal(counts), 1))
    return Joint(threshold=threshold, guess=guess, counts=counts, calibrated=_calibrate(counts, size),
                 warning=_doubt(counts)), predicted  # fmt: skip


def _calibrate(counts: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Rows scaled to class counts, in whole numbers with the rounding error spread so that rows stay exact."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * size[:, None]
    whole = np.floor(share).astype(np.int64)
    missing = size - whole.sum(axis=1)
    order = np.argsort(-(share - whole), axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    return whole + (place < missing[:, None])


def _pruned(calibrated: np.ndarray, frac_noise: float, least: int) -> np.ndarray:
    """Rows to remove by (given, guess); the diagonal is what stays, at least `least`."""
    out = calibrated.astype(np.float64)
    size = out.sum(axis=1)
    off = out.copy()
    np.fill_diagonal(off, 0)
    off *= frac_noise
    room = np.maximum(size - least, 0)  # of a class never more than this may go
    total = off.sum(axis=1)
    off *= np.where(total > room, room / np.maximum(total, 1e-12), 1)[:, None]
    moved = np.floor(off + 1e-9).astype(np.int64)
    np.fill_diagonal(moved, (size - moved.sum(axis=1)).astype(np.int64))
    return moved


def _prune(block: Float[np.ndarray, "m c"], a: int, prune: Int[np.ndarray, " c"], rule: str) -> np.ndarray:
    """Which of the rows that were given class a are pruned.

    by class        the m - prune_a of the least P[i,a]
    by noise rate   for each b != a the prune_b of the largest P[i,b] - P[i,a]
    """
    by_rank = np.ascontiguousarray(block.T)
    out = np.ones(len(block), bool)
    if rule in ("prune_by_class", "both"):
        out &= _lowest(by_rank[a], len(block) - int(prune[a]))
    if rule in ("prune_by_noise_rate", "both"):
        any_class = np.zeros(len(block), bool)
        for b in np.flatnonzero(prune):
            if b != a:
                any_class |= _lowest(by_rank[a] - by_rank[b], int(prune[b]))
        out &= any_class
    return out


def _lowest(score: Float[np.ndarray, " m"], k: int) -> Bool[np.ndarray, " m"]:
    """The k lowest; of equal ones the first."""
    if k <= 0 or k >= len(score):
        return np.full(len(score), k > 0)
    limit = np.partition(score, k - 1)[k - 1]
    out = score < limit
    out[np.flatnonzero(score == limit)[: k - int(out.sum())]] = True
    return out


def _doubt(counts: np.ndarray) -> str | None:
    off = counts.copy()
    np.fill_diagonal(off, 0)
    enough = off.sum(axis=1) + np.diagonal(counts) >= 10
    near = off.max(axis=1) > 0.7 * np.diagonal(counts)
    found = np.flatnonzero(enough & near)
    if not len(found):
        return None
    a = int(found[np.argmax(off[found].max(axis=1) / np.diagonal(counts)[found])])
    return (
        f"in {len(found)} classes, class {a} first, one other class is guessed nearly as often as the given one: "
        "counts of such errors are not to be trusted"
    )
