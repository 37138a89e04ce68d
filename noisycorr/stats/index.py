"""Nearest neighbours by cosine: exact for small sets, an inverted file with measured recall for large ones.

    found = neighbors(features, 10, seed=0)         # found.ids (n, 10), found.similarity (n, 10), found.recall

Features are read in blocks. A large set is copied once, list by list, in 32, 16 or 8 bits a number by its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from noisycorr.data.columns import release
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.inverted import SAMPLED, Lists, build_lists, list_count, probes_for, search_all, search_some

Features = np.ndarray | Sequence[np.ndarray]  # (n, d) array or memory map, or its parts in order
BLOCK = 32768  # rows in float32 at once
PROBED = 256  # queries on which recall is measured
TIE = 1e-3  # similarities this close count as equal when recall is measured: float16 cannot tell them apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbors:
    """The k most similar rows of each query.

    Attributes:
        ids: int64 (m, k): rows, most similar first; -1 where there is none (also for every query without features).
        similarity: float32 (m, k): cosine in [-1, 1], higher = more alike; NaN where the id is -1.
        method: How they were found, for the report.
        recall: Share of the true neighbours that were found, in [0, 1], on sampled queries; 1.0 for exact search.
    """

    ids: np.ndarray
    similarity: np.ndarray
    method: str
    recall: float


def neighbors(
    data: Features,
    k: int,
    *,
    seed: int,
    exclude_self: bool = True,
    queries: np.ndarray | None = None,
    skip: np.ndarray | None = None,
    target_recall: float = 0.95,
    exact_below: int = 20_000,
    threads: int | None = None,
) -> Neighbors:
    """Find the k most similar rows of `data` for every row of it, or for other queries.

    Rows of zeros (a missing image or text) are never neighbours of anything, and as queries they find nothing.
    Above `exact_below` rows an inverted file is built, and so many of its lists are looked into that `target_recall`
    is measured against exact search on 256 sampled queries. Same data, seed and threads: same result.

    Args:
        data: (n, d) float16 or float32, rows of any length (they are scaled to length 1), or a list of such parts.
        k: Neighbours of each query, >= 1.
        seed: For sampling and k-means.
        exclude_self: Leave out the row itself where `queries` is None. Its exact copies stay.
        queries: (m, d), or None for the rows of `data` themselves.
        skip: bool (n,): rows to treat as if they were zero.
        target_recall: Of the approximate search, in (0, 1]; 1 probes every list.
        exact_below: Up to this many rows the search is exact.
        threads: Of faiss during this call; None leaves its setting.

    Returns:
        Ids and similarities, with the method and the measured recall.

    Raises:
        UsageError: If shapes do not fit or k < 1.
    """
    parts = [data] if isinstance(data, np.ndarray) else list(data)
    n = _checked(parts, k, queries, skip)
    k_found = k + 1 if queries is None and exclude_self else k
    with _threads(threads):
        present = present_rows(parts, skip)
        search: _Exact | _Lists = _Exact(parts, present)
        method, recall = "exact", 1.0
        if n > exact_below and present.sum() > exact_below:
            search, method, recall = _approximate(parts, present, k, seed, target_recall)
        ids, similarity = np.full((_rows(queries, n), k), -1, np.int64), np.full((_rows(queries, n), k), np.nan, "f4")
        for rows, found, values in _answers(search, parts, queries, present, k_found):
            if k_found > k:
                found, values = _without(found, values, rows)
            ids[rows], similarity[rows] = found, values
    return Neighbors(ids=ids, similarity=similarity, method=method, recall=recall)


def _answers(
    search: _Exact | _Lists, parts: list[np.ndarray], queries: np.ndarray | None, present: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of queries that have features, and what they find, piece by piece."""
    if queries is None and isinstance(search, _Lists):
        for rows, found, values in search_all(search.lists, k, search.probes):
            yield rows, *_tidy(found, values)
        return
    for start, block in _blocks(parts if queries is None else [queries]):
        rows = np.arange(start, start + len(block))
        some = np.flatnonzero(present[rows] if queries is None else np.any(block, axis=1))
        yield rows[some], *search(block[some], k)


class _Exact:
    """Exact search, block by block."""

    def __init__(self, parts: list[np.ndarray], present: np.ndarray) -> None:
        self.parts, self.present = parts, present

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss  # here, because most verbs start without it

        ids = np.full((len(queries), k), -1, np.int64)
        values = np.full((len(queries), k), -np.inf, np.float32)
        for start, block in _blocks(self.parts):
            some = np.flatnonzero(self.present[start : start + len(block)])
            if not len(some) or not len(queries):
                continue
            best, near = faiss.knn(queries, block[some], min(k, len(some)), metric=faiss.METRIC_INNER_PRODUCT)
            ids = np.concatenate([ids, some[near] + start], axis=1)
            values = np.concatenate([values, best], axis=1)
            order = np.argsort(-values, axis=1, kind="stable")[:, :k]
            ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
        return _tidy(ids, values)


