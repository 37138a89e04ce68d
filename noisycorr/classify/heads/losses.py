"""Terms of NMTune on a batch of tuned features: stay near what was given, decorrelate, strengthen what dominates.

Each is one number for the batch, not one for each pair, and none of them uses labels.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from noisycorr.models.losses.directions import widened


def feature_consistency(tuned: Float[Tensor, "b d"], given: Float[Tensor, "b d"], *,
                        reduction: Literal["mean", "sum"] = "mean") -> Float[Tensor, ""]:  # fmt: skip
    """How far the directions of tuned features are from those that were given.

        mean_i mean_d ( z_i / |z_i| - f_i / |f_i| )_d ** 2

    Args:
        tuned: What the adapter makes of one view; of any length, not of length 0.
        given: The frozen features of another view, or of the same; no gradient goes there.
        reduction: mean over the d numbers as in the released code, or sum as the paper writes it: d times as much.

    Returns:
        In [0, 4 / d], or [0, 4] for ``sum``; lower = nearer. 0 for equal directions, whatever the lengths.

    Raises:
        ValueError: If the shapes differ or ``reduction`` is unknown.

    Source: NMTune (Chen et al., ICLR 2024), L_MSE.
    """
    if tuned.shape != given.shape:
        raise ValueError(f"tuned {tuple(tuned.shape)} and given {tuple(given.shape)} features differ in shape")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected mean or sum")
    gap = (functional.normalize(tuned, dim=1) - functional.normalize(given.detach(), dim=1)).square()
    return gap.mean() if reduction == "mean" else gap.sum(1).mean()


def feature_covariance(tuned: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """How much the numbers of tuned features say the same.

        C = Zc' Zc / (b - 1),   Zc = z - its column means;      (1 / d) sum_{i != j} C_ij ** 2

    Grows with the fourth power of the features' length: bring them to a common scale first (``feature_scale``).

    Args:
        tuned: Of one batch, b >= 2.

    Returns:
        >= 0, lower = less correlated; 0 for a diagonal covariance.

    Raises:
        ValueError: If b < 2.

    Source: NMTune (Chen et al., ICLR 2024), L_COV, after VICReg (Bardes et al., ICLR 2022).
    """
    b, d = tuned.shape
    if b < 2:
        raise ValueError(f"a covariance needs at least 2 rows, got {b}")
    wide = widened(tuned)
    centred = wide - wide.mean(0)
    covariance = centred.T @ centred / (b - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / d


def dominant_values(tuned: Float[Tensor, "b d"], *, topk: int = 5) -> Float[Tensor, ""]:
    """Minus the mean share of the largest singular values: to minimise it is to strengthen them.

        p_j = sigma_j / sum sigma,      - mean of the topk largest p_j

    Args:
        tuned: Of one batch, not centred.
        topk: How many values, >= 1; never more than there are. The released code takes 5, the paper writes 1.

    Returns:
        In [-1 / topk, 0), lower = the largest directions hold more; 0 for features that are all zero.

    Raises:
        ValueError: If ``topk`` < 1.

    Source: NMTune (Chen et al., ICLR 2024), L_SVD.
    """
    if topk < 1:
        raise ValueError(f"topk is {topk}, expected at least 1")
    values = torch.linalg.svdvals(widened(tuned))
    return -(values[:topk] / values.sum().clamp(min=torch.finfo(values.dtype).tiny)).mean()
