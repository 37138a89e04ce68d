"""How to train a classifier: the choice behind the flags. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from noisycorr.models.training.choice import Train
from noisycorr.runtime.errors import UsageError

if TYPE_CHECKING:
    pass

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
        model_precision: fp32, bf16 (matrix products only) or fp64.
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
            raise UsageError(f"`optimizer` is {self.optimizer!r}, expected sgd or adamw.")
        if self.layer < 0:
            raise UsageError(f"`layer` is {self.layer}, expected 0 or more.")
        if not 0 <= self.unfreeze <= 1:
            raise UsageError(f"`unfreeze` is {self.unfreeze}, expected a share of the epochs in 0 to 1.")
        if not 0 <= self.view < 1:
            raise UsageError(f"`view` is {self.view}, expected 0 or more, and below 1.")
        if self.accum_freq != 1:
            raise UsageError(f"`accum_freq` is {self.accum_freq}, expected 1: labels are learned from whole batches.")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels come from, whom to trust, and which samples do what.

    Attributes:
        label_col: Column of the label; a list, or words joined by `|`, gives a sample several tags.
        classes: YAML file with a definition for each class, or a list of them; labels that it lacks are left out, and
            counted. Without it the classes are the labels that occur, and their names stand in for definitions.
        anchors: Samples of each class to trust because their text, completed by those of similar images, matches the
            class best; 0 = trust nobody.
        match: What ranks samples for that: cosine of text and class, or reciprocal, re-ranked by mutual neighbourhood
            as CAPro was released; for one label a sample.
        val_fraction: Share of the images to measure on while training, with the labels as they came, in [0, 1).
        test_fraction: Share of the images that is left alone until the end, in [0, 1). A column `split` wins over both.
        truth_col: Column of right labels, for the test samples and to say how good the cleaned labels are; none = test
            on the labels as they came.
        weigh: Weight of a sample: none, or rare for one over the frequency of its class.

    Raises:
        UsageError: If a value is out of its range.
    """

    label_col: str = "label"
    classes: str | None = None
    anchors: int = 10
    match: str = "cosine"
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    truth_col: str | None = None
    weigh: str = "none"

    def __post_init__(self) -> None:
        if self.anchors < 0:
            raise UsageError(f"`anchors` is {self.anchors}, expected 0 or more.")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 0 or more, and below 1.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError("`val_fraction` and `test_fraction` leave nothing to train on: make them smaller.")
        if self.weigh not in ("none", "rare"):
            raise UsageError(f"`weigh` is {self.weigh!r}, expected none or rare.")
        if self.match not in ("cosine", "reciprocal"):
            raise UsageError(f"`match` is {self.match!r}, expected cosine or reciprocal.")


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Which image encoder is trained, if not a classifier on stored features alone.

    Attributes:
        backbone: Image encoder to fine-tune in place of stored features: timm:NAME or torchvision:NAME, with @FILE for
            local weights or @none for random ones; timm:local-dir:FOLDER; the image side of open_clip:... or
            hf_clip:...; scratch:vit or scratch:cnn. Texts still work with the stored features.
        backbone_rate: Its learning rate, as a share of `lr`, above 0.
        train_part: Part of it that is trained: whole, the last_blocks, or lora (needs noisycorr[lora]).

    Raises:
        UsageError: If a value is out of its range.
    """

    backbone: str | None = None
    backbone_rate: float = 0.1
    train_part: str = "whole"

    def __post_init__(self) -> None:
        if not self.backbone_rate > 0:
            raise UsageError(f"`backbone_rate` is {self.backbone_rate}, expected more than 0.")
        if self.train_part not in ("whole", "last_blocks", "lora"):
            raise UsageError(f"`train_part` is {self.train_part!r}, expected whole, last_blocks or lora.")
        if self.backbone is None and self.train_part != "whole":
            raise UsageError(f"`train_part` {self.train_part} needs `backbone`: there is no encoder to train.")
        name = self.backbone or ""
        if self.train_part != "whole" and (name.startswith("scratch:") or name.endswith("@none")):
            raise UsageError(f"`train_part` {self.train_part} needs a trained encoder; {name} needs whole.")
