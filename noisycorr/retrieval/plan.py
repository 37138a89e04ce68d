"""What a training works on: its plan, and the run folder that its pairs are in or are embedded into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noisycorr.data.readers import Source
from noisycorr.models.training.choice import Split, Train
from noisycorr.models.training.tune_choice import Regions, Tune
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError

if TYPE_CHECKING:
    from noisycorr.models.training.contract import Strategy


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All choices of a training.

    Attributes:
        source: Where the pairs come from; its path may be a run folder.
        clip_model: Encoder of a source that is not embedded yet.
        train: How to train.
        split: Which pairs do what.
        strategy: Name and method.
        tune: Which part of the encoder is trained.
        regions: Network on region features.
        evaluate: Open the test split after training.
        report_to: Trackers: none, all, or names with commas between them.
    """

    source: Source
    clip_model: str
    train: Train
    split: Split
    strategy: tuple[str, Strategy]
    tune: Tune = field(default_factory=Tune)
    regions: Regions = field(default_factory=Regions)
    evaluate: bool = True
    report_to: str = "none"


def say(message: str) -> None:
    """One line, from the main process."""
    if dist.is_main():
        console.say(message)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation of a trained model.

    Attributes:
        test_data: A source or run of `clean` to test on; by default the test split that training left alone.
        caption_col: Column of test_data with the text; by default the one of the training.
        image_col: Column of test_data with the image; by default the one of the training.
        folds: Parts of consecutive images whose numbers are averaged, beside those of all images at once: 5 is COCO's
            1K rule beside its 5K rule; >= 1.
        classes: File of class names for zero-shot classification of the test images, one on each line; behind a tab may
            stand texts that describe the class, with tabs between them.
        label_col: Column of the test source with the class: a name of the file, or its line from 0. Where a pair has no
            such column, its text is its class.
        template: Text of a class that has only a name, which stands for {}.

    Raises:
        UsageError: If a value is out of its range.
    """

    test_data: str | None = None
    caption_col: str | None = None
    image_col: str | None = None
    folds: int = 1
    classes: str | None = None
    label_col: str = "label"
    template: str = "a photo of a {}."

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise UsageError(f"`folds` is {self.folds}, expected at least 1.")
        if self.label_col.lower().startswith("truth_"):
            raise UsageError(f"`label_col` {self.label_col} is hidden truth: name another one.")
        if self.template.count("{}") != 1:
            raise UsageError(f"`template` is {self.template!r}, expected one {{}} for the name of the class.")
