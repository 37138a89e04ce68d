"""Out-of-fold class logits of any features in closed form: a linear discriminant with strong shrinkage.

    mean_c = sum_i [y_i = c] x_i / count_c,  drawn to the overall mean m by PRIOR rows
    W = (S + reg mean(diag S) I)^-1,  S the total covariance
    logit_c(x) = (x - m)^T W (mean_c - m) - |mean_c - m|_W^2 / 2

Moments of folds add up, so every row is judged by means and a covariance that its fold did not touch, for the price of
one pass. A wrong label moves a mean a little and the covariance not at all, which is why this withstands label noise
better than a network that fits each row.

Source: regularised discriminant analysis, Friedman (JASA 1989), with the total covariance, which needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

PRIOR = 1.0  # rows at the overall mean that each class is given in advance
BLOCK = 16_384

Get = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discriminant:
    """One linear map for each fold, learned on the others.

    Attributes:
        get: Rows (k,) to features float (k, d).
        fold: int (n,).
        mean: By fold, (d,).
        towards: By fold, (d, c).
        offset: By fold, (c,).
    """

    get: Get
    fold: np.ndarray
    mean: dict[int, np.ndarray]
    towards: dict[int, np.ndarray]
    offset: dict[int, np.ndarray]

    def logits(self, rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k c"]:
        """Logits up to a scale, higher = likelier; 0 for rows of zeros (nothing known) and for classes never taught."""
        x = np.asarray(self.get(rows), np.float32)
        out = np.zeros((len(rows), len(next(iter(self.offset.values())))), np.float32)
        for part in self.mean:
            mine = np.flatnonzero((self.fold[rows] == part) & x.any(axis=1))
            out[mine] = (x[mine] - self.mean[part]) @ self.towards[part] - self.offset[part]
        return out


def discriminant(
    get: Get, labels: Int[np.ndarray, " n"], fold: Int[np.ndarray, " n"], count: int, *, reg: float = 1.0
) -> Discriminant:
    """Learn the maps.

    Args:
        get: Rows (k,) to features (k, d); rows of zeros are missing and teach nothing.
        labels: Class of each row, -1 = none.
        fold: Rows of one fold are judged by the others; with a single fold by themselves.
        count: Number of classes c.
        reg: Shrinkage of the covariance, in units of its mean diagonal.
    """
    names = np.unique(fold)
    sums: dict[int, tuple[np.ndarray, ...]] = {int(part): _moments(get, labels, np.flatnonzero(fold == part), count)
                                               for part in names}  # fmt: skip
    mean, towards, offset = {}, {}, {}
    for part in sums:
        others = [value for name, value in sums.items() if name != part or len(sums) == 1]
        size, total, square, taught, mass = (np.sum([value[i] for value in others], axis=0) for i in range(5))
        centre = total / max(size, 1)
        spread = square / max(size, 1) - np.outer(centre, centre)
        spread[np.diag_indices(len(centre))] += reg * max(np.trace(spread) / len(centre), 1e-12)
        away = (taught - mass[:, None] * centre) / (mass + PRIOR)[:, None]
        solved = np.linalg.solve(spread, away.T)
        mean[part], towards[part] = centre.astype(np.float32), solved.astype(np.float32)
        offset[part] = (0.5 * (away.T * solved).sum(0)).astype(np.float32)
    return Discriminant(get=get, fold=fold, mean=mean, towards=towards, offset=offset)


def _moments(get: Get, labels: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Rows, sum, sum of squares, sum by class and rows by class of one fold."""
    from scipy import sparse

    d = np.asarray(get(rows[:1])).shape[1]
    size, total, square = np.zeros(()), np.zeros(d), np.zeros((d, d))
    taught, mass = np.zeros((count, d)), np.zeros(count)
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        x = np.asarray(get(some), np.float32)
        there = x.any(axis=1)
        x, y = x[there], labels[some][there]
        size, total, square = size + len(x), total + x.sum(0), square + x.T @ x
        known = np.flatnonzero(y >= 0)
        ones = np.ones(len(known), np.float32)
        taught += sparse.csr_matrix((ones, (y[known], known)), shape=(count, len(x))) @ x
        mass += np.bincount(y[known], minlength=count)
    return size, total, square, taught, mass
