"""Slow loops for caption metrics, guards and donors, written from their equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Tokens = Sequence[str]


def grams(tokens: Tokens, order: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]


def bleu(rows: Sequence[tuple[Tokens, Sequence[Tokens]]], order: int) -> float:
    """Equal to the corpus BLEU-`order` where every precision is positive."""
    precisions = []
    for n in range(1, order + 1):
        hits = total = 0
        for tokens, refs in rows:
            own = grams(tokens, n)
            total += len(own)
            for gram in set(own):
                hits += min(own.count(gram), max(grams(ref, n).count(gram) for ref in refs))
        precisions.append(hits / total)
    c = sum(len(tokens) for tokens, _ in rows)
    r = sum(sorted((abs(len(ref) - len(tokens)), len(ref)) for ref in refs)[0][1] for tokens, refs in rows)
    return min(1.0, math.exp(1 - r / c)) * math.prod(precisions) ** (1 / order)


def longest_common(one: Tokens, two: Tokens) -> int:
    if not one or not two:
        return 0
    if one[0] == two[0]:
        return 1 + longest_common(one[1:], two[1:])
    return max(longest_common(one[1:], two), longest_common(one, two[1:]))


def cider_d(rows: Sequence[tuple[Tokens, Sequence[Tokens]]], row: int) -> float:
    tokens, refs = rows[row]
    total = 0.0
    for n in range(1, 5):
        for ref in refs:

            def vector(words: Tokens, n: int = n) -> dict[tuple[str, ...], float]:
                out = {}
                for gram in set(grams(words, n)):
                    holders = sum(any(gram in grams(r, n) for r in others) for _, others in rows)
                    out[gram] = grams(words, n).count(gram) * math.log(len(rows) / max(1, holders))
                return out

            own, other = vector(tokens), vector(ref)
            norm = math.sqrt(sum(v**2 for v in own.values())) * math.sqrt(sum(v**2 for v in other.values()))
            dot = sum(min(v, other.get(g, 0.0)) * other.get(g, 0.0) for g, v in own.items())
            gap = max(0, len(tokens) - 1) - max(0, len(ref) - 1)
            total += (dot / norm if norm else 0.0) * math.exp(-(gap**2) / 72) / len(refs)
    return 10 * total / 4


def donors(image: np.ndarray, rows: Sequence[int], trust: np.ndarray, group: np.ndarray, k: int,
            same_image: bool) -> list[list[int]]:  # fmt: skip
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    out = []
    for row in rows:
        some = [j for j in range(len(image)) if trust[j] > 0 and j != row and (same_image or group[j] != group[row])]
        out.append(sorted(some, key=lambda j: -float(unit[row] @ unit[j]))[:k])
    return out


def agreeing(weight: np.ndarray, text: np.ndarray, mean: np.ndarray) -> int:
    """Place among k donors of the text nearest to the weighted mean direction of all."""
    centred = [(t - mean) / np.linalg.norm(t - mean) for t in text]
    common = sum(w * t for w, t in zip(weight, centred))
    return int(np.argmax([t @ common for t in centred]))


def lowest_pmi(words: Tokens, neighbours: Sequence[set[str]], texts: Sequence[set[str]]) -> float:
    values = []
    for word in words:
        rate = (sum(word in text for text in texts) + 1) / (len(texts) + 1)
        near = (sum(word in other for other in neighbours) + rate) / (len(neighbours) + 1)
        values.append(math.log(near) - math.log(rate))
    count = max(1, int(0.2 * len(values)))
    return sum(sorted(values)[:count]) / count
