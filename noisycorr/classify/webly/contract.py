"""What a method of learning from wrong labels gets to see, and what it may do; `models.training` has the loop.

    @dataclass(frozen=True, kw_only=True)
    class Mine(Method):
        def learn(self, batch, memory, trust, peer):
            return Loss(per_pair=soft_cross_entropy(batch.logits, batch.targets))

A batch is the *global* one, gathered from all processes. What a method learns over time is either a column of its
`Memory`, with a row for each sample, or a buffer of its modules, such as a queue or prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.classify.webly.network import ClassNetwork
from noisycorr.models.training.contract import Encoded, Loss, Strategy, Trust
from noisycorr.models.training.heads import ImageTowers
from noisycorr.models.training.learner import TrainSet
from noisycorr.models.training.memory import Memory
from noisycorr.runtime.errors import UsageError

SHARE = (0.0, 1.0)
LIMITS = {
    "threshold": SHARE, "mix": SHARE, "soft": SHARE, "decay": SHARE, "first_prototypes": SHARE, "first_clean": SHARE,
    "first_contrast": SHARE, "finetune": SHARE, "noisy_from": SHARE, "first_teaching": SHARE, "follow": SHARE,
    "beta": SHARE, "forget": (0.0, 0.99), "temperature": (0.001, math.inf), "soft_temperature": (0.001, math.inf),
    "queue": (1, math.inf), "out_of_set": (0.0, math.inf), "mixup": (0.0, math.inf), "sharpen": (0.0, math.inf),
    "strength": (0.0, math.inf), "sigma": (0.001, math.inf), "folds": (2, math.inf), "ridge": (1e-9, math.inf),
    "components": (1, math.inf), "warm_up": (0, math.inf), "contrast": (0.0, math.inf),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassSet(TrainSet):
    """The n labelled samples to train on. Holds no truth.

    Attributes:
        towers: Give the images; texts have done their part in `anchors` and `text_class`.
        labels: int64 (n,) class of each sample as it came; or int8 (n, c) with 1 = has the tag, 0 = has it not.
        classes: c, the number of classes.
        anchors: int8 (n,) 1 = trusted; or (n, c) 1 = trusted to have the tag, -1 = trusted not to have it. The method
            never relabels them. None = nobody is trusted.
        weights: float32 (n,) of the loss of each sample; None = 1.
        text_class: int64 (n,) the class that the completed text of each sample names, -1 = none; None = no texts.
    """

    towers: ImageTowers  # type: ignore[assignment]
    labels: np.ndarray
    classes: int
    anchors: np.ndarray | None = None
    weights: np.ndarray | None = None
    text_class: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        n, shape = len(self.rows), self.labels.shape
        if shape not in ((n,), (n, self.classes)):
            raise ValueError(f"labels have shape {shape}, expected ({n},) or ({n}, {self.classes})")
        low, high = int(self.labels.min(initial=0)), int(self.labels.max(initial=0))
        if low < 0 or high >= (2 if self.multi else self.classes):
            top = 1 if self.multi else self.classes - 1
            raise ValueError(f"labels reach from {low} to {high}, expected 0 to {top}")
        for name, column, wanted in (
            ("anchors", self.anchors, shape), ("weights", self.weights, (n,)), ("text_class", self.text_class, (n,)),
        ):  # fmt: skip
            if column is not None and column.shape != wanted:
                raise ValueError(f"{name} have shape {column.shape}, expected {wanted}")

    @property
    def multi(self) -> bool:
        """True if a sample may have several tags."""
        return self.labels.ndim == 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One global batch of b samples, encoded by one network; the same on every process.

    Attributes:
        features: (b, d) what the backbone makes of the images, with gradient once it is trained.
        key: (b, d) what `Method.key` asks for: the strong view through the slow copy, without gradient, or through the
            backbone; nothing of use if that is "none".
        rows: int64 (b,) samples, as `Memory` and `Trust` number them.
        labels: int64 (b,), or int64 (b, c) tags.
        anchors: int64 of the same shape: 0 = not trusted.
        weights: (b,).
        text_class: int64 (b,) class that the completed text names, -1 = none; None = no texts.
        classes: c.
        network: That encoded it; its classifier and modules are used from here on.
        epoch: From 0.
        epochs: In all.
    """

    features: Float[Tensor, "b d"]
    key: Float[Tensor, "b d"]
    rows: Int[Tensor, " b"]
    labels: Tensor
    anchors: Tensor
    weights: Float[Tensor, " b"]
    classes: int
    network: ClassNetwork
    text_class: Tensor | None = None
    epoch: int = 0
    epochs: int = 1

    @property
    def logits(self) -> Float[Tensor, "b c"]:
        """Of the classifier."""
        out: Tensor = self.network.classifier(self.features)
        return out

    @property
    def targets(self) -> Float[Tensor, "b c"]:
        """The labels as they came, one-hot, or the tags."""
        if self.labels.ndim == 2:
            return self.labels.to(self.features.dtype)
        return functional.one_hot(self.labels, self.classes).to(self.features.dtype)

    def part(self, name: str) -> Any:
        """A module of the method."""
        return self.network.heads[name]

    def past(self, share: float) -> bool:
        """True from this share of the epochs on."""
        return self.epoch >= round(share * self.epochs)


