"""Whom to trust: texts completed through similar images, matched with the class, the best of each class.

Source: CAPro (Qin et al., NeurIPS 2023).
Differs: the own text counts, blank texts do not, neighbours weigh by their cosine, the match is a cosine,
and no class trusts more than three tenths of its samples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK = 1024


def complete_texts(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"], has_text: Bool[np.ndarray, " n"], *,
                   neighbors: int = 5, own: float = 1.0) -> Float[np.ndarray, "n e"]:  # fmt: skip
    """Texts averaged over each image's neighbours.

        A = max(K, K^T) with K_ij = cos(image_i, image_j) for the nearest j,   rows divided by their sum
        out_i = unit(own text_i + sum_j A_ij text_j),   blank texts left out

    Args:
        image: Any rows; made unit here.
        text: Any rows; made unit here.
        has_text: False where the text is blank.
        neighbors: Beside the image itself.
        own: Weight of the own text.

    Returns:
        Unit rows; zeros where neither the image nor a neighbour has a text.
    """
    from scipy import sparse

    n = len(image)
    v = _unit(image.astype(np.float32))
    t = _unit(text.astype(np.float32)) * has_text[:, None]
    k = min(neighbors, n - 1)
    near, weight = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, BLOCK):
        cosine = v[start : start + BLOCK] @ v.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -np.inf
        near[start : start + BLOCK] = found = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight[start : start + BLOCK] = np.take_along_axis(cosine, found, 1)
    graph = sparse.csr_matrix((weight.clip(1e-3, 1).ravel(), near.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    graph = graph.maximum(graph.T)
    graph = sparse.diags(1 / np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12)) @ graph
    return _unit(np.asarray(own * t + graph @ t))


def select_anchors(score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"], count: int, *,
                   share: float = 0.3) -> np.ndarray:  # fmt: skip
    """The best matches of each class.

    Args:
        score: Match of each sample with the class of its label, higher = better; NaN = unknown, never chosen.
        label: int64 (n,).
        count: Of each class; at least one where one is known.
        share: Of a class, at most: with all of a small class trusted there would be nothing to clean.

    Returns:
        int8 (n,) 1 = anchor.
    """
    out = np.zeros(len(label), np.int8)
    for c in np.unique(label):
        mine = np.flatnonzero((label == c) & np.isfinite(score))
        best = max(1, min(count, round(share * (label == c).sum())))
        out[mine[np.argsort(-score[mine], kind="stable")[:best]]] = 1
    return out


def select_tag_anchors(score: Float[np.ndarray, "n c"], tag: Int[np.ndarray, "n c"], count: int) -> np.ndarray:
    """The best and the worst matches of each tag among the samples that have it.

    Returns:
        int8 (n, c): 1 = has the tag for sure, -1 = has it not; the two never overlap, the best go first.
    """
    out = np.zeros(tag.shape, np.int8)
    for c in range(tag.shape[1]):
        mine = np.flatnonzero((tag[:, c] > 0) & np.isfinite(score[:, c]))
        order = mine[np.argsort(-score[mine, c], kind="stable")]
        best = order[:count]
        worst = order[max(len(best), len(order) - count) :]
        out[best, c], out[worst, c] = 1, -1
    return out


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
