"""ELR: a running mean of each sample's own predictions weakens the pull of a wrong label.

    Z_i <- beta Z_i + (1 - beta) p_i / sum(p_i),   loss_i = CE_i + strength log(1 - <Z_i, p_i>)

Source: Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import CLAMP, early_learning, soft_cross_entropy
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class ELR(Method):
    """Early-learning regularisation.

    Attributes:
        beta: Decay of the running mean, in [0, 1).
        strength: Weight of the regulariser.
    """

    beta: float = 0.7
    strength: float = 3.0

    def columns(self, n: int, classes: int) -> dict[str, Tensor]:
        """Running means of predictions."""
        return {"belief": torch.zeros(n, classes)}

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Cross-entropy and regulariser; the running mean takes this prediction first."""
        belief = remember(memory, batch, torch.softmax(batch.logits, 1), self.beta)
        loss = soft_cross_entropy(batch.logits, batch.targets)
        return Loss(per_pair=loss + self.strength * early_learning(batch.logits, belief))

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """What the running mean thinks of the label."""
        belief = memory.read("belief", batch.rows)
        return {"label": belief.gather(1, batch.labels[:, None])[:, 0]}

    def relabelled(self, signals: Mapping[str, np.ndarray], memory: Memory) -> np.ndarray | None:
        """The likeliest class of each running mean."""
        return memory.columns["belief"].argmax(1).cpu().numpy()


def remember(memory: Memory, batch: Batch, p: Tensor, beta: float) -> Tensor:
    """Running means of the batch after its new predictions p (b, c)."""
    p = p.detach().clamp(CLAMP, 1 - CLAMP)
    belief = beta * memory.read("belief", batch.rows) + (1 - beta) * p / p.sum(1, keepdim=True)
    memory.write("belief", batch.rows, belief)
    return belief
