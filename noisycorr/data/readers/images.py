"""Decoding of pictures that nobody vouches for: bounded in bytes and pixels, always to upright RGB.

The size is read from the header before any pixel is decoded. Only the formats of `IMAGE_FORMATS` are tried, chosen by
the first bytes of the file and never by its name. Settings of Pillow that belong to the whole process (such as
`Image.MAX_IMAGE_PIXELS`) stay untouched.
"""

from __future__ import annotations

import contextlib
import io
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 1024 * 1024
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")

_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
if features.check("avif"):  # Pillow has it from 11.3 on, if it was built with it
    from PIL import AvifImagePlugin

    _OPENERS["AVIF"] = AvifImagePlugin.AvifImageFile
IMAGE_FORMATS = tuple(_OPENERS)

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUIET = threading.Lock()  # catch_warnings swaps a list of the whole process: one thread at a time


class BadImage(Exception):
    """A picture that cannot be used.

    Attributes:
        code: A code of `pairs.PROBLEMS`: image_missing, image_unreadable or image_too_large.
        detail: What exactly was wrong, for people.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A decoded picture.

    Attributes:
        image: RGB, upright, transparent parts on white; the first frame of an animation.
        width: Pixels, after turning it upright.
        height: Pixels, after turning it upright.
        format: One of `IMAGE_FORMATS`.
        frames: Number of frames in the file, >= 1.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    frames: int


def decode_image(data: bytes | Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> DecodedImage:
    """Decode one picture.

    Args:
        data: The encoded file, or where it is.
        max_pixels: Largest accepted width times height.
        max_bytes: Largest accepted encoded size.

    Returns:
        The picture as upright 8-bit RGB, with its facts.

    Raises:
        BadImage: image_missing if there is no such file; image_too_large if a limit is passed; image_unreadable if it
            is empty, cut short, damaged, or not of an accepted format.
    """
    encoded = _bounded(data, max_bytes) if isinstance(data, bytes) else read_image(data, max_bytes=max_bytes)
    name = sniff_format(encoded)
    if name is None or name not in _OPENERS:
        raise BadImage("image_unreadable", _strange_content(encoded))
    try:
        _check_pixels(_webp_size(encoded) if name == "WEBP" else None, max_pixels)
        with _no_warnings():
            picture = _OPENERS[name](io.BytesIO(encoded))
        _check_pixels(picture.size, max_pixels)
        frames = _count_frames(picture)
        # libtiff-backed files may warn while loading; the others only while their header is parsed.
        with _no_warnings() if name == "TIFF" else contextlib.nullcontext():
            picture.load()
        with _no_warnings():
            orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
        image = _to_rgb(picture)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
    except BadImage:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise BadImage("image_too_large", str(error) or "out of memory") from None
    except Exception as error:  # decoders raise anything on damaged files: OSError, SyntaxError, struct.error, ...
        raise BadImage("image_unreadable", f"{name}: {error or type(error).__name__}"[:300]) from None
    return DecodedImage(image=image, width=image.width, height=image.height, format=name, frames=frames)


def sniff_format(data: bytes) -> str | None:
    """Name of the picture format by its first bytes, or None if it is none of those known here."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and any(brand in data[8:40] for brand in (b"avif", b"avis")):
        return "AVIF"
    return None


def read_image(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The encoded picture in a file; never waits for a pipe, never holds more than the limit.

    Args:
        path: Where it is.
        max_bytes: Largest accepted size.

    Raises:
        BadImage: image_missing if there is no such file, image_too_large if the limit is passed, image_unreadable if it
            is something else than a file, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImage("image_unreadable", f"{path.name} is not a regular file")
        with path.open("rb") as file:
            return _bounded(file.read(max_bytes + 1), max_bytes)
    except FileNotFoundError:
        raise BadImage("image_missing", f"no such file: {path.name}") from None
    except (OSError, ValueError) as error:
        raise BadImage("image_unreadable", f"{path.name}: {error}") from None


def _bounded(encoded: bytes, max_bytes: int) -> bytes:
    if len(encoded) > max_bytes:
        raise BadImage("image_too_large", f"more than {max_bytes} bytes")
    return encoded


def _strange_content(data: bytes) -> str:
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "0 bytes"
    if start.startswith(b"<"):
        return (
            "SVG drawing, not a picture of pixels" if b"<svg" in data[:4096].lower() else "HTML or XML, not a picture"
        )
    return f"not one of {', '.join(IMAGE_FORMATS)}"


def _check_pixels(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is None:
        return
    width, height = size
    if width < 1 or height < 1:
        raise BadImage("image_unreadable", f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage("image_too_large", f"{width} x {height} pixels, more than {max_pixels}")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    # Pillow's WebP opener allocates the whole canvas at once, so the header is read here first.
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def _count_frames(picture: ImageFile.ImageFile) -> int:
    try:
        with _no_warnings():
            frames = int(getattr(picture, "n_frames", 1))
            if frames > 1:
                picture.seek(0)
    except Exception:  # a broken later frame does not matter: only the first one is used
        picture.seek(0)
        return 1
    return max(1, frames)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        sixteen = picture.mode.startswith("I;16") or picture.format == "PNG"  # older Pillow opens 16-bit PNG as "I"
        return Image.fromarray(_eight_bits(np.asarray(picture), 65535.0 if sixteen else None)).convert("RGB")
    if picture.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        image = Image.new("RGB", layer.size, (255, 255, 255))
        image.paste(layer, mask=layer.getchannel("A"))
        return image
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray, full_scale: float | None) -> np.ndarray:
    # Pillow clips these modes at 255, so that a 16-bit scan comes out white. 32-bit integers and floats do not say
    # their scale: take the smallest usual one that holds the values.
    if full_scale is None:
        usual = (255.0, 65535.0) if np.issubdtype(values.dtype, np.integer) else (1.0, 255.0, 65535.0)
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        largest = float(values.max())
        full_scale = next((scale for scale in usual if largest <= scale), largest)
    return np.clip(np.rint(values * (255.0 / full_scale)), 0, 255).astype(np.uint8)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
