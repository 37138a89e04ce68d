"""Nested dropout, then co-teaching: features ordered by use, and two networks that pick small losses for each other.

    k ~ p(k) proportional to exp(-(k / sigma)^2), one for each batch; channels after k are 0

Source: Chen et al., "Compressing Features for Learning with Noisy Labels", TNNLS 2022; Co-teaching, Han et al., NeurIPS
2018.
Differs: each network has batches of its own that the other picks from, in place of two halves of a batch; batch norms
keep their statistics throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import over_kept
from noisycorr.classify.webly.network import ClassNetwork
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory

PRICE = 1e-5  # of a channel, in accuracy
TRIED = 64  # cuts


class Cut(nn.Module):
    """How many channels are used after training; 0 = all, until validation has spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor
        self.register_buffer("kept", torch.zeros(1, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class Nested(Method):
    """Nested dropout and co-teaching.

    Attributes:
        sigma: Width of the distribution of cuts, as a share of the channels, > 0.
        forget: Share of a batch that is thought wrong in co-teaching, in [0, 1).
        first_teaching: Share of the epochs after which the two teach each other.
    """

    sigma: float = 0.3
    forget: float = 0.3
    first_teaching: float = 0.5

    peer = "twin"
    sees_peer = True
    tunes = True

    def parts(self, dim: int, classes: int, space: int, hidden: int) -> dict[str, nn.Module]:
        """The cut."""
        return {"cut": Cut()}

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Cross-entropy after a random cut, on what the other network finds easy."""
        assert peer is not None
        d = batch.features.shape[1]
        odds = torch.exp(-((torch.arange(1, d + 1) / (self.sigma * d)) ** 2))
        kept = int(torch.multinomial(odds, 1)) + 1
        logits = batch.network.classifier(first_channels(batch.features, kept))
        keep = torch.ones_like(batch.weights)
        if batch.past(self.first_teaching):
            other = functional.cross_entropy(self.predict(peer.network, peer.features), batch.labels, reduction="none")
            easy = other.argsort(stable=True)[: max(1, round((1 - self.forget) * len(other)))]
            keep = torch.zeros_like(keep).index_fill(0, easy, 1.0)
        return Loss(per_pair=over_kept(functional.cross_entropy(logits, batch.labels, reduction="none"), keep))

    def predict(self, network: ClassNetwork, features: Tensor) -> Tensor:
        """Logits of the channels that validation chose."""
        kept = int(network.heads["cut"].kept) or features.shape[1]  # type: ignore[arg-type]
        out: Tensor = network.classifier(first_channels(features, kept))
        return out

    def tune(self, network: ClassNetwork, features: Tensor, labels: Tensor) -> None:
        """k* = argmax(accuracy_k - 1e-5 k); where that is a single channel, all but one, as released."""
        found = accuracy_of_cuts(features, network.classifier.weight, labels)
        best = max(found, key=lambda k: found[k] - PRICE * k)
        network.heads["cut"].kept.fill_(best if best > 1 else max(1, features.shape[1] - 1))  # type: ignore[operator]


def first_channels(features: Float[Tensor, "b d"], kept: int) -> Float[Tensor, "b d"]:
    """Zeros after the first `kept` channels."""
    return features * (torch.arange(features.shape[1], device=features.device) < kept)


@torch.no_grad()
def accuracy_of_cuts(features: Float[Tensor, "v d"], weight: Float[Tensor, "c d"], labels: Tensor) -> dict[int, float]:
    """Accuracy of the first k channels, for at most 64 evenly spread k, the last of them d."""
    d = features.shape[1]
    cuts = sorted({round((i + 1) * d / min(TRIED, d)) for i in range(min(TRIED, d))})
    logits, start, out = features.new_zeros(len(features), len(weight)), 0, {}
    for k in cuts:
        logits = logits + features[:, start:k] @ weight[:, start:k].T
        out[k], start = float((logits.argmax(1) == labels).double().mean()), k
    return out
