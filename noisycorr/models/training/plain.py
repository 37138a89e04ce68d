"""What everybody does: trust every pair. The line that robust methods have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from noisycorr.models.losses import (
    generalised_cross_entropy,
    hardest_triplet,
    info_nce,
    mean_triplet,
    siglip,
    symmetric_cross_entropy,
)
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory

LOSSES = ("gce", "info_nce", "mean_triplet", "sce", "siglip", "triplet")


@dataclass(frozen=True, kw_only=True)
class Plain(Strategy):
    """One loss on all pairs.

    Attributes:
        loss: info_nce; siglip, with a learned bias; triplet, of the hardest negative; mean_triplet; sce, cross-entropy
            and its reverse in equal parts; gce, generalised cross-entropy.
        margin: Of the triplet losses, in units of cosine.
        calm: First epochs in which triplet is mean_triplet: the hardest negatives of a fresh network teach nothing.
        q: Of gce, in (0, 1].
        bias: First value of the bias of siglip.
        peer: none, or twin for two networks that know nothing of each other: as large an ensemble as co-teaching has.

    Source: InfoNCE of CLIP (Radford et al., ICML 2021); SigLIP (Zhai et al., ICCV 2023); VSE++ (Faghri et al., BMVC
    2018); symmetric cross-entropy (Wang et al., ICCV 2019); generalised cross-entropy (Zhang and Sabuncu, NeurIPS
    2018).
    Differs: pairs of the same picture or text are no negatives; temperatures are learned.
    """

    loss: Literal["gce", "info_nce", "mean_triplet", "sce", "siglip", "triplet"] = "info_nce"
    margin: float = 0.2
    calm: int = 1
    q: float = 0.7
    bias: float = -10.0
    peer: Literal["none", "twin"] = "none"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}, expected one of {', '.join(LOSSES)}")
        if self.margin < 0 or self.calm < 0 or not 0 < self.q <= 1:
            raise ValueError("margin and calm must be >= 0, q in (0, 1]")

    def heads(self, dim: int) -> dict[str, nn.Module]:
        """The bias of siglip."""
        return {"bias": Bias(self.bias)} if self.loss == "siglip" else {}

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss, for those who watch how well it tells wrong pairs; of triplets the mean."""
        return {"loss": self._value(enc, "mean_triplet" if self.loss == "triplet" else self.loss)}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """The loss."""
        early = self.loss == "triplet" and enc.epoch < self.calm
        return Loss(per_pair=self._value(enc, "mean_triplet" if early else self.loss))

    def _value(self, enc: Encoded, name: str) -> Tensor:
        sims, scale, mask = enc.sims, enc.temperature, enc.negatives
        if name == "siglip":
            return siglip(sims, scale=1 / scale, bias=enc.aux["bias"][0], negatives=mask)
        if name == "triplet":
            return hardest_triplet(sims, margin=self.margin, negatives=mask)
        if name == "mean_triplet":
            return mean_triplet(sims, margin=self.margin, negatives=mask)
        if name == "sce":
            return symmetric_cross_entropy(sims, temperature=scale, negatives=mask)
        if name == "gce":
            return generalised_cross_entropy(sims, temperature=scale, q=self.q, negatives=mask)
        return info_nce(sims, temperature=scale, negatives=mask)


class Bias(nn.Module):
    """A learned number, whatever comes in."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, rows: Tensor) -> Tensor:
        """The number."""
        return self.value
