"""Names of files and archive members made from keys that nobody vouches for."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from noisycorr.data.readers.images import IMAGE_SUFFIXES, sniff_format

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
FORMATS = {suffix: name for name, suffix in SUFFIXES.items()} | {"jpeg": "JPEG", "tiff": "TIFF"}
UNKNOWN = "bin"  # bytes that are no known picture

_PART_BYTES = 180  # file systems end at 255, and a suffix and a number may follow
_CONTROL = r"\x00-\x1f\x7f\\"
_EXAMPLES = 20  # renamed keys that are listed in the stats


class Names:
    """Safe names, none twice in one shard, in the order of the rows.

    A key is kept if it can be. What would leave the folder, split the name (webdataset ends a key at the first dot)
    or be no name on some system is written as %XX; a name that stands twice gets _2, _3, ... The key itself stays in
    the columns of the row.

    Args:
        flat: True for files on disk: "/" and what only some file systems refuse are escaped too, and names that
            differ in capitals only count as equal.
    """

    def __init__(self, *, flat: bool = False) -> None:
        self._flat = flat
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._escaped = self._repeated = 0
        self._examples: dict[str, str] = {}

    def take(self, key: str) -> str:
        """The name for the next row."""
        safe = safe_name(key, flat=self._flat)
        name, number = safe, self._next.get(self._same(safe), 2)
        while self._same(name) in self._taken:
            name, number = f"{safe}_{number}", number + 1
        if name != safe:
            self._next[self._same(safe)] = number
        self._taken.add(self._same(name))
        self._escaped += safe != key
        self._repeated += name != safe
        if name != key and len(self._examples) < _EXAMPLES:
            self._examples[name] = key
        return name

    def facts(self) -> dict[str, Any]:
        """How many keys could not be kept, and the first of them as {name: key}."""
        return {"keys_escaped": self._escaped, "keys_repeated": self._repeated, "renamed_keys": self._examples}

    def _same(self, name: str) -> str:
        return name.casefold() if self._flat else name


def safe_name(key: str, *, flat: bool = False) -> str:
    """A key as the name of a file or archive member without its extension.

    Args:
        key: Any string.
        flat: True if the name must be one part, without folders, on any file system.

    Returns:
        The key itself if it is a sound name; otherwise with %XX for what is not. Never empty, never leads out of its
        folder, and has no dot in its last part.
    """
    parts = [key] if flat else key.split("/")
    return "/".join(_safe_part(part, last=place == len(parts) - 1, flat=flat) for place, part in enumerate(parts))


def image_suffix(image: bytes | Path | None, format_: str | None, kept: tuple[str, ...]) -> str:
    """The extension of an image in an export.

    Args:
        image: The image.
        format_: What it was decoded as (a name of `SUFFIXES`), or None.
        kept: Suffixes that images had in the source archive; the one that fits goes before the usual one.

    Returns:
        Extension without a dot, lower case; "" if there is no image. For bytes that are no known picture the first of
        `kept`, or "bin".
    """
    if image is None:
        return ""
    if isinstance(image, Path):
        suffix = image.suffix.lstrip(".").lower()
        return suffix if suffix in IMAGE_SUFFIXES else SUFFIXES.get(format_ or "", UNKNOWN)
    kind = format_ or sniff_format(image[:512])
    if kind is None:
        return kept[0] if kept else UNKNOWN
    fitting = [suffix for suffix in kept if FORMATS.get(suffix) == kind]
    if not fitting and len(kept) == 1 and kept[0] not in FORMATS:  # such as KEY.img: the user's own name for it
        return kept[0]
    return fitting[0] if fitting else SUFFIXES[kind]


def _safe_part(part: str, *, last: bool, flat: bool) -> str:
    bad = _CONTROL + (r'/<>:"|?*' if flat else "")
    dots = last or part.strip(".") == ""  # in the name of a folder a dot is sound, except in "." and ".."
    safe = re.sub(f"[{bad}{'.' if dots else ''}]", _percent, part)
    safe = re.sub(r"^([A-Za-z]):", r"\1%3A", safe)
    if not last and re.search(r"__.*__$", safe):  # readers of webdataset pass over such folders
        safe = f"{safe[:-2]}%5F_"
    if flat:
        safe = re.sub(r"^ | $", "%20", safe)
    data = safe.encode("utf-8", "replace")
    if len(data) > _PART_BYTES:
        digest = hashlib.blake2b(part.encode("utf-8", "replace"), digest_size=8).hexdigest()
        safe = f"{data[: _PART_BYTES - 17].decode('utf-8', 'ignore')}-{digest}"
    return safe or "_"


def _percent(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"
