"""Mixtures and calibration as slow loops, written from their equations."""

from __future__ import annotations

import itertools
import math


def share_below(values: list[float], limit: float) -> float:
    return sum(value <= limit for value in values) / len(values)


def quantile(values: list[float], q: float) -> float:
    """Linear between the order statistics."""
    order = sorted(values)
    place = q * (len(order) - 1)
    low = math.floor(place)
    high = min(low + 1, len(order) - 1)
    return order[low] + (place - low) * (order[high] - order[low])


def null_share(given: list[float], null: list[float]) -> float:
    """F_given(t) / F_null(t) at the quantile of the null scores with the least estimated mean squared error."""
    shares, variances = [], []
    start = min(max(0.05, 20 / len(given)), 0.5)
    for step in range(37):
        limit = quantile(null, start + (0.95 - start) * step / 36)
        below, reached = share_below(given, limit), share_below(null, limit)
        share = below / reached
        shares.append(share)
        smooth = (below * len(given) + 1) / (len(given) + 2)
        variances.append(
            smooth * (1 - smooth) / (len(given) * reached**2) + share**2 * (1 - reached) / (reached * len(null))
        )
    target = quantile(shares, 0.1)
    errors = [variance + (share - target) ** 2 for variance, share in zip(variances, shares)]
    return min(1.0, max(0.0, shares[errors.index(min(errors))]))


def pool_adjacent_violators(values: list[float], weights: list[float]) -> list[float]:
    """The nearest sequence that never decreases, by weighted squares; neighbours equal up to rounding are one block."""
    blocks: list[list[float]] = []  # mean, weight, count
    for value, weight in zip(values, weights):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0] - 1e-9:
            mean, mass, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * mass) / (before[1] + mass)
            before[1] += mass
            before[2] += count
    return [mean for mean, _, count in blocks for _ in range(int(count))]


def p_clean_null(given: list[float], null: list[float], eta: float, bins: int) -> tuple[list[float], list[float]]:
    """Centres of the pooled bins, and 1 - eta * f_null / f_given in each; the scores must all be different.

    Both kinds of pairs have the same weight in all, bins the same number of points.
    """
    points = sorted([(s, 1.0, 0.5 / len(given)) for s in given] + [(s, 0.0, 0.5 / len(null)) for s in null])
    edges = [int(len(points) * b / bins) for b in range(bins + 1)]
    centres, shares, masses = [], [], []
    for start, stop in itertools.pairwise(edges):
        mass = sum(w for _, _, w in points[start:stop])
        centres.append(sum(s * w for s, _, w in points[start:stop]) / mass)
        shares.append(sum(label * w for _, label, w in points[start:stop]) / mass)
        masses.append(mass)
    pooled = [min(max(share, 1e-6), 1 - 1e-6) for share in pool_adjacent_violators(shares, masses)]
    score, p_clean = [], []
    for value in sorted(set(pooled)):
        inside = [b for b in range(bins) if pooled[b] == value]
        mass = sum(masses[b] for b in inside)
        score.append(sum(masses[b] * centres[b] for b in inside) / mass)
        p_clean.append(min(1.0, max(0.0, 1 - eta * (1 - value) / value)))
    return score, p_clean


def beta_posterior(x: float, a: list[float], b: list[float], weight: list[float]) -> list[float]:
    """Share of each component in the density at x in (0, 1)."""
    density = [
        w * x ** (p - 1) * (1 - x) ** (q - 1) * math.gamma(p + q) / (math.gamma(p) * math.gamma(q))
        for p, q, w in zip(a, b, weight)
    ]
    return [value / sum(density) for value in density]


def gaussian_posterior(x: float, mean: list[float], deviation: list[float], weight: list[float]) -> list[float]:
    density = [w * math.exp(-((x - m) ** 2) / (2 * s * s)) / s for m, s, w in zip(mean, deviation, weight)]
    return [value / sum(density) for value in density]


def labels_loss(theta: tuple[float, float, float], p: list[float], z: list[float], right: list[bool]) -> float:
    """Cross-entropy of judged pairs under logit p' = a logit p + b z + c, and the penalty that keeps (1, 0, 0)."""
    a, b, c = theta
    total = 5 * ((a - 1) ** 2 + b**2 + c**2 / 4)
    for before, place, ok in zip(p, z, right):
        clipped = min(max(before, 0.01), 0.99)
        after = 1 / (1 + math.exp(-(a * math.log(clipped / (1 - clipped)) + b * place + c)))
        total -= math.log(after if ok else 1 - after)
    return total


def interpolate(x: float, knots: list[float], values: list[float]) -> float:
    if x <= knots[0]:
        return values[0]
    for left, right, low, high in zip(knots[:-1], knots[1:], values[:-1], values[1:]):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return values[-1]
