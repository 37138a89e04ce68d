"""Doubts about labels that need no text: votes of similar pictures, small loss, and a linear look at the picture.

`linear_split` is the detector of LSA: pictures out of the set lie on one side of a plane of the features, which small
loss cannot see; the two disagree usefully, so they take turns.

Source: LSA (Albert et al., WACV 2024) and PLS (Albert et al., 2023). Differs: the plane is learned on other folds than
it judges and is slightly penalised (released: none), the mixture is monotone (`faithful=True`: as released).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import Neighbors
from noisycorr.stats.mixture import fit_gaussian

BLOCK = 8192


def knn_vote(
    found: Neighbors,
    labels: Int[np.ndarray, " n"],
    count: int,
    *,
    group: Int[np.ndarray, " n"] | None = None,
    trust: Float[np.ndarray, " n"] | None = None,
    power: float = 1.0,
    rows: np.ndarray | None = None,
) -> Float[np.ndarray, "m c"]:
    """Share of the votes of similar pictures for each class.

        v_ic = ( sum_k w_ik [y_k = c] + prior_c ) / ( sum_k w_ik + 1 ),    w_ik = trust_k max(s_ik, 0)^power

    Args:
        found: Neighbours of every row; the row itself is not among them.
        labels: Class of each row, -1 = has no vote.
        count: Number of classes c.
        group: Rows of one group (the same picture) are no witnesses for each other.
        trust: Weight of each voter, in [0, 1]; None = 1.
        power: Of the similarity; 0 = every neighbour counts alike.
        rows: Ask for these rows only; None = all.

    Returns:
        float32 (m, c): rows sum to 1; the prior, one vote in all, is how common each class is.
    """
    rows = np.arange(len(found.ids)) if rows is None else rows
    prior = np.bincount(labels[labels >= 0], minlength=count) / max(1, int((labels >= 0).sum()))
    out = np.empty((len(rows), count), np.float32)
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        ids = found.ids[some]
        safe = np.maximum(ids, 0)
        good = (ids >= 0) & (labels[safe] >= 0)
        if group is not None:
            good &= group[safe] != group[some][:, None]
        weight = np.where(good, np.maximum(np.nan_to_num(found.similarity[some]), 0) ** power, 0)
        weight = weight if trust is None else weight * trust[safe]
        votes = np.tile(prior, (len(some), 1))
        np.add.at(votes, (np.repeat(np.arange(len(some)), ids.shape[1]), np.maximum(labels[safe], 0).ravel()),
                  weight.ravel())  # fmt: skip
        out[start : start + BLOCK] = votes / votes.sum(axis=1, keepdims=True)
    return out


def small_loss(loss: Float[np.ndarray, " n"], *, seed: int, faithful: bool = False) -> Float[np.ndarray, " n"]:
    """Probability that a label is right, by two Gaussians on its loss; the lower one is right.

    Args:
        loss: Higher = worse; NaN gets 0.
        seed: Of the fit.
        faithful: As in the released code of PLS: min-max scaled, at most 10 rounds, tolerance 0.01, variance + 5e-4.
    """
    known = np.isfinite(loss)
    out = np.zeros(len(loss), np.float32)
    if known.sum() < 20 or np.ptp(loss[known]) == 0:
        return known.astype(np.float32)
    if not faithful:
        low, high = np.quantile(loss[known], [0.005, 0.995])
        inside = -np.clip(loss, low, high if high > low else loss[known].max())
        out[known] = fit_gaussian(inside[known], seed=seed)(inside[known])
        return out
    from sklearn.mixture import GaussianMixture

    scaled = ((loss[known] - loss[known].min()) / np.ptp(loss[known]))[:, None]
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(scaled)
    out[known] = model.predict_proba(scaled)[:, int(np.argmin(model.means_[:, 0]))]
    return out


def linear_split(
    features: Float[np.ndarray, "n d"],
    right: Bool[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    *,
    faithful: bool = False,
) -> Float[np.ndarray, " n"]:
    """Probability that a picture is of the set, by a plane between the rows that look right and those that do not.

    Args:
        features: Of the pictures, standardised here.
        right: Provisional judgement of each row, for example of `small_loss`.
        fold: Rows of one fold are judged by the plane of the others.
        faithful: One plane for all, judged where it was learned, with hardly any penalty.

    Returns:
        float32 (n,) in [0, 1], higher = in the set. 0.5 throughout where all rows look alike.

    Raises:
        UsageError: If shapes differ.
    """
    from sklearn.linear_model import LogisticRegression

    if not len(features) == len(right) == len(fold):
        raise UsageError(f"{len(features)} features, {len(right)} judgements and {len(fold)} folds do not fit.")
    x = np.asarray(features, np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    out = np.full(len(x), 0.5, np.float32)
    for part in np.zeros(1, int) if faithful else np.unique(fold):
        judged = np.ones(len(x), bool) if faithful else fold == part
        learn = np.ones(len(x), bool) if faithful or judged.all() else ~judged
        if len(np.unique(right[learn])) < 2:
            continue
        strength = 1e6 if faithful else 0.01
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=200).fit(x[learn], right[learn])
        out[judged] = model.predict_proba(x[judged])[:, 1]
    return out
