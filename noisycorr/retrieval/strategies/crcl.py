"""CRCL: as much cross-entropy as a pair has earned, complementary learning for the rest; labels outlive networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisycorr.models.losses import active_complementary, info_nce, match_posterior
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.rectify import blend, on_arrays


@dataclass(frozen=True, kw_only=True)
class CRCL(Strategy):
    """Active and complementary loss under labels that are moving averages of the network's own posterior.

        y_i    <- keep y_i + (1 - keep) P_i,   P_i = (P_ii + Q_ii) / 2;   used as 0 below `least`
        loss_i = - y_i (ln P_ii + ln Q_ii) + strength sum over both directions of
                 sum_{j != i} tan P_ij / (sum_j tan P_ij)^(1 - y_i)

    A training is cut into `rounds` short rounds and a long one. Each begins with fresh networks; only labels stay. In
    the first `settle` of a short round's epochs labels do not change; in the last of these of the first round, P
    replaces the first labels, which are 1.

    Attributes:
        rounds: Short rounds before the long one; fewer where they would take more than half of the epochs.
        short: Length of a short round, as a share of all epochs; at least 2 epochs.
        settle: Share of a short round, from its start, in which labels stay; at least 1 epoch.
        keep: How much of its label a pair keeps each epoch, in [0, 1].
        least: Labels below count as 0.
        temperature: > 0, in units of cosine; 0 = the learned one.
        strength: Of the complementary term.
        peer: none, or twin for two networks that know nothing of each other.
        faithful: Pairs of the same picture or text are negatives, as released.

    Source: CRCL (Qin et al., NeurIPS 2023), with temperature 0.05 and 3 short rounds: of 7, 7, 7 and 32 epochs, each
    begins with 2 in which labels stay.
    Differs: rounds in shares of the epochs; cosine of a dual encoder; pairs of the same picture or text are no
    negatives.
    """

    rounds: int = 1
    short: float = 0.13
    settle: float = 0.3
    keep: float = 0.8
    least: float = 0.1
    temperature: float = 0.1
    strength: float = 5.0
    peer: Literal["none", "twin"] = "none"
    faithful: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.temperature < 0 or self.strength < 0:
            raise ValueError("rounds, temperature and strength must be >= 0")
        if any(not 0 <= x <= 1 for x in (self.short, self.settle, self.keep, self.least)):
            raise ValueError("short, settle, keep and least must lie in [0, 1]")

    def memory(self, n: int) -> Memory:
        """One label for each pair, 1 at first."""
        return Memory(n, label=torch.ones(n, dtype=torch.float64))

    def restarts(self, epochs: int) -> Sequence[int]:
        """First epochs of all rounds but the first."""
        length = self._length(epochs)
        return [k * length for k in range(1, self.rounds + 1) if k * length <= epochs / 2]

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The labels, and the loss for those who watch; CRCL decides nothing."""
        loss = info_nce(enc.sims, temperature=self.temperature or enc.temperature, negatives=enc.negatives)
        return {"label": memory.read("label", enc.rows), "loss": loss}

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Move the labels of the batch, unless they stay, and learn from them."""
        scale, mask = self.temperature or enc.temperature, None if self.faithful else enc.negatives
        before = memory.read("label", enc.rows)
        now = match_posterior(enc.sims, temperature=scale, negatives=mask).detach().to(before.dtype)
        begins = max(epoch for epoch in (0, *self.restarts(enc.epochs)) if epoch <= enc.epoch)
        stays = max(1, round(self.settle * self._length(enc.epochs)))
        after = before
        if enc.epoch - begins >= stays:
            after = on_arrays(blend, before, now, keep=self.keep)
            memory.write("label", enc.rows, after)
        elif begins == 0 and enc.epoch == stays - 1:
            memory.write("label", enc.rows, now)
        label = torch.where(after < self.least, 0.0, after).to(enc.sims.dtype)
        loss = active_complementary(enc.sims, label, temperature=scale, strength=self.strength, negatives=mask)
        return Loss(per_pair=loss)

    def _length(self, epochs: int) -> int:
        return max(2, round(self.short * epochs))
