"""Search of a large set by itself, list by list: rows that lie together ask together, as one matrix product.

An inverted file that answers one query after the other multiplies vectors one by one. Here all queries of a list look
into the same lists: their similarities are one product of two matrices, about ten times as many of them a second.
Which lists these are the queries vote for: each names the lists whose centres are nearest to it. Centres are found in
the space of the strongest principal axes, which costs a fraction of the full one and changes no similarity.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

AXES = 128  # numbers that choose a list
VOTES = 8  # lists that each row names
PER_LIST = 256  # most rows of a list on average; below 4 M rows fewer
LIMIT = 8  # times as many rows at most are looked at in one list: a heap of copies does not cost its square
SAMPLED = 32  # rows for each centre that k-means sees
ROUNDS = 6  # of k-means
ASKED = 1024  # queries at once
FLOAT_BYTES = 1_000_000_000  # smaller sets are stored in 32 bits
FULL_PRECISION_BYTES = 1_500_000_000  # larger ones store 8 bits a number instead of 16
IN_MEMORY_BYTES = (
    2_000_000_000  # a larger store is a file without a name in TMPDIR, of which the system keeps what fits
)

Block = tuple[int, np.ndarray]  # first row, float32 unit rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Rows of a set, list by list.

    Attributes:
        rows: int64 (p,): row at each place.
        starts: int64 (lists + 1,): first place of each list.
        home: int32 (n,): list of each row; -1 where it is in none.
        store: (p, d) float32, float16 or int8 unit rows by place.
        scale: Of int8: what 1 stands for.
        axes: float32 (d, a) principal axes.
        centers: float32 (lists, a) unit centres on these axes.
        votes: (lists, lists) how much the rows of a list want to look into another.
    """

    rows: np.ndarray
    starts: np.ndarray
    home: np.ndarray
    store: np.ndarray
    scale: float
    axes: np.ndarray
    centers: np.ndarray
    votes: csr_array

    @property
    def bits(self) -> int:
        """Of a stored number."""
        return 8 * self.store.itemsize


def list_count(rows: int) -> int:
    """How many lists suit a number of rows."""
    return max(1, int(max(min(4 * math.sqrt(rows), rows / 40), rows / PER_LIST)))


def build_lists(blocks: Iterable[Block], sample: np.ndarray, present: np.ndarray, *, seed: int) -> Lists:
    """Cluster a sample, and sort all rows into lists.

    Args:
        blocks: All n rows in order; gone through twice, so no iterator.
        sample: float32 (s, d) unit rows to learn from.
        present: bool (n,): rows to store.
        seed: Of k-means.
    """
    import faiss

    d, count = sample.shape[1], list_count(int(present.sum()))
    axes = _principal_axes(sample, min(d, AXES))
    means = faiss.Kmeans(axes.shape[1], min(count, len(sample)), niter=ROUNDS, spherical=True, seed=seed,
                         min_points_per_centroid=1, max_points_per_centroid=len(sample))  # fmt: skip
    means.train(sample @ axes)
    centers = np.asarray(means.centroids, np.float32)
    home = np.full(len(present), -1, np.int32)
    votes = csr_array((len(centers), len(centers)), dtype=np.float32)
    for start, block in blocks:
        some = np.flatnonzero(present[start : start + len(block)])
        named = nearest(block[some] @ axes, centers, min(VOTES, len(centers)))[1]
        home[some + start] = named[:, 0]
        weight = np.broadcast_to((1 / np.arange(1, named.shape[1] + 1)).astype(np.float32), named.shape)
        voter = np.repeat(named[:, 0], named.shape[1])
        votes = votes + csr_array((weight.ravel(), (voter, named.ravel())), shape=votes.shape)
    rows = np.flatnonzero(home >= 0)
    rows = rows[np.argsort(home[rows], kind="stable")]
    starts = np.searchsorted(home[rows], np.arange(len(centers) + 1))
    store, scale = _store(blocks, rows, len(present), d)
    return Lists(rows=rows, starts=starts, home=home, store=store, scale=scale, axes=axes, centers=centers,
                 votes=votes.tocsr())  # fmt: skip


