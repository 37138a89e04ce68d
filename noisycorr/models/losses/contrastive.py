"""Losses of the retrieval posterior: InfoNCE with soft targets, SigLIP, reverse, symmetric and generalised forms."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from noisycorr.models.losses.directions import checked, directions, log_posterior, weighted, widened

TINY = 1e-7  # stands for the probability 0 inside the logarithm of reverse cross-entropy


def info_nce(sims: Float[Tensor, "b b"], *, temperature: float | Tensor = 0.07,
             target: Float[Tensor, " b"] | Float[Tensor, "b b"] | None = None,
             floor: float = 0.0, weight: Float[Tensor, " b"] | None = None,
             negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Cross-entropy of each pair's partner among the batch, mean of both directions.

        loss_i = - 1/2 sum_j (W_ij ln P_ij + V_ij ln Q_ij)

    with P_ij the softmax over texts j of s_ij / temperature, and Q_ij the softmax over images j of s_ji / temperature.
    Without target, W and V are the identity. With a target of one value per pair they are ``spread(...)`` of each
    direction: y_i on the partner and 1 - y_i over the negatives. With a matrix, W is its rows and V its columns, each
    divided by its sum; an empty row or column adds nothing.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: > 0, in units of similarity; a tensor may be learned.
        target: Soft correspondence in [0, 1] of each pair, (b,); or who belongs to whom, (b, b), >= 0. No gradient
            flows into it.
        floor: Targets of ``spread`` below are dropped, in [0, 1]; above 1 nothing is left.
        weight: Factor of each pair's loss, >= 0.
        negatives: True where image i and text j may serve as negatives; others leave the softmax.

    Returns:
        One loss per pair, in nats, >= 0.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: InfoNCE as in CLIP (Radford et al., ICML 2021); soft targets of CREAM (IEEE TIP 2024).
    Differs: CREAM adds the two directions; here their mean is taken.
    """
    losses = []
    for way, (scores, mask) in enumerate(directions(sims, negatives)):
        log_p = log_posterior(scores, mask, temperature)
        if target is None:
            losses.append(-log_p.diagonal())
        else:
            goal = _rows(scores, mask, target, way, floor)
            losses.append(-(goal * log_p.masked_fill(goal == 0, 0.0)).sum(1))
    return weighted(0.5 * (losses[0] + losses[1]), weight)


