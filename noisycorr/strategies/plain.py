"""What everybody does: trust every pair. The line that robust methods have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from noisycorr.learn.contract import Encoded, Loss, Strategy, Trust
from noisycorr.learn.memory import Memory
from noisycorr.losses import info_nce, siglip
from noisycorr.losses.triplet import hardest_triplet, mean_triplet

LOSSES = ("infonce", "siglip", "triplet")


class Bias(nn.Module):
    """One learned number: the log-odds of a match at similarity 0."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, rows: Tensor) -> Tensor:
        """The number, whatever comes in."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Plain(Strategy):
    """An ordinary loss on all pairs; those of the same picture or text are no negatives.

    Attributes:
        loss: infonce, siglip, or triplet with the hardest negative.
        margin: Of triplets, in units of similarity.
        mean_epochs: First epochs in which triplets take the mean of all negatives: the hardest ones alone collapse.
        peer: none, or twin for two networks that know nothing of each other: as large an ensemble as co-teaching has.

    Source: CLIP (Radford et al., ICML 2021), SigLIP (Zhai et al., ICCV 2023), VSE++ (Faghri et al., BMVC 2018).
    """

    loss: Literal["infonce", "siglip", "triplet"] = "infonce"
    margin: float = 0.2
    mean_epochs: int = 1
    peer: Literal["none", "twin"] = "none"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}, expected one of {', '.join(LOSSES)}")

    def heads(self, dim: int) -> dict[str, nn.Module]:
        """SigLIP learns a bias."""
        return {"bias": Bias(-10.0)} if self.loss == "siglip" else {}

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss, for those who watch how well it tells wrong pairs."""
        return {"loss": info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """The loss as chosen."""
        if self.loss == "infonce":
            return Loss(per_pair=info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))
        if self.loss == "siglip":
            scale, bias = 1 / enc.temperature, enc.aux["bias"][0]
            return Loss(per_pair=siglip(enc.sims, scale=scale, bias=bias, negatives=enc.negatives))
        triplet = mean_triplet if enc.epoch < self.mean_epochs else hardest_triplet
        return Loss(per_pair=triplet(enc.sims, margin=self.margin, negatives=enc.negatives))
