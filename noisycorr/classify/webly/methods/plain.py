"""Plain cross-entropy on the labels as they came: what every other method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import masked_tag_loss, soft_cross_entropy
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    """Cross-entropy; for tags binary cross-entropy."""

    labels = "both"

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """One cross-entropy per sample."""
        if batch.labels.ndim == 2:
            return Loss(per_pair=masked_tag_loss(batch.logits, batch.targets, torch.ones_like(batch.logits[0])))
        return Loss(per_pair=soft_cross_entropy(batch.logits, batch.targets))
