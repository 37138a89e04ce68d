"""One value of a row of a Python object: as parquet can hold it, and equal in every process."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from noisycorr.data.readers.rows import DEPTH_LIMIT, clean_string, json_value

_TOLD_LIMIT = 1000  # characters
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("F", "I", "CMYK")  # PNG has no place for them; TIFF loses nothing either
_CHANNELS = ((), (1,), (3,), (4,))  # of arrays that are pictures


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a row: pixels that are not encoded yet, an encoded file, or where one is."""

    pixels: Image.Image | None = None
    data: bytes | None = None
    path: str | None = None


class Told(str):
    """Words about a value that is neither text nor anything that JSON has."""


def unique_names(names: Iterable[Any]) -> list[str]:
    """Column names as strings, none empty and none twice; levels of a MultiIndex are joined by `_`."""
    out: list[str] = []
    for place, name in enumerate(names):
        parts = [str(part) for part in name if part not in ("", None)] if isinstance(name, tuple) else [str(name)]
        plain = clean_string("_".join(parts)) or f"column_{place}"
        count, candidate = 2, plain
        while candidate in out:
            count, candidate = count + 1, f"{plain}_{count}"
        out.append(candidate)
    return out


def plain_value(value: Any, depth: int = 0) -> Any:
    """A value of a row as None, bool, int, float, str, bytes, list, dict or `Picture`; equal in every process."""
    if value is None or isinstance(value, (str, bytes, bool)):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() < 64 else told(value)
    if isinstance(value, Image.Image):
        return Picture(pixels=value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, np.ndarray):
        if depth or value.dtype != np.uint8 or not value.size or value.ndim < 2 or value.shape[2:] not in _CHANNELS:
            return plain_value(value.tolist(), depth)
        return Picture(pixels=Image.fromarray(value[:, :, 0] if value.shape[2:] == (1,) else value))
    if isinstance(value, np.generic):
        return str(value) if value.dtype.kind in "mMV" else plain_value(value.item(), depth)
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, (list, tuple)):
        return [_inner(item, depth) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_inner(item, depth) for item in value), key=lambda item: json.dumps(json_value(item)))
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """Numbers, dates and other single things."""
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas; neither can be compared with itself
        return None
    if isinstance(value, PathLike):
        return os.fspath(value)
    with contextlib.suppress(Exception):  # of whatever the class of the value does
        plain = json_value(value)
        if not isinstance(plain, str):
            return plain
        return told(value) if " at 0x" in plain else Told(plain)
    return told(value)


def _mapping(value: Mapping[Any, Any], depth: int) -> Any:
    """A struct {bytes, path} is an image, as Hugging Face datasets have it."""
    if not depth and value and {"bytes", "path"} >= set(value):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, (bytes, bytearray, memoryview)) or data is None:
            return Picture(data=None if data is None else bytes(data), path=None if path is None else str(path))
    return {str(name): _inner(item, depth) for name, item in value.items()}


def _inner(value: Any, depth: int) -> Any:
    if depth >= DEPTH_LIMIT:
        return f"<nested deeper than {DEPTH_LIMIT}>"
    plain = plain_value(value, depth + 1)
    return told(value) if isinstance(plain, Picture) else plain


def told(value: Any) -> Told:
    """Something that has no place, in words without an address in memory."""
    with contextlib.suppress(Exception):
        text = str(value)
        if " at 0x" not in text:
            return Told(clean_string(text[:_TOLD_LIMIT]))
    return Told(f"<{type(value).__name__}>")


def raw(picture: Picture) -> bytes:
    """The content of pixels, for a digest."""
    if (image := _upright(picture)) is None:
        return b""
    palette = image.getpalette() if image.mode == "P" else None
    return repr((image.mode, image.size, palette, image.info)).encode() + image.tobytes()


def png(picture: Picture) -> bytes:
    """Pixels as a file, without loss and without anything that changes from call to call."""
    if (image := _upright(picture)) is None:
        return b""
    buffer = io.BytesIO()
    if image.mode in _TIFF_MODES:
        image.save(buffer, "TIFF")
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _upright(picture: Picture) -> Image.Image | None:
    """Turned as its camera says, in a mode that a file can hold, without notes but transparency.

    None for a file of the caller's that Pillow cannot load: as an empty one it is unreadable, not missing.
    """
    try:
        image = ImageOps.exif_transpose(picture.pixels) if picture.pixels is not None else None
        if image is not None and image.mode not in (*_PNG_MODES, *_TIFF_MODES):
            image = image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")
        if image is None or not image.width or not image.height:
            return None
        image = image.copy()
    except Exception:  # decoders raise anything on damaged files
        return None
    kept = image.info.get("transparency")
    image.info = {} if kept is None else {"transparency": kept}
    return image
