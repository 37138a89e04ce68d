"""Rectified labels as slow loops, written from their equations."""

from __future__ import annotations

import math


def hinge_prediction(h: list[float], margin: float) -> list[float]:
    raw = [min(max(margin - x / 2, 0.0), margin) for x in h]
    count = math.floor(len(raw) / 10) + 1
    top = sum(sorted(raw, reverse=True)[:count]) / count
    return [min(x / top, 1.0) if top else 0.0 for x in raw]


def oscillation(now: list[list[float]], before: list[list[float]]) -> list[float]:
    return [sum(p * math.log((p + 1e-8) / (q + 1e-8)) for p, q in zip(*rows)) for rows in zip(now, before)]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))


def anchor_ratio(image: list[list[float]], text: list[list[float]], anchors: list[bool]) -> list[float]:
    trusted = [a for a, yes in enumerate(anchors) if yes]
    result = []
    for i in range(len(image)):
        ratios = []
        for near in (image, text):
            a = max(trusted, key=lambda other: cosine(near[i], near[other]))
            one, two = cosine(image[i], image[a]), cosine(text[i], text[a])
            if one <= 0 or two <= 0:
                ratios.append(0.0)
            else:
                ratios.append(one / two if one / two <= 1 else two / one)
        result.append(1.0 if anchors[i] else sum(ratios) / 2)
    return result


def neighbour_prototype(image, bank_image, bank_text, k: int) -> list[list[float]]:
    result = []
    for v in image:
        near = sorted(range(len(bank_image)), key=lambda m: -cosine(v, bank_image[m]))[:k]
        units = [[x / math.hypot(*bank_text[m]) for x in bank_text[m]] for m in near]
        mean = [sum(column) / len(near) for column in zip(*units)]
        result.append([x / math.hypot(*mean) for x in mean])
    return result


def released_beta(loss: list[float]) -> list[float]:
    """Ten rounds of two Betas by moments, from (1, 2) and (2, 1); share of the first."""
    low, high = min(loss), max(loss)
    x = [min(max((v - low) / (high - low), 1e-4), 1 - 1e-4) for v in loss]
    a, b, weight = [1.0, 2.0], [2.0, 1.0], [0.5, 0.5]

    def shares(v: float) -> list[float]:
        density = [
            weight[k] * v ** (a[k] - 1) * (1 - v) ** (b[k] - 1) * math.gamma(a[k] + b[k]) / math.gamma(a[k])
            / math.gamma(b[k]) for k in (0, 1)
        ]  # fmt: skip
        return [d / sum(density) for d in density]

    for _ in range(10):
        share = [shares(v) for v in x]
        for k in (0, 1):
            mass = sum(r[k] for r in share)
            mean = sum(r[k] * v for r, v in zip(share, x)) / mass
            variance = sum(r[k] * (v - mean) ** 2 for r, v in zip(share, x)) / mass
            a[k] = mean * (mean * (1 - mean) / variance - 1)
            b[k] = a[k] * (1 - mean) / mean
            weight[k] = mass / len(x)
    return [shares(v)[0] for v in x]
