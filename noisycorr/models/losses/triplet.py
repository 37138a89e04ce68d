"""Hinge losses over the negatives of a batch, and the curves that turn trust into a margin."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from noisycorr.models.losses.directions import checked, directions, weighted

Margin = float | Float[Tensor, " b"] | Float[Tensor, "b b"]


def hardest_triplet(sims: Float[Tensor, "b b"], *, margin: Margin = 0.2, weight: Float[Tensor, " b"] | None = None,
                    negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Triplet loss against the hardest negative of each query.

        loss_i = max_j [m_i + s_ij - s_ii]+  +  max_j [m_i + s_ji - s_ii]+          (j != i)

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        margin: In units of similarity, >= 0: one for all; one per pair, (b,), which acts on that pair's own queries in
            both directions; or one per image and text, (b, b), taken as it stands.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in units of similarity, >= 0; 0 for a query without negatives.

    Raises:
        ValueError: If a shape does not fit; (b, 1) in particular is refused.

    Source: VSE++ (Faghri et al., BMVC 2018); a margin per pair from NCR (Huang et al., NeurIPS 2021).
    Differs: the released NCR and PC2 give queries of one direction the margin of the negative. To have that, pass the
    (b, b) matrix ``margin[:, None].expand(b, b)``: row margins in both directions; or its transpose.
    """
    (image, _), (text, _) = _hinges(sims, margin, negatives)
    return weighted(image.amax(1) + text.amax(1), weight)


def mean_triplet(sims: Float[Tensor, "b b"], *, margin: Margin = 0.2, weight: Float[Tensor, " b"] | None = None,
                 negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Triplet loss averaged over all candidates of each query: to warm up with, and the statistic of each pair.

        loss_i = 1/n_i sum_j [m_i + s_ij - s_ii]+  +  1/n'_i sum_j [m_i + s_ji - s_ii]+      (j != i)

    with n_i the number of candidates of the query, its partner included: b where no negative is masked.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        margin: As in ``hardest_triplet``.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in units of similarity, >= 0.

    Raises:
        ValueError: If a shape does not fit.

    Source: NCR (Huang et al., NeurIPS 2021), which divides by b, not b - 1.
    """
    (image, images), (text, texts) = _hinges(sims, margin, negatives)
    return weighted(image.sum(1) / (1 + images.sum(1)) + text.sum(1) / (1 + texts.sum(1)), weight)


def top_triplet(sims: Float[Tensor, "b b"], *, n: int, margin: Margin = 0.2, weight: Float[Tensor, " b"] | None = None,
                negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Triplet loss averaged over the n hardest negatives of each query.

        loss_i = mean of the n largest [m_i + s_ij - s_ii]+  +  the same with s_ji          (j != i)

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        n: How many, >= 1. A query with fewer negatives averages over those it has.
        margin: As in ``hardest_triplet``.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in units of similarity, >= 0. With n = 1 it is ``hardest_triplet``.

    Raises:
        ValueError: If n < 1, or a shape does not fit.

    Source: DECL (Qin et al., ACM MM 2022), on tanh of the raw similarity, with n from ``hard_count``.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected >= 1")
    losses = []
    for hinge, mask in _hinges(sims, margin, negatives):
        top = hinge.topk(min(n, len(hinge)), dim=1).values.sum(1)
        losses.append(top / mask.sum(1).clamp(min=1, max=n))
    return weighted(losses[0] + losses[1], weight)


def hard_count(step: int, batch: int, *, rate: float = 0.025, least: int = 5) -> int:
    """How many negatives count at a step: all at first, ``rate`` fewer each step, never fewer than ``least``.

        n = max(floor(batch - rate * step), least)

    Args:
        step: Steps taken so far, >= 0.
        batch: Size of the batch.
        rate: Negatives given up per step, >= 0.
        least: How many always stay, >= 1.

    Returns:
        n for ``top_triplet``.

    Source: DECL (Qin et al., ACM MM 2022).
    """
    return max(math.floor(batch - rate * step), least)


def exponential_margin(target: Float[Tensor, " b"], *, margin: float = 0.2, base: float = 10.0) -> Float[Tensor, " b"]:
    """Margin that grows slowly with trust, then fast.

        m_i = margin * (base ** y_i - 1) / (base - 1)

    Args:
        target: Soft correspondence of each pair, in [0, 1].
        margin: At full trust, in units of similarity.
        base: > 1; the limit 1 is linear.

    Returns:
        One margin per pair, from 0 to ``margin``.

    Raises:
        ValueError: If ``base`` <= 1.

    Source: NCR (Huang et al., NeurIPS 2021), base 10 in the released code.
    """
    if base <= 1:
        raise ValueError(f"base is {base}, expected > 1")
    return margin * torch.expm1(target * math.log(base)) / (base - 1)


def linear_margin(target: Float[Tensor, " b"], *, margin: float = 0.2) -> Float[Tensor, " b"]:
    """Margin in proportion to trust: m_i = margin * y_i.

    Args:
        target: Soft correspondence of each pair, in [0, 1].
        margin: At full trust, in units of similarity.

    Returns:
        One margin per pair, from 0 to ``margin``.

    Source: NCR (Huang et al., NeurIPS 2021).
    """
    return margin * target


def sine_margin(target: Float[Tensor, " b"], *, margin: float = 0.2) -> Float[Tensor, " b"]:
    """Margin that is flat at both ends of trust.

        m_i = margin * (1/2 + 1/2 sin(pi y_i - pi / 2))

    Args:
        target: Soft correspondence of each pair, in [0, 1].
        margin: At full trust, in units of similarity.

    Returns:
        One margin per pair, from 0 to ``margin``.

    Source: NCR (Huang et al., NeurIPS 2021).
    """
    return margin * (0.5 - 0.5 * torch.cos(math.pi * target))


def small_losses(loss: Float[Tensor, " b"], *, share: float) -> Bool[Tensor, " b"]:
    """The pairs of a batch with the smallest losses, at least one: to warm up on those alone.

    Args:
        loss: Of each pair.
        share: How many, in (0, 1], rounded down.

    Returns:
        True for the chosen; ties go to the earlier pair.

    Raises:
        ValueError: If ``share`` lies outside (0, 1].

    Source: BiCro (Yang et al., CVPR 2023) warms up on 30 %, PC2 (ACM MM 2024) optionally on 50 %.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected in (0, 1]")
    chosen = torch.zeros_like(loss, dtype=torch.bool)
    chosen[loss.detach().argsort(stable=True)[: max(1, math.floor(share * len(loss) + 1e-9))]] = True
    return chosen


def _hinges(sims: Tensor, margin: Margin, negatives: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Violations of each query (row) by each candidate, 0 where it is no negative, and who is one; both directions."""
    b = len(sims)
    hinges = []
    for way, (scores, mask) in enumerate(directions(sims, negatives)):
        own = scores.diagonal()[:, None]
        gap: Tensor | float = margin
        if isinstance(margin, Tensor) and margin.ndim:
            checked(margin, "margin", (b,), (b, b))
            gap = margin[:, None] if margin.ndim == 1 else (margin.T if way else margin)
        hinges.append(((gap + scores - own).clamp(min=0).masked_fill(~mask, 0.0), mask))
    return hinges
