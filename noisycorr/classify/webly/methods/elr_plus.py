"""ELR+: two networks with averaged weights tell each other what they believe, and mixup.

Source: Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020.
Differs: mixup is of features, so that the classifier alone sees it where the backbone is not linear; the decay of the
averaged weights rises as min(1 - 1 / (step + 1), decay) in every setting, as released for all but CIFAR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noisycorr.classify.webly.contract import Batch
from noisycorr.classify.webly.losses import early_learning, soft_cross_entropy
from noisycorr.classify.webly.methods.elr import ELR, remember
from noisycorr.classify.webly.mixup import draw_mix
from noisycorr.classify.webly.network import ClassNetwork
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class ELRPlus(ELR):
    """Early-learning regularisation with two networks.

    Attributes:
        beta: Decay of the running mean, in [0, 1).
        strength: Weight of the regulariser.
        mixup: Parameter of the Beta distribution.
        follow: Decay of the averaged weights, in [0, 1).
    """

    mixup: float = 1.0
    follow: float = 0.99

    peer = "twin"
    sees_peer = True
    key = "slow"
    slow = ("backbone", "classifier")

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """The averaged copy of the peer feeds the running mean; what is mixed is mixed in the running mean, too."""
        assert peer is not None
        belief = remember(memory, batch, torch.softmax(slow_logits(peer), 1), self.beta)
        order, share = draw_mix(len(batch.rows), self.mixup, nearer=True, device=batch.features.device)

        def mixed(x: Tensor) -> Tensor:
            return share * x + (1 - share) * x[order]

        logits = batch.network.classifier(mixed(batch.features))
        loss = soft_cross_entropy(logits, mixed(batch.targets))
        return Loss(per_pair=loss + self.strength * early_learning(logits, mixed(belief)))

    def predict(self, network: ClassNetwork, features: Tensor) -> Tensor:
        """Of the network that was trained."""
        out: Tensor = network.classifier(features)
        return out


def slow_logits(batch: Batch) -> Tensor:
    """Of the averaged copy, on pictures as they are: `key` has no other view in evaluation mode."""
    out: Tensor = batch.network.slow["classifier"](batch.key)
    return out
