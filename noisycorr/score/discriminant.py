"""Out-of-fold class probabilities of any features in closed form: a linear discriminant with strong shrinkage.

    mean_c = sum_i w_ic x_i / sum_i w_ic,  shrunk to the overall mean by PRIOR rows
    S      = total covariance;  W = (S + reg mean(diag S) I)^-1;  logit_c(x) = (x - m)^T W (mean_c - m) - 1/2 |.|_W^2

Moments of folds add up, so every row is judged by means and a covariance that its fold did not touch, for the price of
one pass. A wrong label moves a mean a little and the covariance not at all, which is why this withstands label noise
better than a network that fits each row.

Source: regularised discriminant analysis, Friedman (JASA 1989), with the total covariance, which needs no labels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

PRIOR = 1.0  # rows at the overall mean that each class is given in advance


def class_logits(
    features: Float[np.ndarray, "n d"],
    weight: Float[np.ndarray, "n c"] | Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    count: int,
    *,
    reg: float = 1.0,
) -> Float[np.ndarray, "n c"]:
    """Logits up to a scale, higher = likelier, of each row by the other folds.

    Args:
        features: Centred and of moderate width, for example of `crossfit.reduce_width`.
        weight: Class of each row, -1 = none; or how much each row teaches each class, in [0, 1].
        fold: Rows of one fold are judged by the others.
        count: Number of classes c.
        reg: Shrinkage of the covariance, in units of its mean diagonal.

    Returns:
        float32 (n, c). A class that no other fold teaches has the logit of the overall mean, 0.
    """
    x = np.asarray(features, np.float32)
    n, d = x.shape
    names = np.unique(fold)
    sums, mass = np.zeros((len(names), count, d)), np.zeros((len(names), count))
    total, square, rows = np.zeros((len(names), d)), np.zeros((len(names), d, d)), np.zeros(len(names))
    for i, part in enumerate(names):
        mine = np.flatnonzero(fold == part)
        teach = _one_hot(weight[mine], count)
        sums[i], mass[i] = teach.T @ x[mine], np.asarray(teach.sum(axis=0)).ravel()
        total[i], square[i], rows[i] = x[mine].sum(0), x[mine].T @ x[mine], len(mine)
    out = np.zeros((n, count), np.float32)
    for i, part in enumerate(names):
        others = np.arange(len(names)) != i if len(names) > 1 else np.ones(1, bool)
        size = max(rows[others].sum(), 1)
        mean = total[others].sum(0) / size
        spread = square[others].sum(0) / size - np.outer(mean, mean)
        spread[np.diag_indices(d)] += reg * max(np.trace(spread) / d, 1e-12)
        known = mass[others].sum(0)
        centre = (sums[others].sum(0) - known[:, None] * mean) / (known + PRIOR)[:, None]
        towards = np.linalg.solve(spread, centre.T)  # (d, c)
        offset = 0.5 * (centre.T * towards).sum(0)
        mine = np.flatnonzero(fold == part)
        out[mine] = (x[mine] - mean) @ towards - offset
    return out


def _one_hot(weight: np.ndarray, count: int):  # type: ignore[no-untyped-def]
    if weight.ndim == 2:
        return weight
    from scipy import sparse

    rows = np.flatnonzero(weight >= 0)
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, weight[rows])), shape=(len(weight), count))
