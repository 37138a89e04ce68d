"""Nearest neighbours as a loop over all pairs."""

from __future__ import annotations

import math


def neighbors(rows: list[list[float]], k: int, exclude_self: bool) -> list[list[tuple[float, int]]]:
    """(cosine, row) of the k most similar rows of each row, ties in order of row; nothing for rows of zeros."""
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    out = []
    for i, row in enumerate(rows):
        found = []
        for j, other in enumerate(rows):
            if norms[i] and norms[j] and not (exclude_self and i == j):
                found.append((sum(x * y for x, y in zip(row, other)) / norms[i] / norms[j], j))
        out.append(sorted(found, key=lambda pair: (-pair[0], pair[1]))[:k])
    return out
