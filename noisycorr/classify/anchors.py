"""Whom to trust: the best text matches of each class are anchors, whose label nothing may change.

The rule that keeps, changes or drops the labels of all others in training is in `webly/cleaning.py`.

Source: CAPro (Qin et al., NeurIPS 2023), table of deviations in the docstrings below.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from noisycorr.runtime.errors import UsageError

PER_CLASS = 50


def select_anchors(
    score: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    *,
    k: int = PER_CLASS,
    share: float = 1.0,
    seed: int = 0,
) -> Bool[np.ndarray, " n"]:
    """The k best matched rows of each class.

    Args:
        score: Text match of each row with its own class, higher = better; NaN = unknown, never an anchor.
        labels: Class of each row, -1 = none, never an anchor.
        k: Anchors of each class; a class of fewer known rows gives all it has. Negative: |k| at random instead of the
            best, to see what the match is worth.
        share: Of the rows of a class, at most, but one row at least; 1 = no bound, as released.
        seed: Of the random choice.

    Raises:
        UsageError: If k is 0, share is not in (0, 1], or shapes differ.

    Differs: of equal scores the earlier row goes first; rows whose neighbourhood holds no text are never taken.
    """
    if k == 0 or not 0 < share <= 1 or score.shape != labels.shape:
        raise UsageError(f"k = {k} anchors of each class, at most {share:g} of it (expected: k not 0, share above 0 "
                         f"and at most 1), were asked of {score.shape} scores and {labels.shape} labels.")  # fmt: skip
    rank = score if k > 0 else np.where(np.isnan(score), np.nan, np.random.default_rng(seed).random(len(score)))
    known = np.flatnonzero(np.isfinite(rank) & (labels >= 0))
    order = known[np.lexsort((known, -rank[known], labels[known]))]
    size = np.bincount(labels[labels >= 0])
    most = np.maximum(np.minimum(abs(k), np.round(share * size)), 1)
    out = np.zeros(len(score), bool)
    out[order[_place_in_group(labels[order]) < most[labels[order]]]] = True
    return out


def select_tag_anchors(
    score: Float[np.ndarray, "n c"], tags: Bool[np.ndarray, "n c"], *, k: int = PER_CLASS, faithful: bool = False
) -> tuple[Int[np.ndarray, "n c"], Bool[np.ndarray, "n c"]]:
    """Anchors of several labels for each row, with protected negatives.

    Among the rows that carry tag c the k best matches are positive anchors, the k worst negative ones. Where a class
    has fewer than 2 k rows, the better half is positive: no row is both.

    Args:
        score: Text match of each row with each class, NaN = unknown.
        tags: Given labels.
        k: Anchors of each kind and class.
        faithful: Released behaviour: the target of a negative anchor stays 1, so that the worst matches are protected
            *as positives*. Else it becomes 0.

    Returns:
        int8 (n, c): 1 positive anchor, -1 negative anchor, 0 neither (`!= 0` = protected from correction); and the
        targets, bool (n, c).

    Raises:
        UsageError: If shapes differ, k < 1, or not a single row carries a tag.
    """
    tags = np.asarray(tags, bool)
    if k < 1 or score.shape != tags.shape:
        raise UsageError(f"k = {k} anchors of each class were asked of scores {score.shape} and labels {tags.shape}.")
    if not tags.any():
        raise UsageError("not a single row carries a label: there is nothing to choose anchors from.")
    domain = np.zeros(tags.shape, np.int8)
    for column in range(tags.shape[1]):
        rows = np.flatnonzero(tags[:, column] & np.isfinite(score[:, column]))
        order = rows[np.argsort(-score[rows, column], kind="stable")]
        best = min(k, (len(order) + 1) // 2) if len(order) < 2 * k else k
        domain[order[:best], column] = 1
        domain[order[best:][-k:], column] = -1
    return domain, tags if faithful else tags & (domain >= 0)


def named_classes(
    best: Int[np.ndarray, " n"],
    best_score: Float[np.ndarray, " n"],
    own: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    anchors: Bool[np.ndarray, " n"],
    count: int,
) -> Int[np.ndarray, " n"]:
    """The class that each completed text names, so surely that it may speak against a label.

        out_i = best_i   if best_score_i is at least the lowest own match among the anchors of that class

    The bar is set by the texts of anchors, for each class anew; no truth and no number to choose is in it.

    Args:
        best: Class whose definition fits best, -1 = unknown.
        best_score: How well, higher = better.
        own: Match with the own class.
        labels: As they came, -1 = none.
        anchors: Trusted rows, of `select_anchors`.
        count: Number of classes c.

    Returns:
        int64 (n,), -1 = names none; classes that nobody is trusted of are never named.
    """
    bar = np.full(count, np.inf)
    np.minimum.at(bar, labels[anchors], own[anchors])
    known = best >= 0
    return np.where(known & (np.nan_to_num(best_score, nan=-np.inf) >= bar[np.maximum(best, 0)]), best, -1)


def teaching_labels(
    labels: Int[np.ndarray, " n"], named: Int[np.ndarray, " n"], *, fewest: int = 3
) -> Int[np.ndarray, " n"]:
    """Labels of the rows that may teach what a class looks like: not of those whose text surely names another class.

    Where most pictures of a class carry another's label, whatever learns from labels learns the wrong class; the text
    has not seen the labels.

    Args:
        labels: As they came, -1 = none.
        named: Of `named_classes`.
        fewest: A class that would keep fewer teachers keeps all it has.

    Returns:
        int64 (n,), -1 = does not teach.
    """
    doubted = (labels >= 0) & (named >= 0) & (named != labels)
    left = np.bincount(labels[(labels >= 0) & ~doubted], minlength=int(labels.max(initial=0)) + 1)
    return np.where(doubted & (left[np.maximum(labels, 0)] >= fewest), -1, labels)


def _place_in_group(sorted_groups: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal values."""
    if not len(sorted_groups):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_groups) != 0])
    return np.arange(len(sorted_groups)) - np.repeat(starts, np.diff(np.r_[starts, len(sorted_groups)]))
