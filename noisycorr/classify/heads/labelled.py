"""Features with labels, or without: from a run folder, from .npy files, or from a folder that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from noisycorr.clean.corpus import read_corpus
from noisycorr.data.readers.given import load_array, load_labels
from noisycorr.data.store import read_facts
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import Run, fingerprint_file

FEWEST = 3  # rows of each text, on average, where texts are taken for classes


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """n rows of features. Holds no truth.

    Attributes:
        keys: n keys.
        features: (n, d) as they were stored.
        words: The label of each row, None where it has none.
        usable: bool (n,): the feature is finite and not all zero.
        group: int64 (n,): equal for the same picture and for near-duplicates.
        given_split: int8 (n,) of a column `split`, or None.
        identity: JSON that changes when the rows do.
    """

    keys: list[str]
    features: np.ndarray
    words: Sequence[str | None]
    usable: np.ndarray
    group: np.ndarray
    given_split: np.ndarray | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def is_run(path: str) -> bool:
    """True for a folder with stored embeddings of `noisycorr`."""
    return (Path(path) / "stages" / "embed.json").is_file()


def is_array(path: str) -> bool:
    """True for a .npy file, or a folder that holds image.npy or text.npy and is no run."""
    place = Path(path)
    return place.suffix == ".npy" or (not is_run(path) and any((place / f"{s}.npy").is_file()
                                                               for s in ("image", "text")))  # fmt: skip


def split_place(place: str) -> tuple[str, str | None]:
    """FEATURES|LABELS as its two paths."""
    path, _, labels = place.partition("|")
    return path.strip(), labels.strip() or None


def read_labelled(path: str, *, side: str, labels: str | None = None, label_col: str | None = None,
                  need: bool = True) -> Labelled:  # fmt: skip
    """Read rows.

    Args:
        path: A run folder, a .npy file, or a folder with image.npy or text.npy.
        side: image or text, where there are both.
        labels: File of labels, or None.
        label_col: Column of a run, or None for its texts.
        need: Refuse rows without any label.

    Raises:
        UsageError: If a file is missing or of another shape, or there are no labels and they are needed.
    """
    if is_run(path):
        found = _of_run(Run(path), side, label_col, need or label_col is not None)
        return found if labels is None else _with_labels(found, Path(labels))
    if label_col is not None:
        raise UsageError(f"`label_col` names a column, but {path} holds features alone: use `labels`.")
    file_or_folder = Path(path)
    features = file_or_folder if file_or_folder.suffix == ".npy" else file_or_folder / f"{side}.npy"
    array = read_features_file(features)
    beside = file_or_folder / "labels.npy"
    where = Path(labels) if labels else beside if file_or_folder.is_dir() and beside.is_file() else None
    finite = np.isfinite(array).all(1)
    bare = Labelled(
        keys=[str(row) for row in range(len(array))], features=array, words=[None] * len(array),
        usable=finite & array.any(1), group=np.arange(len(array)), identity={"features": fingerprint_file(features)},
    )  # fmt: skip
    if where is not None:
        return _with_labels(bare, where)
    if need:
        raise UsageError(f"{path} holds features without labels: give `labels` FILE, or FEATURES|LABELS.")
    return bare


def read_features_file(path: Path) -> np.ndarray:
    """(n, d) of a .npy file.

    Raises:
        UsageError: If it is no array of floats with two axes.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file: name a .npy file of features.")
    try:
        array = load_array(path)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as a NumPy array: {error}.") from None
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise UsageError(f"{path} must be an array of floats (rows, numbers), not {array.dtype} {array.shape}.")
    return array


def _of_run(run: Run, side: str, label_col: str | None, need: bool) -> Labelled:
    corpus = read_corpus(run)
    features = corpus.image if side == "image" else corpus.text
    facts = read_facts(run, ["text", "columns"])
    if label_col is None:
        words: list[str | None] = facts.column("text").to_pylist()
        known = [word for word in words if word]
        if need and len(known) < FEWEST * len(set(known)):
            raise UsageError(
                f"{run.folder} has {len(set(known)):,} different texts on {len(known):,} pairs, so they "
                "are no classes: name the column of the labels by `label_col`, or a file by `labels`."
            )
        if not need and len(known) < FEWEST * len(set(known)):
            words = [None] * len(words)
    else:
        words = [_column(text, label_col) for text in facts.column("columns").to_pylist()]
        if not any(word is not None for word in words):
            names = listed({name for text in facts.column("columns").to_pylist()[:100] if text
                            for name in json.loads(text) if not name.lower().startswith("truth_")})  # fmt: skip
            raise UsageError(f"{run.folder} has no column {label_col!r}; it has {names}.")
    return Labelled(
        keys=corpus.keys, features=features, words=words, usable=np.asarray(features.any(1)), group=corpus.image_group,
        given_split=corpus.given_split, identity={"embed": corpus.identity["embed"], "label_col": label_col},
    )  # fmt: skip


def _column(text: str | None, name: str) -> str | None:
    value = json.loads(text).get(name) if text else None
    return None if value is None or str(value).strip() == "" else str(value).strip()


def _with_labels(rows: Labelled, path: Path) -> Labelled:
    """The rows with labels of a file: by place from .npy, by key from a table."""
    if not path.is_file():
        raise UsageError(f"`labels` {path} is not a file.")
    if path.suffix == ".npy":
        try:
            values = load_array(path)
        except ValueError as error:
            raise UsageError(f"{path} cannot be read as a NumPy array: {error}.") from None
        if values.ndim != 1 or values.dtype.kind not in "iuUS":
            raise UsageError(f"{path} must be whole numbers or words, one a row, not {values.dtype} {values.shape}.")
        if len(values) != len(rows.keys):
            raise UsageError(f"{path} has {len(values):,} labels, but there are {len(rows.keys):,} rows.")
        words: list[str | None] = [_word(value) for value in values.tolist()]
    else:
        known = {str(row["key"]): _word(row["label"]) for row in load_labels(path)}
        words = [known.get(key) for key in rows.keys]
        if not any(word is not None for word in words):
            raise UsageError(f"`labels` {path}: none of its {len(known):,} keys is among the rows; keys look like "
                             f"{rows.keys[:2]}.")  # fmt: skip
    identity = {**rows.identity, "labels": fingerprint_file(path)}
    return Labelled(keys=rows.keys, features=rows.features, words=words, usable=rows.usable, group=rows.group,
                    given_split=rows.given_split, identity=identity)  # fmt: skip


def _word(value: Any) -> str | None:
    """A label as a word; nothing, and -1 as scikit-learn marks what is not labelled, is none."""
    word = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
    return None if word.strip() in ("", "-1", "nan") else word.strip()
