"""Whom to trust: the best text matches of each class are anchors, whose label nothing may change.

And the rule that keeps, changes or drops the labels of all others, given what classifier and prototypes say.

Source: CAPro (Qin et al., NeurIPS 2023), table of deviations in the docstrings below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from noisycorr.pairs import UsageError

PER_CLASS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What becomes of labels.

    Attributes:
        keep: bool (n,): False = out of the set, dropped.
        label: int64 (n,): the label that holds now; the given one where it was not changed.
        changed: bool (n,): `label` differs from the given one.
        score: float (n,): mixed probability of the given label, in [0, 1], higher = more plausible.
    """

    keep: np.ndarray
    label: np.ndarray
    changed: np.ndarray
    score: np.ndarray


def select_anchors(
    score: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], *, k: int = PER_CLASS, seed: int = 0
) -> Bool[np.ndarray, " n"]:
    """The k best matched rows of each class.

    Args:
        score: Text match of each row with its own class, higher = better; NaN = unknown, never an anchor.
        labels: Class of each row, -1 = none, never an anchor.
        k: Anchors of each class; a class of fewer known rows gives all it has. Negative: |k| at random instead of the
            best, to see what the match is worth.
        seed: Of the random choice.

    Raises:
        UsageError: If k is 0 or shapes differ.

    Differs: of equal scores the earlier row goes first; rows whose neighbourhood holds no text are never taken.
    """
    if k == 0 or score.shape != labels.shape:
        raise UsageError(f"k = {k} anchors of each class were asked of {score.shape} scores and {labels.shape} labels.")
    rank = score if k > 0 else np.where(np.isnan(score), np.nan, np.random.default_rng(seed).random(len(score)))
    known = np.flatnonzero(np.isfinite(rank) & (labels >= 0))
    order = known[np.lexsort((known, -rank[known], labels[known]))]
    place = _place_in_group(labels[order])
    out = np.zeros(len(score), bool)
    out[order[place < abs(k)]] = True
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


def noise_removal(
    classifier: Float[np.ndarray, "n c"],
    prototype: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    anchor: Bool[np.ndarray, " n"] | None = None,
    *,
    alpha: float = 0.5,
    gamma: float = 0.6,
    ood_threshold: float = 1.0,
) -> Corrected:
    """Keep, change or drop each label.

        s = alpha * classifier + (1 - alpha) * prototype,   m, h = max s
        ok  = s[y] >= ood_threshold / c  or anchor
        fix = m >= gamma and not anchor
        label = h if fix else y;    keep = ok or fix

    `fix` comes first: it is applied also where the given label is plausible.

    Args:
        classifier: Probabilities; rows sum to 1.
        prototype: Likewise, of similarities with prototypes.
        labels: Given classes, all >= 0.
        anchor: Protected rows; None = none, as in MoPro (with gamma = 0.8).
        alpha: Weight of the classifier, in [0, 1].
        gamma: Probability from which another label wins.
        ood_threshold: Plausible means at least this many times 1 / c.

    Source: CAPro's noise removal; the mixture and its two thresholds are MoPro's (Li et al., ICLR 2021).
    """
    mixed = alpha * np.asarray(classifier, np.float64) + (1 - alpha) * np.asarray(prototype, np.float64)
    anchor = np.zeros(len(mixed), bool) if anchor is None else np.asarray(anchor, bool)
    own = np.take_along_axis(mixed, labels[:, None], 1)[:, 0]
    best = mixed.argmax(axis=1)
    fix = (mixed.max(axis=1) >= gamma) & ~anchor
    keep = (own >= ood_threshold / mixed.shape[1]) | anchor | fix
    label = np.where(fix, best, labels)
    return Corrected(keep=keep, label=label, changed=label != labels, score=own)


def tag_noise_removal(
    probability: Float[np.ndarray, "n c"],
    tags: Bool[np.ndarray, "n c"],
    domain: Int[np.ndarray, "n c"] | None = None,
    *,
    gamma: float = 0.9,
) -> Int[np.ndarray, "n c"]:
    """Targets of several labels for each row: 1, 0, or -1 = leave out of the loss.

        clean = p >= 1/c where the tag is given, 1 - p >= 1/c where it is not
        flip to 1 if p >= gamma, to 0 if 1 - p >= gamma;  anchors keep their target

    Args:
        probability: Mixed probability of each tag.
        tags: Given labels, or targets of `select_tag_anchors`.
        domain: Anchors of `select_tag_anchors`, None = none.
        gamma: Probability from which a tag is flipped.

    Source: CAPro's multi-label variant.
    """
    p, tags = np.asarray(probability, np.float64), np.asarray(tags, bool)
    kept = np.zeros(p.shape, bool) if domain is None else np.asarray(domain) != 0
    own = np.where(tags, p, 1 - p)
    out = np.where(own >= 1 / p.shape[1], tags.astype(np.int8), -1)
    out = np.where(p >= gamma, 1, np.where(1 - p >= gamma, 0, out))
    return np.where(kept, tags, out).astype(np.int8)


def _place_in_group(sorted_groups: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal values."""
    if not len(sorted_groups):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_groups) != 0])
    return np.arange(len(sorted_groups)) - np.repeat(starts, np.diff(np.r_[starts, len(sorted_groups)]))
