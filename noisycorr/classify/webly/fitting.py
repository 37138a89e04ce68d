"""From features and labels to a learner, and what is asked of it after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax, softmax

from noisycorr.classify.webly.choice import TrainClasses
from noisycorr.classify.webly.contract import ClassSet, Method
from noisycorr.classify.webly.learner import ClassLearner
from noisycorr.classify.webly.network import ClassNetwork, FeatureBackbone, PictureBackbone
from noisycorr.models.encoders.backbones import Backbone
from noisycorr.models.training.contract import Trust
from noisycorr.models.training.heads import ImageTowers, StoredTowers
from noisycorr.models.training.pictures import PixelTowers
from noisycorr.models.training.tune_choice import Tune
from noisycorr.runtime import dist


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What the networks think of the training labels at the end.

    Attributes:
        p_clean: (n,) in [0, 1], that the label is right; mean over networks.
        label: int64 (n,) the class that the method sees, -1 = none; int8 (n, c) for tags; None without an opinion.
    """

    p_clean: np.ndarray
    label: np.ndarray | None


def feature_learner(features: np.ndarray, labels: np.ndarray, classes: int, method: Method, choice: TrainClasses, *,
                    anchors: np.ndarray | None = None, weights: np.ndarray | None = None,
                    text_class: np.ndarray | None = None) -> ClassLearner:  # fmt: skip
    """A learner on stored features.

    Args:
        features: (n, d) of the training samples.
        labels: int (n,), or tags (n, c).
        classes: c.
        method: How to learn.
        choice: How to train.
        anchors: As `ClassSet` takes them; left out where the method does not know what to do with them.
        weights: (n,) of the losses, or None.
        text_class: As `ClassSet` takes it; left out likewise.
    """
    dtype = torch.float64 if choice.model_precision == "fp64" else torch.float32
    n = len(features)
    data = ClassSet(
        towers=StoredTowers(features, np.zeros((n, 1), np.float32), device=dist.device(), dtype=dtype),
        rows=np.arange(n), image_group=np.arange(n), text_group=np.arange(n), labels=labels, classes=classes,
        anchors=anchors if method.takes_anchors else None, weights=weights,
        text_class=text_class if method.takes_anchors else None,
    )  # fmt: skip

    def backbone() -> FeatureBackbone:
        made = FeatureBackbone(features.shape[1], choice.layer)
        made.standardise(features)
        return made

    return ClassLearner(data, method, choice, backbone=backbone, device=dist.device())


def picture_learner(towers: PixelTowers, rows: np.ndarray, labels: np.ndarray, classes: int, method: Method,
                    choice: TrainClasses, encoder: Backbone, tune: Tune, *, rate: float = 1.0,
                    anchors: np.ndarray | None = None, weights: np.ndarray | None = None,
                    text_class: np.ndarray | None = None) -> ClassLearner:  # fmt: skip
    """A learner that fine-tunes an image encoder.

    Args:
        towers: All pictures.
        rows: int64 (n,) those of the training samples.
        labels: As of `feature_learner`, as are `classes`, `method`, `choice`, `anchors`, `weights` and `text_class`.
        encoder: Where it comes from.
        tune: Which part of it is trained.
        rate: Its learning rate, as a share of that of the rest.
    """
    trusts = method.takes_anchors
    data = ClassSet(
        towers=towers, rows=rows, image_group=np.arange(len(rows)), text_group=np.arange(len(rows)), labels=labels,
        classes=classes, anchors=anchors if trusts else None, weights=weights,
        text_class=text_class if trusts else None,
    )  # fmt: skip
    return ClassLearner(data, method, choice, backbone=lambda: PictureBackbone(encoder, tune), device=dist.device(),
                        backbone_rate=rate)  # fmt: skip


def predict_rows(learner: ClassLearner, towers: ImageTowers, rows: np.ndarray) -> list[np.ndarray]:
    """Logits (m, c) of each network for rows (m,) of towers."""
    chunk, held = min(towers.chunk, 1024), torch.from_numpy(rows)
    towers.expect([(rows[a : a + chunk], None) for a in range(0, len(rows), chunk)] * len(learner.trained))
    return learner.predict(lambda part: towers.image(held[part]), len(held), chunk=chunk)


def predict_features(learner: ClassLearner, features: np.ndarray) -> list[np.ndarray]:
    """Logits (m, c) of each network for features (m, d)."""
    held = torch.from_numpy(np.ascontiguousarray(features))
    return learner.predict(lambda rows: held[rows].to(learner.device, learner.dtype), len(held))


def together(logits: list[np.ndarray]) -> np.ndarray:
    """Mean of the log probabilities of several networks, (n, c)."""
    out: np.ndarray = np.mean([log_softmax(one, axis=1) for one in logits], axis=0)
    return out


def probabilities(logits: list[np.ndarray], *, tags: bool = False) -> np.ndarray:
    """Mean probability of several networks, (n, c)."""
    parts = [1 / (1 + np.exp(-one)) if tags else softmax(one, axis=1) for one in logits]
    out: np.ndarray = np.mean(parts, axis=0)
    return out


def final_opinion(learner: ClassLearner) -> Opinion:
    """Ask the trained networks about every training sample."""
    opinions: list[tuple[np.ndarray, np.ndarray | None]] = []
    method = learner.strategy

    def watch(number: int, signals: Mapping[str, np.ndarray], trust: Trust | None) -> None:
        score = trust.p_clean if method.judges and trust is not None else signals["label"]
        opinions.append((np.clip(score, 0, 1), method.relabelled(signals, learner.memories[number])))

    learner.judge(watch)
    labels = opinions[0][1]
    return Opinion(p_clean=np.mean([score for score, _ in opinions], axis=0), label=labels)


def tune_on(learner: ClassLearner, features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`tune_rows` on features (v, d)."""
    towers = StoredTowers(features, np.zeros((len(features), 1), np.float32), device=learner.device,
                          dtype=learner.dtype)  # fmt: skip
    return tune_rows(learner, towers, np.arange(len(features)), labels)


def tune_rows(learner: ClassLearner, towers: ImageTowers, rows: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Let the method choose what is chosen on validation samples, and measure the networks there.

    Args:
        learner: In training.
        towers: Hold the samples.
        rows: int64 (v,) of them.
        labels: int64 (v,) or (v, c), as they came.

    Returns:
        `valid_top1`; nothing without samples.
    """
    if not len(rows):
        return {}
    labels_there = torch.from_numpy(labels).to(learner.device)
    if learner.strategy.tunes:
        with torch.no_grad():
            for number in learner.trained:
                network = learner.networks[number]
                assert isinstance(network, ClassNetwork)
                mode = network.training
                network.eval()
                parts = torch.from_numpy(rows).split(min(towers.chunk, 1024))
                features = torch.cat([network.image(towers.image(part)).to(learner.dtype) for part in parts])
                learner.strategy.tune(network, features, labels_there)
                network.train(mode)
    score = together(predict_rows(learner, towers, rows))
    if labels.ndim == 2:
        return {}
    return {"valid_top1": float((score.argmax(1) == labels).mean())}
