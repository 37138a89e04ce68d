"""Signals about pairs as slow loops, written from their equations. None stands for what cannot be computed."""

from __future__ import annotations

import math

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b))


def unit(a: Vector) -> Vector:
    length = math.sqrt(dot(a, a))
    return [x / length for x in a] if length > 0 else list(a)


def cosine(a: Vector, b: Vector) -> float | None:
    if not any(a) or not any(b):
        return None
    return dot(unit(a), unit(b))


def margin(asking: Vector, asked: Vector, rivals: list[Vector], temperature: float) -> float | None:
    """Log odds of one partner against others, all of them of unit length; None if a side is missing."""
    if not any(asking) or not any(asked) or not rivals:
        return None
    total = sum(math.exp(dot(asking, rival) / temperature) for rival in rivals)
    return dot(asking, asked) / temperature - math.log(total)


def mean_present(rows: list[Vector]) -> Vector:
    there = [row for row in rows if any(row)]
    return [sum(row[d] for row in there) / max(len(there), 1) for d in range(len(rows[0]))]


def consensus(
    side: list[Vector], partner: list[Vector], i: int, k: int, trust: Vector, group: list[int]
) -> Vector | None:
    """What the partners of the k nearest rows have in common; None if there is no witness."""
    near = sorted((-dot(unit(side[i]), unit(row)), j) for j, row in enumerate(side) if j != i and any(row))[:k]
    mean = mean_present(partner)
    total = [0.0] * len(mean)
    witnesses = 0
    for negative, j in near:
        share = trust[j] * max(-negative, 0.0) ** 4
        if not any(side[i]) or group[j] == group[i] or not any(partner[j]) or share == 0:
            continue
        witnesses += 1
        total = [old + share * (x - m) for old, x, m in zip(total, partner[j], mean)]
    return unit(total) if witnesses else None


def combined_loss(w: Vector, given: list[Vector], null: list[Vector], penalty: float) -> float:
    """Cross-entropy with both kinds at the same weight in all; the last weight is the offset."""
    total = penalty * sum(x * x for x in w[:-1])
    for rows, sign in ((given, 1), (null, -1)):
        for row in rows:
            total += 0.5 / len(rows) * math.log(1 + math.exp(-sign * (dot(w[:-1], row) + w[-1])))
    return total


def gradient(loss, w: Vector, step: float = 1e-6) -> Vector:
    """By central differences."""
    out = []
    for place in range(len(w)):
        up, down = list(w), list(w)
        up[place], down[place] = up[place] + step, down[place] - step
        out.append((loss(up) - loss(down)) / (2 * step))
    return out
