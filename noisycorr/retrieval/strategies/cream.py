"""CREAM: clean where both networks agree, noisy where both doubt, hard between; soft targets for all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.losses import info_nce, match_posterior
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.partition import split_three
from noisycorr.retrieval.posterior import gaussian_posterior
from noisycorr.retrieval.rectify import on_arrays, rectify
from noisycorr.retrieval.strategies.ncr import later


@dataclass(frozen=True, kw_only=True)
class CREAM(Strategy):
    """InfoNCE with soft targets, on clean pairs first, then on hard ones, then on noisy ones.

        w_i    = probability of the lower of two Gaussians on InfoNCE; clean, hard, noisy: above the threshold in both
                 networks, in one, in none
        y_i    = w_i + (1 - w_i) P_i with the peer's w for clean pairs and the mean of both for hard ones,
                 (P_i + P_i of the peer) / 2 for noisy ones;   P_i = (P_ii + Q_ii) / 2
        loss_i = - y_i (ln P_ii + ln Q_ii) / 2
        faithful: the rest 1 - y_i goes to the negatives in proportion to their similarity, entries below a floor
                 excepted, and both directions are added:  - sum_j (W_ij ln P_ij + V_ij ln Q_ij)

    Attributes:
        warm_up: First epochs on all pairs.
        threshold: In [0, 1].
        temperature: > 0, in units of cosine; 0 = the learned one.
        hard_from: When hard pairs join, as a share of the epochs after the warm-up; 1 = never.
        noisy_from: The same for noisy pairs.
        peer: twin, or none for one network, which finds no hard pairs.
        faithful: The loss above, with a floor of the batch's mean label, none at all if more than 85 % of all pairs
            are clean, and no rest for clean pairs until hard ones join; pairs of the same picture or text are
            negatives; the released fit; one pair in a hundred is always noisy for each network.

    Source: CREAM (Ma et al., IEEE TIP 2024), with temperature 0.07, hard pairs from epoch 10 of 40 and noisy from 15.
    Differs: the rest is dropped by default; the three sets share batches and steps; the floor is the mean of the
    batch's labels for that of the epoch's; the mean of both directions unless faithful; epochs in shares.
    """

    warm_up: int = 2
    threshold: float = 0.5
    temperature: float = 0.0
    hard_from: float = 0.25
    noisy_from: float = 0.4
    peer: Literal["none", "twin"] = "twin"
    faithful: bool = False
    judges = True
    sees_peer = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.temperature < 0:
            raise ValueError("warm_up and temperature must be >= 0")
        if any(not 0 <= x <= 1 for x in (self.threshold, self.hard_from, self.noisy_from)):
            raise ValueError("threshold, hard_from and noisy_from must lie in [0, 1]")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Clean pairs at once, hard and noisy ones later."""
        return {"clean": 0, "hard": later(self.hard_from, self.warm_up, epochs),
                "noisy": later(self.noisy_from, self.warm_up, epochs)}  # fmt: skip

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """InfoNCE of each pair in its batch."""
        return {"loss": info_nce(enc.sims, temperature=self._scale(enc), negatives=self._mask(enc))}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """The opinion of one network; `agree` makes the three sets."""
        found = gaussian_posterior(signals["loss"], seed=0, faithful=self.faithful)
        p_clean = np.ones_like(found.p_clean) if found.warning else found.p_clean
        clean = p_clean > self.threshold
        return Trust(p_clean=p_clean, clean=clean, sets={"noisy": ~clean}, note=found.warning)

    def agree(self, trusts: Sequence[Trust]) -> Sequence[Trust]:
        """Sets of both networks together. Where they disagree, both get the mean of their probabilities."""
        one, two = trusts[0], trusts[-1]
        clean, hard, noisy = split_three(one.p_clean, two.p_clean, threshold=self.threshold,
                                         least=0.01 if self.faithful else 0.0)  # fmt: skip
        mean = 0.5 * (one.p_clean + two.p_clean)
        return [replace(trust, p_clean=np.where(hard, mean, trust.p_clean), clean=clean.copy(),
                        sets={"hard": hard.copy(), "noisy": noisy.copy()}) for trust in trusts]  # fmt: skip

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """InfoNCE with soft targets; plain without trust."""
        scale, mask = self._scale(enc), self._mask(enc)
        if trust is None:
            return Loss(per_pair=info_nce(enc.sims, temperature=scale, negatives=mask))
        own = match_posterior(enc.sims, temperature=scale, negatives=mask).detach()
        other = own if peer is None else match_posterior(peer.sims, temperature=self._scale(peer),
                                                                  negatives=mask).detach()  # fmt: skip
        label = torch.where(trust.holds("noisy", enc), 0.5 * (own + other), on_arrays(rectify, trust.chance(enc), own))
        kept = info_nce(enc.sims, temperature=scale, negatives=mask, weight=label)
        if not self.faithful:
            return Loss(per_pair=kept)
        floor = 0.0 if trust.clean.mean() > 0.85 else float(label.mean())
        whole = info_nce(enc.sims, temperature=scale, negatives=mask, target=label, floor=floor)
        whole = whole + torch.where(label < floor, kept, 0.0)  # the floor is for the rest alone
        early = trust.holds("clean", enc) & (enc.epoch < later(self.hard_from, self.warm_up, enc.epochs))
        return Loss(per_pair=2 * torch.where(early, kept, whole))

    def _scale(self, enc: Encoded) -> Tensor | float:
        return self.temperature or enc.temperature

    def _mask(self, enc: Encoded) -> Tensor | None:
        return None if self.faithful else enc.negatives
