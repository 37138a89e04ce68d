"""How to tune on frozen features: the choice behind the flags of `noisycorr tune`. Light: the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisycorr.runtime.errors import UsageError, check_least, check_words

METHODS = ("linear", "mlp", "nmtune", "lora")
LEAST = {"ratio": 1, "svd_topk": 1, "epochs": 1, "batch_size": 2, "w_consistency": 0, "w_covariance": 0,
         "w_dominance": 0, "wd": 0, "smoothing": 0, "lora_rank": 1, "lora_epochs": 1}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NMTune:
    """How heads on frozen features are tuned.

    Attributes:
        methods: linear (a linear probe), mlp (a residual adapter), nmtune (the adapter with its three terms), and lora
            (low-rank matrices in the image tower, which needs pictures and noisycorr[lora]), joined by commas.
        feature_rms: Root mean square length that features are brought to by one number for all, > 0; 0 leaves them as
            they are, which hurts where they are long, since the covariance term grows with the fourth power.
        ratio: Hidden units of the adapter per number of a feature.
        res_init: First value of the scale of what the adapter adds to the feature.
        start: linear starts the last layer of an adapter from a linear probe on the same rows; random as published.
        w_consistency: Weight of the term that keeps the directions of the features.
        w_covariance: Weight of the term that decorrelates their numbers. The published 0.04 is for longer features; at
            a length of 3 it would do nothing.
        w_dominance: Weight of the term that strengthens the largest singular values.
        consistency: mean over the numbers of a feature, or sum.
        svd_topk: How many singular values are strengthened.
        epochs: Passes over the training rows.
        batch_size: Rows of one step.
        lr: Highest learning rate of AdamW for adapters; it falls along a cosine to 0.
        linear_lr: The same for the linear probe.
        wd: Weight decay.
        lora_rank: Rank of the matrices of lora.
        lora_lr: Their learning rate; the head has that of the linear probe.
        lora_epochs: Passes of lora, which encodes every picture in each.
        smoothing: Share of the target that goes to all classes alike, in [0, 1).
        seed: Of weights, order and split.

    Raises:
        UsageError: If a value is out of its range.
    """

    methods: str = "linear,mlp,nmtune"
    feature_rms: float = 3.0
    ratio: int = 4
    res_init: float = 0.1
    start: Literal["linear", "random"] = "linear"
    w_consistency: float = 1.0
    w_covariance: float = 5.0
    w_dominance: float = 0.001
    consistency: Literal["mean", "sum"] = "mean"
    svd_topk: int = 5
    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-3
    linear_lr: float = 1e-2
    wd: float = 1e-4
    lora_rank: int = 8
    lora_lr: float = 5e-4
    lora_epochs: int = 5
    smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, LEAST)
        for name in ("lr", "linear_lr", "lora_lr"):
            if not getattr(self, name) > 0:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected above 0.")
        if self.feature_rms < 0:
            raise UsageError(f"`feature_rms` is {self.feature_rms}, expected above 0, or 0 to leave features alone.")
        if self.smoothing >= 1:
            raise UsageError(f"`smoothing` is {self.smoothing}, expected below 1.")
        check_words(self)
        names = self.named()
        if not names or len(set(names)) != len(names):
            raise UsageError(f"`methods` is {self.methods!r}, expected some of {', '.join(METHODS)}, each once.")
        for name in names:
            if name not in METHODS:
                raise UsageError(f"`methods` names {name!r}, expected some of {', '.join(METHODS)}.")

    def named(self) -> list[str]:
        """The methods."""
        return [word.strip() for word in self.methods.split(",") if word.strip()]

    def settings(self) -> dict[str, object]:
        """What each head depends on: everything but which others are tuned."""
        return {name: value for name, value in vars(self).items() if name != "methods"}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows are tuned on, and by what labels.

    Attributes:
        side: Features of a run folder: image or text.
        labels: Labels of feature files: .npy (whole numbers or words, one a row), or csv, tsv, jsonl or parquet with
            columns key and label. By default labels.npy beside a folder's image.npy.
        label_col: Column of a run or source that holds the labels; by default the texts, where they are classes.
        second_view: Features of the same rows from another crop of each picture, as a .npy file or a run folder: then
            the adapter sees both, and is kept near the first. By default one view.
        test_data: Rows of the same kind to test on, PATH or FEATURES|LABELS; by default a part of the source.
        out_of_domain: NAME=PATH or NAME=FEATURES|LABELS, joined by commas: sets of another kind with the same classes.
        val_fraction: Share of the rows that methods are compared on, in [0, 1).
        test_fraction: Share of the rows that is tested on, in [0, 1); not used with test_data or a column `split`.

    Raises:
        UsageError: If a value is out of its range.
    """

    side: Literal["image", "text"] = "image"
    labels: str | None = None
    label_col: str | None = None
    second_view: str | None = None
    test_data: str | None = None
    out_of_domain: str | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 0 or more, and below 1.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError("`val_fraction` and `test_fraction` leave nothing to train on: make them smaller.")
        if self.side not in ("image", "text"):
            raise UsageError(f"`side` is {self.side!r}, expected image or text.")
        if self.label_col is not None and self.label_col.lower().startswith("truth_"):
            raise UsageError(f"Column {self.label_col!r} is hidden truth: only evaluation may read it; name another.")
        if self.labels and self.label_col:
            raise UsageError("`labels` and `label_col` exclude each other: give one of them.")
        self.others()

    def others(self) -> dict[str, str]:
        """The sets of another kind by name."""
        out: dict[str, str] = {}
        for word in (self.out_of_domain or "").split(","):
            name, sign, place = (part.strip() for part in word.partition("="))
            if not word.strip():
                continue
            if not sign or not name or not place or name in out or name in ("test", "valid"):
                raise UsageError(f"`out_of_domain` has {word.strip()!r}, expected NAME=PATH, names different.")
            out[name] = place
        return out
