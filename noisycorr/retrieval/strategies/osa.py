"""OSA: a frozen model that saw other data weighs each pair; whoever learns from them can be anybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from noisycorr.models.losses import info_nce
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.rectify import offset_weight, on_arrays
from noisycorr.retrieval.strategies.weights import ledger_column, per_weight


@dataclass(frozen=True, kw_only=True)
class OSA(Strategy):
    """InfoNCE, each pair by how far a frozen scorer puts it above unrelated ones.

        loss_i = w_i info_nce_i
        w_i    = the column itself, without `offset`: a probability that is calibrated against unrelated pairs already
        w_i    = x^2 (1 - x),   x = (column_i - offset) / scale clipped to [0, 1]

    Attributes:
        faithful: As the released code does: the offset form, with x^2 (1 - x^2), and batches not divided by their
            weights.
        column: p_clean, sample_weight, or any score column of the ledger.
        offset: Mean score of unrelated pairs, in units of the column; None for columns that are weights. 0 if
            `faithful`.
        scale: > 0, of x.
        peer: none, or twin for an ensemble of two networks.

    Source: OSA (2024), a frozen CLIP as scorer. DSDMR (TOIS 2024) and NPC (AAAI 2024) rest on the same idea.
    Differs: by default the weight is the calibrated probability of `noisycorr clean`, which knows the scores of pairs
    put together at random. The batch is divided by its sum of weights. Pairs of the same picture or text are no
    negatives. `weighted` is the same with a power and a floor in place of the polynomial.
    Differs if faithful: negatives and frozen features as above; 5 epochs at a rate of 1e-5 are for a whole CLIP.
    """

    faithful: bool = False
    column: str = "p_clean"
    offset: float | None = None
    scale: float = 1.0
    peer: Literal["none", "twin"] = "none"
    needs_columns = True

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}, expected > 0")

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss, for those who watch."""
        return {"loss": info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Weighted InfoNCE.

        Raises:
            UsageError: If the training set has no such column.
        """
        value = ledger_column(enc, self.column).nan_to_num(0.0)
        weight = value.clamp(0, 1)
        if self.faithful or self.offset is not None:
            weight = on_arrays(
                offset_weight, value, offset=self.offset or 0.0, scale=self.scale, faithful=self.faithful
            )
        loss = info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives, weight=weight)
        return Loss(per_pair=loss if self.faithful else per_weight(loss, weight))
