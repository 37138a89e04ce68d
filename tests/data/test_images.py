"""Decoding pictures that nobody vouches for."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from noisycorr.data.readers.images import BadImage, decode_image, sniff_format


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def two_colours(mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (40, 20), (200, 30, 30))
    image.paste((30, 30, 200), (0, 0, 20, 20))
    return image.convert(mode)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def code_of(data: bytes | Path, **limits: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode_image(data, **limits)
    return caught.value.code


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_are_told_by_content_and_decoded_to_rgb(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    decoded = decode_image(encode(two_colours(), format_, **options))
    assert (decoded.format, decoded.width, decoded.height, decoded.frames) == (format_, 40, 20, 1)
    assert decoded.image.mode == "RGB"
    assert np.abs(np.asarray(decoded.image, dtype=int) - np.asarray(two_colours(), dtype=int)).mean() < 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_decoded() -> None:
    assert decode_image(encode(two_colours(), "AVIF")).format == "AVIF"


def test_a_path_gives_the_same_as_its_bytes(tmp_path: Path) -> None:
    data = encode(two_colours(), "PNG")
    (tmp_path / "misnamed.jpg").write_bytes(data)
    decoded = decode_image(tmp_path / "misnamed.jpg")
    assert decoded.format == "PNG"
    assert decoded.image.tobytes() == decode_image(data).image.tobytes()
    assert code_of(tmp_path / "absent.jpg") == "image_missing"
    assert code_of(tmp_path) == "image_unreadable"


def test_cmyk_keeps_its_colours() -> None:
    pixel = decode_image(encode(two_colours("CMYK"), "JPEG", quality=95)).image.getpixel((30, 10))
    assert np.abs(np.array(pixel) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format_: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(decode_image(encode(Image.fromarray(values), format_)).image)[..., 0]
    assert np.abs(grey.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_floats_are_scaled_by_what_they_hold() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    grey = np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")).image)[..., 0]
    assert np.abs(grey.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert decode_image(encode(clear, "PNG")).image.getpixel((3, 3)) == (255, 255, 255)


def test_transparent_palette_lies_on_white_without_a_warning() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 10])
    image.putpixel((0, 0), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(encode(image, "PNG", transparency=bytes([0, 255])))
    assert decoded.image.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.image.getpixel((4, 4)) == (10, 200, 10)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format_: str) -> None:
    upright = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3))
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera did to the upright picture
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, format_, exif=exif))
    assert (decoded.width, decoded.height) == (8, 6)
    assert decoded.image.tobytes() == upright.tobytes()


def test_animation_gives_its_first_frame_and_the_number_of_frames() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for format_, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **options)
        decoded = decode_image(data)
        assert (decoded.frames, decoded.image.getpixel((2, 2))) == (3, (255, 0, 0)), format_


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_image_is_unreadable(format_: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, format_)
    assert code_of(data[: len(data) // 2]) == "image_unreadable"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<svg xmlns='x'/>", b"<!DOCTYPE html><p>404</p>", b"%!PS-Adobe"])
def test_what_is_no_picture_is_unreadable(data: bytes) -> None:
    assert code_of(data) == "image_unreadable"


def test_the_reason_names_what_came_instead() -> None:
    for data, word in ((b"", "0 bytes"), (b"  <SVG/>", "SVG"), (b"<html>", "HTML"), (b"%PDF", "JPEG")):
        with pytest.raises(BadImage, match=word):
            decode_image(data)


def test_pixels_are_limited_by_the_header_before_decoding() -> None:
    assert code_of(png_header(60_000, 60_000)) == "image_too_large"
    assert code_of(encode(two_colours(), "JPEG"), max_pixels=799) == "image_too_large"
    assert decode_image(encode(two_colours(), "JPEG"), max_pixels=800).width == 40


def test_a_huge_webp_canvas_is_refused_before_it_is_allocated() -> None:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    data = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    assert code_of(data) == "image_too_large"


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}])
def test_webp_sizes_are_read_from_every_kind_of_header(options: dict[str, Any]) -> None:
    assert code_of(encode(two_colours(), "WEBP", **options), max_pixels=799) == "image_too_large"
    assert decode_image(encode(two_colours(), "WEBP", **options), max_pixels=800).height == 20


def test_bytes_are_limited(tmp_path: Path) -> None:
    data = encode(two_colours(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert code_of(data, max_bytes=len(data) - 1) == "image_too_large"
    assert code_of(tmp_path / "a.png", max_bytes=len(data) - 1) == "image_too_large"
    assert decode_image(tmp_path / "a.png", max_bytes=len(data)).width == 40


def test_pillow_keeps_its_settings_and_no_warning_leaks() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert code_of(png_header(9_900, 9_900)) == "image_unreadable"  # above Pillow's warning, below our limit
        assert code_of(png_header(20_000, 20_000)) == "image_too_large"
        jpeg = encode(two_colours(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05bad")
        assert decode_image(jpeg).width == 40  # damaged EXIF is no reason to lose a picture
    assert not caught
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_format_outside_the_list_is_refused() -> None:
    assert code_of(encode(two_colours(), "PPM")) == "image_unreadable"
    assert code_of(encode(two_colours(), "ICO", sizes=[(16, 16)])) == "image_unreadable"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_but_bad_image(data: st.DataObject) -> None:
    format_ = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    encoded = bytearray(encode(two_colours(), format_))
    for _ in range(data.draw(st.integers(1, 6))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(encoded[: data.draw(st.integers(1, len(encoded)))]), max_pixels=1_000_000)
    except BadImage as error:
        assert error.code in ("image_unreadable", "image_too_large")
    else:
        assert decoded.image.mode == "RGB"
        assert decoded.width * decoded.height <= 1_000_000


@given(st.binary(max_size=64))
def test_sniffing_never_raises(data: bytes) -> None:
    assert sniff_format(data) in (None, "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
