"""PLS with linear separation alternation: in odd turns a linear separator on the features says who is noisy.

Source: Albert et al., "An accurate detection is not all you need to combat label noise in web-noisy datasets",
ECCV 2024: images out of the set and in it are nearly separable in good features, and a separator that is taught by
small losses errs elsewhere than they do.
Differs: features are those of the backbone, not of a block inside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noisycorr.classify.webly.contract import Batch
from noisycorr.classify.webly.methods.pls import PLS
from noisycorr.models.training.contract import Trust
from noisycorr.models.training.memory import Memory

FEWEST = 10  # of each kind, for a separator


@dataclass(frozen=True, kw_only=True)
class PLSLSA(PLS):
    """Pseudo-loss selection, alternating with a linear separator.

    Attributes:
        warm_up: First epochs on the labels as they came.
        noisy_from: Probability of the mode of large losses from which a label is thought wrong.
        sharpen: Power of guessed labels.
        mixup: Parameter of the Beta distribution.
        temperature: Of the contrast of two views.
        contrast: Weight of it.
        ridge: Inverse strength of the penalty of the separator; large = none.
        components: Principal components that the separator sees, so that it cannot learn its teacher by heart.
    """

    ridge: float = 1e3
    components: int = 64

    banks = True

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """As PLS; the features go into the memory."""
        memory.write("features", batch.rows, batch.features)
        return PLS.observe(self, batch, memory)

    def detect(self, signals: Mapping[str, np.ndarray], memory: Memory) -> tuple[np.ndarray, np.ndarray]:
        """Small losses in odd epochs; in even ones what a separator that learned from them says."""
        wrong, noisy = PLS.detect(self, signals, memory)
        even = int(signals["epoch"][0]) % 2 == 0
        if not even or min(noisy.sum(), (~noisy).sum()) < FEWEST:
            return wrong, noisy
        separated = separate(memory.columns["features"].cpu().numpy(), noisy, self.ridge, self.components)
        return wrong, separated > 0.5

    def targets(self, batch: Batch, noisy: Tensor) -> Tensor:
        """Labels, and for noisy samples what is thought of the strong view alone."""
        with torch.no_grad():
            p = torch.softmax(batch.network.classifier(batch.key), 1) ** self.sharpen
            return torch.where(noisy[:, None], p / p.sum(1, keepdim=True), batch.targets)

    def trusted(self, weight: Tensor, trust: Trust | None) -> Tensor:
        """The contrast follows the corrected labels."""
        return torch.ones_like(weight) if trust is not None else torch.zeros_like(weight)


def separate(features: np.ndarray, noisy: np.ndarray, ridge: float, components: int) -> np.ndarray:
    """Probability that each sample is on the noisy side of a class-balanced logistic regression.

    Args:
        features: (n, d).
        noisy: bool (n,), the teacher; both kinds exist.
        ridge: Inverse strength of the penalty.
        components: Kept of the features, at most d.

    Returns:
        (n,) in [0, 1].
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    wide = features.astype(np.float64)
    if components < min(wide.shape):
        wide = PCA(components, random_state=0).fit_transform(wide)
    wide = (wide - wide.mean(0)) / np.maximum(wide.std(0), 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=ridge, class_weight="balanced", max_iter=200).fit(wide, noisy)
    out: np.ndarray = model.predict_proba(wide)[:, 1]
    return out