class Method(Strategy):
    """A method of learning from wrong labels. Inherit, and write `learn`.

    Attributes:
        key: "none", "slow": the strong view of the images through the slow copy of the network, without gradient;
            "same": through the network itself, with gradient.
        slow: Parts of the network that have a slow copy: backbone, classifier, or modules of the method.
        follow: Decay of the slow copy, in [0, 1).
        labels: Which labels it takes: "one", "many", or "both".
        takes_anchors: Does it know what to do with trusted samples?
        tunes: Does it choose something on validation samples?
    """

    key: Literal["none", "slow", "same"] = "none"
    slow: tuple[str, ...] = ()
    follow: float = 0.999
    labels: Literal["one", "many", "both"] = "one"
    takes_anchors: bool = False
    tunes: bool = False

    def __post_init__(self) -> None:
        """Refuse options out of range, by their names.

        Raises:
            UsageError: If one is.
        """
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name, None)
            if isinstance(value, (int, float)) and not low <= value <= high:
                more = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise UsageError(f"`method.{name}` is {value}, expected {more}.")

    def parts(self, dim: int, classes: int, space: int, hidden: int) -> dict[str, nn.Module]:
        """Modules that are trained along, and those that hold buffers.

        Args:
            dim: d, width of the features.
            classes: c.
            space: p, width of the space of prototypes and keys.
            hidden: Width of the hidden layer of projectors.
        """
        return {}

    def columns(self, n: int, classes: int) -> dict[str, Tensor]:
        """Columns of the memory, (n, ...) each, with their first values."""
        return {}

    def asks(self, epoch: int, epochs: int) -> bool:
        """Does it want to see all samples before this epoch? Only if it judges."""
        return True

    def learn(self, batch: Batch, memory: Memory, trust: Trust | None, peer: Batch | None) -> Loss:
        """The losses of a batch, as `Strategy.step`."""
        raise NotImplementedError(f"{type(self).__name__} has no method learn")

    def observe(self, batch: Batch, memory: Memory) -> dict[str, Tensor]:
        """Evidence on each sample, as `Strategy.signals`; here the probability of its label, higher = better."""
        return {"label": label_probability(self.predict(batch.network, batch.features), batch.labels)}

    def predict(self, network: ClassNetwork, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Logits of the trained network."""
        out: Tensor = network.classifier(features)
        return out

    def tune(self, network: ClassNetwork, features: Float[Tensor, "v d"], labels: Tensor) -> None:
        """Choose what is chosen on validation samples, after each epoch."""

    def relabelled(self, signals: Mapping[str, np.ndarray], memory: Memory) -> np.ndarray | None:
        """int64 (n,) the class that it thinks each sample has, -1 = none of them; or None if it has no opinion."""
        return None

    def signals(self, enc: Encoded, memory: Memory) -> dict[str, Tensor]:
        """`observe`, for the loop."""
        return self.observe(_batch(enc), memory)

    def step(self, enc: Encoded, memory: Memory, trust: Trust | None, peer: Encoded | None) -> Loss:
        """`learn`, for the loop; the weights of the samples have a mean of 1 over the batch."""
        batch = _batch(enc)
        loss = self.learn(batch, memory, trust, None if peer is None else _batch(peer))
        return Loss(per_pair=loss.per_pair * batch.weights, extras=loss.extras)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped(Encoded):
    """A batch in the clothes that the loop knows."""

    batch: Batch | None = field(default=None)


def _batch(enc: Encoded) -> Batch:
    assert isinstance(enc, Wrapped) and enc.batch is not None
    return enc.batch


def label_probability(logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, " b"]:
    """Softmax probability of the label; of tags the mean probability that each is as given."""
    if labels.ndim == 2:
        p = torch.sigmoid(logits)
        return torch.where(labels > 0, p, 1 - p).mean(1)
    return torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
