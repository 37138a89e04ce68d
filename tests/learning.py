"""A small training set with a known answer, for the tests of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from noisycorr import Strategy
from noisycorr.models.training.choice import Train
from noisycorr.models.training.heads import StoredTowers
from noisycorr.models.training.learner import Learner, TrainSet
from noisycorr.retrieval.strategies import load_strategy

CPU = torch.device("cpu")
SMALL = {"epochs": 3, "batch_size": 16, "embed_dim": 8, "hidden": 12, "warmup": 2, "save_every": 0.0,
         "dropout": 0.0, "lr": 1e-3}  # fmt: skip


def features(n: int, *, wrong: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 24) and texts (n, 20) that tell of the same n things, the first `wrong` swapped."""
    rng = np.random.default_rng(seed)
    things = rng.normal(size=(n, 6))
    image = things @ rng.normal(size=(6, 24)) + 0.3 * rng.normal(size=(n, 24))
    text = things @ rng.normal(size=(6, 20)) + 0.3 * rng.normal(size=(n, 20))
    source = np.arange(n)
    source[:wrong] = np.roll(source[:wrong], 1)
    return image.astype(np.float32), text.astype(np.float32)[source], np.arange(n) < wrong


def train_set(n: int = 50, *, wrong: int = 0, dtype: torch.dtype = torch.float32, **columns: np.ndarray) -> TrainSet:
    """The features as a training set without duplicates."""
    image, text, _ = features(n, wrong=wrong)
    towers = StoredTowers(image, text, device=CPU, dtype=dtype)
    return TrainSet(towers=towers, rows=np.arange(n), image_group=np.arange(n), text_group=np.arange(n),
                    columns=columns)  # fmt: skip


def learner(strategy: str | Strategy = "plain", data: TrainSet | None = None, *, options: dict[str, Any] | None = None,
            **choice: Any) -> Learner:  # fmt: skip
    """A learner of small networks."""
    method = load_strategy(strategy, options) if isinstance(strategy, str) else strategy
    train = Train(**{**SMALL, **choice})
    dtype = torch.float64 if train.model_precision == "fp64" else torch.float32
    return Learner(data or train_set(dtype=dtype), method, train, device=CPU)
