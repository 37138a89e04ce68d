"""Slow loops written from the equations of NMTune and of the spectrum, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def consistency(tuned: Tensor, given: Tensor, reduction: str) -> Tensor:
    b, d = tuned.shape
    total = tuned.new_zeros(())
    for i in range(b):
        z = tuned[i] / torch.sqrt(sum(tuned[i, k] ** 2 for k in range(d)))
        f = given[i] / torch.sqrt(sum(given[i, k] ** 2 for k in range(d)))
        for k in range(d):
            total = total + (z[k] - f[k]) ** 2
    return total / (b * d) if reduction == "mean" else total / b


def covariance(tuned: Tensor) -> Tensor:
    b, d = tuned.shape
    mean = [sum(tuned[i, k] for i in range(b)) / b for k in range(d)]
    total = tuned.new_zeros(())
    for i in range(d):
        for j in range(d):
            if i != j:
                c = sum((tuned[r, i] - mean[i]) * (tuned[r, j] - mean[j]) for r in range(b)) / (b - 1)
                total = total + c**2
    return total / d


def dominance(tuned: Tensor, topk: int) -> Tensor:
    """Singular values as roots of the eigenvalues of z' z (or z z', whichever is smaller)."""
    gram = tuned.T @ tuned if tuned.shape[1] <= tuned.shape[0] else tuned @ tuned.T
    values = torch.sqrt(torch.linalg.eigvalsh(gram).clamp(min=0)).flip(0)
    share = values / values.sum()
    return -sum(share[j] for j in range(min(topk, len(share)))) / min(topk, len(share))


def spectrum(features: np.ndarray) -> tuple[float, float]:
    values = np.sqrt(np.clip(np.linalg.eigvalsh(features.T @ features), 0, None))
    share = [value / values.sum() for value in values]
    return -sum(p * math.log(p) for p in share if p > 1e-9), -math.log(max(share))
