"""What is to be classified: images, class names, the few known labels, and the images that nobody may learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisycorr.data.readers.class_names import read_class_names
from noisycorr.data.readers.given import load_labels
from noisycorr.runtime.errors import UsageError

UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Task:
    """n images and c classes.

    Attributes:
        names: c class names.
        keys: n keys.
        usable: bool (n,): there is an image.
        label: int64 (n,): given labels, -1 = unknown.
        seen: bool (c,): classes that pseudo-labels may not name, because theirs are all given; none in most tasks.
        held: bool (n,): test images, which nobody learns from.
    """

    names: list[str]
    keys: list[str]
    usable: np.ndarray
    label: np.ndarray
    seen: np.ndarray
    held: np.ndarray

    @property
    def unlabelled(self) -> np.ndarray:
        """Rows to pseudo-label."""
        return np.flatnonzero(self.usable & ~self.held & (self.label < 0))

    @property
    def labelled(self) -> np.ndarray:
        """Rows with a given label."""
        return np.flatnonzero(self.usable & ~self.held & (self.label >= 0))

    @property
    def open(self) -> np.ndarray:
        """Classes that pseudo-labels may name."""
        return np.flatnonzero(~self.seen)

    @property
    def paradigm(self) -> str:
        """unsupervised, semi-supervised or transductive zero-shot, as the field says."""
        if self.seen.any():
            return "transductive zero-shot"
        return "semi-supervised" if len(self.labelled) else "unsupervised"

    def check(self) -> None:
        """Refuse what cannot be learned from.

        Raises:
            UsageError: If there are fewer than two classes, no image to pseudo-label, or every class is seen.
        """
        if len(self.names) < 2:
            raise UsageError(f"there are {len(self.names)} class names, expected at least 2.")
        if self.seen.all():
            raise UsageError("`seen` names every class: nothing is left to pseudo-label.")
        if not len(self.unlabelled):
            raise UsageError("no image is left to pseudo-label: all are labelled, unreadable, or test images.")


def read_classes(path: Path, argument: str = "classes") -> tuple[list[str], dict[str, list[str]]]:
    """Class names, and descriptions where there are any.

    Args:
        path: A class list, as `noisycorr.data.readers.class_names` reads it.
        argument: What it was given as, for errors.

    Returns:
        Names in the order of the file, underscores as blanks; descriptions by name.

    Raises:
        UsageError: If the file cannot be read, holds no name, or a name twice.
    """
    listed = {tidy(name): senses for name, senses in read_class_names(path, argument=argument, alike=tidy).items()}
    return list(listed), {name: senses for name, senses in listed.items() if senses}


def tidy(name: str) -> str:
    """A class name in words: underscores are blanks, and blanks are single."""
    return " ".join(name.replace("_", " ").split())


def read_labels(path: Path, keys: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Given labels by key; the pseudo-label table of an earlier run, corrected by a person, is such a file.

    Args:
        path: csv, tsv, jsonl or parquet with `key` and `label`; an empty label is unknown.
        keys: n keys.
        names: Class names.

    Returns:
        int64 (n,), -1 where no label was given.

    Raises:
        UsageError: If columns are missing, a label is no class, a key has two labels, or no key is known.
    """
    number_of = {name: number for number, name in enumerate(names)}
    label_of: dict[str, int] = {}
    for row in load_labels(path):
        key, label = str(row["key"]), tidy(str(row["label"] if row["label"] is not None else ""))
        if not label:
            continue
        if label not in number_of:
            raise UsageError(
                f"`labels` {path}: {label!r} of key {key!r} is no class; classes look like {list(names[:3])}."
            )
        if label_of.setdefault(key, number_of[label]) != number_of[label]:
            raise UsageError(f"`labels` {path} gives key {key!r} two labels: keep one of them.")
    out = np.array([label_of.get(key, UNKNOWN) for key in keys], np.int64)
    if label_of and not (out >= 0).any():
        raise UsageError(
            f"`labels` {path}: none of its {len(label_of)} keys is in the source; keys look like {list(keys[:2])}."
        )
    return out


def read_seen(path: Path, names: Sequence[str]) -> np.ndarray:
    """bool (c,): classes whose images are labelled.

    Raises:
        UsageError: If the file cannot be read, or names something else.
    """
    seen, _ = read_classes(path, "seen")
    if strange := [name for name in seen if name not in set(names)]:
        raise UsageError(f"`seen` {path} names {strange[0]!r}, which is not among the classes.")
    return np.array([name in set(seen) for name in names])


def check_leak(keys: Sequence[str], hashes: Sequence[str | None], test_keys: Sequence[str],
               test_hashes: Sequence[str | None]) -> None:  # fmt: skip
    """Refuse test images that are among those to learn from.

    Images are the same if their bytes are; where the bytes are not known, if their keys are.

    Raises:
        UsageError: If one is.
    """
    known = {digest for digest in hashes if digest}
    named = {key for key, digest in zip(keys, hashes) if not digest}
    every = set(keys)
    leaked = [key for key, digest in zip(test_keys, test_hashes)
              if (digest in known if digest else key in every) or key in named]  # fmt: skip
    if leaked:
        raise UsageError(
            f"{len(leaked):,} test images are among the images to learn from, such as {leaked[0]!r}: take them out of "
            "one of the two."
        )
