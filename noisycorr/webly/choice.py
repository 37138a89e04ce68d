"""How to train a classifier: the choice behind the flags. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisycorr.learn.choice import Train
from noisycorr.pairs import UsageError

RETRIEVAL_ONLY = frozenset({"temperature", "dropout", "accum_freq", "beta1", "beta2", "eps"})  # fields of `Train`


@dataclass(frozen=True, kw_only=True)
class TrainClasses(Train):
    """How a classifier is trained.

    Attributes:
        epochs: Passes over the samples, >= 1.
        batch_size: Samples of one step, over all processes together, >= 2.
        lr: Highest learning rate; it rises over `warmup` steps and falls along a cosine to 0.
        wd: Weight decay of matrices.
        warmup: Steps until the learning rate is at its highest.
        grad_clip_norm: Longest gradient of each network; 0 = any.
        precision: fp32, bf16 (matrix products only) or fp64.
        embed_dim: Width of the space of prototypes and keys.
        hidden: Width of the hidden layer of the projector into it.
        seed: Of weights, order and split.
        resume: latest continues from the last checkpoint of the same training; never starts anew.
        save_every: Seconds between checkpoints inside an epoch; 0 = at the end of each epoch only.
        keep_checkpoints: How many of the last checkpoints stay.
        optimizer: sgd with momentum 0.9, or adamw.
        layer: Width of a trained layer between stored features and the classifier; 0 = none.
        unfreeze: Share of the epochs after which the backbone is trained, too, in [0, 1]; 1 = never, as CAPro was
            released.
        view: Share of the features that the strong view drops, in [0, 1).

    Raises:
        UsageError: If a value is out of its range.
    """

    epochs: int = 24
    batch_size: int = 32
    lr: float = 0.02
    wd: float = 0.01
    warmup: int = 20
    grad_clip_norm: float = 0.0
    embed_dim: int = 64
    hidden: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    layer: int = 0
    unfreeze: float = 0.0
    view: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in ("sgd", "adamw"):
            raise UsageError(f"--optimizer is {self.optimizer!r}, expected sgd or adamw.")
        if self.layer < 0:
            raise UsageError(f"--layer is {self.layer}, expected 0 or more.")
        if not 0 <= self.unfreeze <= 1:
            raise UsageError(f"--unfreeze is {self.unfreeze}, expected a share of the epochs in 0 to 1.")
        if not 0 <= self.view < 1:
            raise UsageError(f"--view is {self.view}, expected 0 or more, and below 1.")
        if self.accum_freq != 1:
            raise UsageError(f"--accum_freq is {self.accum_freq}, expected 1: labels are learned from whole batches.")
