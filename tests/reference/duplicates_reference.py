"""Likeness of images as loops over all pairs."""

from __future__ import annotations

import numpy as np


def alike(
    one: int,
    other: int,
    features: np.ndarray,
    hashes: list[str | None],
    phash: list[int | None],
    threshold: float,
    bits: int,
    phash_threshold: float,
) -> bool:
    """Equal bytes; or cosine >= threshold; or hashes within `bits` and cosine >= phash_threshold."""
    if hashes[one] is not None and hashes[one] == hashes[other]:
        return True
    norms = float(np.linalg.norm(features[one]) * np.linalg.norm(features[other]))
    if norms == 0:
        return False
    cosine = float(features[one] @ features[other]) / norms
    a, b = phash[one], phash[other]
    near = a is not None and b is not None and bin(a ^ b).count("1") <= bits
    return cosine >= threshold or (near and cosine >= phash_threshold)


def phash(grey: np.ndarray) -> int:
    """64 bits of a 32 x 32 picture: cosine sums by their definition, compared with the median of the lowest 8 x 8."""
    n = len(grey)
    low = []
    for u in range(8):
        for v in range(8):
            total = 0.0
            for y in range(n):
                for x in range(n):
                    total += (
                        grey[y][x] * np.cos(np.pi * u * (2 * y + 1) / 2 / n) * np.cos(np.pi * v * (2 * x + 1) / 2 / n)
                    )
            low.append(4 * total)
    middle = float(np.median(low))
    return int("".join("1" if value > middle else "0" for value in low), 2)


def alikeness(members: np.ndarray, others: np.ndarray) -> float:
    """How often a member is closer to another member than to one of the others; ties count half."""
    won = []
    for i, member in enumerate(members):
        for j, mate in enumerate(members):
            for other in others if i != j else []:
                near, away = float(member @ mate), float(member @ other)
                won.append(1.0 if near > away else 0.5 if near == away else 0.0)
    return sum(won) / len(won)
