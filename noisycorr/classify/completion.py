"""Texts completed through the eyes: missing and wrong texts are replaced by what is written around similar pictures.

    graph = build_graph(image_features, 5, seed=0)
    completed, support = complete_texts(text_features, graph, has_text)

    A_ij = similarity of pictures i and j, if j is among the k nearest of i (or i of j), A_ii = 0
    A    = D^-1 max(A, A^T) + s I;     completed = unit( D^-1 A [has_text] S )        D = row sums

One product of a sparse matrix of at most 2 k n entries with the texts; nothing is n x n.

Source: CAPro (Qin et al., NeurIPS 2023) after VSGraph (Yang et al., 2020). Differs, as each was measured to help the
match of right labels: an own text counts (s = 1; released 0), blank texts are masked, texts are scaled to length 1
first, edges are weighted by similarity (released: by re-ranked *distance*), re-ranking is off. `faithful=True` has the
released behaviour of all of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import Features, Neighbors, neighbors, unit_rows

LEAST, MOST = 1e-3, 1 - 1e-3  # released bounds of the weight of an edge
BLOCK, COLUMNS = 8192, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The k nearest pictures of each picture.

    Attributes:
        ids: int64 (n, k) rows, nearest first; -1 = none. The row itself is never among them.
        weight: float32 (n, k) of each edge, in [0, 1], higher = closer; 0 where the id is -1.
        made_from: What the graph was built from; `check` refuses other features.
        method: How neighbours were found.
        recall: Share of true neighbours found.
    """

    ids: np.ndarray
    weight: np.ndarray
    made_from: str
    method: str
    recall: float

    def check(self, features: Features) -> None:
        """Refuse a graph of other features.

        Raises:
            UsageError: If rows, width or values differ from those that the graph was built from.
        """
        found = identity(features)
        if found != self.made_from:
            raise UsageError(
                f"the graph was built from other features ({self.made_from}), now they are {found}: build it anew."
            )


def identity(features: Features) -> str:
    """Rows, width and a hash over a sample of the values: tells features apart without reading them all."""
    parts = [features] if isinstance(features, np.ndarray) else list(features)
    rows, width = sum(map(len, parts)), parts[0].shape[1] if parts else 0
    ends, picked = np.cumsum([len(part) for part in parts]), np.unique(np.linspace(0, max(rows - 1, 0), 64).astype(int))
    sample = [part[picked[(picked >= end - len(part)) & (picked < end)] - (end - len(part))]
              for part, end in zip(parts, ends)]  # fmt: skip
    return f"{rows} x {width}, {hash_rows(np.concatenate(sample).astype(np.float32)) if sample else ''}"


def hash_rows(rows: np.ndarray) -> str:
    """A hash of the bytes of an array."""
    import xxhash

    return str(xxhash.xxh3_64_hexdigest(np.ascontiguousarray(rows).tobytes()))


def build_graph(
    features: Features,
    k: int,
    *,
    seed: int,
    target_recall: float = 0.95,
    nearest: Neighbors | None = None,
    power: float = 1.0,
) -> Graph:
    """The k nearest pictures by cosine: exact for small sets, an inverted file for large ones.

    Args:
        features: (n, d) of pictures or parts of it; zero rows have no neighbours.
        k: Neighbours besides the row itself. Released: 5 with the row itself among them, so 4.
        seed: Of sampling in the approximate search.
        target_recall: Of the approximate search.
        nearest: Neighbours that are at hand already, at least k of them.
        power: The weight of an edge is cosine ** power.

    Raises:
        UsageError: If k < 1 or shapes do not fit.
    """
    if nearest is None:
        nearest = neighbors(features, k, seed=seed, target_recall=target_recall)
    elif nearest.ids.shape[1] < k:
        raise UsageError(f"{nearest.ids.shape[1]} neighbours are at hand, but the graph needs {k}.")
    weight = np.clip(np.nan_to_num(nearest.similarity[:, :k]), 0, 1).astype(np.float32) ** power
    return Graph(ids=nearest.ids[:, :k], weight=np.where(nearest.ids[:, :k] >= 0, weight, 0).astype(np.float32),
                 made_from=identity(features), method=nearest.method, recall=nearest.recall)  # fmt: skip


