"""The vocabulary of the house: what a pair is, what is stored of it, and what stands in the ledger.

A reader yields `Pair` records; the embed stage turns each into one row of `PAIRS` (facts, never opinions);
the decide stage writes one row of the ledger for each. Row order is the same everywhere, so tables join by position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

TRUTH_PREFIX = "truth_"  # columns that only `evaluate` and the report may read (law 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One image and one text as they came in.

    Attributes:
        key: The source's own name of the pair; not necessarily unique.
        image: Encoded bytes, or a path to a file that holds them, or None where there is no image.
        text: The caption exactly as it came in, or None where there is none.
        columns: Every other input column, as JSON values.
        problem: What the reader found wrong (`PROBLEMS`), or None. A pair with a problem is still a pair.
        detail: More about the problem, such as the file that is not there, or None.
    """

    key: str
    image: bytes | Path | None = None
    text: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    detail: str | None = None


PROBLEMS: dict[str, str] = {
    "image_missing": "no image came with this text, or its file is not there",
    "image_unreadable": "the image could not be decoded",
    "image_too_large": "the image has more pixels or bytes than the decoder accepts",
    "text_missing": "no text came with this image",
    "text_not_utf8": "the text is not valid UTF-8",
    "text_too_long": "the text is longer than the reader accepts",
    "name_unsafe": "the name or path of the image points outside of its folder",
    "archive_truncated": "the archive ends in the middle of this pair",
    "row_unreadable": "the row could not be parsed",
}

# Facts about each pair, written once by the embed stage to pairs/NNNNN.parquet.
PAIRS = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("text", pa.string()),
        ("columns", pa.string()),  # JSON object of every other input column
        ("problem", pa.string()),  # a code of PROBLEMS or null
        ("problem_detail", pa.string()),
        ("image_hash", pa.string()),  # xxh128 of the encoded bytes, or null
        ("image_phash", pa.uint64()),  # 64-bit perceptual hash of the decoded picture
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_format", pa.string()),
        ("image_frames", pa.int32()),
        ("image_std", pa.float32()),  # standard deviation of grey values 0..255, over the picture
        ("image_entropy", pa.float32()),  # bits of the grey histogram, 0..8
        ("image_edges", pa.float32()),  # mean absolute gradient of grey values, 0..255
        ("thumbnail", pa.binary()),  # JPEG, longest side <= 96 px
    ]
)


def content_hash(data: bytes) -> str:
    """Hash of encoded image bytes: 32 hex digits, equal for equal bytes. Not for security."""
    return xxhash.xxh3_128_hexdigest(data)


def pair_uid(image_hash: str | None, text: str | None) -> str:
    """A stable 32-hex identity from content, for sources that bring none.

    Args:
        image_hash: `content_hash` of the encoded image, or None.
        text: The caption, or None.

    Returns:
        32 hexadecimal digits; equal pairs get equal values.
    """
    body = f"{image_hash or ''}\x00{text or ''}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def is_truth(column: str) -> bool:
    """True for a column that only evaluation may see."""
    return column.startswith(TRUTH_PREFIX)
