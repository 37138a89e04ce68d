"""Retrieval as evidence: each query has a Dirichlet distribution over its candidates, which can also say "no idea"."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from noisycorr.models.losses.directions import checked, directions, weighted, widened


def evidence(raw: Float[Tensor, "b b"], *, temperature: float = 0.1) -> Float[Tensor, "b b"]:
    """Evidence for each combination: e_ij = exp(tanh(r_ij) / temperature).

    Args:
        raw: Unbounded similarity r of image i (row) and text j (column), before any sigmoid.
        temperature: > 0; the least and largest evidence are exp(-+1 / temperature).

    Returns:
        Evidence > 0; at least single precision, as half cannot hold it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source: DECL (Qin et al., ACM MM 2022), temperature 0.1.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected > 0")
    return torch.exp(torch.tanh(widened(raw)) / temperature)


def evidential(raw: Float[Tensor, "b b"], *, target: Float[Tensor, " b"] | None = None, temperature: float = 0.1,
               spread: float = 0.1, weight: Float[Tensor, " b"] | None = None,
               negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Expected squared error under the Dirichlet, and a penalty on evidence for what is not the partner.

        alpha = evidence + 1,   A = sum_j alpha_j,   y the one-hot of the partner times the target
        L_i   = sum_j (y_j - alpha_j / A)^2 + alpha_j (A - alpha_j) / (A^2 (A + 1))
              + spread * KL(Dir((alpha - 1)(1 - y) + 1) || Dir(1))

    for the image as query plus for the text as query.

    Args:
        raw: Unbounded similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        target: 1 for pairs held for right, 0 for wrong ones (their row of labels is all 0), or between; None = all 1.
        temperature: Of ``evidence``.
        spread: Weight of the penalty, >= 0.
        weight: Factor of each pair's loss.
        negatives: True where image i and text j may serve as negatives; others leave the Dirichlet.

    Returns:
        One loss per pair, the sum of both directions, >= 0 up to rounding.

    Raises:
        ValueError: If a shape does not fit.

    Source: DECL (Qin et al., ACM MM 2022), spread 0.1.
    """
    raw = widened(raw)
    trust = raw.new_ones(len(raw)) if target is None else checked(target, "target", (len(raw),)).detach()
    goal = torch.diag_embed(trust.to(raw.dtype))
    amounts = evidence(raw, temperature=temperature)
    rest = _own_part(amounts * (1 - goal) + 1)  # the costly part, the same in both directions
    loss = raw.new_zeros(len(raw))
    for (amount, mask), own in zip(directions(amounts, negatives), (rest, rest.T)):
        inside = mask | torch.eye(len(raw), dtype=torch.bool, device=raw.device)
        amount = amount.masked_fill(~inside, 0.0)
        alpha = (amount + 1) * inside
        total = alpha.sum(1, keepdim=True)
        fit = (goal - alpha / total) ** 2 + alpha * (total - alpha) / (total**2 * (total + 1))
        loss = loss + fit.sum(1) + spread * _divergence(amount * (1 - goal) + 1, own, inside)
    return weighted(loss, weight)


def dirichlet_divergence(alpha: Float[Tensor, "b k"], inside: Bool[Tensor, "b k"] | None = None) -> Float[Tensor, " b"]:
    """KL(Dir(alpha) || Dir(1)) of each row.

        ln G(A) - ln G(k) - sum_j ln G(alpha_j) + sum_j (alpha_j - 1)(psi(alpha_j) - psi(A)),   A = sum_j alpha_j

    Args:
        alpha: Concentrations > 0; at least single precision.
        inside: True at the entries that belong to the row's Dirichlet; None = all.

    Returns:
        Divergence in nats, >= 0 up to rounding, 0 at alpha = 1. In single precision a large one is rounded by
        about 1e-7 times A ln A; its gradient is not.

    Source: evidential deep learning (Sensoy et al., NeurIPS 2018), as DECL (Qin et al., ACM MM 2022) has it.
    """
    inside = torch.ones_like(alpha, dtype=torch.bool) if inside is None else inside
    return _divergence(alpha, _own_part(alpha), inside)


def is_evident(raw: Float[Tensor, "b b"], *, temperature: float = 0.1,
               negatives: Bool[Tensor, "b b"] | None = None) -> Bool[Tensor, " b"]:  # fmt: skip
    """Whether a pair's own text has most evidence among all, both directions added: DECL's test of a clean pair.

    Args:
        raw: Unbounded similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: Of ``evidence``.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        True for pairs held for right; a tie counts against the pair.

    Source: DECL (Qin et al., ACM MM 2022). The answer depends on the other pairs of the batch.
    """
    amount = evidence(raw.detach(), temperature=temperature)
    (both, mask), _ = directions(amount + amount.T, negatives)
    return both.diagonal() > both.masked_fill(~mask, 0.0).amax(1)


def vacuity(raw: Float[Tensor, "b b"], *, temperature: float = 0.1,
            negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """How little the Dirichlet of a query knows: candidates over total concentration, mean of both directions.

    Args:
        raw: Unbounded similarity of image i (row) and text j (column); the diagonal holds the given pairs.
        temperature: Of ``evidence``.
        negatives: True where image i and text j may serve as negatives.

    Returns:
        Uncertainty in (0, 1), higher = less evidence.

    Source: DECL (Qin et al., ACM MM 2022).
    """
    ways = []
    for amount, mask in directions(evidence(raw, temperature=temperature), negatives):
        inside = mask | torch.eye(len(raw), dtype=torch.bool, device=raw.device)
        ways.append(inside.sum(1) / ((amount + 1) * inside).sum(1))
    return 0.5 * (ways[0] + ways[1])


def _own_part(alpha: Tensor) -> Tensor:
    """What each concentration adds to the divergence on its own."""
    return (alpha - 1) * torch.digamma(alpha) - torch.lgamma(alpha)


def _divergence(alpha: Tensor, own: Tensor, inside: Tensor) -> Tensor:
    count = inside.sum(1).to(alpha.dtype)
    total = alpha.masked_fill(~inside, 0.0).sum(1)
    both = torch.lgamma(total) - torch.lgamma(count) - (total - count) * torch.digamma(total)
    return own.masked_fill(~inside, 0.0).sum(1) + both
