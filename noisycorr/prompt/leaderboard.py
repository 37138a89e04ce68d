"""The selector of GRIP's released code, kept for comparison: one list for each class, filled in row order."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def leaderboard(
    p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Every image is offered to the list of its likeliest class, and if that refuses, to all others.

    A list with room takes what is offered, at its end. A full one takes what beats its *last* entry, is sorted, and
    loses its lowest. So a list is unsorted until it first overflows, an image may stand in several lists with different
    labels, one that fell out of a list is not offered again, and the order of the rows matters.

    Args:
        p: Probability of each class, finite.
        capacity: Places of each list, >= 0.

    Returns:
        Rows and classes of all entries, class by class, in the order of the lists.

    Source: Menghini et al., NeurIPS 2023, released code (its pseudo-label helper, and FPL's assignment).
    """
    n, c = p.shape
    lists: list[list[int]] = [[] for _ in range(c)]
    size = np.zeros(c, np.int64)
    last = np.full(c, -np.inf)
    every = np.arange(c)
    for row in range(n):
        mine = p[row]
        wanted = (size < capacity) | ((last < mine) & (capacity > 0))
        top = int(mine.argmax())
        takers = [top] if wanted[top] else every[wanted].tolist()
        for k in takers:
            entries = lists[k]
            entries.append(row)
            if len(entries) > capacity[k]:
                entries.sort(key=lambda other: -p[other, k])
                entries.pop()
            size[k], last[k] = len(entries), p[entries[-1], k]
    rows = np.array([row for entries in lists for row in entries], np.int64)
    return rows, np.repeat(every, [len(entries) for entries in lists])