def nearest(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest dot products (m, k) and their rows, on a GPU where faiss was built for one and finds it."""
    import faiss

    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.float32)
    if hasattr(faiss, "knn_gpu") and faiss.get_num_gpus():
        return faiss.knn_gpu(faiss.StandardGpuResources(), queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)


def probe_order(lists: Lists, home: int) -> np.ndarray:
    """All lists, in the order in which queries of list `home` look into them: it, most votes, then nearest centres."""
    worth = lists.centers @ lists.centers[home] * 1e-3  # less than half a last vote of one row
    begin, end = lists.votes.indptr[home], lists.votes.indptr[home + 1]
    worth[lists.votes.indices[begin:end]] += lists.votes.data[begin:end]
    worth[home] = np.inf
    return np.argsort(-worth, kind="stable")


def probes_for(lists: Lists, own: np.ndarray, truth: np.ndarray, target: float) -> int:
    """Lists to look into so that a share `target` of known neighbours is met.

    Args:
        lists: Of the set.
        own: (q,) rows.
        truth: int64 (q, k) their neighbours; -1 = none.
        target: In (0, 1].
    """
    ranks = []
    for row, found in zip(own.tolist(), truth):
        rank = np.empty(len(lists.centers), np.int64)
        rank[probe_order(lists, lists.home[row])] = np.arange(len(rank))
        ranks.append(rank[lists.home[found[found >= 0]]])
    flat = np.sort(np.concatenate(ranks))
    return int(flat[math.ceil(target * len(flat)) - 1]) + 1 if len(flat) else 1


def search_all(lists: Lists, k: int, probes: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Neighbours of every stored row, itself among them, piece by piece: (rows, ids (m, k), similarities (m, k))."""
    for home, (start, end) in enumerate(zip(lists.starts[:-1].tolist(), lists.starts[1:].tolist())):
        for begin in range(start, end, ASKED):
            places = np.arange(begin, min(begin + ASKED, end))
            ids, values = _search(lists, _floats(lists, slice(begin, places[-1] + 1)), home, k, probes, begin)
            yield lists.rows[places], ids, values


def search_some(lists: Lists, queries: np.ndarray, k: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (m, k) of other queries, float32 (m, d) unit rows."""
    ids, values = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    homes = nearest(queries @ lists.axes, lists.centers, 1)[1][:, 0]
    for home in np.unique(homes).tolist():
        rows = np.flatnonzero(homes == home)
        ids[rows], values[rows] = _search(lists, queries[rows], home, k, probes, int(lists.starts[home]))
    return ids, values


def _search(
    lists: Lists, queries: np.ndarray, home: int, k: int, probes: int, at: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and similarities of queries of one list; of their own list the rows around place `at` come first."""
    most = LIMIT * PER_LIST
    places = []
    for number in probe_order(lists, home)[:probes].tolist():
        start, end = int(lists.starts[number]), int(lists.starts[number + 1])
        if end - start > most:
            start = min(max(at - (most - ASKED) // 2, start), end - most) if number == home else start
            end = start + most
        places.append(slice(start, end))
    rows = np.concatenate([_floats(lists, place) for place in places])
    ids, values = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    if len(rows):
        some = min(k, len(rows))
        values[:, :some], found = nearest(queries, rows, some)
        ids[:, :some] = np.concatenate([lists.rows[place] for place in places])[found]
    return ids, values


def _floats(lists: Lists, places: slice) -> np.ndarray:
    """float32 rows at some places."""
    part = lists.store[places]
    return part if part.dtype == np.float32 else part.astype(np.float32) * lists.scale


def _store(blocks: Iterable[Block], rows: np.ndarray, n: int, d: int) -> tuple[np.ndarray, float]:
    """Rows by place in the precision that their number allows, and what 1 stands for."""
    place = np.full(n, -1, np.int64)
    place[rows] = np.arange(len(rows))
    dtype: type = np.int8
    if 2 * len(rows) * d <= FULL_PRECISION_BYTES:
        dtype = np.float32 if 4 * len(rows) * d <= FLOAT_BYTES else np.float16
    scale = 1.0
    if dtype is np.int8:  # a unit row seldom holds a number above six times their mean size; larger ones are cut
        scale = min(1.0, 6 / math.sqrt(d)) / 127
    store = _room(len(rows), d, dtype)
    for start, block in blocks:
        here = place[start : start + len(block)]
        some = block[here >= 0]
        store[here[here >= 0]] = np.clip(np.rint(some / scale), -127, 127) if dtype is np.int8 else some
    return store, scale


def _room(rows: int, d: int, dtype: type) -> np.ndarray:
    """Place for the rows, in memory or in a file that is gone when nobody uses it any more."""
    if rows * d * np.dtype(dtype).itemsize <= IN_MEMORY_BYTES:
        return np.empty((rows, d), dtype)
    with tempfile.TemporaryFile(prefix="noisycorr-search-") as file:
        return np.memmap(file, dtype, "w+", shape=(rows, d))


def _principal_axes(sample: np.ndarray, count: int) -> np.ndarray:
    """float32 (d, count): directions of most length, so that products on them are nearest to the whole ones."""
    some = sample[:: max(1, len(sample) // 20_000)]
    _, axes = np.linalg.eigh((some.T @ some).astype(np.float64))
    return np.ascontiguousarray(axes[:, ::-1][:, :count], np.float32)
