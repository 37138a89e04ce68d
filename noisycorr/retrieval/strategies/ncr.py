"""NCR: two networks split each other's pairs, and a pair that is trusted less has to win by a smaller margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.losses import exponential_margin, hardest_triplet, mean_triplet
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.partition import split_two
from noisycorr.retrieval.posterior import beta_posterior, gaussian_posterior
from noisycorr.retrieval.rectify import hinge_prediction, on_arrays, rectify


@dataclass(frozen=True, kw_only=True)
class NCR(Strategy):
    """Hardest-negative triplet loss with a soft margin and weight, from the peer's split and the model's opinion.

        w_i    = probability of the lower of two Gaussians on the peer's mean-triplet losses; clean: w_i > threshold
        y_i    = w_i + (1 - w_i) P_i  for clean pairs,   (P_i + P_i of the peer) / 2  for noisy ones
        m_i    = margin (base^{y_i} - 1) / (base - 1)
        loss_i = y_i (max_j [m_i + s_ij - s_ii]+ + max_j [m_i + s_ji - s_ii]+)

    with P `rectify.hinge_prediction`. In the warm-up, and where nobody is trusted: the mean triplet loss of all pairs.

    Attributes:
        warm_up: First epochs on all pairs.
        margin: At full trust, in units of cosine.
        base: How late trust buys margin; > 1.
        threshold: Clean is above, in [0, 1].
        noisy_from: When noisy pairs join, as a share of the epochs after the warm-up; 1 = never.
        weighted: Multiply losses by y. Without, the loss of a pair of y = 0 still pulls it above its hardest negative.
        peer: twin, or none for one network that follows itself.
        faithful: As released: clean and noisy pairs are each other's no negatives; the label of clean pairs is the
            matrix y_ij = w_i + (1 - w_i) P_j and that of noisy ones y_ij = y_j, for both directions; no weights; pairs
            of the same picture or text are negatives; the fit is not monotone; one pair in a hundred is always noisy.

    Source: NCR (Huang et al., NeurIPS 2021), with 5 epochs of warm-up before 40, and noisy pairs from half of these on.
    Differs: margins of the query's own pair; losses times y; clean and noisy pairs in one batch and one step; a mean
    over the batch where the release sums; the own P comes from the pass that is differentiated, with its dropout;
    cosine of a dual encoder; epochs in shares, since 40 do not fit.
    """

    warm_up: int = 2
    margin: float = 0.2
    base: float = 10.0
    threshold: float = 0.5
    noisy_from: float = 1.0
    weighted: bool = True
    peer: Literal["none", "twin"] = "twin"
    faithful: bool = False
    judges = True
    sees_peer = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or not 0 <= self.threshold <= 1 or not 0 <= self.noisy_from <= 1:
            raise ValueError("warm_up must be >= 0, threshold and noisy_from in [0, 1]")
        if self.margin <= 0 or self.base <= 1:
            raise ValueError("margin must be > 0 and base > 1")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Clean pairs at once, noisy ones later."""
        return clean_then_noisy(self.noisy_from, self.warm_up, epochs)

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The mean triplet loss of each pair in its batch."""
        return {"loss": mean_loss(enc, self.margin, faithful=self.faithful)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = the Gaussian of lower loss."""
        return split_pairs(signals["loss"], split="gmm", threshold=self.threshold, faithful=self.faithful)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Soft-margin triplet loss; mean triplet loss without trust."""
        if trust is None:
            return Loss(per_pair=mean_loss(enc, self.margin, faithful=self.faithful))
        clean, chance = trust.holds("clean", enc), trust.chance(enc)
        if self.faithful:
            return Loss(per_pair=self._released(enc, peer or enc, clean, chance))
        own = opinion(mean_loss(enc, self.margin), self.margin)
        other = opinion(mean_loss(peer, self.margin), self.margin) if peer is not None else own
        label = torch.where(clean, on_arrays(rectify, chance, own), 0.5 * (own + other))
        margin = exponential_margin(label, margin=self.margin, base=self.base)
        return Loss(per_pair=hardest_triplet(enc.sims, margin=margin, weight=label if self.weighted else None,
                                             negatives=enc.negatives))  # fmt: skip

    def _released(self, enc: Encoded, peer: Encoded, clean: Tensor, chance: Tensor) -> Tensor:
        loss = 0.0 * enc.sims.diagonal()
        for kind in (clean, ~clean):
            at = kind.nonzero()[:, 0]
            if len(at) < 2:
                continue
            sims, theirs = enc.sims[at][:, at], peer.sims[at][:, at]
            own, other = (opinion(mean_triplet(s, margin=self.margin), self.margin) for s in (sims, theirs))
            if kind is clean:
                label = on_arrays(rectify, chance[at][:, None].expand_as(sims), own.expand_as(sims))
            else:
                label = (0.5 * (own + other)).expand_as(sims)
            margin = exponential_margin(label, margin=self.margin, base=self.base)
            loss = loss.index_put((at,), hardest_triplet(sims, margin=margin))
        return loss


def mean_loss(enc: Encoded, margin: float, *, faithful: bool = False) -> Tensor:
    """The mean triplet loss of each pair in its batch; if `faithful`, the same picture or text is a negative, too."""
    return mean_triplet(enc.sims, margin=margin, negatives=None if faithful else enc.negatives)


def opinion(mean_hinge: Tensor, margin: float) -> Tensor:
    """What a network thinks of each pair of a batch, in [0, 1], from its mean triplet loss; no gradient."""
    return on_arrays(hinge_prediction, mean_hinge, margin=margin)


def later(share: float, warm_up: int, epochs: int) -> int:
    """The epoch at a share of those after the warm-up; 1 = none of them."""
    return warm_up + int(np.ceil(share * max(epochs - warm_up, 0) - 1e-9))


def clean_then_noisy(share: float, warm_up: int, epochs: int) -> Mapping[str, int]:
    """Curriculum of two sets: clean pairs at once, noisy ones at a share of the epochs after the warm-up."""
    return {"clean": 0, "noisy": later(share, warm_up, epochs)}


def split_pairs(loss: np.ndarray, *, split: str, threshold: float, faithful: bool = False) -> Trust:
    """Clean and noisy pairs by two components of a loss; all clean, with a note, where it cannot be split.

    Args:
        loss: (n,), higher = worse.
        split: gmm or bmm.
        threshold: Clean is above.
        faithful: The released fit, and always one noisy pair in a hundred.
    """
    found = (
        beta_posterior(loss, faithful=faithful)
        if split == "bmm"
        else gaussian_posterior(loss, seed=0, faithful=faithful)
    )
    clean = split_two(found.p_clean, threshold=threshold, least=0.01 if faithful else 0.0)
    if found.warning:
        clean = np.ones(len(loss), bool)
    return Trust(p_clean=found.p_clean, clean=clean, sets={"noisy": ~clean}, note=found.warning)
