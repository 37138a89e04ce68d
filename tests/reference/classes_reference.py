"""Label noise of classes as slow loops, written from the equations."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = sum(math.exp(x - top) for x in row)
    return [math.exp(x - top) / total for x in row]


def score(logits: list[float], spread: Matrix, given: int) -> float:
    """log p(y | x) - log sum_c p(c | x) T(c, y)."""
    p = softmax(logits)
    return math.log(p[given]) - math.log(sum(p[c] * spread[c][given] for c in range(len(p))))


def p_clean(logits: list[float], spread: Matrix, given: int, eta: float) -> float:
    """(1 - eta) p(y | x) / P(y | x), by Bayes."""
    p = softmax(logits)
    other = sum(p[c] * spread[c][given] for c in range(len(p)))
    return (1 - eta) * p[given] / ((1 - eta) * p[given] + eta * other)


def confusions(label: list[int], gap: list[float], given: list[int], count: list[int], smooth: float) -> Matrix:
    """T from the surer half, with some contradictions in advance."""
    half = sorted(range(len(gap)), key=lambda i: -gap[i])[: max(1, len(gap) // 2)]
    total = sum(count)
    out = [[smooth * count[y] / total for y in range(len(count))] for _ in count]
    for i in half:
        out[label[i]][given[i]] += 1
    for c in range(len(count)):
        out[c][c] = 0.0
        whole = sum(out[c])
        out[c] = [x / whole for x in out[c]]
    return out
