"""L2RM: wrong pairs are matched anew with one another by partial transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.models.losses import (
    PairCost,
    PlaceCost,
    cost_contrast,
    hardest_triplet,
    info_nce,
    known_cost,
    rematch_divergence,
    symmetric_cross_entropy,
)
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.posterior import beta_posterior, gaussian_posterior
from noisycorr.retrieval.strategies.ncr import clean_then_noisy
from noisycorr.stats.transport import partial_transport

TEMPERATURE = 0.05  # of the released code


@dataclass(frozen=True, kw_only=True)
class L2RM(Strategy):
    """Clean pairs learn as they are; among the images and texts of noisy pairs, the cheapest part is matched anew.

        warm-up        1/2 (cross-entropy + reverse cross-entropy)
        clean pair i   l(image i, text i)
        noisy pairs    T = partial transport of `mass` from noisy images to noisy texts at cost c_ij, T_ii = 0
                       1/2 (KL(T_i || P_i) + KL(P_i || T_i)) + the same for columns,   P_i = softmax_j s_ij / 0.05

        cost           c(s), from 1 - s on learned so that it tells the clean pairs of the batch from all others

    Clean are pairs of the lower of two Gaussians on the warm-up loss; l is InfoNCE or the hardest triplet; c is
    `losses.PairCost`. No gradient flows from the cost into the similarities.

    Attributes:
        faithful: As the released code does.
        learn_cost: Learn c; without, it stays 1 - s.
        places: Largest batch, if `faithful`, whose cost has a weight for each two places.
        warm_up: First epochs on all pairs.
        loss: l: infonce or triplet; None = triplet if `faithful`, else infonce.
        margin: Of the triplet, in units of similarity.
        mass: Share of the noisy mass that is matched anew, in (0, 1].
        reg: Of the transport, in units of cost; the released code has 0.01 for Flickr30K and 0.07 for COCO.
        rematch_weight: Weight of the noisy pairs; None = 1 if `faithful`, else 0.1.
        threshold: Pairs above this probability are clean.
        noisy_from: When noisy pairs join, as a share of the epochs after the warm-up; 1 = never.
        peer: none, or twin: two networks that split for each other.

    Source: L2RM (Han et al., CVPR 2024).
    Differs: InfoNCE by default. The cost has three parameters, however large the batch, and is learned by contrast from
    all clean pairs of the batch; the cost of right pairs alone is least where everything costs nothing. Two Gaussians,
    where the released code fits Betas. A noisy pair counts by the mass that the plan moved of it: rows that move none
    have a distribution of rounding, which the released code learns from. Entries of the plan below those of an even one
    are raised to it: against a floor of 1e-10 the divergence of noisy pairs outweighs all clean ones. Texts and images
    of the same group are not matched anew with each other and are no negatives. At most 100 rounds of scaling instead
    of 1,000. The posterior is monotone.
    Differs if faithful: cosines in place of SGR scores; images come from the same batch instead of a queue of 128, so
    that the cost is learned from all clean pairs of it instead of some tenth that is put into the queue; one optimiser,
    with a hundredth of the speed for the cost; clean and noisy pairs share one step; the posterior is monotone.
    """

    faithful: bool = False
    learn_cost: bool = True
    places: int = 129
    warm_up: int = 3
    loss: Literal["infonce", "triplet"] | None = None
    margin: float = 0.2
    mass: float = 0.1
    reg: float = 0.05
    rematch_weight: float | None = None
    threshold: float = 0.5
    noisy_from: float = 0.0
    peer: Literal["none", "twin"] = "none"
    judges = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or not 0 <= self.noisy_from <= 1 or not self.reg > 0 or not 0 < self.mass <= 1:
            raise ValueError("warm_up must be >= 0, noisy_from in [0, 1], reg > 0, mass in (0, 1]")
        if self.places < 2:
            raise ValueError(f"places is {self.places}, expected at least 2")
        if self.loss not in (None, "infonce", "triplet"):
            raise ValueError(f"loss is {self.loss!r}, expected infonce or triplet")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Clean pairs at once, noisy ones later."""
        return clean_then_noisy(self.noisy_from, self.warm_up, epochs)

    def modules(self, dim: int) -> dict[str, nn.Module]:
        """The cost."""
        if not self.learn_cost:
            return {}
        return {"cost": PlaceCost(self.places) if self.faithful else PairCost()}

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss of the warm-up."""
        return {"loss": self._start(enc)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = the component of lower loss, the rest is noisy."""
        loss = signals["loss"]
        split = beta_posterior(loss) if self.faithful else gaussian_posterior(loss, seed=0)
        clean = split.p_clean > self.threshold
        return Trust(p_clean=split.p_clean, clean=clean, sets={"noisy": ~clean}, note=split.warning)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Symmetric cross-entropy in the warm-up; then both losses, each among its own pairs."""
        if trust is None:
            return Loss(per_pair=self._start(enc))
        clean = trust.holds("clean", enc)
        loss, extras = enc.sims.new_zeros(len(clean)), {}
        for chosen, kind in ((clean, self._keep), (~clean, self._rematch)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                own = enc.sims[rows][:, rows]
                allowed = self._negatives(enc)[rows][:, rows]
                loss = loss.index_put((rows,), kind(own, allowed, enc))
                if self.learn_cost and chosen is clean:
                    cost = self._cost(own, enc)
                    extras["cost"] = known_cost(cost) if self.faithful else cost_contrast(cost, reg=self.reg,
                                                                                          allowed=allowed)  # fmt: skip
        return Loss(per_pair=loss, extras=extras)

    def _cost(self, sims: Tensor, enc: Encoded) -> Tensor:
        """Cost of each image (row) with each text, of which no gradient flows into the similarities."""
        return enc.modules["cost"](sims.detach()) if self.learn_cost else (1 - sims.detach()).clamp(min=0)

    def _start(self, enc: Encoded) -> Tensor:
        temperature = TEMPERATURE if self.faithful else enc.temperature
        return symmetric_cross_entropy(enc.sims, temperature=temperature, forward=0.5, reverse=0.5,
                                       negatives=self._negatives(enc))  # fmt: skip

    def _keep(self, sims: Tensor, allowed: Tensor, enc: Encoded) -> Tensor:
        if (self.loss or ("triplet" if self.faithful else "infonce")) == "triplet":
            return hardest_triplet(sims, margin=self.margin, negatives=allowed)
        return info_nce(sims, temperature=enc.temperature, negatives=allowed)

    def _rematch(self, sims: Tensor, allowed: Tensor, enc: Encoded) -> Tensor:
        """Losses of m noisy pairs, given which images and texts of them may go together."""
        forbidden = ~allowed | torch.eye(len(sims), dtype=torch.bool, device=sims.device)
        reach = min(float((~forbidden).any(1).double().mean()), float((~forbidden).any(0).double().mean()))
        if reach == 0:
            return 0.0 * sims.sum(1)
        cost = self._cost(sims, enc).detach()
        plan = partial_transport(cost, mass=min(self.mass, reach), reg=self.reg, forbidden=forbidden,
                                 iterations=1000 if self.faithful else 100)  # fmt: skip
        weight = None
        if not self.faithful:
            moved = 0.5 * (plan.sum(1) + plan.sum(0))
            weight = moved * len(moved) / moved.sum().clamp(min=1e-12)
        floor = 1e-10 if self.faithful else self.mass / len(sims) ** 2  # as much as an even plan has everywhere
        loss = rematch_divergence(sims, plan, temperature=TEMPERATURE, weight=weight, floor=floor,
                                  negatives=None if self.faithful else allowed)  # fmt: skip
        strength = (1.0 if self.faithful else 0.1) if self.rematch_weight is None else self.rematch_weight
        return strength * loss

    def _negatives(self, enc: Encoded) -> Tensor:
        return torch.ones_like(enc.negatives) if self.faithful else enc.negatives
