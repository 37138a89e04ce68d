"""Cross-fitted heads as slow loops and as the generalised eigenproblem that canonical correlation is."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

Rows = list[list[float]]


def moments(x: Rows, t: Rows, weight: list[float], fold: list[int], part: int) -> dict[str, np.ndarray | float]:
    """Weighted sums over the pairs of one fold, number by number."""
    d, e = len(x[0]), len(t[0])
    out: dict = {"weight": 0.0, "x": np.zeros(d), "t": np.zeros(e)}
    out |= {"xx": np.zeros((d, d)), "tt": np.zeros((e, e)), "xt": np.zeros((d, e))}
    for a, b, w, where in zip(x, t, weight, fold):
        if where != part:
            continue
        out["weight"] += w
        for i in range(d):
            out["x"][i] += w * a[i]
            for j in range(d):
                out["xx"][i, j] += w * a[i] * a[j]
            for j in range(e):
                out["xt"][i, j] += w * a[i] * b[j]
        for i in range(e):
            out["t"][i] += w * b[i]
            for j in range(e):
                out["tt"][i, j] += w * b[i] * b[j]
    return out


def similarity_kernel(x: np.ndarray, t: np.ndarray, weight: np.ndarray, reg: float, power: float) -> np.ndarray:
    """(d, e) matrix K of the bilinear similarity (x - mean)' K (t - mean), by generalised eigenvectors.

    S_xt S_tt'^-1 S_tx a = c^2 S_xx' a,   a' S_xx' a = 1,   b = S_tt'^-1 S_tx a / c,   K = sum c^power a b'
    """
    w = weight / weight.sum()
    x, t = x - w @ x, t - w @ t
    xx, tt, xt = (x * w[:, None]).T @ x, (t * w[:, None]).T @ t, (x * w[:, None]).T @ t
    xx = xx + reg * np.trace(xx) / len(xx) * np.eye(len(xx))
    tt = tt + reg * np.trace(tt) / len(tt) * np.eye(len(tt))
    squares, vectors = eigh(xt @ np.linalg.solve(tt, xt.T), xx)
    kernel = np.zeros(xt.shape)
    for square, a in zip(squares, vectors.T):
        if square > 1e-12:
            c = square**0.5
            kernel += c**power * np.outer(a, np.linalg.solve(tt, xt.T @ a) / c)
    return kernel


def principal(rows: np.ndarray, width: int) -> np.ndarray:
    """Centred rows in their leading principal components, scaled to a mean squared length of 1; signs are free."""
    centred = rows - rows.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    moved = centred @ directions[:width].T
    return moved / np.sqrt((moved**2).sum(1).mean())


def auroc(higher: np.ndarray, lower: np.ndarray) -> float:
    won = sum((a > b) + (a == b) / 2 for a in higher.tolist() for b in lower.tolist())
    return won / (len(higher) * len(lower))
