"""TransCLIP: classes as Gaussians over all images at once, held near the zero-shot answer and alike for neighbours.

Source: Zanella, Gérin and Ben Ayed, Boosting Vision-Language Models with Transduction, NeurIPS 2024, as released.
Differs: all c classes have a Gaussian, where the released code counts those that occur among the true labels of the
images; neighbours are found by FAISS; the variance is kept above 1e-8.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import sparse, special

from noisycorr.index import neighbors, unit_rows
from noisycorr.score.transductive import SCALE, zero_shot

FIRST = 8  # images that a class starts from
SHARE = 1 / 50
PULL = 50 / 6  # of the neighbours, inside SHARE
LEAST_VARIANCE = 1e-8


def transclip(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "c d"], *, scale: float = SCALE,
              keep: float = 1.0, k: int = 3, blocks: int = 10, sweeps: int = 5,
              seed: int = 0) -> Float[np.ndarray, "n c"]:  # fmt: skip
    """Probabilities of all images together, without labels.

        y_i   = softmax(scale * cos(x_i, t_c)),  z = y;   mu_c from the 8 images with the largest z_c,  v_d = 1 / d
        g_ic  = -1/2 sum_d (x_id - mu_cd)^2 / v_d
        z_i  <- normalise( y_i^keep * exp( (g_i + 50/6 * (W'z + Wz)_i) / 50 ) )                   `sweeps` times
        mu_c  = unit( sum_i z_ic x_i ),   v_d = sum_ic z_ic (x_id - mu_cd)^2 / sum z              again, `blocks` times

    Args:
        image: Features of the images, of any length.
        text: Features of the classes.
        scale: Inverse temperature of the encoder.
        keep: Weight of the zero-shot answer, >= 0.
        k: Neighbours of each image in W, which holds their cosines.
        blocks: Rounds of all three steps; one more of the first two at the end.
        sweeps: Rounds of z inside each block.
        seed: Of the approximate search of large sets.

    Returns:
        float64, rows sum to 1.
    """
    x = unit_rows(image).astype(np.float64)
    d, c = x.shape[1], len(text)
    start = np.log(np.maximum(zero_shot(image, text, scale=scale), 1e-300))
    weights = _graph(image, k, seed)
    both = (weights + weights.T).tocsr()
    z = np.exp(start)
    top = np.argsort(-z, axis=0, kind="stable")[:FIRST]
    mean = _unit(np.stack([z[top[:, one], one] @ x[top[:, one]] for one in range(c)]))
    variance = np.full(d, 1 / d)
    for block in range(blocks + 1):
        scaled = x / variance
        gauss = scaled @ mean.T - 0.5 * (np.square(mean) / variance).sum(1) - 0.5 * (x * scaled).sum(1, keepdims=True)
        for _ in range(sweeps):
            z = special.softmax(keep * start + SHARE * (gauss + PULL * (both @ z)), axis=1)
        if block == blocks:
            break
        mean = _unit(z.T @ x)
        # sum_ic z_ic (x_id - mu_cd)^2, multiplied out; rows of z sum to 1
        mass = z.sum(0)
        spread = np.square(x).sum(0) - 2 * ((z.T @ x) * mean).sum(0) + (mass[:, None] * np.square(mean)).sum(0)
        variance = np.maximum(spread / z.sum(), LEAST_VARIANCE)
    return z


def _graph(image: np.ndarray, k: int, seed: int) -> sparse.csr_matrix:
    """W (n, n): the cosine of each row's nearest other images."""
    n = len(image)
    found = neighbors(image, min(k, max(1, n - 1)), seed=seed)
    row, place = np.nonzero(found.ids >= 0)
    values = found.similarity[row, place].astype(np.float64)
    return sparse.csr_matrix((values, (row, found.ids[row, place])), shape=(n, n))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
