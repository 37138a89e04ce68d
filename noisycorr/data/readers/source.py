"""What a source is, and what every reader of one offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from noisycorr.data.pairs import Pair
from noisycorr.runtime.errors import UsageError

FORMATS = ("auto", "webdataset", "parquet", "csv", "tsv", "jsonl", "json", "files", "hf", "coco", "embeddings")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images and texts are found in a source.

    Args:
        input_format: webdataset, parquet, csv, tsv, jsonl, json, files (a folder of images), hf, coco or embeddings;
            auto decides from the extension or the content of the folder.
        image_col: Column of the image (bytes or a path); None = detected.
        caption_col: Column of the text, or of a list of texts; None = detected.
        url_col: Column of the URL of the image. It is kept as a column and never fetched.
        id_col: Column that becomes the key; None = detected, or the row number if there is none.
        image_root: Folder that relative image paths start from and that no image path may leave; by default the
            folder of the file with the paths.
        wds_image_key: Suffixes of image files in a tar, best first, joined by `;`.
        wds_caption_key: Suffixes of text files in a tar, or names of JSON fields, best first, joined by `;`.
        hf_split: Split of a Hugging Face dataset that has several.
        number_sample_per_shard: Approximate number of pairs per part of the work, >= 1.

    Raises:
        UsageError: If a value is out of its range.
    """

    input_format: str = "auto"
    image_col: str | None = None
    caption_col: str | None = None
    url_col: str | None = None
    id_col: str | None = None
    image_root: str | None = None
    wds_image_key: str = "jpg;jpeg;png;webp;gif;bmp;tif;tiff"
    wds_caption_key: str = "txt"
    hf_split: str = "train"
    number_sample_per_shard: int = 10000

    def __post_init__(self) -> None:
        if self.input_format not in FORMATS:
            raise UsageError(f"`input_format` is {self.input_format!r}, but must be one of: {', '.join(FORMATS)}.")
        if self.number_sample_per_shard < 1:
            raise UsageError(f"`number_sample_per_shard` is {self.number_sample_per_shard}, but must be at least 1.")
        for column in (self.image_col, self.caption_col, self.url_col, self.id_col):
            if column is not None and column.lower().startswith("truth_"):
                raise UsageError(f"Column {column!r} is hidden truth: only evaluation may read it; name another one.")

    def at(self, path: str) -> Source:
        """These choices for one place."""
        choices = {field.name: getattr(self, field.name) for field in fields(Reading)}
        if isinstance(path, ObjectPath) and self.image_root is None:
            choices["image_root"] = path.image_root
        return Source(path=str(path), **choices)


class ObjectPath(str):
    """Where the pairs of a Python object were written.

    Image paths among them were made by the caller's own process, so they may start from the root of the file system,
    which paths in a file that somebody sent may not.
    """

    image_root: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source(Reading):
    """Where the pairs come from, and how images and texts are found there; see `Reading` for the other fields.

    Args:
        path: A file, a folder, a brace pattern (`{00000..00010}.tar`), several of these joined by `::`, `hf://NAME` for
            a dataset of the hub, or `sample` for the small set that comes with the package.

    Raises:
        UsageError: If a value is out of its range.
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise UsageError("The source path is empty: give a file, a folder, a pattern, a hub name, or 'sample'.")
        super().__post_init__()


@dataclass(frozen=True, slots=True)
class Piece:
    """One unit of work: about `number_sample_per_shard` pairs or fewer, readable by itself.

    Attributes:
        index: Position among the pieces of the source, from 0.
        path: The file or folder it comes from.
        start: Where it starts; the unit (rows, bytes, list position) is the reader's own.
        stop: Where it stops, exclusive; None is the end of the file.
    """

    index: int
    path: str
    start: int = 0
    stop: int | None = None


class Reader(Protocol):
    """What every format offers.

    Attributes:
        format: Name of the format, one of `FORMATS`.
        picked: What was detected, such as {"image": "image", "text": "title"}; printed to the user.
        identity: JSON value that changes when an input file changes.
    """

    format: str
    picked: Mapping[str, str]
    identity: list[Any]

    def pieces(self) -> list[Piece]:
        """All units of work, in an order that is the same every time."""
        ...

    def read(self, piece: Piece) -> Iterator[Pair]:
        """Stream the pairs of one piece in constant memory; bad rows come out as pairs with a problem."""
        ...

    def embeddings(self, piece: Piece) -> tuple[np.ndarray, np.ndarray] | None:
        """Stored embeddings (image (n, d), text (n, e)), row i for the i-th pair of the piece, or None."""
        return None
