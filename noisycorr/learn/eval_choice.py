"""What `noisycorr evaluate` asks of a trained model. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass

from noisycorr.pairs import UsageError


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
            raise UsageError(f"--folds is {self.folds}, expected at least 1.")
        if self.label_col.lower().startswith("truth_"):
            raise UsageError(f"--label_col {self.label_col} is hidden truth: name another one.")
        if self.template.count("{}") != 1:
            raise UsageError(f"--template is {self.template!r}, expected one {{}} for the name of the class.")
