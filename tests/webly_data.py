"""Small labelled sets with a known answer, and learners on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisycorr import dist
from noisycorr.learn.loop import backward, fit
from noisycorr.webly.choice import TrainClasses
from noisycorr.webly.fitting import feature_learner
from noisycorr.webly.learner import ClassLearner
from noisycorr.webly.methods import BUILT_IN, load_method

SMALL: dict[str, Any] = {"epochs": 6, "batch_size": 16, "embed_dim": 6, "hidden": 8, "warmup": 2, "save_every": 0.0,
                         "lr": 0.05, "layer": 10}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"pls": {"warm_up": 2}, "pls_lsa": {"warm_up": 2, "components": 4},
                                      "nested": {"first_teaching": 0.4}}  # fmt: skip
METHODS = tuple(BUILT_IN)


def blobs(n: int, classes: int, *, wrong: float = 0.0, seed: int = 0, width: int = 12, spread: float = 0.6):
    """Features (n, width), right labels, given labels, a share of which is wrong."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(classes, width))
    truth = np.arange(n) % classes
    x = centre[truth] + spread * rng.normal(size=(n, width))
    given = truth.copy()
    bad = rng.permutation(n)[: round(wrong * n)]
    given[bad] = (truth[bad] + rng.integers(1, classes, len(bad))) % classes
    return x.astype(np.float32), truth, given


def tags_of(label: np.ndarray, classes: int) -> np.ndarray:
    """Two tags for each sample: its class and the one after it."""
    out = np.zeros((len(label), classes), np.int8)
    out[np.arange(len(label)), label] = 1
    out[np.arange(len(label)), (label + 1) % classes] = 1
    return out


def some_anchors(truth: np.ndarray, given: np.ndarray, each: int = 3) -> np.ndarray:
    """Rightly labelled samples of each class."""
    out = np.zeros(len(given), np.int8)
    for c in np.unique(given):
        out[np.flatnonzero((given == c) & (truth == c))[:each]] = 1
    return out


def learner(
    name: str, *, n: int = 70, classes: int = 4, options: dict[str, Any] | None = None, **choice: Any
) -> ClassLearner:
    """A learner on blobs, a third of the labels wrong, in double precision unless asked otherwise."""
    x, truth, given = blobs(n, classes, wrong=0.3)
    method = load_method(name, options if options is not None else OPTIONS.get(name))
    label, anchors = given, some_anchors(truth, given)
    if method.labels == "many":
        label, anchors = tags_of(given, classes), tags_of(given, classes) * anchors[:, None]
    return feature_learner(
        x, label, classes, method, TrainClasses(**{"precision": "fp64", **SMALL, **choice}), anchors=anchors
    )


def found(name: str) -> dict[str, Tensor]:
    """Gradients of one batch and the weights after a whole training, the same for any number of processes."""
    one = learner(name)
    if one.strategy.sees_peer:
        backward(one, 0, torch.arange(9), None, one.look(1, torch.arange(9), 0))
    else:
        backward(one, 0, torch.arange(9), None, None)
    network = one.networks[0]
    dist.average_gradients([p for p in network.parameters() if p.requires_grad])
    out = {f"gradient of {k}": p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
    one = learner(name)
    fit(one)
    memory = {f"memory {k}": v.double() for k, v in one.memories[0].columns.items()}
    return out | {k: v.double() for k, v in one.weights().items()} | memory
