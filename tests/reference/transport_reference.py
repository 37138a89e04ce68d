"""Transport as slow loops: entropic plans by scaling rows and columns in turn, on plain lists."""

from __future__ import annotations

import math


def scale(kernel: list[list[float]], rows: list[float], columns: list[float], rounds: int) -> list[list[float]]:
    """The plan u_i k_ij v_j whose rows and columns hold their mass."""
    u, v = [1.0] * len(rows), [1.0] * len(columns)
    for _ in range(rounds):
        for i, mass in enumerate(rows):
            held = sum(k * w for k, w in zip(kernel[i], v))
            u[i] = mass / held if held else 0.0
        for j, mass in enumerate(columns):
            held = sum(kernel[i][j] * u[i] for i in range(len(rows)))
            v[j] = mass / held if held else 0.0
    return [[u[i] * kernel[i][j] * v[j] for j in range(len(columns))] for i in range(len(rows))]


def gibbs(cost: list[list[float]], reg: float) -> list[list[float]]:
    return [[math.exp(-c / reg) for c in row] for row in cost]


def partial_plan(cost, mass: float, reg: float, forbidden, rounds: int) -> list[list[float]]:
    """By dummy points as published, at cost 100 c and 201 c between them, with c the largest cost; reg >= 0.3 c."""
    n, m = len(cost), len(cost[0])
    top = max(max(row) for row in cost)
    kernel = gibbs(cost, reg)
    dummy = math.exp(-100 * top / reg)
    for i in range(n):
        kernel[i] = [0.0 if forbidden and forbidden[i][j] else kernel[i][j] for j in range(m)] + [dummy]
    kernel.append([dummy] * m + [math.exp(-(200 * top + top) / reg)])
    plan = scale(kernel, [1 / n] * n + [1 - mass], [1 / m] * m + [1 - mass], rounds)
    return [row[:m] for row in plan[:n]]


def assignment(logits, reg: float, rounds: int) -> list[list[float]]:
    """Balanced classes without any normalisation of the logits."""
    b, c = len(logits), len(logits[0])
    plan = scale(gibbs([[-x for x in row] for row in logits], reg), [1.0] * b, [b / c] * c, rounds)
    return [[x / sum(row) for x in row] for row in plan]
