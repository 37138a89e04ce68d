"""Small labelled sets with a known answer, and learners on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.fitting import feature_learner, picture_learner
from noisycorr.classify.webly.learner import ClassLearner
from noisycorr.classify.webly.methods import BUILT_IN, load_method
from noisycorr.models.training.loop import backward, fit
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime import dist

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
        x, label, classes, method, TrainClasses(**{"model_precision": "fp64", **SMALL, **choice}), anchors=anchors
    )


class SmallEye:
    """A convolution as an image encoder."""

    name, preprocessing, size, dim, random = "small@random", "none", (6, 8), 5, True

    def preprocess(self, image: Any) -> Tensor:
        raise AssertionError("the pixels are at hand")

    def fresh(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def image(self, model: nn.Module, pixels: Tensor) -> Tensor:
        out: Tensor = model(pixels)
        return out


class Pixels:
    """Pictures at hand, another crop in every epoch."""

    chunk, identity = 16, {}

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def image(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        return self.pixels[rows].roll(epoch or 0, 3)

    def expect(self, requests: object) -> None:
        """Nothing to load."""


def on_pictures(n: int = 40, classes: int = 3) -> ClassLearner:
    """CAPro on an image encoder, in double precision; half of the training it is frozen."""
    truth = np.arange(n) % classes
    pixels = torch.rand(n, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels[torch.arange(n), torch.from_numpy(truth)] += 0.7
    choice = TrainClasses(model_precision="fp64", **{**SMALL, "unfreeze": 0.5, "layer": 0})
    return picture_learner(Pixels(pixels), np.arange(n), truth, classes, load_method("capro"), choice, SmallEye(),
                           Tune(train_part="whole"), rate=0.5, anchors=some_anchors(truth, truth))  # fmt: skip


def found(name: str) -> dict[str, Tensor]:
    """Gradients of one batch and the weights after a whole training, the same for any number of processes."""
    one = on_pictures() if name == "pictures" else learner(name)
    if one.strategy.sees_peer:
        backward(one, 0, torch.arange(9), None, one.look(1, torch.arange(9), 0))
    else:
        backward(one, 0, torch.arange(9), None, None)
    network = one.networks[0]
    dist.average_gradients([p for p in network.parameters() if p.requires_grad])
    out = {f"gradient of {k}": p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
    one = on_pictures() if name == "pictures" else learner(name)
    fit(one)
    memory = {f"memory {k}": v.double() for k, v in one.memories[0].columns.items()}
    return out | {k: v.double() for k, v in one.weights().items()} | memory