def edge_matrix(graph: Graph, *, faithful: bool = False) -> Any:
    """scipy CSR (n, n) with at most 2 k n entries: symmetric weights, diagonal empty, before any normalisation.

    Args:
        graph: Of `build_graph`, or of `rerank.rerank_graph`.
        faithful: Clip weights to [0.001, 0.999], as released.
    """
    from scipy import sparse

    n, k = graph.ids.shape
    good = (graph.ids >= 0) & (graph.ids != np.arange(n)[:, None])
    weight = np.clip(graph.weight, LEAST, MOST) if faithful else graph.weight
    rows = np.repeat(np.arange(n), k).reshape(n, k)
    one = sparse.csr_matrix((weight[good].astype(np.float32), (rows[good], graph.ids[good])), shape=(n, n))
    return one.maximum(one.T).tocsr()


def complete_texts(
    texts: Features,
    graph: Graph,
    has_text: Bool[np.ndarray, " n"],
    *,
    self_weight: float = 1.0,
    hops: int = 1,
    faithful: bool = False,
) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, " n"]]:
    """Texts averaged with those of similar pictures.

    Args:
        texts: (n, e) features or parts of it.
        graph: Of the pictures.
        has_text: (n,) False where there is no text to lend.
        self_weight: s, how much the own text counts against all neighbours together, >= 0.
        hops: Steps of smoothing, >= 1; the second takes the result of the first.
        faithful: Released behaviour: own text discarded, blanks averaged in, texts not normalised first. Then
            `self_weight` is not used, and rows without any neighbour get zeros.

    Returns:
        float32 (n, e) unit rows, zero where no text is known in the neighbourhood ("unknown": never an anchor); and
        support (n,): share of the weight of the neighbourhood, own text included, that texts stand behind, in [0, 1].

    Raises:
        UsageError: If the number of rows differs from that of the graph.
    """
    from scipy import sparse

    parts = [texts] if isinstance(texts, np.ndarray) else list(texts)
    n = len(graph.ids)
    if sum(map(len, parts)) != n or len(has_text) != n:
        raise UsageError(
            f"the graph holds {n} rows, but there are {sum(map(len, parts))} texts and {len(has_text)} marks of which "
            "exist: build the graph from the same pictures."
        )
    self_weight = 0.0 if faithful else self_weight
    edges = _row_normalised(edge_matrix(graph, faithful=faithful))
    edges = _row_normalised((edges + self_weight * sparse.identity(n, np.float32, "csr")).tocsr())
    known = np.ones(n, np.float32) if faithful else np.asarray(has_text, np.float32)
    support = np.asarray(edges @ np.asarray(has_text, np.float32)).ravel()
    length = np.ones(n, np.float32) if faithful else np.concatenate([_lengths(part) for part in parts])
    lent = np.isfinite(length) & (length > 0) & (known > 0)  # what overflowed counts as missing
    out = np.empty((n, parts[0].shape[1]), np.float32)
    for start in range(0, out.shape[1], COLUMNS):  # one column has nothing to do with another: memory is one copy
        some = slice(start, start + COLUMNS)
        value = np.concatenate([np.asarray(part[:, some], np.float32) for part in parts])
        value = np.where(lent[:, None], value / np.where(lent, length, 1)[:, None], 0)
        for _ in range(hops):
            value = np.asarray(edges @ value, np.float32)
        out[:, some] = value
    for start in range(0, n, BLOCK):
        out[start : start + BLOCK] = unit_rows(out[start : start + BLOCK])
    return out, np.clip(support, 0, 1).astype(np.float32)


def donors(
    graph: Graph, has_text: Bool[np.ndarray, " n"], rows: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who lent its text to these rows: the evidence behind a completed text.

    Returns:
        int64 (k, count) rows, closest first, -1 = fewer; and their weights. Only edges that the row itself has.
    """
    ids = graph.ids[rows]
    lent = np.where((ids >= 0) & np.asarray(has_text)[np.maximum(ids, 0)], graph.weight[rows], -1.0)
    order = np.argsort(-lent, axis=1, kind="stable")[:, :count]
    weight = np.take_along_axis(lent, order, 1)
    return np.where(weight > 0, np.take_along_axis(ids, order, 1), -1), np.maximum(weight, 0)


def _lengths(part: np.ndarray) -> np.ndarray:
    """float32 (n,)."""
    blocks = [np.linalg.norm(np.asarray(part[start : start + BLOCK], np.float32), axis=1)
              for start in range(0, len(part), BLOCK)]  # fmt: skip
    return np.concatenate([*blocks, np.zeros(0, np.float32)])


def _row_normalised(matrix: Any) -> Any:
    """Rows sum to 1; rows of zeros stay zero."""
    from scipy import sparse

    total = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return (sparse.diags(scale.astype(np.float32)) @ matrix).tocsr()
