"""Reader of Hugging Face datasets: from memory, from a saved folder, or from the hub by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.detect import kind_of_arrow, pick_columns
from noisycorr.data.readers.locate import HUB
from noisycorr.data.readers.rows import arrow_rows, bad_row, image_root, row_pairs
from noisycorr.data.readers.source import Piece, Reader, Source
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import fingerprint_file

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

BATCH_ROWS = 64  # rows that are Python values at one time


class HfReader(Reader):
    """A dataset with random access. One piece is a range of rows. Images stay encoded: nothing is decoded here.

    Args:
        dataset: A `datasets.Dataset`.
        source: What the user said.
        root: Folder that image paths without bytes start from and may not leave.
        identity: JSON value that stands for the content.

    Raises:
        UsageError: If image or text cannot be found among the columns.
    """

    format = "hf"

    def __init__(self, dataset: Dataset, source: Source, root: Path, identity: list[Any]) -> None:
        from datasets import ClassLabel, Image

        for name, feature in dataset.features.items():
            if isinstance(feature, Image):
                dataset = dataset.cast_column(name, Image(decode=False))
        self.source = source
        self.identity = identity
        self._dataset = dataset
        self._root = root
        names = {name: f.names for name, f in dataset.features.items() if isinstance(f, ClassLabel)}
        kinds = {field.name: kind_of_arrow(field.type) for field in dataset.features.arrow_schema}
        kinds.update(dict.fromkeys(names, "string"))
        self.columns = pick_columns(kinds, source)
        text = self.columns.text
        self._class_names = {text: list(names[text])} if text is not None and text in names else {}
        self.picked: Mapping[str, str] = self.columns.picked()

    def pieces(self) -> list[Piece]:
        """Ranges of `number_sample_per_shard` rows."""
        size, rows = self.source.number_sample_per_shard, len(self._dataset)
        starts = range(0, rows, size)
        return [Piece(i, self.source.path, start, min(rows, start + size)) for i, start in enumerate(starts)]

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a range of rows."""
        stop = piece.stop if piece.stop is not None else len(self._dataset)
        table = self._dataset.with_format("arrow")
        for start in range(piece.start, stop, BATCH_ROWS):
            end = min(stop, start + BATCH_ROWS)
            try:
                rows = list(arrow_rows(table[start:end], self._class_names))
            except (OSError, ValueError, pa.ArrowException):  # a damaged file of the dataset
                yield from (bad_row(row, "") for row in range(start, end))
                continue
            for row, values in enumerate(rows, start=start):
                yield from row_pairs(values, self.columns, self._root, row)


def read_dataset(dataset: Dataset | DatasetDict, source: Source | None = None) -> HfReader:
    """A reader of a dataset that is in memory.

    Args:
        dataset: A `Dataset`, or a `DatasetDict` of which `source.hf_split` is taken.
        source: Names of columns and size of pieces; its path is only a name here.

    Returns:
        The reader. Image paths without bytes were made by the caller's own process, so they may lead anywhere unless
        `source.image_root` says otherwise.

    Raises:
        UsageError: If it is another kind of dataset, the split does not exist, or image or text cannot be found.
    """
    source = source if source is not None else Source(path="dataset", input_format="hf")
    one = _one_split(dataset, source)
    root = image_root(source, Path("/any")) if source.image_root is not None else Path("/")
    return HfReader(one, source, root, [["dataset", one._fingerprint, len(one)]])


def open_saved(paths: list[Path], source: Source) -> HfReader:
    """A reader of a folder written by `save_to_disk`.

    Raises:
        UsageError: If there are several, it cannot be loaded, or as `read_dataset` does.
    """
    import datasets

    if len(paths) > 1:
        raise UsageError(
            f"{source.path} joins {len(paths)} saved datasets: give one (concatenate_datasets joins them)."
        )
    path = paths[0]
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded as a saved dataset: {_short(error)}.") from None
    files = sorted(file for file in path.rglob("*") if file.suffix in (".arrow", ".json"))
    identity = [fingerprint_file(file) for file in files]
    return HfReader(_one_split(dataset, source), source, image_root(source, path / "dataset_info.json"), identity)


def open_hub(source: Source) -> HfReader:
    """A reader of a dataset of the hub, downloaded to the usual cache; never runs code of the dataset.

    Raises:
        UsageError: If it cannot be loaded (no such name, no network), or as `read_dataset` does.
    """
    import datasets

    name = source.path.removeprefix(HUB)
    try:
        dataset = datasets.load_dataset(name, split=source.hf_split)
    except Exception as error:
        raise UsageError(
            f"The dataset {name!r}, split {source.hf_split!r}, cannot be loaded: {_short(error)}."
        ) from None
    return read_dataset(dataset, source)


def _one_split(dataset: Any, source: Source) -> Dataset:
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        if source.hf_split not in dataset:
            raise UsageError(
                f"There is no split {source.hf_split!r} (`hf_split`): there are {', '.join(sorted(dataset))}."
            )
        dataset = dataset[source.hf_split]
    if not isinstance(dataset, datasets.Dataset):
        raise UsageError(f"A datasets.Dataset is needed, not {type(dataset).__name__}: load it without streaming.")
    return dataset


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
