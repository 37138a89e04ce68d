"""IN2R: the texts of a wrong pair's nearest clean neighbours say what its own text should be like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.models.losses import NeighbourRefiner, hardest_triplet, info_nce, mean_prototype, symmetric_cross_entropy
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.partition import above_clean_mean, split_two
from noisycorr.retrieval.posterior import gaussian_posterior
from noisycorr.retrieval.strategies.ncr import clean_then_noisy

TEMPERATURE = 0.05  # of the released code


@dataclass(frozen=True, kw_only=True)
class IN2R(Strategy):
    """Clean pairs learn as they are; images of noisy pairs learn to find a prototype made of neighbours' texts.

        bank          clean pairs of which the peer is surer than of the mean clean pair
        prototype_i   refined from the texts of the k bank pairs whose images are nearest to image i, of length 1
        clean pair    l(image i, text i)
        warm-up       1/2 (cross-entropy + reverse cross-entropy)
        noisy pair    the same of image i . prototype_j / tau, over the noisy pairs j of the batch, tau = 0.05

    l is InfoNCE or the hardest triplet. The refiner is `losses.NeighbourRefiner`, trained by the loss of noisy pairs.

    Attributes:
        faithful: As the released code does.
        refine: Refine the texts of neighbours by attention; without, the prototype is their mean. None = only if
            `faithful`: on validation pairs of two sets the mean was better on one by more than worse on the other.
        warm_up: First epochs on all pairs, with cross-entropy and its reverse.
        loss: l: infonce or triplet; None = triplet if `faithful`, else infonce.
        margin: Of the triplet, in units of similarity.
        k: Neighbours.
        same_image: May a neighbour show the same picture? Where a picture has several texts, most nearest ones do.
        prototype_weight: Weight of the noisy pairs; None = 1 if `faithful`, else 0.1.
        noisy_from: When noisy pairs join, as a share of the epochs after the warm-up; 1 = never.
        threshold: Pairs above this probability are clean.
        peer: twin, or none for one network that follows itself.

    Source: IN2R (ICML 2026), images asking for texts.
    Differs: the refiner starts as a mean. The bank holds all pairs as they were before the epoch, instead of the last
    65,536. InfoNCE by default; pairs of the same picture or text are no negatives, and prototypes leave out the same
    picture. The posterior is monotone. A warm-up of 5 epochs is 3 here.
    Differs if faithful: no losses between two dropout views of the same input, of which the contract has one; clean and
    noisy pairs share one step; losses are averaged, not summed; the bank is the network's own, since twins that start
    differently cannot read each other's. Released, the split is by the mean triplet loss; the paper's by the warm-up's.
    """

    faithful: bool = False
    refine: bool | None = None
    warm_up: int = 3
    loss: Literal["infonce", "triplet"] | None = None
    margin: float = 0.2
    k: int = 5
    same_image: bool | None = None
    prototype_weight: float | None = None
    noisy_from: float = 0.0
    threshold: float = 0.5
    peer: Literal["none", "twin"] = "twin"
    judges = True
    banks = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.k < 1 or not 0 <= self.noisy_from <= 1:
            raise ValueError("warm_up must be >= 0, k >= 1, noisy_from in [0, 1]")
        if self.loss not in (None, "infonce", "triplet"):
            raise ValueError(f"loss is {self.loss!r}, expected infonce or triplet")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Clean pairs at once, noisy ones later."""
        return clean_then_noisy(self.noisy_from, self.warm_up, epochs)

    def _refines(self) -> bool:
        return self.faithful if self.refine is None else self.refine

    def modules(self, dim: int) -> dict[str, nn.Module]:
        """The refiner."""
        return {"refiner": NeighbourRefiner(dim, plain_start=not self.faithful)} if self._refines() else {}

    def memory(self, n: int) -> Memory:
        """The group of each image; embeddings stand beside it."""
        return Memory(n, group=torch.full((n,), -1))

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss of the warm-up; embeddings go into the bank."""
        memory.write("group", enc.rows, enc.image_group)
        memory.write("image", enc.rows, enc.image)
        memory.write("text", enc.rows, enc.text)
        return {"loss": self._start(enc)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = the component of lower loss; the surer half lends texts; the rest is noisy."""
        split = gaussian_posterior(signals["loss"], seed=0, faithful=self.faithful)
        clean = split_two(split.p_clean, threshold=self.threshold, least=0.01 if self.faithful else 0.0)
        sets = {"noisy": ~clean, "strict": above_clean_mean(split.p_clean, clean)}
        return Trust(p_clean=split.p_clean, clean=clean, sets=sets, note=split.warning)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Cross-entropy and its reverse in the warm-up; then both losses, each among its own pairs."""
        if trust is None:
            return Loss(per_pair=self._start(enc))
        clean, negatives = trust.holds("clean", enc), self._negatives(enc)
        loss, strength = enc.sims.new_zeros(len(clean)), self.prototype_weight
        rows = clean.nonzero()[:, 0]
        if len(rows):
            own, allowed = enc.sims[rows][:, rows], negatives[rows][:, rows]
            if (self.loss or ("triplet" if self.faithful else "infonce")) == "triplet":
                kept = hardest_triplet(own, margin=self.margin, negatives=allowed)
            else:
                kept = info_nce(own, temperature=enc.temperature, negatives=allowed)
            loss = loss.index_put((rows,), kept)
        rows = (~clean).nonzero()[:, 0]
        if len(rows):
            strength = (1.0 if self.faithful else 0.1) if strength is None else strength
            prototype, found = self._prototypes(enc, rows, memory, trust)
            inner = enc.image[rows] @ prototype.T
            borrowed = symmetric_cross_entropy(inner, temperature=TEMPERATURE,
                                               negatives=negatives[rows][:, rows] & found)  # fmt: skip
            loss = loss.index_put((rows,), strength * borrowed * found)
        return Loss(per_pair=loss)

    def _prototypes(self, enc: Encoded, rows: Tensor, memory: Memory, trust: Trust) -> tuple[Tensor, Tensor]:
        """Unit vectors for some pairs of the batch, and whether there was any neighbour."""
        bank = torch.from_numpy(np.flatnonzero(trust.all()["strict"])).to(enc.rows.device)
        near = enc.image[rows].detach() @ memory.read("image", bank).to(enc.image).T
        if not (self.faithful if self.same_image is None else self.same_image):
            near = near.masked_fill(enc.image_group[rows][:, None] == memory.read("group", bank), float("-inf"))
        best, index = near.topk(min(self.k, len(bank)), dim=1)
        text, there = memory.read("text", bank).to(enc.text)[index], torch.isfinite(best)
        make = enc.modules["refiner"] if self._refines() else mean_prototype
        return make(text, there), there.any(1)

    def _start(self, enc: Encoded) -> Tensor:
        temperature = TEMPERATURE if self.faithful else enc.temperature
        return symmetric_cross_entropy(enc.sims, temperature=temperature, negatives=self._negatives(enc))

    def _negatives(self, enc: Encoded) -> Tensor:
        return torch.ones_like(enc.negatives) if self.faithful else enc.negatives
