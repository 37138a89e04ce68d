"""Co-teaching: two networks, each trained on the pairs that the other one finds clean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from noisycorr.models.losses import info_nce
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.posterior import beta_posterior, gaussian_posterior


@dataclass(frozen=True, kw_only=True)
class CoTeach(Strategy):
    """InfoNCE on the pairs that the peer trusts; a two-component mixture of the peer's losses says which those are.

    Attributes:
        warm_up: First epochs on all pairs.
        split: gmm (two Gaussians) or bmm (two Betas).
        threshold: Pairs of at least this probability are clean, in [0, 1].
        weighted: Multiply the loss of a clean pair by its probability.
        peer: twin, or none for one network that follows itself.

    Source: the shell of NCR (Huang et al., NeurIPS 2021) and DivideMix, without rectified labels: pairs found wrong are
    dropped. Beta split as in BiCro (CVPR 2023).
    Differs: InfoNCE in place of the hinge; posterior made monotone; pairs of the same picture or text are no negatives.
    """

    warm_up: int = 3
    split: Literal["gmm", "bmm"] = "gmm"
    threshold: float = 0.5
    weighted: bool = False
    peer: Literal["none", "twin"] = "twin"
    judges = True

    def __post_init__(self) -> None:
        if self.warm_up < 0 or not 0 <= self.threshold <= 1:
            raise ValueError("warm_up must be >= 0 and threshold in [0, 1]")
        if self.split not in ("gmm", "bmm"):
            raise ValueError(f"split is {self.split!r}, expected gmm or bmm")

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The loss of each pair in its batch."""
        return {"loss": info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = the component of lower loss. Where two cannot be told apart, all are clean."""
        return split_losses(signals["loss"], split=self.split, threshold=self.threshold)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """InfoNCE; the loop brings the clean pairs only."""
        weight = trust.chance(enc) if trust is not None and self.weighted else None
        return Loss(per_pair=info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives, weight=weight))


def split_losses(loss: np.ndarray, *, split: str = "gmm", threshold: float = 0.5, seed: int = 0) -> Trust:
    """Two components of a loss.

    Args:
        loss: (n,), higher = worse.
        split: gmm or bmm.
        threshold: Of the probability to be clean.
        seed: Of the start of the Gaussian fit.

    Returns:
        Trust; all clean, with a note, if the losses do not differ.
    """
    found = beta_posterior(loss) if split == "bmm" else gaussian_posterior(loss, seed=seed)
    return Trust(p_clean=found.p_clean, clean=found.p_clean >= threshold, note=found.warning)
