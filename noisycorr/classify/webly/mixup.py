"""Mixup of rows and their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_rows(features: Tensor, target: Tensor, alpha: float, *, nearer: bool = False) -> tuple[Tensor, Tensor]:
    """Convex combinations of each row with another of the batch; random numbers come from the generator of torch.

        l ~ Beta(alpha, alpha),   x_i' = l x_i + (1 - l) x_p(i),   t_i' likewise

    Args:
        features: (b, ...).
        target: (b, c).
        alpha: >= 0; 0 = nothing is mixed.
        nearer: l <- max(l, 1 - l), so that a row stays nearer to itself.

    Source: mixup (Zhang et al., ICLR 2018).
    """
    order, share = draw_mix(len(features), alpha, nearer=nearer, device=features.device)
    return share * features + (1 - share) * features[order], share * target + (1 - share) * target[order]


def draw_mix(b: int, alpha: float, *, nearer: bool = False, device: torch.device) -> tuple[Tensor, float]:
    """A permutation of the batch and l."""
    order = torch.randperm(b)
    if not alpha:
        return order.to(device), 1.0
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return order.to(device), max(share, 1 - share) if nearer else share
