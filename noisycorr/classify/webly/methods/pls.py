"""PLS: small losses find wrong labels, guessed labels replace them, and the loss of the guess says how good it is.

Source: Albert et al., "Is your noise correction noisy? PLS: Robustness to label noise with two stage detection",
WACV 2023.
Differs: mixup is of features; the strong view stands in for the second weak one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.classify.webly.bank import Projector
from noisycorr.classify.webly.contract import Batch, Method
from noisycorr.classify.webly.losses import guided_contrast, mean_prediction_gap, over_kept, soft_cross_entropy
from noisycorr.classify.webly.mixup import draw_mix
from noisycorr.models.training.contract import Loss, Trust
from noisycorr.models.training.memory import Memory


@dataclass(frozen=True, kw_only=True)
class PLS(Method):
    """Pseudo-loss selection.

    Attributes:
        warm_up: First epochs on the labels as they came.
        noisy_from: Probability of the mode of large losses from which a label is thought wrong.
        sharpen: Power of guessed labels.
        mixup: Parameter of the Beta distribution.
        temperature: Of the contrast of two views.
        contrast: Weight of it.
    """

    warm_up: int = 4
    noisy_from: float = 0.95
    sharpen: float = 2.0
    mixup: float = 1.0
    temperature: float = 0.2
    contrast: float = 1.0

    key = "same"
    judges = True
    curriculum = MappingProxyType({"clean": 0, "noisy": 0})

    def parts(self, dim: int, classes: int, space: int, hidden: int) -> dict[str, nn.Module]:
        """Projector of the contrast."""
        return {"projector": Projector(dim, hidden, space)}

    def columns(self, n: int, classes: int) -> dict[str, Tensor]:
        """The last guess for each sample, zeros before the first, and the trust in it."""
        return {"guess": torch.zeros(n, classes), "weight": torch.ones(n)}

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """Losses of the label and of the last guess, and the epoch."""
        log_p = torch.log_softmax(batch.logits, 1)
        guess = memory.read("guess", batch.rows)
        return {
            "loss": -log_p.gather(1, batch.labels[:, None])[:, 0],
            "loss_guess": -(guess * log_p).sum(1),
            "guessed": (guess.sum(1) > 0).to(log_p.dtype),
            "epoch": torch.full_like(log_p[:, 0], float(batch.epoch)),
            "best": batch.logits.argmax(1).to(log_p.dtype),
        }

    def detect(self, signals: Mapping[str, np.ndarray], memory: Memory) -> tuple[np.ndarray, np.ndarray]:
        """Probability that each label is wrong, and which are thought wrong."""
        wrong = large_mode(signals["loss"])
        return wrong, wrong > self.noisy_from

    def decide(self, signals: Mapping[str, np.ndarray], memory: Memory) -> Trust:
        """Who is noisy; the trust in their guesses stands in the memory."""
        wrong, noisy = self.detect(signals, memory)
        weight = np.ones(len(noisy))
        judged = noisy & (signals["guessed"] > 0.5)
        if judged.sum() > 2:
            weight[judged] = 1 - large_mode(signals["loss_guess"][judged])
        memory.columns["weight"] = torch.from_numpy(weight).to(memory.columns["guess"])
        return Trust(p_clean=1 - wrong, clean=~noisy, sets={"noisy": noisy},
                     facts={"noisy": float(noisy.mean())})  # fmt: skip

    def relabelled(self, signals: Mapping[str, np.ndarray], memory: Memory) -> np.ndarray | None:
        """The likeliest class of each sample."""
        return signals["best"].astype(np.int64)

    def targets(self, batch: Batch, noisy: Tensor) -> Tensor:
        """Labels, and for noisy samples the sharpened mean of what is thought of two views."""
        with torch.no_grad():
            p = torch.softmax(batch.logits, 1) + torch.softmax(batch.network.classifier(batch.key), 1)
            p = (p / 2) ** self.sharpen
            return torch.where(noisy[:, None], p / p.sum(1, keepdim=True), batch.targets)

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """Weighted mixup, all classes in use, contrast of two views."""
        b = len(batch.rows)
        noisy = torch.zeros(b, dtype=torch.bool, device=batch.features.device)
        weight = torch.ones_like(batch.weights)
        if trust is not None:
            noisy = torch.from_numpy(~trust.clean).to(noisy.device)[batch.rows]
            weight = torch.where(noisy, memory.read("weight", batch.rows), weight)
        target = self.targets(batch, noisy)
        guess = memory.read("guess", batch.rows)
        memory.write("guess", batch.rows, torch.where(noisy[:, None], target, guess))
        order, share = draw_mix(b, self.mixup, nearer=True, device=target.device)
        mixed = share * batch.features + (1 - share) * batch.features[order]
        soft = share * target + (1 - share) * target[order]
        loss = soft_cross_entropy(batch.network.classifier(mixed), soft)
        one, two = (batch.part("projector")(x) for x in (batch.features, batch.key))
        trusted = self.trusted(weight, trust)
        return Loss(
            per_pair=over_kept(loss, weight),
            extras={
                "classes": mean_prediction_gap(batch.logits),
                "views": self.contrast
                * guided_contrast(one, two, target, trusted, temperature=self.temperature).mean(),
            },
        )

    def trusted(self, weight: Tensor, trust: Trust | None) -> Tensor:
        """How far the contrast follows the labels, (b,) in [0, 1]."""
        return weight if trust is not None else torch.zeros_like(weight)


def large_mode(loss: np.ndarray) -> np.ndarray:
    """Probability that each loss is of the mode of large ones: min-max scaling, two Gaussians.

    Args:
        loss: (n,) n >= 2.

    Returns:
        (n,) in [0, 1]; zeros where all losses are equal.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    low, high = loss.min(), loss.max()
    if not high > low:
        return np.zeros(len(loss))
    scaled = ((loss - low) / (high - low))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    p: np.ndarray = found.predict_proba(scaled)[:, int(found.means_.argmax())]
    return np.where(scaled[:, 0] < found.means_.min(), np.minimum(p, 0.5), p)  # the wide mode has two tails
