"""Rematching: towards the partners that a transport plan found, instead of the given ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from noisycorr.models.losses.directions import checked, directions, log_posterior, weighted, widened


def rematch_divergence(sims: Float[Tensor, "b b"], plan: Float[Tensor, "b b"], *, temperature: float | Tensor = 0.05,
                       floor: float = 1e-10, weight: Float[Tensor, " b"] | None = None,
                       negatives: Bool[Tensor, "b b"] | None = None) -> Float[Tensor, " b"]:  # fmt: skip
    """Symmetric divergence between the retrieval posterior and a transport plan, sum of both directions.

        loss_i = 1/2 (KL(T_i || P_i) + KL(P_i || T_i)) + the same for the columns

    with T the rows of the plan, each floored and divided by its sum, and P the softmax of each row of similarities.

    Args:
        sims: Similarity of image i (row) and text j (column).
        plan: Mass from image i to text j, >= 0, of any total. No gradient flows into it.
        temperature: > 0, in units of similarity.
        floor: Entries of the plan below are raised to it, > 0, so that the divergence is finite.
        weight: Factor of each pair's loss, for example the mass that the plan moved.
        negatives: True where image i and text j may be compared; others leave both distributions.

    Returns:
        One loss per row and column of the same number, in nats, >= 0.

    Raises:
        ValueError: If a shape does not fit, ``temperature`` <= 0 or ``floor`` <= 0.

    Source: L2RM (Han et al., CVPR 2024), temperature 0.05, floor 1e-10.
    """
    if floor <= 0:
        raise ValueError(f"floor is {floor}, expected > 0")
    plan = checked(plan, "plan", tuple(sims.shape))
    plan = widened(plan).detach().clamp(min=floor)
    loss = widened(sims).new_zeros(len(sims))
    for way, (scores, mask) in enumerate(directions(sims, negatives)):
        inside = mask | torch.eye(len(sims), dtype=torch.bool, device=sims.device)
        log_p = log_posterior(scores, mask, temperature)
        goal = (plan.T if way else plan).masked_fill(~inside, 0.0)
        goal = goal / goal.sum(1, keepdim=True)
        gap = (log_p.exp() - goal) * (log_p - goal.log()).masked_fill(~inside, 0.0)
        loss = loss + 0.5 * gap.sum(1)
    return weighted(loss, weight)
