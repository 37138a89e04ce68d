"""Classifiers that cost seconds: from features of images and classes, without training a network, to probabilities.

All take image features (n, d) and class features (c, d) of one joint space, of any length, and give (n, c) rows that
sum to 1. `transclip` and `zlap` have files of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special

from noisycorr.stats.index import neighbors, unit_rows
from noisycorr.stats.transport import sinkhorn

SCALE = 100.0  # of released CLIP models


def class_features(vectors: Sequence[Float[np.ndarray, "k d"]]) -> Float[np.ndarray, "c d"]:
    """One unit vector a class from several texts a class: templates filled in, or descriptions.

        t_c = unit( mean_k unit(t_ck) )

    Args:
        vectors: Text features of each class, k >= 1 of them, a number that may differ between classes.

    Returns:
        float32; with one text a class it is that text's unit vector.

    Raises:
        ValueError: If a class has no text.

    Source: prompt ensembles of CLIP (Radford et al., ICML 2021); CuPL (Pratt et al., ICCV 2023) for descriptions.
    """
    for place, one in enumerate(vectors):
        if len(one) == 0:
            raise ValueError(f"class {place} has no text")
    return unit_rows(np.stack([unit_rows(one).mean(axis=0) for one in vectors]))


def zero_shot(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "c d"], *,
              scale: float = SCALE) -> Float[np.ndarray, "n c"]:  # fmt: skip
    """softmax_c( scale * cos(x_i, t_c) ), float64.

    Args:
        image: Features of images.
        text: Features of classes.
        scale: Inverse temperature, > 0: the encoder's own.
    """
    return special.softmax(scale * _cosines(image, text), axis=1)


def balanced(chances: Float[np.ndarray, "n c"], *, prior: Float[np.ndarray, " c"] | None = None,
             rounds: int = 50) -> Float[np.ndarray, "n c"]:  # fmt: skip
    """Classes by transport: rows as near to the given probabilities as a class balance allows.

        G = P;   repeat:  G_ic *= n prior_c / sum_i G_ic,   G_ic /= sum_c G_ic

    Only as good as the prior: with a prior that is not true it moves right labels away.

    Args:
        chances: Probabilities P of a classifier.
        prior: Share of each class, sums to 1; None = all alike.
        rounds: Of scaling.

    Returns:
        Rows sum to 1; columns to n prior_c as nearly as the rounds reached.

    Raises:
        ValueError: If the prior is negative or does not sum to 1.

    Source: Cuturi, NeurIPS 2013; with a prior of labels, OTTER (Shin et al., NeurIPS 2024).
    """
    n, c = chances.shape
    share = np.full(c, 1 / c) if prior is None else np.asarray(prior, np.float64)
    if share.shape != (c,) or (share < 0).any() or abs(share.sum() - 1) > 1e-6:
        raise ValueError(f"the prior has shape {share.shape} and sum {share.sum():g}, expected ({c},) and 1")
    cost = -torch.from_numpy(np.log(np.maximum(np.asarray(chances, np.float64), 1e-300)))
    plan = sinkhorn(cost, torch.ones(n, dtype=torch.float64), torch.from_numpy(n * share), reg=1.0, iterations=rounds,
                    tolerance=1e-6).numpy()  # fmt: skip
    return plan / np.maximum(plan.sum(1, keepdims=True), 1e-300)


def neighbor_labels(chances: Float[np.ndarray, "n c"], image: Float[np.ndarray, "n d"], *, k: int = 10,
                    queries: Float[np.ndarray, "m d"] | None = None, sharp: float = 20.0,
                    seed: int = 0) -> Float[np.ndarray, "m c"]:  # fmt: skip
    """Pseudo-labels of neighbours: mean probabilities of the k nearest images, the nearer the heavier.

        q_i = sum_{j in kNN(i)} w_ij p_j / sum_j w_ij,      w_ij = exp(sharp * (cos_ij - 1))

    Args:
        chances: Probabilities of the n images.
        image: Their features, of any encoder; it need not be the one of the classifier.
        k: Neighbours, without the image itself.
        queries: Other images to label; None = the same ones.
        sharp: How fast the weight falls with the cosine, >= 0.
        seed: Of the approximate search of large sets.

    Returns:
        float64; where an image has no neighbour, its own row, or for queries the mean of all.
    """
    found = neighbors(image, k, seed=seed, queries=queries)
    weight = np.where(found.ids >= 0, np.exp(sharp * (np.nan_to_num(found.similarity, nan=0.0) - 1)), 0.0)
    total = weight.sum(1, keepdims=True)
    mixed = np.einsum("mk,mkc->mc", weight, np.asarray(chances, np.float64)[np.maximum(found.ids, 0)])
    rest = chances if queries is None else np.broadcast_to(chances.mean(0), mixed.shape)
    return np.where(total > 0, mixed / np.where(total > 0, total, 1), rest)


def linear_probe(image: Float[np.ndarray, "m d"], labels: Int[np.ndarray, " m"], queries: Float[np.ndarray, "n d"], *,
                 classes: int, strength: float = 10.0) -> Float[np.ndarray, "n c"]:  # fmt: skip
    """Logistic regression on unit features of labelled images.

    Args:
        image: Features of labelled images.
        labels: Their classes, 0 to classes - 1; two or more must occur.
        queries: Images to classify.
        classes: c; classes that do not occur get probability 0.
        strength: Inverse of the penalty on the weights, > 0.

    Raises:
        ValueError: If fewer than two classes occur.
    """
    from sklearn.linear_model import LogisticRegression

    known = np.unique(labels)
    if len(known) < 2:
        raise ValueError(f"labels hold {len(known)} classes, a probe needs 2 or more")
    with warnings.catch_warnings():  # many classes on few rows are what probes are for
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        model = LogisticRegression(C=strength, max_iter=500).fit(unit_rows(image), labels)
    out = np.zeros((len(queries), classes))
    out[:, known] = model.predict_proba(unit_rows(queries))
    return out


def _cosines(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(f"image features {image.shape} and class features {text.shape} are not of one space")
    return unit_rows(image).astype(np.float64) @ unit_rows(text).astype(np.float64).T
