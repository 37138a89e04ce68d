"""DECL: retrieval as evidence. A pair is right if its own text has more evidence than any other of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.losses import evidential, hard_count, info_nce, is_evident, top_triplet
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.posterior import gaussian_posterior


@dataclass(frozen=True, kw_only=True)
class DECL(Strategy):
    """Evidential loss of all pairs, of which wrong ones have no partner, and a triplet loss of the right ones.

        e_ij   = exp(tanh(gain s_ij) / temperature),   y_i = 1 for clean pairs, else 0
        loss_i = evidential_i(e, y, spread) + pull y_i (mean of the n largest violations, both ways, of tanh(gain s))

    n falls from the whole batch to `least`, over the first `harden` of all epochs.

    Attributes:
        warm_up: First epochs, in which every pair is right.
        split: gmm: two Gaussians on - ln of a pair's share of the evidence of its image and of its text; evidence:
            clean pairs have most evidence in their own batch, which few have in a large one.
        threshold: Of the Gaussians; clean is above.
        gain: What cosines are multiplied by before the tanh, > 0.
        temperature: Of the evidence, > 0.
        spread: Weight of the penalty on evidence for others.
        pull: Weight of the triplet loss.
        margin: Of the triplet loss, in units of tanh.
        least: Negatives that count in the end.
        harden: Share of the epochs until then, > 0.
        peer: none, or twin for two networks that exchange their trust.
        faithful: The triplet loss is summed over the batch while the evidential one is averaged, as released; pairs
            of the same picture or text are negatives; split by evidence with probabilities 0 and 1.

    Source: DECL (Qin et al., ACM MM 2022), with pull 0.8 and 5 epochs of warm-up of 40.
    Differs: clean pairs by two Gaussians; the triplet loss is averaged; scaled cosines stand for the raw scores of the
    release; n falls by epochs, since 0.025 a step presupposes its tens of thousands of steps.
    """

    warm_up: int = 2
    split: Literal["gmm", "evidence"] = "gmm"
    threshold: float = 0.5
    gain: float = 3.0
    temperature: float = 0.1
    spread: float = 0.1
    pull: float = 5.0
    margin: float = 0.2
    least: int = 5
    harden: float = 0.3
    peer: Literal["none", "twin"] = "none"
    faithful: bool = False
    judges = True
    curriculum = {"clean": 0, "noisy": 0}  # noqa: RUF012

    def __post_init__(self) -> None:
        if self.split not in ("evidence", "gmm"):
            raise ValueError(f"split is {self.split!r}, expected evidence or gmm")
        if self.warm_up < 0 or self.least < 1 or min(self.gain, self.temperature, self.harden) <= 0:
            raise ValueError("warm_up must be >= 0, least >= 1, and gain, temperature and harden > 0")

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """- ln of the share of the evidence that is the pair's own; and 1 if its text has most of it, else 0."""
        raw, mask = self.gain * enc.sims, None if self.faithful else enc.negatives
        loss = info_nce(torch.tanh(raw), temperature=self.temperature, negatives=mask)
        evident = is_evident(raw, temperature=self.temperature, negatives=mask)
        return {"loss": loss, "evident": evident.to(loss.dtype)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = most evidence, or the lower Gaussian; the probability comes from the Gaussians unless faithful."""
        evident = signals["evident"] > 0.5
        if self.faithful:
            return Trust(p_clean=evident.astype(np.float32), clean=evident, sets={"noisy": ~evident})
        found = gaussian_posterior(signals["loss"], seed=0)
        clean = evident if self.split == "evidence" else found.p_clean > self.threshold
        return Trust(p_clean=found.p_clean, clean=clean, sets={"noisy": ~clean}, note=found.warning)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Evidence of all, triplets of the clean."""
        raw, mask = self.gain * enc.sims, None if self.faithful else enc.negatives
        b = len(raw)
        clean = torch.ones_like(raw[0]) if trust is None else trust.holds("clean", enc).to(raw.dtype)
        n = hard_count(enc.epoch, b, rate=b / (self.harden * enc.epochs), least=self.least)
        loss = evidential(raw, target=clean, temperature=self.temperature, spread=self.spread, negatives=mask)
        pulls = top_triplet(torch.tanh(raw), n=n, margin=self.margin, weight=clean, negatives=mask)
        return Loss(per_pair=loss + self.pull * (b if self.faithful else 1) * pulls)
