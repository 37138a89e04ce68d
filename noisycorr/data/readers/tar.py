"""A walk over the members of a tar in one direction and constant memory, which knows where an archive is broken.

Python's `tarfile` keeps every header it has seen and takes a damaged header for the end of the archive; here the first
would cost memory and the second would lose pairs silently.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
LONG_NAME_LIMIT = 1 << 20  # bytes of an extended header
_CHUNK = 1 << 20
_COMPRESSED = (EOFError, OSError, zlib.error, lzma.LZMAError)
_NO_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class BrokenArchive(Exception):
    """The archive ends too early or its bytes make no sense from here on.

    Attributes:
        inside: It ends in the middle of a member (or its compressed stream does).
        unmarked: It ends between two members, only the two empty blocks of a regular end are missing.
    """

    def __init__(self, detail: str, *, inside: bool = False, unmarked: bool = False) -> None:
        super().__init__(detail)
        self.inside = inside
        self.unmarked = unmarked


@dataclass(slots=True)
class Member:
    """One regular file of an archive. Its bytes can be read until the next member is asked for.

    Attributes:
        name: As it is written in the archive; bytes that are not UTF-8 are lone surrogates.
        size: Bytes of content.
        offset: Where its first header block begins.
    """

    name: str
    size: int
    offset: int
    _file: BinaryIO
    _read: int = 0

    def read(self, limit: int) -> bytes:
        """The first `limit` bytes of the content, or all of them.

        Raises:
            BrokenArchive: If the archive ends before.
        """
        wanted = min(limit, self.size)
        data = _read_exactly(self._file, wanted)
        self._read = wanted
        return data

    def rest(self) -> int:
        """Bytes of content and padding that were not read."""
        return -(-self.size // BLOCK) * BLOCK - self._read


def open_archive(path: Path) -> BinaryIO:
    """Open a tar for reading; gzip, bzip2 and xz are told by their first bytes."""
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def walk_members(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Regular files of an archive from one header on; links, folders and devices are passed over.

    Args:
        file: An open archive, unpacked.
        start: Offset of a header.
        stop: Offset of the header before which to end; None reads to the end of the archive.

    Yields:
        Members in order; read what you need before you ask for the next one.

    Raises:
        BrokenArchive: If the file ends without the mark of an archive's end, or a header is damaged. Every member
            before has been yielded then.
    """
    size = os.fstat(file.fileno()).st_size if is_plain(file) else None
    try:
        _move(file, start, None)
        offset, begin, long_name, long_size = start, start, None, None
        while stop is None or begin < stop:
            info = _header(file)
            if info is None:
                return
            offset += BLOCK
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
                body = _extended(file, info)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = _decode(body.split(b"\0")[0])
                elif info.type == tarfile.XHDTYPE:
                    pax = _pax_records(body)
                    long_name, long_size = pax.get("path", long_name), pax.get("size", long_size)
                offset += _padded(info.size)
                continue
            length = info.size if long_size is None else _number(long_size)
            if info.type in _REGULAR:
                member = Member(long_name or info.name, length, begin, file)
                yield member
                left = member.rest()
            else:
                length = 0 if info.type in _NO_CONTENT else length  # whatever their header says
                left = _padded(length)
            offset += _padded(length)
            # The padding of the last member may be missing; its content may not.
            _move(file, left, size, slack=_padded(length) - length)
            begin, long_name, long_size = offset, None, None
    except _COMPRESSED as error:
        raise BrokenArchive(f"{error or type(error).__name__}", inside=True) from None


def _header(file: BinaryIO) -> tarfile.TarInfo | None:
    block = _read_up_to(file, BLOCK)
    if len(block) < BLOCK:
        raise BrokenArchive("the archive ends without its end mark", unmarked=not block)
    if not block.strip(b"\0"):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise BrokenArchive(f"damaged header: {error}") from None
    if info.size < 0:
        raise BrokenArchive("damaged header: negative size")
    return info


def _extended(file: BinaryIO, info: tarfile.TarInfo) -> bytes:
    if info.size > LONG_NAME_LIMIT:
        raise BrokenArchive("damaged header: endless name")
    return _read_exactly(file, _padded(info.size))[: info.size]


def _pax_records(body: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while body:
        length, _, rest = body.partition(b" ")
        if not length.isdigit() or not len(length) + 2 < int(length[:9]) <= len(body):
            break
        name, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[_decode(name)] = _decode(value)
        body = body[int(length) :]
    return records


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenArchive("damaged header: size is not a number")
    return int(text)


def _move(file: BinaryIO, distance: int, size: int | None, *, slack: int = 0) -> None:
    """Go forward; over content that is not there is an error, over the last `slack` bytes it is not."""
    if is_plain(file):
        target = file.tell() + distance
        if size is not None and target - slack > size:
            raise BrokenArchive("the archive ends in the middle of a member", inside=True)
        file.seek(target)
        return
    while distance > 0:
        data = file.read(min(distance, _CHUNK))
        distance -= len(data)
        if not data:
            if distance > slack:
                raise BrokenArchive("the archive ends in the middle of a member", inside=True)
            return


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    # In chunks: a header may promise gigabytes that are not there.
    parts: list[bytes] = []
    while count > 0 and (data := file.read(min(count, _CHUNK))):
        parts.append(data)
        count -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    try:
        data = _read_up_to(file, count)
    except _COMPRESSED as error:
        raise BrokenArchive(f"{error or type(error).__name__}", inside=True) from None
    if len(data) < count:
        raise BrokenArchive("the archive ends in the middle of a member", inside=True)
    return data


def is_plain(file: BinaryIO) -> bool:
    """True if an open archive is not compressed, so that one can go to any place of it at no cost."""
    return not isinstance(file, (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile))


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
