"""Labelled samples of a run, and which of them to trust because their texts match their class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noisycorr.classify.anchors import select_tag_anchors
from noisycorr.classify.classes import class_names, column_values, encode_names, read_definitions
from noisycorr.classify.prototypes import text_prototypes
from noisycorr.classify.rerank import reciprocal_match
from noisycorr.classify.webly.anchors import complete_through_images, repeats_label, text_classes, trusted_rows
from noisycorr.classify.webly.choice import Labels
from noisycorr.data.store import open_features, read_facts
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run
from noisycorr.stats.unit import unit

JOINT = "|"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All n samples of a run.

    Attributes:
        keys: n keys.
        image: float32 (n, d) features.
        text: float32 (n, e) features; rows of zeros where there is no text.
        classes: c names.
        meanings: c texts: definitions, or names as words.
        label: int64 (n,), -1 = none; int8 (n, c) for tags.
        truth: The same, where a column of right labels was named; -1 = of no class.
        usable: bool (n,): there are an image and a label.
        notes: What was left out.
    """

    keys: list[str]
    image: np.ndarray
    text: np.ndarray
    classes: list[str]
    meanings: list[str]
    label: np.ndarray
    truth: np.ndarray | None
    usable: np.ndarray
    notes: Sequence[str]

    @property
    def multi(self) -> bool:
        """True for tags."""
        return self.label.ndim == 2


def read_samples(run: Run, choice: Labels) -> Samples:
    """Samples of an embedded run.

    Raises:
        UsageError: If the column is not there, or fewer than 2 classes have a sample.
    """
    image, text = (np.concatenate(open_features(run, side)).astype(np.float32) for side in ("image", "text"))
    values = [_tags(value) for value in column_values(run, choice.label_col)]
    multi = any(isinstance(value, list) for value in values)
    words = [value if isinstance(value, list) else [] if value is None else [value] for value in values]
    occur = sorted({word for some in words for word in some})
    defined = read_definitions(Path(choice.classes)) if choice.classes else {}
    classes = list(defined) if defined else occur
    number_of = {name: number for number, name in enumerate(classes)}
    label = _encode(words, number_of, multi)
    usable = image.any(1) & (
        (label >= 0) if not multi else np.array([any(w in number_of for w in some) for some in words])
    )
    has = np.asarray(label[usable].any(0) if multi else np.isin(np.arange(len(classes)), label[usable]))
    if has.sum() < 2:
        raise UsageError(f"{int(has.sum())} classes of `label_col` {choice.label_col} have a sample; at least 2 are "
                         f"needed: the labels are {', '.join(occur[:5]) or 'none'}.")  # fmt: skip
    truth = None
    if choice.truth_col:
        right = [_tags(value) for value in column_values(run, choice.truth_col)]
        truth = _encode([v if isinstance(v, list) else [] if v is None else [v] for v in right], number_of, multi)
    notes = _notes(words, number_of, image, has, classes)
    return Samples(
        keys=read_facts(run, ["key"]).column("key").to_pylist(), image=image, text=text, classes=classes,
        meanings=list(defined.values()) or class_names(classes), label=label, truth=truth, usable=usable, notes=notes,
    )  # fmt: skip


def trusted(
    run: Run, samples: Samples, labels: Labels, clip_model: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Anchors of the training samples, int8 (m,) or (m, c); the class that each text names, None for tags and where
    texts are no evidence; and what to tell.

    Args:
        run: The samples' run.
        samples: All of them.
        labels: How many of each class, and what ranks them.
        clip_model: Encoder of the names where the run has none.
        rows: int64 (m,) those that train.
    """
    text, label = samples.text[rows], samples.label[rows]
    has = np.asarray(text.any(1))
    if not has.any():
        return np.zeros(label.shape, np.int8), None, ["all texts are blank: nobody is trusted"]
    names = unit(encode_names(run, samples.meanings, clip_model))
    completed = complete_through_images(samples.image[rows], text, has, k=10 if samples.multi else 5)
    score = np.where(np.asarray(completed.any(1))[:, None], completed @ names.T, np.nan)
    if samples.multi:
        return select_tag_anchors(score, label > 0, k=labels.anchors)[0], None, []
    raw = (text * names[label]).sum(1) / np.maximum(np.linalg.norm(text, axis=1), 1e-12)
    if repeats_label(np.where(has, raw, np.nan)):
        return np.zeros(label.shape, np.int8), None, ["texts only repeat the labels: nobody is trusted"]
    own = score[np.arange(len(rows)), label]
    if labels.match == "reciprocal":
        own = reciprocal_match(completed, text_prototypes(names, np.arange(len(names)), len(names)), label)
    anchors = trusted_rows(own, label, labels.anchors)
    return anchors, text_classes(score, label, anchors), []


def _tags(value: Any) -> Any:
    """A label as a word, tags as a list of words."""
    if value is None:
        return None
    if isinstance(value, list):
        return [str(one) for one in value]
    text = str(value).strip()
    return [part.strip() for part in text.split(JOINT) if part.strip()] if JOINT in text else text or None


def _encode(words: list[list[str]], number_of: dict[str, int], multi: bool) -> np.ndarray:
    if not multi:
        return np.array([number_of.get(some[0], -1) if some else -1 for some in words])
    out = np.zeros((len(words), len(number_of)), np.int8)
    for row, some in enumerate(words):
        out[row, [number_of[word] for word in some if word in number_of]] = 1
    return out


def _notes(words: list[list[str]], number_of: dict[str, int], image: np.ndarray, has: np.ndarray,
           classes: list[str]) -> list[str]:  # fmt: skip
    """Counts of what is left out, each said once."""
    none = sum(not some for some in words)
    strange = sum(bool(some) and not any(word in number_of for word in some) for some in words)
    empty = [name for name, found in zip(classes, has) if not found]
    unread = int((~image.any(1)).sum())
    out = [f"{none:,} samples without a label are left out"] if none else []
    out += [f"{strange:,} samples whose label is not in the list of classes are left out"] if strange else []
    out += [f"{unread:,} samples without a readable image are left out"] if unread else []
    out += [f"{len(empty)} classes have no sample, such as {empty[0]}"] if empty else []
    return out
