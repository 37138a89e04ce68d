"""The small model of one picture by brute force over all states."""

from __future__ import annotations

import itertools
import math


def posterior(p: list[float], ratio: list[list[float]], rho: float, temper: float) -> list[float]:
    """Probability that each text is right."""
    m = len(p)
    total, right = 0.0, [0.0] * m
    for state in itertools.product((0, 1), repeat=m):
        weight = 1.0
        for i in range(m):
            weight *= p[i] ** temper if state[i] else (1 - p[i]) ** temper
        for i in range(m):
            for j in range(i + 1, m):
                if state[i] and state[j]:
                    weight *= ratio[i][j]
                elif not state[i] and not state[j]:
                    weight *= rho * ratio[i][j] + 1 - rho
        total += weight
        for i in range(m):
            right[i] += weight * state[i]
    return [x / total for x in right]


def evidence(p: list[float], ratio: list[list[float]], rho: float) -> float:
    """Log likelihood of the agreement of the texts under p alone."""
    m = len(p)
    total = 0.0
    for state in itertools.product((0, 1), repeat=m):
        weight = math.prod(p[i] if state[i] else 1 - p[i] for i in range(m))
        for i in range(m):
            for j in range(i + 1, m):
                if state[i] == state[j]:
                    weight *= ratio[i][j] if state[i] else rho * ratio[i][j] + 1 - rho
        total += weight
    return math.log(total)
