"""One search for each side, shared by near-duplicates and by neighbourhoods.

Near-duplicates look among rows that are no exact copies of one another; neighbourhoods among all. The second follows
from the first, because copies stand where their original stands: a large set is searched once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from noisycorr.stats.index import Features, Neighbors, neighbors, present_rows

BLOCK = 8192  # rows at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What was found on one side.

    Attributes:
        original: int64 (n,): the row that stands for all exact copies of a row: the first with features.
        copied: bool (n,): rows with an exact copy.
        present: bool (n,): rows with features.
        distinct: Neighbours of originals among originals; other rows have none.
    """

    original: np.ndarray
    copied: np.ndarray
    present: np.ndarray
    distinct: Neighbors


def search_side(
    parts: list[np.ndarray], codes: np.ndarray, k: int, *, seed: int, target_recall: float = 0.95,
    threads: int | None = None,
) -> Side:  # fmt: skip
    """Search one side.

    Args:
        parts: (n, d) features, zeros where there are none.
        codes: int64 (n,): rows of an equal number >= 0 are exact copies.
        k: Neighbours of each row, >= 1.
        seed: For the approximate search of large sets.
        target_recall: Of that search.
        threads: Of faiss; None leaves its setting.

    Returns:
        What was found; fewer neighbours are the first columns of more.
    """
    n = len(codes)
    original = np.arange(n)
    present = present_rows(parts)
    order = np.lexsort((original, ~present, codes))
    coded = order[codes[order] >= 0]
    _, begin, inverse, counts = np.unique(codes[coded], return_index=True, return_inverse=True, return_counts=True)
    original[coded] = coded[begin][inverse]
    copied = np.zeros(n, bool)
    copied[coded] = counts[inverse] > 1
    found = neighbors(parts, k, seed=seed, skip=original != np.arange(n), target_recall=target_recall, threads=threads)
    return Side(original=original, copied=copied, present=present, distinct=found)


def first_neighbors(found: Neighbors, k: int) -> Neighbors:
    """The k nearest of those that were found."""
    return Neighbors(ids=found.ids[:, :k], similarity=found.similarity[:, :k], method=found.method, recall=found.recall)


def whole_neighbors(side: Side, parts: Features, k: int, *, seed: int) -> Neighbors:
    """Neighbours of all rows among all rows.

    Small sets, which are searched exactly, are searched again if they hold copies: there every bit counts. In large
    ones copies have the similarity of their originals, and of many copies each row is given others in turn.

    Args:
        side: Of `search_side`, with at least k neighbours.
        parts: The features it was made from.
        k: Neighbours of each row.
        seed: As there.
    """
    if not side.copied.any():
        return first_neighbors(side.distinct, k)
    if side.distinct.method == "exact":
        return neighbors(parts, k, seed=seed)
    return _with_copies(side, k)


def _with_copies(side: Side, k: int) -> Neighbors:
    """Its own copies, then the copies of each neighbour, until there are k."""
    n = len(side.original)
    members = np.flatnonzero(side.present)
    members = members[np.argsort(side.original[members], kind="stable")]
    start = np.searchsorted(side.original[members], np.arange(n))  # of each original among the members
    size = np.bincount(side.original[members], minlength=n)
    place = np.zeros(n, np.int64)  # of each row among the copies of its original
    place[members] = np.arange(len(members)) - start[side.original[members]]
    ids, similarity = np.full((n, k), -1, np.int64), np.full((n, k), np.nan, np.float32)
    slots = np.arange(k)
    asking = np.flatnonzero(side.present)
    for some in np.array_split(asking, max(1, -(-len(asking) // BLOCK))):
        own = side.original[some]
        groups = np.concatenate([own[:, None], side.distinct.ids[own]], axis=1)
        values = np.concatenate([np.ones((len(some), 1), np.float32), side.distinct.similarity[own]], axis=1)
        count = np.where(groups >= 0, size[groups], 0)
        count[:, 0] -= 1  # not the row itself
        ends = np.cumsum(count, axis=1)
        source = (ends[:, :, None] <= slots).sum(axis=1)
        there = source < groups.shape[1]
        source = np.minimum(source, groups.shape[1] - 1)
        group = np.take_along_axis(groups, source, 1)
        number = slots - np.take_along_axis(ends - count, source, 1)
        turn = np.where(source == 0, place[some][:, None] + 1, some[:, None]) + number
        member = members[np.minimum(start[group] + turn % np.maximum(size[group], 1), len(members) - 1)]
        ids[some] = np.where(there, member, -1)
        similarity[some] = np.where(there, np.take_along_axis(values, source, 1), np.nan)
    return Neighbors(ids=ids, similarity=similarity, method=side.distinct.method, recall=side.distinct.recall)
