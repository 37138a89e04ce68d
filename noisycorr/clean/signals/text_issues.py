"""Texts that can teach nothing: empty, file names, addresses, markup, digits, bytes, boilerplate.

Boilerplate is one text under many unrelated images ("Welcome to our shop"). A class name under many photos is the
opposite: the same text under images that are alike. `shared_text_alikeness` tells them apart by the images.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from noisycorr.stats.index import Features, present_rows, take_rows, unit_rows

BLOCK = 16384  # texts looked at together
MEMBERS = 32  # images looked at for each text
POOL = 512  # random images they are compared with

# Code -> what it says, worst first: a row with several issues carries the first.
TEXT_ISSUES: dict[str, str] = {
    "empty": "no text came with this image",
    "binary": "the text holds control characters or characters that could not be decoded",
    "url": "the text is mostly a web address",
    "file_name": "the text is a file name",
    "markup": "the text is mostly markup",
    "digits": "the text is mostly digits",
    "too_short": "the text is too short to say anything",
    "too_long": "the text is too long for a caption",
    "boilerplate": "the same text stands with many images that have nothing in common",
}

_SUFFIX = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|raw|cr2|nef|psd|eps|pdf|mp4|mov)"
_CAMERA = (
    r"(?:dsc[nf_]?|_mg|img|imag|image|pict?|photo|picture|foto|p|pxl|vid|mvc|sam|gopr|dji|scan|screen ?shot|"
    r"whatsapp image|file|fb_img|wp|received)"
)
_FILE_NAME = re.compile(
    rf"(?:\S*[/\\])?(?:[^\s/\\]+|(?:[\w().-]+ ){{1,3}}[\w().-]+){_SUFFIX}"  # anything short that ends in a suffix
    rf"|{_CAMERA}[ _-]*\(?\d{{3,}}[\d _.:()at-]*(?:wa\d+)?"  # the numbers cameras and phones give
    r"|(?:untitled|unnamed|download)(?:[ _-]*\(?\d+\)?)?",
    re.IGNORECASE,
)
_URL = re.compile(
    r"(?:https?|ftp)://\S+|\bwww\.\S+|\b[\w.+-]+@[\w-]+\.[\w.]+|\b[\w-]+\.(?:com|org|net|html?|php)\b\S*", re.IGNORECASE
)
_MARKUP = re.compile(
    r"<[a-zA-Z/!][^<>]{0,500}>|&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});|\{\{.{0,200}?\}\}"
    r"|\[/?(?:b|i|u|url|img|quote|code|size|color|caption)(?:=[^\]]{0,200})?\]"
)
_BYTES_CLASS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff\ud800-\udfff"
_BYTES = re.compile(f"[{_BYTES_CLASS}]")
_DIGIT = re.compile(r"\d")
_SOLID = re.compile(r"[^\W_]")  # letters and digits
# One cheap search that most texts fail spares them all others: whatever those find holds one of these.
_SUSPICIOUS = re.compile(rf"[\d<&@\[{{{_BYTES_CLASS}]|\.\w|://|untitled|unnamed|download", re.IGNORECASE)
_BETWEEN = "[ ,;'()!?-]"  # what may stand between the letters of plain words
# The same for texts of ASCII, as bytes: to delete characters and look at what is left is many times faster than `re`.
_ASCII = bytes(range(128))
_ASCII_BYTES = bytes(code for code in _ASCII if _BYTES.match(chr(code)))
_ASCII_DIGITS = b"0123456789"
_ASCII_SOLID = bytes(code for code in _ASCII if chr(code).isalnum())
_ASCII_MARKS = _ASCII_BYTES + _ASCII_DIGITS + b"<&@[{"
NAME_LENGTH = 255  # longer texts are no file names
SEARCHED = 4000  # characters of a long text that are searched, so that a hostile one takes no time
WEIGHED = 32  # characters that are looked at to see whether a text is too short


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """What counts as a text issue.

    Attributes:
        min_characters: Texts with fewer letters and digits are `too_short`. A character outside of Latin, Greek and
            Cyrillic counts as three, because one ideograph or emoji can be a whole word.
        max_characters: Texts with more characters are `too_long`.
        url_share: Texts with a larger share of characters (without white space) in web and mail addresses are `url`.
        markup_share: Texts with a larger share of characters in tags, entities and templates are `markup`.
        digit_share: Texts with a larger share of digits among letters and digits are `digits`.
        bytes_share: Texts with a larger share of control and replacement characters are `binary`.
        boilerplate_images: A text that fewer distinct images share is never boilerplate.
        boilerplate_alikeness: A text is boilerplate if the images that share it are less alike than this; 0.5 = as
            alike as random images, 0 = never. See `shared_text_alikeness`.

    Raises:
        ValueError: If a share is outside [0, 1] or a count is negative.
    """

    min_characters: int = 2
    max_characters: int = 2000
    url_share: float = 0.5
    markup_share: float = 0.3
    digit_share: float = 0.75
    bytes_share: float = 0.1
    boilerplate_images: int = 10
    boilerplate_alikeness: float = 0.6

    def __post_init__(self) -> None:
        for name in ("url_share", "markup_share", "digit_share", "bytes_share", "boilerplate_alikeness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("min_characters", "max_characters", "boilerplate_images"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")


def text_issues(
    texts: Sequence[str | None], limits: TextLimits, *, alikeness: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Judge every text.

    Args:
        texts: The n texts as they came.
        limits: Where an issue begins.
        alikeness: float (n,) of `shared_text_alikeness`; without it nothing is boilerplate.

    Returns:
        text_score float32 (n,) in [0, 1], lower = worse, below 0.5 exactly for issues; and the code of `TEXT_ISSUES`,
        an object array (n,) of str or None.
    """
    score, code = np.ones(len(texts)), np.full(len(texts), None, object)
    source, start = iter(texts), 0
    while block := list(islice(source, BLOCK)):
        for place in np.flatnonzero(~_spotless(block, limits)).tolist():
            row = start + place
            for name, value in _qualities((block[place] or "").strip(), limits):
                if value < 0.5:
                    code[row] = code[row] or name
                score[row] = min(score[row], value)
        start += len(block)
    if alikeness is not None:
        least = limits.boilerplate_alikeness
        known = ~np.isnan(alikeness)
        above = 0.5 + 0.5 * (alikeness[known] - least) / max(1 - least, 1e-9)
        value = np.where(alikeness[known] < least, alikeness[known] / max(2 * least, 1e-9), np.clip(above, 0.5, 1))
        for row in np.flatnonzero(known)[value < 0.5].tolist():
            code[row] = code[row] or "boilerplate"
        score[known] = np.minimum(score[known], value)
    return score.astype(np.float32), code


