"""Rectified correspondence: how far each pair is to be believed, from its probability, the model and its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from noisycorr.stats.unit import unit


def hinge_prediction(mean_hinge: Float[np.ndarray, " b"], *, margin: float = 0.2) -> Float[np.ndarray, " b"]:
    """The model's own opinion on each pair of a batch, from its mean triplet loss.

        raw_i = clamp(margin - h_i / 2, 0, margin),   P_i = min(raw_i / mean of the floor(b / 10) + 1 largest raw, 1)

    Args:
        mean_hinge: h, ``losses.mean_triplet`` of each pair, both directions added, >= 0.
        margin: That it was computed with, > 0.

    Returns:
        Opinions in [0, 1], higher = better matched; all 0 where no pair keeps any of its margin.

    Source: NCR (Huang et al., NeurIPS 2021). The answer depends on the other pairs of the batch.
    """
    raw = np.clip(margin - np.asarray(mean_hinge, np.float64) / 2, 0.0, margin)
    if not len(raw):
        return raw
    top = np.sort(raw)[::-1][: len(raw) // 10 + 1].mean()
    return np.clip(raw / top, 0.0, 1.0) if top > 0 else np.zeros_like(raw)


def rectify(p_clean: Float[np.ndarray, " n"], opinion: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Believe the pair as far as it is clean, and the model for the rest: y = w + (1 - w) P.

    Args:
        p_clean: w, probability that each pair is right, in [0, 1]: of the peer network, or the mean of both networks
            for pairs on which they disagree.
        opinion: P, the model's own, in [0, 1]: ``hinge_prediction``, or the mean posterior of both directions.

    Returns:
        Soft correspondence in [0, 1], never below ``p_clean``.

    Raises:
        ValueError: If the shapes differ.

    Source: NCR (Huang et al., NeurIPS 2021); CREAM (IEEE TIP 2024) for clean and hard pairs alike. Noisy pairs get the
    mean of both networks' opinions, p_clean = 0.
    Differs: the released NCR broadcasts (b, 1) with (b,) to a matrix; here equal shapes are demanded.
    """
    w, p = _alike(p_clean, opinion)
    return w + (1 - w) * p


def oscillation(now: Float[np.ndarray, "n c"], before: Float[np.ndarray, "n c"], *,
                tiny: float = 1e-8) -> Float[np.ndarray, " n"]:  # fmt: skip
    """How far each pair's class prediction moved since the last epoch.

        o_i = KL(now_i || before_i) = sum_k p_k (ln (p_k + tiny) - ln (q_k + tiny))

    Args:
        now: p, class probabilities of this epoch, rows sum to 1.
        before: q, of the last epoch, of the same pairs in the same order.
        tiny: Keeps the logarithm finite.

    Returns:
        Movement in nats, >= 0 up to ``tiny``, 0 where nothing moved; higher = less stable.

    Raises:
        ValueError: If the shapes differ.

    Source: PC2 (Duan et al., ACM MM 2024).
    """
    p, q = _alike(now, before)
    return (p * (np.log(p + tiny) - np.log(q + tiny))).sum(1)


def rectify_stable(p_clean: Float[np.ndarray, " n"], p_stable: Float[np.ndarray, " n"], *,
                   threshold: float = 0.5) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Raise the label of pairs whose class stays put: y = w + (1 - w) u where u > threshold, else w.

    Args:
        p_clean: w, probability that each pair is right, in [0, 1].
        p_stable: u, probability that its class is stable, in [0, 1]. All 0 switches this off.
        threshold: Stability at or below counts as none.

    Returns:
        Soft correspondence in [0, 1], never below ``p_clean``.

    Raises:
        ValueError: If the shapes differ.

    Source: the released code of PC2 (ACM MM 2024).
    """
    w, u = _alike(p_clean, p_stable)
    return w + (1 - w) * np.where(u > threshold, u, 0.0)


def anchor_ratio(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"],
                 anchors: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:  # fmt: skip
    """How alike a pair's distances to trusted pairs are in both modalities.

        a = the anchor whose image is nearest to image i,   r_I = cos(v_i, v_a) / cos(t_i, t_a), inverted above 1
        r_T the same from the anchor whose text is nearest;   ratio_i = (r_I + r_T) / 2

    Args:
        image: Features of the images.
        text: Features of the texts.
        anchors: True for trusted pairs, at least one.

    Returns:
        Ratios in [0, 1], 1 for anchors. A ratio of which either cosine is not positive is 0.

    Raises:
        ValueError: If shapes do not fit or there is no anchor.

    Source: BiCro (Yang et al., CVPR 2023).
    Differs: an anchor's own ratio is 1 by definition; negative ratios are 0.
    """
    v, t = unit(image, np.float64), unit(text, np.float64)
    anchors = np.asarray(anchors, bool)
    if len(v) != len(t) or anchors.shape != (len(v),) or not anchors.any():
        raise ValueError(
            f"{len(v)} images, {len(t)} texts, anchors {anchors.shape}: equal numbers and one anchor needed"
        )
    by_image, by_text = v @ v[anchors].T, t @ t[anchors].T
    rows = np.arange(len(v))
    ratios = []
    for place in (by_image.argmax(1), by_text.argmax(1)):
        one, two = by_image[rows, place], by_text[rows, place]
        high, low = np.maximum(one, two), np.minimum(one, two)
        ratios.append(np.where(low > 0, low / np.where(low > 0, high, 1.0), 0.0))
    return np.where(anchors, 1.0, 0.5 * (ratios[0] + ratios[1]))


def rectify_ratio(ratio: Float[np.ndarray, " n"], clean: Bool[np.ndarray, " n"], *,
                  least: float = 0.5) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Labels from ``anchor_ratio``: 1/2 + ratio / 2 for clean pairs, the ratio itself for noisy ones.

    Args:
        ratio: In [0, 1].
        clean: True for pairs held for right.
        least: Labels below are 0.

    Returns:
        Soft correspondence, 0 or in [least, 1].

    Raises:
        ValueError: If the shapes differ.

    Source: BiCro (Yang et al., CVPR 2023).
    """
    ratio, clean = np.asarray(ratio, np.float64), np.asarray(clean, bool)
    if ratio.shape != clean.shape:
        raise ValueError(f"ratio has shape {ratio.shape}, clean has {clean.shape}; they must be equal")
    label = np.clip(np.where(clean, 0.5 + 0.5 * ratio, ratio), 0.0, 1.0)
    return np.where(label < least, 0.0, label)