class _Lists:
    """Search in an inverted file."""

    def __init__(self, lists: Lists, probes: int) -> None:
        self.lists, self.probes = lists, probes

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if not len(queries):
            return np.full((0, k), -1, np.int64), np.zeros((0, k), np.float32)
        return _tidy(*search_some(self.lists, queries, k, self.probes))


class _Blocks:
    """Blocks of all rows, as often as they are wanted."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return _blocks(self.parts)


def _approximate(
    parts: list[np.ndarray], present: np.ndarray, k: int, seed: int, target_recall: float
) -> tuple[_Lists, str, float]:
    """Build an inverted file, and find how many lists it takes to reach the recall on sampled queries."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(present)
    sample = np.sort(rng.choice(rows, min(len(rows), SAMPLED * list_count(len(rows))), replace=False))
    lists = build_lists(_Blocks(parts), take_rows(parts, sample), present, seed=int(rng.integers(2**30)))
    own = np.sort(rng.choice(rows, min(len(rows), PROBED), replace=False))
    probe = take_rows(parts, own)
    ids, truth = _without(*_Exact(parts, present)(probe, k + 1), own)  # a row finds itself at once: that proves nothing
    probes, most = probes_for(lists, own, ids, target_recall), len(lists.centers)
    while True:
        found = _without(*_Lists(lists, probes)(probe, k + 1), own)[0]
        recall = _recall(parts, probe, found, truth)
        if recall >= target_recall or probes >= most:
            break
        probes = min(probes + max(1, probes // 4), most)
    return _Lists(lists, probes), f"inverted file, {lists.bits} bit, {probes} of {most} lists", recall


def _recall(parts: list[np.ndarray], probe: np.ndarray, found: np.ndarray, truth: np.ndarray) -> float:
    """Share of neighbours found, by exact similarity, so that ties count whichever of them was returned."""
    wanted = np.isfinite(truth)
    places = np.maximum(found, 0).ravel()
    distinct, back = np.unique(places, return_inverse=True)
    vectors = take_rows(parts, distinct)[back].reshape(*found.shape, -1)
    exact = np.where(found >= 0, np.einsum("qd,qkd->qk", probe, vectors), -np.inf)
    worst = np.where(wanted, truth, np.inf).min(axis=1, keepdims=True)
    hits = np.minimum((exact >= worst - TIE).sum(axis=1), wanted.sum(axis=1))
    return float(hits.sum() / max(wanted.sum(), 1))


def _without(ids: np.ndarray, values: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop each query's own row, or the last place where copies have crowded it out."""
    drop = ids == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    keep = ~drop
    shape = (len(ids), ids.shape[1] - 1)
    return ids[keep].reshape(shape), values[keep].reshape(shape)


def _tidy(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal similarities in order of row; cosines within [-1, 1]; NaN where nothing was found."""
    values = np.where(ids >= 0, np.clip(values, -1, 1), np.nan).astype(np.float32)
    order = np.lexsort((ids, -np.nan_to_num(values, nan=-2)), axis=1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)


def _blocks(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 block of unit rows), in order."""
    offset = 0
    for part in parts:
        for start in range(0, len(part), BLOCK):
            yield offset + start, unit_rows(part[start : start + BLOCK])
        release(part)
        offset += len(part)


def take_rows(parts: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Unit float32 copies of ascending rows."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    cuts = np.searchsorted(rows, starts)
    out = []
    for part, start, one, two in zip(parts, starts, cuts, cuts[1:]):
        out.append(unit_rows(part[rows[one:two] - start]))
        release(part)
    return np.concatenate(out)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """As `unit`, in float32, but rows that are not finite become zeros, too."""
    block = np.asarray(rows, np.float32)
    norm = np.linalg.norm(block, axis=1, keepdims=True)
    usable = (norm > 0) & np.isfinite(norm)  # an encoder in half precision can overflow: such a row counts as missing
    return np.ascontiguousarray(np.divide(block, norm, out=np.zeros_like(block), where=usable))


def present_rows(parts: list[np.ndarray], skip: np.ndarray | None = None) -> np.ndarray:
    """bool (n,): rows that are finite, not zero and not skipped."""
    present = np.concatenate([np.zeros(0, bool), *(np.any(block, axis=1) for _, block in _blocks(parts))])
    return present if skip is None else present & ~np.asarray(skip, bool)


def _rows(queries: np.ndarray | None, n: int) -> int:
    return n if queries is None else len(queries)


def _checked(parts: list[np.ndarray], k: int, queries: np.ndarray | None, skip: np.ndarray | None) -> int:
    given = parts if queries is None else [*parts, queries]
    widths = {part.shape[1] if part.ndim == 2 else -1 for part in given}
    if len(widths) != 1 or -1 in widths:
        shapes = sorted({part.shape for part in given})
        raise UsageError(f"Features have shapes {shapes}, expected parts (rows, numbers) of one width.")
    if k < 1:
        raise UsageError(f"{k} neighbours were asked for, expected at least 1.")
    n = sum(len(part) for part in parts)
    if skip is not None and np.shape(skip) != (n,):
        raise UsageError(f"skip has shape {np.shape(skip)}, expected ({n},).")
    return n


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    try:
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        yield
    finally:
        faiss.omp_set_num_threads(before)
