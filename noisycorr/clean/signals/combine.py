"""One score from several signals, learned without labels: which weights best tell given pairs from re-paired ones?

    score = sum_q w_q * z_q + b,   w_q >= 0,   fitted by logistic regression of "given" against "re-paired"

The given pairs are a mixture of right and wrong ones and the re-paired are wrong, so the best such score is a monotone
function of the probability that a pair is right (learning from positive and unlabelled data). Weights are not negative:
a pair that looks better in any signal never gets a lower score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

PENALTY = 1e-3
NEAR_SHARE = 0.3  # of the weight of wrong pairs goes to near misses, where there are any


@dataclass(frozen=True, slots=True)
class Combined:
    """Scores and how they came about."""

    given: np.ndarray  # float32 (n,), log odds up to a constant; NaN where no signal exists
    null: np.ndarray  # float32 (m,), likewise
    weights: np.ndarray  # (q,) mean over folds, on standardised signals


def combine(
    given: Float[np.ndarray, "n q"],
    null: Float[np.ndarray, "m q"],
    fold: np.ndarray,
    null_fold: np.ndarray,
    near: np.ndarray | None = None,
) -> Combined:
    """Weigh q signals; each fold is scored with weights from the others.

    Args:
        given: Signals of the pairs, higher = better matched. A missing one (NaN) counts as the mean of the re-paired.
        null: Signals of the re-paired pairs.
        fold: int (n,).
        null_fold: int (m,).
        near: bool (m,): near misses. They share 30 % of the weight of wrong pairs, the random ones the rest; None = no
            near misses.

    Returns:
        Combined scores, higher = better matched.
    """
    present, known = np.isfinite(given).any(1), np.isfinite(null).any(1)
    centre = np.nanmean(null, axis=0)
    spread = np.maximum(np.nanstd(null, axis=0), 1e-6)
    scaled = np.nan_to_num((given - centre) / spread).astype(np.float64)
    scaled_null = np.nan_to_num((null - centre) / spread).astype(np.float64)
    share = _shares(known, near)
    score, score_null = np.zeros(len(scaled)), np.zeros(len(scaled_null))
    weights = []
    for part in np.unique(fold):
        learn, learn_null = present & (fold != part), known & (null_fold != part)
        if not learn.any() or not learn_null.any():
            learn, learn_null = present, known
        w = _logistic(scaled[learn], scaled_null[learn_null], share[learn_null])
        score[fold == part] = scaled[fold == part] @ w[:-1] + w[-1]
        score_null[null_fold == part] = scaled_null[null_fold == part] @ w[:-1] + w[-1]
        weights.append(w[:-1])
    score[~present], score_null[~known] = np.nan, np.nan
    return Combined(score.astype(np.float32), score_null.astype(np.float32), np.mean(weights, axis=0))


def _shares(known: np.ndarray, near: np.ndarray | None) -> np.ndarray:
    """Relative weight (m,) of each re-paired pair."""
    near = np.zeros(len(known), bool) if near is None else near
    close, far = known & near, known & ~near
    if not close.any() or not far.any():
        return np.ones(len(known))
    return np.where(near, NEAR_SHARE / close.sum(), (1 - NEAR_SHARE) / far.sum())


def _logistic(given: np.ndarray, null: np.ndarray, share: np.ndarray, limit: int = 100_000) -> np.ndarray:
    """Weights (q + 1,), the last one the offset; classes count equally. Every k-th row above `limit`."""
    from scipy import optimize

    given, step = given[:: max(1, len(given) // limit)], max(1, len(null) // limit)
    null, share = null[::step], share[::step]
    x = np.concatenate([given, null])
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    sign = np.concatenate([np.ones(len(given)), -np.ones(len(null))])
    mass = np.concatenate([np.full(len(given), 0.5 / len(given)), 0.5 * share / share.sum()])
    start = np.full(x.shape[1], 0.1)
    bounds = [(0.0, None)] * (x.shape[1] - 1) + [(None, None)]
    return np.asarray(
        optimize.minimize(logistic_loss, start, (x, sign, mass), jac=True, bounds=bounds, method="L-BFGS-B").x
    )


def logistic_loss(
    w: Float[np.ndarray, " q"],
    x: Float[np.ndarray, "n q"],
    sign: Float[np.ndarray, " n"],
    mass: Float[np.ndarray, " n"],
) -> tuple[float, Float[np.ndarray, " q"]]:
    """Penalised cross-entropy and its gradient.

        loss = sum_i mass_i log(1 + exp(-sign_i w . x_i)) + 0.001 * |w without the offset|^2

    Args:
        w: Weights, the last one the offset, of the constant last column of x.
        x: Rows.
        sign: 1 for given pairs, -1 for re-paired ones.
        mass: Weight of each row.
    """
    z = sign * (x @ w)
    value = mass @ np.logaddexp(0, -z) + PENALTY * (w[:-1] ** 2).sum()
    slope = -(mass * sign / (1 + np.exp(np.clip(z, -50, 50)))) @ x
    slope[:-1] += 2 * PENALTY * w[:-1]
    return float(value), slope