def match_posterior(sims: Float[Tensor, "b b"], *, temperature: float | Tensor = 0.07,
                    negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """The model's own opinion on each pair: (P_ii + Q_ii) / 2, the posterior of the partner in both directions.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: > 0, in units of similarity.
        negatives: True where image i and text j may serve as negatives; others leave the softmax.

    Returns:
        One probability per pair, in [0, 1], higher = better matched.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: CREAM (IEEE TIP 2024); CRCL (Qin et al., NeurIPS 2023); GSC (Zhao et al., CVPR 2024).
    """
    ways = [log_posterior(scores, mask, temperature).diagonal() for scores, mask in directions(sims, negatives)]
    return 0.5 * (ways[0].exp() + ways[1].exp())


def spread(sims: Float[Tensor, "b b"], target: Float[Tensor, " b"], mask: Bool[Tensor, "b b"], *,
           floor: float = 0.0) -> Float[Tensor, "b b"]:  # fmt: skip
    """Targets of all candidates from one soft correspondence per pair.

        W_ii = y_i,   W_ij = (1 - y_i) [s_ij]+ / sum_k [s_ik]+   over the negatives j of i

    Where no negative is more similar than 0, the rest is spread evenly over the negatives; where there are none, it is
    dropped. No gradient flows into the targets.

    Args:
        sims: Rows are queries; the diagonal holds their own partners.
        target: Soft correspondence of each pair, in [0, 1].
        mask: True at negatives, as ``directions`` gives it.
        floor: Targets below are set to 0, in [0, 1].

    Returns:
        Rows that sum to 1, or to less where the floor or an empty mask took mass away.

    Source: CREAM (IEEE TIP 2024), there for similarities in (0, 1).
    Differs: negative similarities count as 0.
    """
    target = checked(target, "target", (len(sims),)).detach()[:, None]
    share = sims.detach().clamp(min=0).masked_fill(~mask, 0.0)
    share = torch.where(share.sum(1, keepdim=True) > 0, share, mask.to(sims.dtype))
    share = share / share.sum(1, keepdim=True).clamp(min=torch.finfo(sims.dtype).tiny)
    goal = (1 - target) * share + torch.diag_embed(target[:, 0])
    return goal.masked_fill(goal < floor, 0.0)


def siglip(sims: Float[Tensor, "b b"], *, scale: float | Tensor = 10.0, bias: float | Tensor = -10.0,
           weight: Float[Tensor, " b"] | None = None,
           negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Logistic loss of every combination in the batch, on its own.

        loss_i = softplus(-z_ii) + 1/2 sum_{j != i} (softplus(z_ij) + softplus(z_ji)),   z = scale * s + bias

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        scale: Inverse temperature, > 0; a tensor may be learned.
        bias: Log-odds of a match at similarity 0; a tensor may be learned.
        weight: Factor of each pair's loss, its negatives included.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in nats, >= 0. Its mean is the loss of the paper.

    Raises:
        ValueError: If a shape does not fit.

    Source: SigLIP (Zhai et al., ICCV 2023).
    """
    ways = directions(sims, negatives)
    loss = F.softplus(-(scale * ways[0][0].diagonal() + bias))
    for scores, mask in ways:
        loss = loss + 0.5 * F.softplus(scale * scores + bias).masked_fill(~mask, 0.0).sum(1)
    return weighted(loss, weight)


def reverse_cross_entropy(sims: Float[Tensor, "b b"], *, temperature: float | Tensor = 0.05,
                          target: Float[Tensor, "b b"] | None = None, weight: Float[Tensor, " b"] | None = None,
                          negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Cross-entropy with prediction and target exchanged, mean of both directions.

        loss_i = - 1/2 sum_j (P_ij ln(W_ij + 1e-7) + Q_ij ln(V_ij + 1e-7))

    Bounded, by -ln 1e-7 = 16.12: without target it is (almost) linear in the probability that the partner misses.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: > 0, in units of similarity.
        target: Who belongs to whom, as in ``info_nce``; None = the identity.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in nats, >= -1e-7.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: symmetric cross-entropy (Wang et al., ICCV 2019), with the constant L2RM (CVPR 2024) uses.
    """
    losses = []
    for way, (scores, mask) in enumerate(directions(sims, negatives)):
        log_p = log_posterior(scores, mask, temperature)
        if target is None:
            own = log_p.diagonal()
            losses.append(math.log(TINY) * torch.expm1(own) - math.log1p(TINY) * own.exp())
        else:
            losses.append(-(log_p.exp() * torch.log(_rows(scores, mask, target, way, 0.0) + TINY)).sum(1))
    return weighted(0.5 * (losses[0] + losses[1]), weight)


def symmetric_cross_entropy(sims: Float[Tensor, "b b"], *, temperature: float | Tensor = 0.05, forward: float = 0.5,
                            reverse: float = 0.5, target: Float[Tensor, "b b"] | None = None,
                            weight: Float[Tensor, " b"] | None = None,
                            negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Cross-entropy and its reverse, added: the first fits, the second does not trust.

        loss_i = forward * info_nce_i + reverse * reverse_cross_entropy_i

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: > 0, in units of similarity.
        forward: Weight of cross-entropy, >= 0.
        reverse: Weight of the reverse, >= 0.
        target: Who belongs to whom, as in ``info_nce``; None = the identity.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in nats, >= -1e-7.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: symmetric cross-entropy (Wang et al., ICCV 2019); L2RM (CVPR 2024) warms up with equal halves.
    """
    ahead = info_nce(sims, temperature=temperature, target=target, weight=weight, negatives=negatives)
    back = reverse_cross_entropy(sims, temperature=temperature, target=target, weight=weight, negatives=negatives)
    return forward * ahead + reverse * back


def generalised_cross_entropy(sims: Float[Tensor, "b b"], *, temperature: float | Tensor = 0.07, q: float = 0.7,
                              weight: Float[Tensor, " b"] | None = None,
                              negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Between cross-entropy (q to 0) and mean absolute error (q = 1), mean of both directions.

        loss_i = 1/2 ((1 - P_ii^q) / q + (1 - Q_ii^q) / q)

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: > 0, in units of similarity.
        q: In (0, 1]; the larger, the less a pair counts that the posterior holds for wrong.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        One loss per pair, in [0, 1 / q].

    Raises:
        ValueError: If a shape does not fit, ``temperature`` <= 0, or q lies outside (0, 1].

    Source: generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018), here of the retrieval posterior.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}, expected in (0, 1]")
    ways = [log_posterior(scores, mask, temperature).diagonal() for scores, mask in directions(sims, negatives)]
    return weighted(-0.5 * (torch.expm1(q * ways[0]) + torch.expm1(q * ways[1])) / q, weight)


def _rows(scores: Tensor, mask: Tensor, target: Tensor, way: int, floor: float) -> Tensor:
    """The targets of the candidates in each row; `way` 1 = texts are the queries, so a matrix is turned."""
    b = len(scores)
    if checked(target, "target", (b,), (b, b)).ndim == 1:
        return spread(scores, target, mask, floor=floor)
    goal = widened(target.T if way else target).detach()
    goal = goal * (mask | torch.eye(b, dtype=torch.bool, device=goal.device))
    return goal / goal.sum(1, keepdim=True).clamp(min=torch.finfo(goal.dtype).tiny)
