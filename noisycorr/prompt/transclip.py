"""TransCLIP: classes as Gaussians over all images at once, held near the zero-shot answer and alike for neighbours.

Source: Zanella, Gérin and Ben Ayed, Boosting Vision-Language Models with Transduction, NeurIPS 2024, as released.
Differs: all c classes have a Gaussian, where the released code counts those that occur among the true labels of the
images; neighbours are found by FAISS; the variance is kept above 1e-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse, special

from noisycorr.stats.index import neighbors, unit_rows
from noisycorr.stats.transductive import SCALE, zero_shot
from noisycorr.stats.unit import unit

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
    start = np.log(np.maximum(zero_shot(image, text, scale=scale), 1e-300))
    return iterate_transclip(x, start, alike(x, k, seed=seed), keep=keep, blocks=blocks, sweeps=sweeps).z


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Classes as Gaussians.

    Attributes:
        z: float64 (n, c): the answer for each image, rows sum to 1.
        mean: (c, d), of unit length.
        variance: (d,), shared by all classes.
    """

    z: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def iterate_transclip(x: Float[np.ndarray, "n d"], start: Float[np.ndarray, "n c"], both: sparse.csr_matrix, *,
                      keep: float = 1.0, blocks: int = 10, sweeps: int = 5) -> Settled:  # fmt: skip
    """The iteration of `transclip` from any first answer, in any space of images.

    Args:
        x: Images, rows of unit length; not necessarily in the space of the first answer.
        start: log y, the first answer.
        both: W' + W as `alike` makes it.
        keep: Weight of the first answer.
        blocks: As in `transclip`.
        sweeps: As in `transclip`.
    """
    d, c = x.shape[1], start.shape[1]
    z = np.exp(start)
    top = np.argsort(-z, axis=0, kind="stable")[:FIRST]
    mean = unit(np.stack([z[top[:, one], one] @ x[top[:, one]] for one in range(c)]), np.float64)
    variance = np.full(d, 1 / d)
    for block in range(blocks + 1):
        told = gaussians(x, mean, variance)
        for _ in range(sweeps):
            z = special.softmax(keep * start + SHARE * (told + PULL * (both @ z)), axis=1)
        if block == blocks:
            break
        mean = unit(z.T @ x, np.float64)
        # sum_ic z_ic (x_id - mu_cd)^2, multiplied out; rows of z sum to 1
        mass = z.sum(0)
        spread = np.square(x).sum(0) - 2 * ((z.T @ x) * mean).sum(0) + (mass[:, None] * np.square(mean)).sum(0)
        variance = np.maximum(spread / z.sum(), LEAST_VARIANCE)
    return Settled(z=z, mean=mean, variance=variance)


def answer(found: Settled, x: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "m d"],
           start: Float[np.ndarray, "m c"], *, k: int = 3, keep: float = 1.0,
           seed: int = 0) -> Float[np.ndarray, "m c"]:  # fmt: skip
    """One step of z for images that the Gaussians were not made from, which stay as they are.

        z_q = normalise( y_q^keep * exp( (g_q + 2 * 50/6 * sum over the k nearest i of cos_qi z_i) / 50 ) )

    Args:
        found: Classes.
        x: The images that they were made from, rows of unit length.
        queries: Other images, rows of unit length.
        start: log y of them.
        k: Neighbours of each among `x`; twice their cosines stand for W' + W.
        keep: Weight of the first answer.
        seed: Of the approximate search of large sets.

    Source: none; TransCLIP answers all images at once, this one image at a time.
    """
    near = neighbors(x, min(k, len(x)), seed=seed, queries=queries)
    weight = np.where(near.ids >= 0, np.nan_to_num(near.similarity.astype(np.float64)), 0.0)
    around = np.einsum("mk,mkc->mc", weight, found.z[np.maximum(near.ids, 0)])
    told = gaussians(queries, found.mean, found.variance)
    out: np.ndarray = special.softmax(keep * start + SHARE * (told + 2 * PULL * around), axis=1)
    return out


def gaussians(x: Float[np.ndarray, "n d"], mean: Float[np.ndarray, "c d"],
              variance: Float[np.ndarray, " d"]) -> Float[np.ndarray, "n c"]:  # fmt: skip
    """g_ic = -1/2 sum_d (x_id - mu_cd)^2 / v_d."""
    scaled = x / variance
    out: np.ndarray = (
        scaled @ mean.T - 0.5 * (np.square(mean) / variance).sum(1) - 0.5 * (x * scaled).sum(1, keepdims=True)
    )
    return out


def alike(image: Float[np.ndarray, "n d"], k: int, *, seed: int = 0) -> sparse.csr_matrix:
    """W' + W, where W (n, n) holds the cosine of each row's nearest k other images."""
    weights = _graph(image, k, seed)
    return (weights + weights.T).tocsr()


def _graph(image: np.ndarray, k: int, seed: int) -> sparse.csr_matrix:
    """W (n, n): the cosine of each row's nearest other images."""
    n = len(image)
    found = neighbors(image, min(k, max(1, n - 1)), seed=seed)
    row, place = np.nonzero(found.ids >= 0)
    values = found.similarity[row, place].astype(np.float64)
    return sparse.csr_matrix((values, (row, found.ids[row, place])), shape=(n, n))
