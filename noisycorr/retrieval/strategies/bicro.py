"""BiCro: a pair is right as far as it is as near to a trusted pair in images as it is in texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisycorr.models.losses import exponential_margin, hardest_triplet, mean_triplet, small_losses
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.memory import Memory
from noisycorr.retrieval.rectify import anchor_ratio, on_arrays, rectify_ratio, top_opinions
from noisycorr.retrieval.strategies.ncr import clean_then_noisy, mean_loss, opinion, split_pairs


@dataclass(frozen=True, kw_only=True)
class BiCro(Strategy):
    """NCR's loss, with labels from the peer's distances to the surest pairs of the batch.

        anchors = the floor(c / 10) + 1 of the batch's c clean pairs of which the peer thinks best
        r_i     = mean of both modalities' ratio of cosines to the nearest anchor, inverted above 1
        y_i     = 1 for anchors,  (1 + r_i) / 2 for clean pairs,  r_i for noisy ones,  0 below 1/2
        m_i     = margin (base^{y_i} - 1) / (base - 1)
        loss_i  = y_i (max_j [m_i + s_ij - s_ii]+ + max_j [m_i + s_ji - s_ii]+)

    In the warm-up only the smallest mean triplet losses of each batch count.

    Attributes:
        warm_up: First epochs on all pairs.
        warm_share: Share of each batch that counts in the warm-up, in (0, 1].
        margin: At full trust, in units of cosine.
        base: How late trust buys margin; > 1.
        threshold: Clean is above, in [0, 1].
        noisy_from: When noisy pairs join, as a share of the epochs after the warm-up; 1 = never.
        weighted: Multiply losses by y.
        peer: twin, or none for one network that follows itself.
        faithful: As released: clean and noisy pairs are each other's no negatives; both directions take the margin of
            the text's pair; no weights; pairs of the same picture or text are negatives; the released fit, whose first
            component is clean; one in a hundred is always noisy.

    Source: BiCro (Yang et al., CVPR 2023), with 10 epochs of warm-up on 0.3 of each batch before 40, and noisy pairs
    from half of these on.
    Differs: margins of the query's own pair; losses times y; clean and noisy pairs in one batch and one step; a mean
    over the batch where the release sums; the Beta component of lower mean is clean; ratios of which a cosine is not
    positive are 0; embeddings of the dual encoder stand for the global vectors; epochs in shares, since 40 do not fit.
    """

    warm_up: int = 2
    warm_share: float = 1.0
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
        if self.warm_up < 0 or not 0 < self.warm_share <= 1:
            raise ValueError("warm_up must be >= 0 and warm_share in (0, 1]")
        if not 0 <= self.threshold <= 1 or not 0 <= self.noisy_from <= 1 or self.margin <= 0 or self.base <= 1:
            raise ValueError("threshold and noisy_from must lie in [0, 1], margin must be > 0 and base > 1")

    def opens(self, epochs: int) -> Mapping[str, int]:
        """Clean pairs at once, noisy ones later."""
        return clean_then_noisy(self.noisy_from, self.warm_up, epochs)

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """The mean triplet loss of each pair in its batch."""
        return {"loss": mean_loss(enc, self.margin, faithful=self.faithful)}

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Clean = the Beta of lower loss."""
        return split_pairs(signals["loss"], split="bmm", threshold=self.threshold, faithful=self.faithful)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """Soft-margin triplet loss; without trust the mean triplet loss of the pairs that fit best."""
        if trust is None:
            loss = mean_loss(enc, self.margin, faithful=self.faithful)
            chosen = small_losses(loss, share=self.warm_share)
            return Loss(per_pair=loss * chosen * (len(loss) / chosen.sum()))
        clean = trust.holds("clean", enc)
        label = self._labels(peer if peer is not None else enc, clean)
        margin = exponential_margin(label, margin=self.margin, base=self.base)
        if not self.faithful:
            weight = label if self.weighted else None
            return Loss(per_pair=hardest_triplet(enc.sims, margin=margin, weight=weight, negatives=enc.negatives))
        released = 0.0 * enc.sims.diagonal()
        for kind in (clean, ~clean):
            at = kind.nonzero()[:, 0]
            sims = enc.sims[at][:, at]
            if len(at) > 1:
                released = released.index_put((at,), hardest_triplet(sims, margin=margin[at].expand_as(sims)))
        return Loss(per_pair=released)

    def _labels(self, look: Encoded, clean: Tensor) -> Tensor:
        """Soft correspondence of each pair of the batch; 0 where the batch has no clean pair."""
        anchors, at = torch.zeros_like(clean), clean.nonzero()[:, 0]
        if not len(at):
            return torch.zeros_like(look.sims.diagonal())
        sims, mask = look.sims[at][:, at], None if self.faithful else look.negatives[at][:, at]
        own = opinion(mean_triplet(sims, margin=self.margin, negatives=mask), self.margin)
        anchors[at] = on_arrays(top_opinions, own) > 0
        ratio = on_arrays(anchor_ratio, look.image, look.text, anchors.to(look.image.dtype))
        return on_arrays(rectify_ratio, ratio, clean.to(ratio.dtype))
