"""Prototypes from neighbours: self-attention among the texts of similar images, and what it is trained with."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class NeighbourRefiner(nn.Module):
    """One vector from those of k neighbours, which attend to each other.

        A_h = softmax(Q_h K_h^T / sqrt(d / heads)),   z = LayerNorm(x + drop(O [A_1 V_1 .. A_h V_h]))
        prototype = mean of z over the neighbours, divided by its length

    with Q, K, V and O linear in the neighbours x.

    Args:
        dim: Width d.
        heads: Of the attention; fewer if d is not divisible by them.
        dropout: Share of units dropped behind O, in [0, 1).
        plain_start: Begin with O = 0, so that the first prototypes are means of standardised neighbours.

    Source: the released code of IN2R (ICML 2026), with 4 heads and dropout 0.1.
    Differs: neighbours that are missing are masked; ``plain_start`` for O, whose random first values there hide the
    neighbours.
    """

    def __init__(self, dim: int, *, heads: int = 4, dropout: float = 0.1, plain_start: bool = True) -> None:
        super().__init__()
        self.heads = math.gcd(heads, dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(dropout)
        if plain_start:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, neighbours: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Unit rows; a zero row where nothing is there.

        Args:
            neighbours: Their vectors.
            mask: True for those that are there.
        """
        b, k, d = neighbours.shape
        query, key, value = (
            layer(neighbours).view(b, k, self.heads, d // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(d // self.heads)
        share = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min).softmax(-1)
        mixed = (share @ value).transpose(1, 2).reshape(b, k, d)
        refined = self.norm(neighbours + self.drop(self.out(mixed)))
        return F.normalize((refined * mask[..., None]).sum(1), dim=-1)


def mean_prototype(neighbours: Float[Tensor, "b k d"], mask: Bool[Tensor, "b k"]) -> Float[Tensor, "b d"]:
    """The mean of the neighbours that are there, divided by its length; a zero row where none is.

    Source: ablation of IN2R (ICML 2026).
    """
    return F.normalize((neighbours * mask[..., None]).sum(1), dim=-1)