def top_opinions(opinion: Float[np.ndarray, " b"]) -> Bool[np.ndarray, " b"]:
    """The floor(b / 10) + 1 pairs of the highest opinion, ties by order: anchors of a batch. Source: BiCro."""
    chosen = np.zeros(len(opinion), bool)
    chosen[np.argsort(-np.asarray(opinion, np.float64), kind="stable")[: len(opinion) // 10 + 1]] = True
    return chosen & (len(chosen) > 0)


def blend(before: Float[np.ndarray, " n"], now: Float[np.ndarray, " n"], *, keep: float,
          least: float = 0.0) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Moving average of labels: y = keep * before + (1 - keep) * now, and 0 where that is below ``least``.

    Args:
        before: Labels of the last epoch.
        now: Opinions of this one.
        keep: In [0, 1].
        least: In [0, 1].

    Returns:
        Soft correspondence, in the range of the inputs or 0.

    Raises:
        ValueError: If the shapes differ or ``keep`` lies outside [0, 1].

    Source: CRCL (Qin et al., NeurIPS 2023) keeps 0.8, least 0.1; GSC (Zhao et al., CVPR 2024) keeps 0.3 of both its
    prediction and its structure and takes the smaller: ``np.minimum(blend(...), blend(...))``.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}, expected in [0, 1]")
    old, new = _alike(before, now)
    label = keep * old + (1 - keep) * new
    return np.where(label < least, 0.0, label)


def proxy_label(opinion: Float[np.ndarray, " n"], cosine: Float[np.ndarray, " n"], *,
                least: float = 0.5) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Trust in a borrowed text: y = P cos, and 0 below ``least``.

    Args:
        opinion: P, the model's own of the pair with its new text, in [0, 1].
        cosine: Between the pair's image and the image from which the text was borrowed, in [-1, 1].
        least: Labels below are 0.

    Returns:
        Soft correspondence, 0 or in [least, 1].

    Raises:
        ValueError: If the shapes differ.

    Source: SPS (IJCAI 2025).
    """
    p, c = _alike(opinion, cosine)
    label = np.clip(p * c, 0.0, 1.0)
    return np.where(label < least, 0.0, label)


def nearest_members(query: Float[np.ndarray, "n d"], bank: Float[np.ndarray, "m d"], *,
                    k: int) -> Int[np.ndarray, "n k"]:  # fmt: skip
    """Rows of the k members with the highest cosine, best first; ties go to the earlier one, fewer if the bank is."""
    return np.argsort(-(unit(query, np.float64) @ unit(bank, np.float64).T), axis=1, kind="stable")[:, :k]


def offset_weight(cosine: Float[np.ndarray, " n"], *, offset: float, scale: float = 1.0,
                  faithful: bool = False) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Weight of a pair from a frozen model's cosine above what unrelated inputs get.

        x = (cos - offset) / scale clipped to [0, 1],   weight = x^2 (1 - x);  faithful: x^2 (1 - x^2)

    Args:
        cosine: By a frozen pretrained model, in [-1, 1].
        offset: Mean cosine of unrelated inputs.
        scale: > 0.
        faithful: The form of the released code.

    Returns:
        Weights in [0, 0.25], 0 at or below the offset. They fall again towards x = 1, which cosines of such models do
        not reach.

    Raises:
        ValueError: If ``scale`` <= 0.

    Source: OSA (2024).
    Differs: the paper's form is the default, the code's an option.
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}, expected > 0")
    x = np.clip((np.asarray(cosine, np.float64) - offset) / scale, 0.0, 1.0)
    return x**2 * (1 - x**2) if faithful else x**2 * (1 - x)


def _alike(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if one.shape != two.shape:
        raise ValueError(f"shapes {one.shape} and {two.shape} must be equal")
    return one, two


def on_arrays(function: Callable[..., np.ndarray], *values: Tensor, **options: Any) -> Tensor:
    """What a function of arrays makes of tensors, as a tensor like the first of them.

    Args:
        function: From arrays to one array.
        values: Its arguments, in at least single precision.
        options: Its further arguments, as they are.
    """
    found = function(*(value.detach().cpu().numpy() for value in values), **options)
    return torch.from_numpy(np.ascontiguousarray(found)).to(values[0].device, values[0].dtype)
