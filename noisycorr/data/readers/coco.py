"""Reader of COCO caption files and of Karpathy split files: one JSON object that lists images and their sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from noisycorr.data.pairs import Pair
from noisycorr.data.readers.rows import clean_text, image_detail, image_root, json_value, key_text, resolve_image
from noisycorr.data.readers.source import Piece, Reader, Source
from noisycorr.data.readers.tables import with_path_note
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import fingerprint_file


class _Row(NamedTuple):
    """One pair, by the places of its parts in the lists of the file."""

    image: int | None  # position among the images; None if the annotation names one that is not there
    sentence: int | None  # position among the annotations (of the image, in a Karpathy file)


class _File:
    """One parsed file. The whole JSON is in memory: images and captions are in lists that refer to each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _load(path)
        self.images: list[dict[str, Any]] = _objects(content.get("images"))
        self.annotations: list[dict[str, Any]] = _objects(content.get("annotations"))
        self.karpathy = any("sentences" in image for image in self.images)
        if not self.karpathy and not any("caption" in annotation for annotation in self.annotations):
            raise UsageError(
                f"{path} has no captions: a COCO file needs 'images' and 'annotations' with a 'caption' each, "
                "a Karpathy split 'images' with 'sentences'."
            )
        self.rows = self._karpathy_rows() if self.karpathy else self._coco_rows()

    def _coco_rows(self) -> list[_Row]:
        places = {str(image.get("id")): place for place, image in enumerate(self.images)}
        rows = [_Row(places.get(str(a.get("image_id"))), i) for i, a in enumerate(self.annotations)]
        used = {row.image for row in rows}
        return rows + [_Row(place, None) for place in range(len(self.images)) if place not in used]

    def _karpathy_rows(self) -> list[_Row]:
        rows: list[_Row] = []
        for place, image in enumerate(self.images):
            count = len(_objects(image.get("sentences")))
            rows += [_Row(place, sentence) for sentence in range(count)] or [_Row(place, None)]
        return rows


class CocoReader(Reader):
    """COCO captions or Karpathy splits: one pair for each caption. One piece is a range of captions of one file.

    Args:
        files: The JSON files, in order.
        source: What the user said; the file names of images start from `image_root`.

    Raises:
        UsageError: If a file is no JSON or has no captions.
    """

    format = "coco"

    def __init__(self, files: list[Path], source: Source) -> None:
        self.source = source
        for flag in ("image_col", "caption_col", "url_col", "id_col"):
            if getattr(source, flag) is not None:
                raise UsageError(f"`{flag}` names a column, but a COCO file has fixed fields: leave it out.")
        self.identity: list[Any] = [fingerprint_file(file) for file in files]
        self._files = {str(file): _File(file) for file in files}
        karpathy = any(file.karpathy for file in self._files.values())
        picked = {"image": "file_name", "text": "caption", "key": "annotation id"}
        if karpathy:
            picked = {"image": "filename", "text": "raw", "key": "sentid"}
        names = ((file.path, name) for file in self._files.values() for image in file.images if (name := _name(image)))
        self.picked: Mapping[str, str] = with_path_note(picked, names, source)

    def pieces(self) -> list[Piece]:
        """Ranges of `number_sample_per_shard` captions, file after file."""
        size = self.source.number_sample_per_shard
        pieces: list[Piece] = []
        for path, file in self._files.items():
            for start in range(0, len(file.rows), size):
                pieces.append(Piece(len(pieces), path, start, min(len(file.rows), start + size)))
        return pieces

    def read(self, piece: Piece) -> Iterator[Pair]:
        """The pairs of a range: captions in the order of the file, then images without any (text_missing)."""
        file = self._files[piece.path]
        root = image_root(self.source, file.path)
        for row, item in enumerate(file.rows[piece.start : piece.stop], start=piece.start):
            image = file.images[item.image] if item.image is not None else {}
            name = _name(image)
            found, problem = resolve_image(name, root) if name else (None, "image_missing")
            sentence = _sentence(file, item)
            text, text_problem = clean_text(sentence.get("raw" if file.karpathy else "caption"))
            columns = _karpathy_columns(image) if file.karpathy else _coco_columns(image, sentence)
            key = _key(file, item, image, sentence, row)
            yield Pair(key=key, image=found, text=text, columns=columns, problem=problem or text_problem,
                       detail=image_detail(name, problem))  # fmt: skip


def _sentence(file: _File, row: _Row) -> dict[str, Any]:
    if row.sentence is None:
        return {}
    if file.karpathy and row.image is not None:
        return _objects(file.images[row.image].get("sentences"))[row.sentence]
    return file.annotations[row.sentence]


def _key(file: _File, item: _Row, image: Mapping[str, Any], sentence: Mapping[str, Any], row: int) -> str:
    if not file.karpathy:
        return key_text(sentence.get("id", image.get("id") if item.sentence is None else None), row)
    if sentence.get("sentid") is not None:
        return key_text(sentence["sentid"], row)
    image_key = key_text(_image_id(image), row)
    return image_key if item.sentence is None else f"{image_key}#{item.sentence}"


def _coco_columns(image: Mapping[str, Any], annotation: Mapping[str, Any]) -> dict[str, Any]:
    of_annotation = {name: value for name, value in annotation.items() if name not in ("id", "caption")}
    of_image = {name: value for name, value in image.items() if name != "id"}
    columns = {"image_id": image.get("id"), **of_image, **of_annotation}
    return json_value(columns)


def _karpathy_columns(image: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: value for name, value in image.items() if name not in ("sentences", "sentids")}
    return json_value({"image_id": _image_id(image), "file_name": _name(image), **columns})


def _image_id(image: Mapping[str, Any]) -> Any:
    return next((image[name] for name in ("cocoid", "imgid", "filename") if image.get(name) is not None), None)


def _name(image: Mapping[str, Any]) -> str:
    """Path of an image below the root, or "" if it has none."""
    name = image.get("file_name", image.get("filename"))
    if not isinstance(name, str) or not name:
        return ""
    folder = image.get("filepath")
    return f"{folder}/{name}" if isinstance(folder, str) and folder else name


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read().decode("utf-8-sig", "surrogateescape"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {str(error)[:200]}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is a JSON list, not a COCO file: read it with `input_format` json.")
    return content


def _objects(value: Any) -> list[dict[str, Any]]:
    # A list entry that is no object still counts as a row: it comes out with everything missing.
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []
