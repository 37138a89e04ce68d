"""The default selector: one label for each image, at most K images for each class, the surest pair first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

BLOCK = 8192  # images that look for a class at once, which bounds the memory


def exclusive_greedy(
    p: Float[np.ndarray, "n c"], capacity: Int[np.ndarray, " c"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Walk over all pairs of image and class, the highest p first; take a pair if both still have a place.

    Of equal p the smaller image goes first, then the smaller class. The walk is not done pair by pair: both sides rank
    by the same numbers, so its outcome is the only stable matching, which images find by proposing to the best class
    that would still have them, while classes drop the worst of those they hold (Gale and Shapley, 1962).

    Args:
        p: Probability of each class; NaN and -inf are never taken.
        capacity: Places of each class, >= 0.

    Returns:
        Rows in ascending order and their classes; m = min(n, total of the capacities) where p is finite.

    Source: specification of GRIP's selector without its doubled labels; see the paper index.
    """
    n, c = p.shape
    holder = np.full(n, -1, np.int64)
    worst = np.where(capacity > 0, -np.inf, np.inf)  # p that a newcomer has to beat
    worst_row = np.full(c, n, np.int64)  # and at equal p the row that he has to be before
    free = np.arange(n)
    while len(free):
        asked = np.concatenate([_best(p, free[at : at + BLOCK], worst, worst_row) for at in range(0, len(free), BLOCK)])
        alive = asked >= 0
        holder[free[alive]] = asked[alive]
        dropped = [_trim(p, holder, int(k), int(capacity[k]), worst, worst_row) for k in np.unique(asked[alive])]
        free = np.sort(np.concatenate([np.zeros(0, np.int64), *dropped]))
    rows = np.flatnonzero(holder >= 0)
    return rows, holder[rows]


def _best(p: np.ndarray, rows: np.ndarray, worst: np.ndarray, worst_row: np.ndarray) -> np.ndarray:
    """The best class that would have each row; -1 where none would."""
    mine = p[rows]
    open_to = mine > worst
    ties = mine == worst
    if ties.any():
        open_to |= ties & np.isfinite(mine) & (rows[:, None] < worst_row)
    value = np.where(open_to, mine, -np.inf)
    best = value.argmax(1)
    return np.where(np.isfinite(value[np.arange(len(rows)), best]), best, -1)


def _trim(
    p: np.ndarray, holder: np.ndarray, k: int, places: int, worst: np.ndarray, worst_row: np.ndarray
) -> np.ndarray:
    """Let class k drop those it has no place for; notes what a newcomer has to beat. Returns the dropped rows."""
    mine = np.flatnonzero(holder == k)
    if len(mine) < places:
        return np.zeros(0, np.int64)
    order = mine[np.argsort(-p[mine, k], kind="stable")]
    worst[k], worst_row[k] = p[order[places - 1], k], order[places - 1]
    holder[order[places:]] = -1
    return order[places:]
