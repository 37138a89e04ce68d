"""RCL: nobody is told what matches, only what does not; the softmax lifts the pairs by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from noisycorr.models.losses import (
    abs_penalty,
    complementary,
    exp_penalty,
    gce_penalty,
    info_nce,
    log_penalty,
    tan_penalty,
)
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory

PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": abs_penalty, "exp": exp_penalty, "gce": gce_penalty, "log": log_penalty, "tan": tan_penalty,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RCL(Strategy):
    """Complementary learning on all pairs: a penalty on the posterior of every negative, none on the partner.

        loss_i = sum_{j != i} (f(P_ij) + f(Q_ji)),    P_ij = softmax_j(s_ij / t),  Q_ij = softmax_i(s_ij / t)

    Attributes:
        penalty: f: tan p, p (abs), exp(p - 1), (1 - (1 - p)^0.5) / 0.5 (gce), or -ln(1 - p) (log). The first three
            bound what a wrong pair can do; log and gce do not.
        temperature: t, > 0, in units of cosine; 0 = the learned one.
        peer: none, or twin for two networks that know nothing of each other.
        faithful: Pairs of the same picture or text are negatives too, as in the released code, whose default is log.

    Source: RCL (Hu et al., IEEE TPAMI 2023), with temperature 0.05.
    Differs: cosine of a dual encoder in place of a sigmoid score in (0, 1); tan by default, its best under much noise;
    pairs of the same picture or text are no negatives.
    """

    penalty: Literal["abs", "exp", "gce", "log", "tan"] = "tan"
    temperature: float = 0.1
    peer: Literal["none", "twin"] = "none"
    faithful: bool = False

    def __post_init__(self) -> None:
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty is {self.penalty!r}, expected one of {', '.join(PENALTIES)}")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}, expected > 0, or 0 for the learned one")

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """Cross-entropy, for those who watch; RCL decides nothing."""
        return {"loss": info_nce(enc.sims, temperature=self.temperature or enc.temperature, negatives=enc.negatives)}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """The complementary loss."""
        loss = complementary(enc.sims, penalty=PENALTIES[self.penalty], temperature=self.temperature or enc.temperature,
                             negatives=None if self.faithful else enc.negatives)  # fmt: skip
        return Loss(per_pair=loss)
