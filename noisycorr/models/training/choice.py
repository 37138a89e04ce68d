"""How to train: the choice behind the flags of `noisycorr train`. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisycorr.runtime.errors import UsageError, check_least, check_words

LEAST = {"lr": 0, "wd": 0, "warmup": 0, "epochs": 1, "batch_size": 2, "accum_freq": 1, "embed_dim": 1, "hidden": 0,
         "save_every": 0, "keep_checkpoints": 1, "grad_clip_norm": 0}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a retrieval model is trained.

    Attributes:
        epochs: Passes over the pairs, >= 1.
        batch_size: Pairs of one step, over all processes together, >= 2.
        lr: Highest learning rate of AdamW; it rises over `warmup` steps and falls along a cosine to 0.
        wd: Weight decay of matrices.
        warmup: Steps until the learning rate is at its highest.
        beta1: First moment of AdamW.
        beta2: Second moment of AdamW.
        eps: Epsilon of AdamW.
        grad_clip_norm: Longest gradient of each network; 0 = any.
        accum_freq: Parts in which a batch is encoded, to save memory; the result is that of the whole batch.
        model_precision: fp32, bf16 or fp16 (matrix products only), or fp64.
        embed_dim: Width of the common space.
        hidden: Width of the hidden layer of each head; 0 = linear heads.
        dropout: Share of hidden units dropped while training, in [0, 1).
        temperature: First value of the learned temperature.
        seed: Of weights, order and split.
        resume: latest continues from the last checkpoint of the same training; never starts anew.
        save_every: Seconds between checkpoints inside an epoch; 0 = at the end of each epoch only.
        keep_checkpoints: How many of the last checkpoints stay.

    Raises:
        UsageError: If a value is out of its range.
    """

    epochs: int = 15
    batch_size: int = 128
    lr: float = 1e-3
    wd: float = 0.01
    warmup: int = 50
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    grad_clip_norm: float = 2.0
    accum_freq: int = 1
    model_precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    embed_dim: int = 256
    hidden: int = 512
    dropout: float = 0.5
    temperature: float = 0.07
    seed: int = 0
    resume: Literal["latest", "never"] = "latest"
    save_every: float = 300.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        check_least(self, LEAST)
        if self.temperature < 0.01:
            raise UsageError(f"`temperature` is {self.temperature}, expected at least 0.01.")
        for name in ("beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 0 or more, and below 1.")
        check_words(self)

    def settings(self) -> dict[str, object]:
        """What the result depends on: everything but how it is saved."""
        free = ("resume", "save_every", "keep_checkpoints")
        return {name: value for name, value in vars(self).items() if name not in free}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which pairs train, validate and test.

    Attributes:
        val_data: A source or run folder to select on; by default pairs of the source itself.
        val_fraction: Share of the pairs to select on, in [0, 1); not used with val_data or with a column `split`.
        test_fraction: Share of the pairs that is left alone for `noisycorr evaluate`, in [0, 1).
        pairs: all, or kept for those that the ledger does not drop.
        texts: rectified takes text_rectified of the ledger where it has one, given leaves the texts as they came.

    Raises:
        UsageError: If a value is out of its range.
    """

    val_data: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    pairs: Literal["all", "kept"] = "all"
    texts: Literal["rectified", "given"] = "rectified"

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 0 or more, and below 1.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError("`val_fraction` and `test_fraction` leave nothing to train on: make them smaller.")
        if self.pairs not in ("all", "kept"):
            raise UsageError(f"`pairs` is {self.pairs!r}, expected all or kept.")
        if self.texts not in ("rectified", "given"):
            raise UsageError(f"`texts` is {self.texts!r}, expected rectified or given.")
