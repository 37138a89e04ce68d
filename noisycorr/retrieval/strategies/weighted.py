"""Weights from outside: what `noisycorr clean`, or anybody's scorer, said before training began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisycorr.models.losses import info_nce
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.strategies.weights import ledger_column, per_weight


@dataclass(frozen=True, kw_only=True)
class Weighted(Strategy):
    """InfoNCE with the loss of each pair times a column of the ledger.

    Attributes:
        peer: none, or twin for an ensemble of two networks.
        column: p_clean, sample_weight, or any score column of the ledger.
        power: The column is raised to it, >= 0; 0 trusts everybody.
        floor: Values below count as 0.

    Source: OSA (NeurIPS 2024): a frozen scorer weighs each pair.
    Differs: the weight is a calibrated probability by default, where OSA has a polynomial of the similarity. Batches
    are divided by their sum of weights, so that doubted batches do not learn more slowly.
    """

    peer: Literal["none", "twin"] = "none"
    column: str = "p_clean"
    power: float = 1.0
    floor: float = 0.0
    needs_columns = True

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"power is {self.power}, expected at least 0")

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss, for those who watch."""
        return {"loss": info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Weighted InfoNCE.

        Raises:
            UsageError: If the training set has no such column.
        """
        value = ledger_column(enc, self.column)
        weight = torch.where(value >= self.floor, value.clamp(min=0), 0.0).nan_to_num(0.0) ** self.power
        loss = info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives, weight=weight)
        return Loss(per_pair=per_weight(loss, weight))
