"""k-reciprocal re-ranking from its equations, with loops over sets: O(n^3)."""

from __future__ import annotations

import numpy as np


def rerank(points: np.ndarray, k1: int, k2: int, lam: float) -> np.ndarray:
    """Distance (n, n) of every point to every other, float64."""
    n = len(points)
    raw = np.array([[np.sum((a - b) ** 2) for b in points] for a in points])
    scaled = raw / raw.max(axis=1, keepdims=True)
    rank = [sorted(range(n), key=lambda j, i=i: (-1 if i == j else raw[i, j], j)) for i in range(n)]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in rank[i][: k + 1] if i in rank[j][: k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        near = mutual(i, k1)
        grown = set(near)
        for c in near:
            other = mutual(c, int(np.around(k1 / 2)))
            if len(other & near) > 2 / 3 * len(other):
                grown |= other
        for j in grown:
            weights[i, j] = np.exp(-scaled[i, j])
        weights[i] /= weights[i].sum()
    if k2 > 1:
        weights = np.array([np.mean([weights[j] for j in rank[i][:k2]], axis=0) for i in range(n)])
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            shared = sum(min(weights[i, m], weights[j, m]) for m in range(n))
            out[i, j] = (1 - lam) * (1 - shared / (2 - shared)) + lam * scaled[i, j]
    return out
