"""Reader of a folder of images with the text beside each: KEY.jpg with KEY.txt or KEY.json, or in the folder's name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.detect import kind_of_values, pick_text_field
from noisycorr.data.readers.locate import is_image_name, walk_images
from noisycorr.data.readers.rows import TEXT_LIMIT, clean_string, json_value, key_text, text_pairs
from noisycorr.data.readers.source import Piece, Reader, Source
from noisycorr.runtime.errors import UsageError, listed
from noisycorr.runtime.folder import fingerprint, fingerprint_file

JSON_BYTES = 16 * 1024 * 1024  # a longer one is cut, and so unreadable
_SAMPLE = 20  # JSON files that are looked at for the name of the text


class _Item(NamedTuple):
    """One image (or one text without image), by the place of its files below the root."""

    root: int  # position among the folders of the source
    stem: str  # path without extension, with "/"
    image: str | None  # the file's extension
    text: str | None
    fields: str | None


class FolderReader(Reader):
    """Folders of images, walked with all their sub-folders. One piece is a slice of the sorted stems.

    A folder where no image has a text file, and which has sub-folders, is taken as one folder for each class: the text
    is the name of the sub-folder, underscores as spaces.

    Args:
        folders: The folders, in order.
        source: What the user said; `caption_col` and `id_col` are fields of the JSON files.

    Raises:
        UsageError: If there is no image.
    """

    format = "files"

    def __init__(self, folders: list[Path], source: Source) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"{folder} is a file, but the format files needs a folder of images.")
        for flag, given in (("image_col", source.image_col), ("url_col", source.url_col)):
            if given is not None:
                raise UsageError(f"`{flag}` names a column, but {source.path} is a folder of images: leave it out.")
        self.source = source
        self.folders = folders
        self._items = [item for number, folder in enumerate(folders) for item in _items(number, folder)]
        images = [item for item in self._items if item.image is not None]
        if not images:
            raise UsageError(
                f"{source.path} has no image file (jpg, png, webp, gif, bmp, tiff), not in its sub-folders either."
            )
        self.identity: list[Any] = [self._identity(number) for number in range(len(folders))]
        has_text = any(item.text or item.fields for item in images)
        self._by_class = not has_text and any("/" in item.stem for item in images)
        self._field = None if self._by_class else self._text_field(images)
        self.picked: Mapping[str, str] = self._describe(images)

    def pieces(self) -> list[Piece]:
        """Slices of `number_sample_per_shard` stems; `start` and `stop` count the stems of all folders together."""
        size = self.source.number_sample_per_shard
        starts = range(0, len(self._items), size)
        return [
            Piece(number, str(self.folders[self._items[start].root]), start, min(start + size, len(self._items)))
            for number, start in enumerate(starts)
        ]

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a slice of stems. The image is a path; a text without image comes out as image_missing."""
        for item in self._items[piece.start : piece.stop]:
            yield from self._pairs(item)

    def _pairs(self, item: _Item) -> Iterator[Pair]:
        fields = self._fields(item)
        image = self._path(item, item.image) if item.image is not None else None
        problem = "image_missing" if image is None else None
        text: Any = None
        if self._by_class:
            text = Path(item.stem).parent.name.replace("_", " ")
        elif item.text is not None and self.source.caption_col is None:
            text = _read_text(self._path(item, item.text))
        elif fields is not None and self._field is not None:
            text = fields.get(self._field)
        if fields is None and text is None and problem is None:
            problem = "row_unreadable"  # the JSON is there, but damaged
        rest = {name: value for name, value in (fields or {}).items() if item.text or name != self._field}
        key = clean_string(item.stem)
        if self.source.id_col is not None and fields and fields.get(self.source.id_col) is not None:
            key = key_text(fields[self.source.id_col], 0)
        rest = {"uid" if name.lower() == "uid" else name: value for name, value in rest.items() if name != "key"}
        rest = json_value(rest)
        if image is not None:
            rest.setdefault("file_name", clean_string(f"{item.stem}{item.image}"))
        yield from text_pairs(key, image, problem, text, rest)

    def _path(self, item: _Item, suffix: str) -> Path:
        return self.folders[item.root] / f"{item.stem}{suffix}"

    def _fields(self, item: _Item) -> dict[str, Any] | None:
        """Fields of the JSON beside an image; None if it is damaged."""
        if item.fields is None:
            return {}
        try:
            with self._path(item, item.fields).open("rb") as file:
                value = json.loads(file.read(JSON_BYTES).decode("utf-8-sig", "surrogateescape"))
            return value if isinstance(value, dict) else None
        except (OSError, ValueError, RecursionError):
            return None

    def _text_field(self, images: list[_Item]) -> str | None:
        with_fields = (item for item in images if item.fields is not None)
        rows = [fields for item, _ in zip(with_fields, range(_SAMPLE)) if (fields := self._fields(item))]
        kinds = {name: kind_of_values(row.get(name) for row in rows) for row in rows for name in row}
        for flag, name in (("caption_col", self.source.caption_col), ("id_col", self.source.id_col)):
            if name is not None and name not in kinds:
                raise UsageError(
                    f"There is no field {name!r} (`{flag}`) in the JSON files beside the images of {self.source.path}; "
                    f"the fields are: {listed(kinds)}."
                )
        return pick_text_field(kinds, self.source)

    def _describe(self, images: list[_Item]) -> dict[str, str]:
        if self._by_class:
            note = "no image has a .txt or .json beside it; the text is the name of its folder"
            return {"image": "file", "text": "name of the folder", "key": "path", "note": note}
        picked = {"image": "file", "key": self.source.id_col or "path"}
        if self.source.caption_col is None and any(item.text for item in images):
            picked["text"] = ".txt beside the image"
        elif self._field is not None:
            picked["text"] = f".json beside the image, field {self._field}"
        else:
            picked["note"] = "no image has a text beside it: every text is missing"
        return picked

    def _identity(self, number: int) -> list[Any]:
        # One hash instead of a million rows: it changes with any file that is read.
        files = [
            [item.stem, *fingerprint_file(path)]
            for item in self._items
            if item.root == number
            for suffix in (item.image, item.text, item.fields)
            if suffix is not None and (path := self._path(item, suffix)).exists()
        ]
        return [self.folders[number].name, len(files), fingerprint(files)]


def _items(root: int, folder: Path) -> list[_Item]:
    items: list[_Item] = []
    for subfolder, names in walk_images(folder):
        where = subfolder.relative_to(folder).as_posix()
        prefix = "" if where == "." else f"{where}/"
        by_stem: dict[str, dict[str, list[str]]] = {}
        for name in names:
            stem, _, suffix = name.rpartition(".")
            kind = "image" if is_image_name(name) else suffix.lower()
            if stem and kind in ("image", "txt", "json"):
                by_stem.setdefault(stem, {}).setdefault(kind, []).append(f".{suffix}")
        for stem, kinds in sorted(by_stem.items()):
            text, fields = (kinds.get(kind, [None])[0] for kind in ("txt", "json"))
            images: list[str | None] = [*kinds.get("image", [])]
            if not images and text is None:
                continue  # a JSON that belongs to no image
            items += [_Item(root, prefix + stem, image, text, fields) for image in images or [None]]
    return sorted(items, key=lambda item: item.stem)


def _read_text(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(4 * TEXT_LIMIT + 1)
    except OSError:
        return None
