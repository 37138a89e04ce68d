"""Learning from negatives: a wrong pair misleads less if what is taught is which combinations do not match."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from noisycorr.models.losses.directions import checked, directions, log_posterior, weighted, widened

SHORT = 1 - 1e-6  # a probability of 1 is taken as this much, so that its complement has a logarithm
Penalty = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]


def log_penalty(p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-ln(1 - p) of probabilities in [0, 1]. Source: RCL, its default.

    p counts for (1 - 1e-6) p, so that it is at most 13.8 and a negative that has all of the probability pulls no more.
    """
    return -torch.log1p(-SHORT * p)


def tan_penalty(p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """tan p of probabilities in [0, 1]: from 0 to 1.557. Source: RCL, its most robust under much noise; CRCL."""
    return torch.tan(p)


def abs_penalty(p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The probability itself, in [0, 1]. Source: RCL."""
    return p


def exp_penalty(p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """exp(-(1 - p)) of probabilities in [0, 1]: from 0.368 to 1. Source: RCL."""
    return torch.exp(p - 1)


def gce_penalty(p: Float[Tensor, "..."], *, q: float = 0.5) -> Float[Tensor, "..."]:
    """(1 - (1 - p)^q) / q of probabilities in [0, 1], p counting for (1 - 1e-6) p; q in (0, 1]. Source: RCL.

    Raises:
        ValueError: If q lies outside (0, 1].
    """
    if not 0 < q <= 1:
        raise ValueError(f"q is {q}, expected in (0, 1]")
    return -torch.expm1(q * torch.log1p(-SHORT * p)) / q


def complementary(sims: Float[Tensor, "b b"], *, penalty: Penalty = log_penalty, temperature: float | Tensor = 0.05,
                  weight: Float[Tensor, " b"] | None = None,
                  negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Penalty on the posterior of every negative, and none on the partner: the softmax lifts it all the same.

        loss_i = sum_{j != i} (f(P_ij) + f(Q_ij))

    with P_ij the softmax over texts j of s_ij / temperature, and Q_ij the softmax over images j of s_ji / temperature.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        penalty: f, increasing on [0, 1]: ``log_penalty``, ``tan_penalty``, ``abs_penalty``, ``exp_penalty``,
            ``gce_penalty`` or your own.
        temperature: > 0, in units of similarity.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives; others leave the softmax too.

    Returns:
        One loss per pair, the sum of both directions. With tan, abs, exp and gce the gradient on a wrong pair is
        bounded.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: RCL (Hu et al., IEEE TPAMI 2023).
    """
    loss = widened(sims).new_zeros(len(sims))
    for scores, mask in directions(sims, negatives):
        p = log_posterior(scores, mask, temperature).exp()
        loss = loss + penalty(p).masked_fill(~mask, 0.0).sum(1)
    return weighted(loss, weight)


def active_complementary(sims: Float[Tensor, "b b"], target: Float[Tensor, " b"], *,
                         temperature: float | Tensor = 0.05, strength: float = 5.0,
                         weight: Float[Tensor, " b"] | None = None,
                         negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Cross-entropy as far as a pair is trusted, and a complementary term whose size does not depend on the partner.

        loss_i = - y_i (ln P_ii + ln Q_ii) + strength * (C(P_i) + C(Q_i))
        C(p)   = sum_{j != i} tan p_j / (sum_j tan p_j)^(1 - y_i)

    The sum below runs over all candidates; it lies in [1, tan 1], so that C <= 1 at y_i = 0.

    Args:
        sims: Similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        target: Soft correspondence y of each pair, in [0, 1]. No gradient flows into it.
        temperature: > 0, in units of similarity.
        strength: Weight of the complementary term, >= 0.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives; others leave both sums.

    Returns:
        One loss per pair, the sum of both directions, >= 0; at most 2 * strength where y_i = 0.

    Raises:
        ValueError: If a shape does not fit, or ``temperature`` <= 0.

    Source: CRCL (Qin et al., NeurIPS 2023).
    """
    trust = checked(target, "target", (len(sims),)).detach()
    loss = widened(sims).new_zeros(len(sims))
    for scores, mask in directions(sims, negatives):
        log_p = log_posterior(scores, mask, temperature)
        tan = torch.tan(log_p.exp())
        share = tan.masked_fill(~mask, 0.0).sum(1) * tan.sum(1) ** (trust - 1)
        loss = loss - trust * log_p.diagonal() + strength * share
    return weighted(loss, weight)
