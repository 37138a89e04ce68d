"""k-reciprocal re-ranking: neighbours that also name each other as neighbours count as closer.

    D_ij   = |f_i - f_j|^2 / max_j |f_i - f_j|^2
    N(i,k) = the k + 1 nearest of i, itself included;     R(i,k) = { j in N(i,k) : i in N(j,k) }
    R*(i)  = R(i,k1) and every R(c,k1/2), c in R(i,k1), of which more than 2/3 lies in R(i,k1)
    V_ij   = exp(-D_ij) over R*(i), normalised, then averaged over the k2 nearest of i
    J_ij   = 1 - m / (2 - m),   m = sum_l min(V_il, V_jl);     distance = (1 - lam) J + lam D

All sets are sparse matrices over the kNN graph, and J is computed for the edges only: memory grows with n k1, not n^2.
On a list that holds all points it is the original, exactly.

Source: Zhong et al. (CVPR 2017), as used by CAPro with k1 = 20, k2 = 6, lam = 0.3. Differs: float32 instead of float16;
reciprocity on the global graph, where the released local gallery of 21 points with k1 = 20 lets every test pass;
D is scaled by the farthest of the list.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from noisycorr.classify.completion import Graph
from noisycorr.classify.prototypes import Prototypes
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import unit_rows

BLOCK = 65_536  # edges at once
GALLERY = 2000  # texts of a class that are re-ranked together


def rerank(
    features: Float[np.ndarray, "n d"],
    ids: Int[np.ndarray, "n k"],
    *,
    k1: int = 20,
    k2: int = 6,
    lam: float = 0.3,
) -> Float[np.ndarray, "n k"]:
    """Re-ranked distance of every edge.

    Args:
        features: Of all points; scaled to length 1 here.
        ids: Neighbours of each point, nearest first, itself left out; -1 = none. At least k1 columns, but for sets of
            fewer points.
        k1: Neighbours that must be mutual.
        k2: Neighbours over which V is averaged, itself included; 1 = none.
        lam: Share of the plain distance.

    Returns:
        float32 (n, k) in [0, 1], lower = closer; NaN where the id is -1.

    Raises:
        UsageError: If k1, k2 or lam is out of range, or the list is shorter than k1.
    """
    n, k = ids.shape
    if not (k1 >= 1 and k2 >= 1 and 0 <= lam <= 1) or k < min(k1, n - 1):
        raise UsageError(f"k1 = {k1}, k2 = {k2}, lam = {lam} do not fit a list of {k} neighbours of {n} points.")
    points = unit_rows(features)
    own = np.concatenate([np.arange(n)[:, None], ids], axis=1)  # every point is its own first neighbour
    rows, places = np.nonzero(ids >= 0)
    distance = np.full((n, k), np.nan, np.float32)
    distance[rows, places] = _squared(points, rows, ids[rows, places])
    farthest = np.maximum(np.nan_to_num(np.nanmax(np.where(ids >= 0, distance, 0), axis=1)), 1e-12)
    near = _expanded(own, k1)
    coo = near.tocoo()
    value = np.exp(-_squared(points, coo.row, coo.col) / farthest[coo.row])
    weights = _normalised(_sparse(coo.row, coo.col, value, n))
    if k2 > 1:
        weights = (_normalised(_members(own, min(k2, n) - 1)) @ weights).tocsr()
    out = np.full((n, k), np.nan, np.float32)
    for start in range(0, len(rows), BLOCK):
        one, place = rows[start : start + BLOCK], places[start : start + BLOCK]
        other = ids[one, place]
        shared = np.asarray(weights[one].minimum(weights[other]).sum(axis=1)).ravel()
        plain = distance[one, place] / farthest[one]
        out[one, place] = (1 - lam) * (1 - shared / (2 - shared)) + lam * plain
    return np.where(np.isnan(out), out, np.clip(out, 0, 1)).astype(np.float32)


def rerank_graph(
    features: np.ndarray,
    graph: Graph,
    keep: int,
    *,
    k1: int = 20,
    k2: int = 6,
    lam: float = 0.3,
    faithful: bool = False,
) -> Graph:
    """The `keep` neighbours with the smallest re-ranked distance.

    Args:
        features: Those that the graph was built from.
        graph: With at least k1 neighbours of each row, of which `keep` stay.
        keep: Neighbours to keep.
        k1: As of `rerank`; and k2, lam.
        k2: As of `rerank`.
        lam: As of `rerank`.
        faithful: Weight edges by the distance, as released: far neighbours count more. Else by 1 - distance.
    """
    graph.check(features)
    distance = rerank(features, graph.ids, k1=min(k1, graph.ids.shape[1]), k2=k2, lam=lam)
    order = np.argsort(np.where(np.isnan(distance), np.inf, distance), axis=1, kind="stable")[:, :keep]
    ids, distance = np.take_along_axis(graph.ids, order, 1), np.take_along_axis(distance, order, 1)
    weight = np.nan_to_num(distance if faithful else 1 - distance)
    return dataclasses.replace(graph, ids=ids, weight=np.where(ids >= 0, weight, 0).astype(np.float32))


def reciprocal_match(
    features: Float[np.ndarray, "n e"],
    prototypes: Prototypes,
    labels: Int[np.ndarray, " n"],
    *,
    k1: int = 20,
    k2: int = 6,
    lam: float = 0.3,
) -> Float[np.ndarray, " n"]:
    """How well each text fits its own class: 1 - re-ranked distance of the definition among all texts of the class.

    Args:
        features: Completed texts; zero rows are unknown.
        prototypes: Of the classes; of several senses the closest counts.
        labels: Class of each row, -1 = none.
        k1: As of `rerank`; and k2, lam.
        k2: As of `rerank`.
        lam: As of `rerank`.

    Returns:
        float32 (n,) in [0, 1], higher = better; NaN = unknown. Of a class of more than 2,000 texts those beyond the
        nearest 2,000 get 0: they are no anchors, and the square of their number need not fit into memory.

    Source: CAPro (Qin et al., NeurIPS 2023), released matching. The cosine ranks better and is the default.
    """
    out, known = np.full(len(features), np.nan, np.float32), np.asarray(features).any(axis=1)
    points = unit_rows(features)
    for sense, owner in zip(prototypes.vectors, prototypes.owner):
        rows = np.flatnonzero(known & (labels == owner))
        if not len(rows):
            continue
        near = rows[np.argsort(-(points[rows] @ sense), kind="stable")[:GALLERY]]
        group = np.concatenate([sense[None], points[near]])
        like = group @ group.T
        np.fill_diagonal(like, -np.inf)
        ids = np.argsort(-like, axis=1, kind="stable")[:, :-1]
        distance = np.empty(len(near), np.float32)
        distance[ids[0] - 1] = rerank(group, ids, k1=min(k1, len(near)), k2=k2, lam=lam)[0]
        out[rows] = np.fmax(out[rows], 0)
        out[near] = np.fmax(out[near], 1 - distance)
    return out


def _expanded(own: np.ndarray, k1: int) -> Any:
    """R* as a sparse matrix of ones."""
    near, half = _mutual(own, k1), _mutual(own, int(np.around(k1 / 2)))
    size = np.asarray(half.sum(axis=1)).ravel()
    overlap = (near @ half.T).multiply(near).tocoo()  # |R(i) & R(c, k1/2)| for c in R(i)
    good = overlap.data > 2 / 3 * size[overlap.col]
    taken = _sparse(overlap.row[good], overlap.col[good], np.ones(int(good.sum())), near.shape[0])
    out = (near + taken @ half).tocsr()
    out.data[:] = 1
    return out


def _mutual(own: np.ndarray, k: int) -> Any:
    member = _members(own, k)
    return member.multiply(member.T).tocsr()


def _members(own: np.ndarray, k: int) -> Any:
    """Ones where j is among the k nearest of i or is i itself."""
    some = own[:, : k + 1]
    rows, places = np.nonzero(some >= 0)
    return _sparse(rows, some[rows, places], np.ones(len(rows)), len(own))


def _sparse(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, n: int) -> Any:
    from scipy import sparse

    return sparse.csr_matrix((values.astype(np.float32), (rows, columns)), shape=(n, n))


def _normalised(matrix: Any) -> Any:
    from scipy import sparse

    total = np.asarray(matrix.sum(axis=1)).ravel()
    return (sparse.diags(np.divide(1, total, out=np.zeros_like(total), where=total > 0)) @ matrix).tocsr()


def _squared(points: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of unit rows, in [0, 4]."""
    out = np.empty(len(one), np.float32)
    for start in range(0, len(one), BLOCK):
        rows = slice(start, start + BLOCK)
        out[rows] = np.maximum(2 - 2 * np.einsum("kd,kd->k", points[one[rows]], points[two[rows]]), 0)
    return out
