"""Slow loops written from the equations of TransCLIP, ZLaP, balanced classes and neighbours' labels."""

from __future__ import annotations

import math

import numpy as np


def unit(rows: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt(sum(value**2 for value in row)) for row in np.asarray(rows, np.float64)])


def softmax(row: np.ndarray) -> np.ndarray:
    top = max(row)
    parts = [math.exp(value - top) for value in row]
    return np.array(parts) / sum(parts)


def zero_shot(image: np.ndarray, text: np.ndarray, scale: float) -> np.ndarray:
    x, t = unit(image), unit(text)
    return np.stack([softmax(np.array([scale * float(row @ one) for one in t])) for row in x])


def nearest(x: np.ndarray, k: int) -> np.ndarray:
    """W (n, n): cosine of the k nearest others of each row, else 0."""
    out = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        order = sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(x[i] @ x[j]))
        for j in order[:k]:
            out[i, j] = x[i] @ x[j]
    return out


def transclip(image: np.ndarray, text: np.ndarray, scale: float, k: int, blocks: int, sweeps: int,
              keep: float) -> np.ndarray:  # fmt: skip
    x, y = unit(image), zero_shot(image, text, scale)
    (n, d), c = x.shape, len(text)
    w, z = nearest(x, k), y.copy()
    mu = []
    for one in range(c):
        top = sorted(range(n), key=lambda i: -z[i, one])[:8]
        mu.append(sum(z[i, one] * x[i] for i in top))
    mu, v = unit(np.stack(mu)), np.full(d, 1 / d)
    for block in range(blocks + 1):
        g = np.array([[-0.5 * sum((x[i, a] - mu[o, a]) ** 2 / v[a] for a in range(d)) for o in range(c)]
                      for i in range(n)])  # fmt: skip
        for _ in range(sweeps):
            pull = np.array([sum((w[j, i] + w[i, j]) * z[j] for j in range(n)) for i in range(n)])
            new = np.empty_like(z)
            for i in range(n):
                new[i] = softmax(keep * np.log(y[i]) + (g[i] + 50 / 6 * pull[i]) / 50)
            z = new
        if block == blocks:
            return z
        mu = unit(np.stack([sum(z[i, o] * x[i] for i in range(n)) for o in range(c)]))
        v = np.array([sum(z[i, o] * (x[i, a] - mu[o, a]) ** 2 for i in range(n) for o in range(c)) for a in range(d)])
        v = np.maximum(v / z.sum(), 1e-8)
    raise AssertionError


def zlap_graph(image: np.ndarray, text: np.ndarray, k: int, power: float) -> np.ndarray:
    """W over c class nodes, then n image nodes."""
    x, t = unit(image), unit(text)
    n, c = len(x), len(t)
    a = np.zeros((n + c, n + c))
    a[c:, c:] = np.maximum(nearest(x, k), 0)
    for i in range(n):
        for o in sorted(range(c), key=lambda o: -float(x[i] @ t[o]))[:k]:
            a[c + i, o] = max(float(x[i] @ t[o]), 0) ** power
    w = a + a.T
    np.fill_diagonal(w, 0)
    return w


def zlap(image: np.ndarray, text: np.ndarray, k: int, power: float, alpha: float) -> np.ndarray:
    w, c = zlap_graph(image, text, k, power), len(text)
    degree = w.sum(1)
    s = w / np.sqrt(np.outer(degree, degree))
    z = np.linalg.inv(np.eye(len(w)) - alpha * s)[c:, :c]
    return z / z.sum(1, keepdims=True)


def balanced(chances: np.ndarray, prior: np.ndarray, rounds: int) -> np.ndarray:
    g = np.array(chances, np.float64)
    for _ in range(rounds):
        for o in range(g.shape[1]):
            g[:, o] *= len(g) * prior[o] / g[:, o].sum()
        for i in range(len(g)):
            g[i] /= g[i].sum()
    return g


def neighbor_labels(chances: np.ndarray, image: np.ndarray, k: int, sharp: float) -> np.ndarray:
    w = nearest(unit(image), k)
    out = []
    for i in range(len(w)):
        weight = [math.exp(sharp * (w[i, j] - 1)) if w[i, j] != 0 else 0.0 for j in range(len(w))]
        out.append(sum(weight[j] * chances[j] for j in range(len(w))) / sum(weight))
    return np.stack(out)
