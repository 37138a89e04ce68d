"""Which samples and labels a classifier is trained on: the choice behind the flags of `noisycorr classify train`."""

from __future__ import annotations

from dataclasses import dataclass

from noisycorr.pairs import UsageError


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels come from, whom to trust, and which samples do what.

    Attributes:
        class_col: Column of the label; a list, or words joined by `|`, gives a sample several tags.
        classes: YAML file with a definition for each class, or a list of them; labels that it lacks are left out, and
            counted. Without it the classes are the labels that occur, and their names stand in for definitions.
        anchors: Samples of each class to trust because their text, completed by those of similar images, matches the
            class best; 0 = trust nobody.
        val_fraction: Share of the images to measure on while training, with the labels as they came, in [0, 1).
        test_fraction: Share of the images that is left alone until the end, in [0, 1). A column `split` wins over both.
        truth_col: Column of right labels, for the test samples and to say how good the cleaned labels are; none = test
            on the labels as they came.
        weigh: Weight of a sample: none, or rare for one over the frequency of its class.

    Raises:
        UsageError: If a value is out of its range.
    """

    class_col: str = "label"
    classes: str | None = None
    anchors: int = 10
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    truth_col: str | None = None
    weigh: str = "none"

    def __post_init__(self) -> None:
        if self.anchors < 0:
            raise UsageError(f"--anchors is {self.anchors}, expected 0 or more.")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}, expected 0 or more, and below 1.")
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError("--val_fraction and --test_fraction leave nothing to train on: make them smaller.")
        if self.weigh not in ("none", "rare"):
            raise UsageError(f"--weigh is {self.weigh!r}, expected none or rare.")
