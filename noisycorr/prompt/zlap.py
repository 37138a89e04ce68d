"""ZLaP: labels spread from class names to images over a graph of nearest neighbours.

Source: Stojnić, Kalantidis and Tolias, Label Propagation for Zero-shot Classification with Vision-Language Models,
CVPR 2024, as released. Differs: neighbours are found by FAISS; scores below 0, which conjugate gradients may leave, are
set to 0 before rows are divided by their sum.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import cg

from noisycorr.stats.index import neighbors, unit_rows


def zlap(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "c d"], *, k: int = 5, power: float = 5.0,
         alpha: float = 0.3, queries: Float[np.ndarray, "m d"] | None = None,
         seed: int = 0) -> Float[np.ndarray, "n c"]:  # fmt: skip
    """Scores of all images together, without labels.

        A: each image has edges to its k nearest images and to its k nearest classes, weights cos (>= 0), the latter to
           the power;  W = A + A', zero diagonal, S = D^-1/2 W D^-1/2;  (I - alpha S) z_c = e_c;  rows over their sums

    Args:
        image: Features of the images, of any length.
        text: Features of the classes.
        k: Neighbours, of each kind.
        power: Of the cosines between images and classes, which are smaller than those between images.
        alpha: How far labels spread, in [0, 1).
        queries: Other images to classify by the same graph, which they do not enter; None = the images themselves.
        seed: Of the approximate search of large sets.

    Returns:
        float64, rows sum to 1; all classes alike where nothing reached an image.

    Raises:
        ValueError: If ``alpha`` lies outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected in [0, 1)")
    n, c = len(image), len(text)
    near = neighbors(image, min(k, max(1, n - 1)), seed=seed)
    row, place = np.nonzero(near.ids >= 0)
    among = sparse.csr_matrix((np.maximum(near.similarity[row, place], 0), (row, near.ids[row, place])), shape=(n, n))
    to = _to_classes(image, text, k, power)
    edges = sparse.bmat([[sparse.csr_matrix((c, c)), None], [to, among]], format="csr").astype(np.float64)
    edges = (edges + edges.T).tocsr()
    edges.setdiag(0)
    degree = np.asarray(edges.sum(1)).ravel()
    root = sparse.diags(np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0))
    system = sparse.identity(n + c) - alpha * (root @ edges @ root)
    score = np.empty((n + c, c))
    for one in range(c):
        target = np.zeros(n + c)
        target[one] = 1
        score[:, one] = cg(system, target, rtol=1e-6, maxiter=50)[0]
    if queries is None:
        return _shares(score[c:])
    # z of a query is the mean over its own edges, by the symmetry of the solution
    found = neighbors(image, min(k, n), seed=seed, queries=queries)
    weight = np.where(found.ids >= 0, np.maximum(np.nan_to_num(found.similarity), 0), 0.0)
    reached = np.einsum("mk,mkc->mc", weight, score[c + np.maximum(found.ids, 0)])
    return _shares(reached + _to_classes(queries, text, k, power) @ score[:c])


def _to_classes(image: np.ndarray, text: np.ndarray, k: int, power: float) -> sparse.csr_matrix:
    cosines = np.maximum(unit_rows(image).astype(np.float64) @ unit_rows(text).astype(np.float64).T, 0) ** power
    keep = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, len(text))]
    row = np.repeat(np.arange(len(image)), keep.shape[1])
    return sparse.csr_matrix((np.take_along_axis(cosines, keep, 1).ravel(), (row, keep.ravel())), cosines.shape)


def _shares(score: np.ndarray) -> np.ndarray:
    positive = np.maximum(np.asarray(score), 0)
    total = positive.sum(1, keepdims=True)
    return np.where(total > 0, positive / np.where(total > 0, total, 1), 1 / score.shape[1])
