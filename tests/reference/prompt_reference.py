"""Slow loops written from the rules of the selectors and the equations of the losses."""

from __future__ import annotations

import math

import numpy as np


def exclusive(p: np.ndarray, capacity: np.ndarray) -> list[tuple[int, int]]:
    """Walk over all pairs, the highest first; ties by row, then by class."""
    pairs = sorted((-p[i, c], i, c) for i in range(len(p)) for c in range(p.shape[1]))
    taken: dict[int, int] = {}
    room = list(capacity)
    for _, i, c in pairs:
        if i not in taken and room[c] > 0:
            taken[i] = c
            room[c] -= 1
    return sorted(taken.items())


def leaderboard(p: np.ndarray, k: int) -> list[list[int]]:
    """Lists of rows, filled as the released rule says, step by step."""
    boards: list[list[tuple[float, int]]] = [[] for _ in range(p.shape[1])]

    def offer(c: int, i: int) -> bool:
        if len(boards[c]) < k:
            boards[c].append((p[i, c], i))
            return True
        if boards[c][-1][0] < p[i, c]:
            boards[c].append((p[i, c], i))
            boards[c] = sorted(boards[c], key=lambda entry: entry[0], reverse=True)[:k]
            return True
        return False

    for i in range(len(p)):
        top = int(np.argmax(p[i]))
        if not offer(top, i):
            for c in np.argsort(-p[i]):
                if c != top:
                    offer(int(c), i)
    return [[i for _, i in board] for board in boards]


def softmax(row: list[float]) -> list[float]:
    """Of one row."""
    powers = [math.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def gce(row: list[float], target: list[float], q: float) -> float:
    """sum_c t_c (1 - p_c^q) / q."""
    return sum(t * (1 - p**q) / q for t, p in zip(target, softmax(row)))


def elr(row: list[float], target: list[float], bank: list[float], strength: float) -> float:
    """CE + strength * ln(1 - <bank, p>)."""
    p = softmax(row)
    return -sum(t * math.log(x) for t, x in zip(target, p) if t) + strength * math.log(
        1 - sum(b * x for b, x in zip(bank, p))
    )


def candidates(p: np.ndarray, alpha: float, beta: float) -> list[set[int]]:
    """Candidate set of each row."""
    level = float(np.quantile([max(row) for row in p], alpha))
    floors = [float(np.quantile(p[:, c], beta)) for c in range(p.shape[1])]
    out = []
    for row in p:
        inside, total = set(), 0.0
        for c in sorted(range(len(row)), key=lambda c: -row[c]):
            inside.add(c)
            total += row[c]
            if total > level:
                break
        out.append({c for c in inside if row[c] >= floors[c]})
    return out