def shared_text_alikeness(
    text_id: np.ndarray,
    image_features: Features,
    *,
    image_groups: np.ndarray | None = None,
    at_least: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """How alike the images under one text are, on a scale that needs no threshold of the encoder.

    Chance that two images under the text are closer to each other than the first is to a random image under another
    text: 0.5 if the text says nothing about its images, near 1 for a class name. Up to 32 images of the text are
    compared with 512 others, drawn evenly over texts, after the mean of those was taken off.

    Args:
        text_id: int64 (n,) of `text_ids`: equal for texts that are equal when normalised, -1 for blank ones.
        image_features: (n, d) or its parts; rows of zeros are missing images.
        image_groups: int64 (n,): rows of one number >= 0 show the same image and count once; -1 is an image alone.
        at_least: Texts under fewer distinct images get NaN.
        seed: For sampling.

    Returns:
        float32 (n,) in [0, 1], higher = more alike, equal for equal texts; NaN where it cannot be said.

    Measured (embedded encoder): one text put on 12, 30 or 200 random images 0.48 to 0.56 (Caltech, clip art, fashion);
    the 99 class names of Caltech 0.80 (bass) to 1.00; "gramastar" on 1,120 stars 0.97; "Various Cliparts" 0.70;
    "Clipart by Nicu Buculei - nosmoke", which stands on a house, a star and a feather, 0.58. Names of what the
    encoder does not see score low, too: colour words under fashion photos 0.52 to 0.60.
    """
    parts = [image_features] if isinstance(image_features, np.ndarray) else list(image_features)
    rng = np.random.default_rng(seed)
    order = _one_row_each(text_id, image_groups, rng.permutation(np.flatnonzero(present_rows(parts) & (text_id >= 0))))
    counts = np.bincount(text_id[order], minlength=text_id.max(initial=-1) + 1)
    start = np.concatenate([[0], np.cumsum(counts)])
    rank = np.arange(len(order)) - start[text_id[order]]  # first ones of all texts, then second ones, ...
    pool_rows = np.sort(order[np.lexsort((rng.random(len(order)), rank))[:POOL]])
    answer = np.full(len(counts) + 1, np.nan, np.float32)  # the last place serves blank texts, whose id is -1
    shared = np.flatnonzero(counts >= max(at_least, 2))
    if not len(shared):
        return answer[text_id]
    pool = take_rows(parts, pool_rows)
    middle = pool.mean(axis=0)
    pool = unit_rows(pool - middle)
    for batch in np.array_split(shared, 1 + len(shared) // 256):
        members = [order[start[i] : start[i] + min(counts[i], MEMBERS)] for i in batch]
        distinct, place = np.unique(np.concatenate(members), return_inverse=True)
        vectors = unit_rows(take_rows(parts, distinct) - middle)
        for i, own in zip(batch, np.split(place, np.cumsum([len(group) for group in members])[:-1])):
            answer[i] = _alikeness(vectors[own], pool[text_id[pool_rows] != i])
    return answer[text_id]


def _one_row_each(ids: np.ndarray, image_groups: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """One of the rows for each different image of each text, sorted by text; within a text in the order given."""
    n = len(ids)
    picture = np.arange(n) if image_groups is None else np.where(image_groups < 0, np.arange(n) + n, image_groups)
    by_image = np.lexsort((picture[rows], ids[rows]))
    text, image = ids[rows][by_image], picture[rows][by_image]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (text[1:] != text[:-1]) | (image[1:] != image[:-1])
    some = rows[np.sort(by_image[fresh])]
    return some[np.argsort(ids[some], kind="stable")]


def _alikeness(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member is closer to another member than to one of the others; ties count half."""
    if not len(others):
        return float("nan")
    near, away = members @ members.T, (members @ others.T)[:, None, :]
    won = (near[:, :, None] > away).mean(axis=2) + 0.5 * (near[:, :, None] == away).mean(axis=2)
    m = len(members)
    return float((won.sum() - won.trace()) / (m * (m - 1)))


def _spotless(texts: list[str | None], limits: TextLimits) -> np.ndarray:
    """bool (n,): texts of plain words, of which `_qualities` says nothing; others may be spotless, too.

    It looks at a block at once, which is many times faster than text by text.
    """
    enough = 2 * limits.min_characters
    if not 0 < enough <= 100:  # RE2 unfolds the count
        return np.zeros(len(texts), bool)
    try:
        column = pa.array(texts, pa.string())
    except UnicodeEncodeError:  # half a surrogate pair
        return np.zeros(len(texts), bool)
    plain = pc.match_substring_regex(column, rf"^([A-Za-z]{_BETWEEN}*){{{enough}}}([A-Za-z]|{_BETWEEN})*$")
    name = pc.match_substring_regex(column, "^(untitled|unnamed|download)", ignore_case=True)
    short = pc.less_equal(pc.multiply(pc.utf8_length(column), 2), limits.max_characters)
    return pc.fill_null(pc.and_(pc.and_(plain, short), pc.invert(name)), False).to_numpy(zero_copy_only=False)


def _qualities(text: str, limits: TextLimits) -> Iterator[tuple[str, float]]:
    """Code and quality of what can be held against a text; 0.5 is the limit, and 1 (spotless) is left out."""
    if not text:
        yield "empty", 0.0
        return
    length, text = len(text), text[:SEARCHED]
    if _is_suspicious(text):
        visible = len(text) - sum(map(text.count, " \t\n"))
        if strange := _count(_BYTES, _ASCII_BYTES, text):
            yield "binary", _share_quality(strange / len(text), limits.bytes_share)
        if ("." in text or "@" in text or "://" in text) and (covered := _covered(_URL, text)):
            yield "url", _share_quality(covered / visible, limits.url_share)
        if length <= NAME_LENGTH and _FILE_NAME.fullmatch(text):
            yield "file_name", 0.0
        if any(mark in text for mark in "<&{[") and (covered := _covered(_MARKUP, text)):
            yield "markup", _share_quality(covered / visible, limits.markup_share)
        if digits := _count(_DIGIT, _ASCII_DIGITS, text):
            letters = _count(_SOLID, _ASCII_SOLID, text)
            yield "digits", _share_quality(digits / max(letters, 1), limits.digit_share)
    enough = 2 * limits.min_characters
    plain = len(text) >= enough > 0 and text[:enough].isalnum()  # most texts begin with a word that is long enough
    if not plain and (weight := _weight(text[: max(WEIGHED, enough)])) < enough:
        yield "too_short", weight / enough
    if 2 * length > limits.max_characters:
        yield "too_long", limits.max_characters / (2 * length)


def _is_suspicious(text: str) -> bool:
    """A further look can find something."""
    if not text.isascii():
        return bool(_SUSPICIOUS.search(text))
    raw = text.lower().encode("ascii")
    return (len(raw.translate(None, _ASCII_MARKS)) < len(raw) or b"." in raw or b"://" in raw
            or b"untitled" in raw or b"unnamed" in raw or b"download" in raw)  # fmt: skip


def _count(pattern: re.Pattern[str], ascii_characters: bytes, text: str) -> int:
    """Characters that match a pattern of one character."""
    if not text.isascii():
        return len(pattern.findall(text))
    return len(text) - len(text.encode("ascii").translate(None, ascii_characters))


def _weight(start: str) -> int:
    """Letters and digits, and thrice the characters that can stand for a word."""
    if start.isascii():
        return sum(map(str.isalnum, start))
    wide = (char.isalnum() or unicodedata.category(char)[0] == "S" for char in start if char > "\u052f")
    return 3 * sum(wide) + sum(char.isalnum() for char in start if char <= "\u052f")


def _covered(pattern: re.Pattern[str], text: str) -> int:
    return sum(len(match[0]) for match in pattern.finditer(text))


def _share_quality(share: float, limit: float) -> float:
    """1 for a share of 0, 0.5 at the limit, 0 from twice the limit on."""
    return max(1 - share / (2 * limit), 0.0) if limit else float(share == 0)
