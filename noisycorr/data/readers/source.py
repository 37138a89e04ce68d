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
    """How image and text are found in a source.

    Args:
        input_format: webdataset, parquet, csv, tsv, jsonl, json, files (a folder of images), hf, coco or embeddings;
            auto decides from the extension or the content of the folder.
        image_col: Column that holds the image (bytes, or a path); detected if None.
        caption_col: Column that holds the text, or a list of texts; detected if None.
        url_col: Column that holds the address of the image. It is kept as a column and never fetched.
        id_col: Column that becomes the key; detected if None, else the row number.
        image_root: Folder that relative image paths start from, and that no image path may leave; by default the
            folder of the file that names them.
        wds_image_key: Suffixes of image members in a tar, best first, joined by `;`.
        wds_caption_key: Suffixes of text members, or names of JSON fields, best first, joined by `;`.
        hf_split: Split of a hub dataset, or of a saved one that has several.
        number_sample_per_shard: About how many pairs make one piece of work; >= 1.

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
        return Source(path=path, **{field.name: getattr(self, field.name) for field in fields(Reading)})


@dataclass(frozen=True, kw_only=True)
class Source(Reading):
    """Where the pairs come from and how to find image and text in them; the rest is that of `Reading`.

    Args:
        path: A file, a folder, a brace pattern (`{00000..00010}.tar`), several of them joined by `::`, `hf://NAME` for
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
