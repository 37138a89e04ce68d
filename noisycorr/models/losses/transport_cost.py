"""What it costs to match an image with a text anew: a line of the similarity that is learned from right pairs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from noisycorr.models.losses.directions import checked


class PairCost(nn.Module):
    """Cost of image i and text j from the similarities of a batch, whatever its size.

        c_ij = [1 - (1 + a) s_ij + b m_i + c m_j]+,   m the mean similarity of a row and of a column

    a, b and c are learned from 0, where the cost is 1 - s. A layer over the n texts of a batch that does not depend on
    their order is of this form, with the mean of the column added, which sees images that fit to everything.

    Args:
        speed: How fast a, b and c move, relative to the other parameters: they are this times what is learned.

    Source: the cost layer of L2RM (Han et al., CVPR 2024), which starts from 1 - s.
    Differs: that has a weight for each two places of a batch of fixed size (``PlaceCost``), though the place of a text
    in a batch says nothing.
    """

    def __init__(self, speed: float = 0.1) -> None:
        super().__init__()
        self.speed = speed
        self.change = nn.Parameter(torch.zeros(3))

    def forward(self, sims: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Costs >= 0, higher = worse matched."""
        a, b, c = self.speed * self.change
        return (1 - (1 + a) * sims + b * sims.mean(1, keepdim=True) + c * sims.mean(0, keepdim=True)).clamp(min=0)


class PlaceCost(nn.Module):
    """The cost layer as released: a weight for each two places in the batch.

        c_ij = [sum_k W_jk s_ik + b_j]+,   W = -I + speed U,   b = 1 + speed v

    Args:
        places: Largest batch, n.
        speed: How fast W and b move: 0.01 stands for the learning rate 2e-6 beside 2e-4.

    Source: the released code of L2RM (Han et al., CVPR 2024).
    Differs: smaller batches take the first places, where the released code needs full batches; one optimiser.
    """

    def __init__(self, places: int, speed: float = 0.01) -> None:
        super().__init__()
        self.speed = speed
        self.weight, self.bias = nn.Parameter(torch.zeros(places, places)), nn.Parameter(torch.zeros(places))

    def forward(self, sims: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Costs >= 0, higher = worse matched.

        Raises:
            ValueError: If there are more texts than places.
        """
        m = sims.shape[1]
        if m > len(self.bias):
            raise ValueError(f"the cost layer has {len(self.bias)} places, but the batch {m} texts: raise places")
        return (self.speed * (sims @ self.weight[:m, :m].T + self.bias[:m]) - sims + 1).clamp(min=0)


def known_cost(cost: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Mean cost of pairs that are known to be right, on the diagonal.

    Source: the released code of L2RM, which adds them up. Alone it is least where everything costs nothing.
    """
    return cost.diagonal().mean()


def cost_contrast(cost: Float[Tensor, "n n"], *, reg: float,
                  allowed: Bool[Tensor, "n n"] | None = None) -> Float[Tensor, ""]:  # fmt: skip
    """How badly costs tell known right pairs from all others.

        - 1/2 mean_i (ln softmax_j(-c_ij / reg)_i + ln softmax_j(-c_ji / reg)_i)

    which is what one step of Sinkhorn scaling at this ``reg`` makes of them.

    Args:
        cost: Of the images (rows) and texts (columns) of right pairs, on the diagonal, >= 0.
        reg: Of the transport, > 0.
        allowed: True where image i and text j belong to different things; others are left out. None = everywhere.

    Returns:
        In nats, >= 0.

    Raises:
        ValueError: If shapes differ or ``reg`` <= 0.

    Source: ours, in place of ``known_cost``, of which the least is no cost at all.
    """
    if reg <= 0:
        raise ValueError(f"reg is {reg}, expected > 0")
    own = torch.eye(len(cost), dtype=torch.bool, device=cost.device)
    scores = -cost / reg
    if allowed is not None:
        scores = scores.masked_fill(~(checked(allowed, "allowed", tuple(cost.shape)) | own), float("-inf"))
    goal = torch.arange(len(cost), device=cost.device)
    return 0.5 * (F.cross_entropy(scores, goal) + F.cross_entropy(scores.T, goal))
