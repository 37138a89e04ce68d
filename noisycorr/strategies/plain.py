"""What everybody does: trust every pair. The line that robust methods have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from noisycorr.learn.contract import Encoded, Loss, Strategy, Trust
from noisycorr.learn.memory import Memory
from noisycorr.losses import info_nce


@dataclass(frozen=True, kw_only=True)
class Plain(Strategy):
    """InfoNCE on all pairs.

    Attributes:
        peer: none, or twin for two networks that know nothing of each other: as large an ensemble as co-teaching has.

    Source: CLIP (Radford et al., ICML 2021), with pairs of the same picture or text left out of the negatives.
    """

    peer: Literal["none", "twin"] = "none"

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss, for those who watch how well it tells wrong pairs."""
        return {"loss": info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """InfoNCE."""
        return Loss(per_pair=info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))
