"""Rows of text tables one after the other: csv, tsv, jsonl and JSON arrays, in constant memory, never giving up.

Every function yields `Record`s from a byte offset on. Reading from the offset of a record gives the same records as
reading from the start of the file, which is what makes a piece readable by itself.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LINE_LIMIT = 16 * 1024 * 1024  # bytes of one line or one JSON element
RECORD_LINES = 200  # lines that one quoted csv record may span
RAW_LIMIT = 1_000  # characters kept of an unreadable row
_CHUNK = 1 << 20
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it was found.

    Attributes:
        offset: Where it begins, in bytes of the (unpacked) file.
        values: Column name to value, or None if it could not be parsed.
        raw: The first `RAW_LIMIT` characters of an unreadable row, or "".
    """

    offset: int
    values: dict[str, Any] | None
    raw: str = ""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading bytes; `.gz` is unpacked on the way."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def csv_header(path: Path, delimiter: str) -> tuple[list[str], int]:
    """Column names of a csv and the offset of its first row.

    Args:
        path: The file; its first line that is not blank is the header.
        delimiter: One character.

    Returns:
        Names made unique (`name`, `name_2`, ...; `column_0` for an empty one), and a byte offset. No names if the file
        is empty or its header cannot be parsed.
    """
    with open_bytes(path) as file:
        for offset, line in _lines(file, 0):
            if line is None:
                break
            text = line.removeprefix("\ufeff") if offset == 0 else line
            if text.strip():
                return _unique(_split(text, delimiter) or []), offset + len(_encode(line))
    return [], 0


def find_delimiter(path: Path) -> str:
    """The character between the columns of a csv: the one that stands most often in its header, comma if none does."""
    with open_bytes(path) as file:
        head = next((line for _, line in _lines(file, 0) if line and line.strip()), "")
    return max((",", "\t", ";", "|"), key=head.count)


def csv_records(path: Path, start: int, names: list[str], delimiter: str) -> Iterator[Record]:
    """Rows of a csv or tsv from an offset on.

    A quoted value may span lines. A row with other than `len(names)` values, or with quotes that do not fit, comes out
    without values, and reading goes on at the next line. In a tsv, quotes that do not fit are taken as plain letters.
    """
    with open_bytes(path) as file:
        lines = _lines(file, start)
        waiting: deque[tuple[int, str | None]] = deque()
        while item := waiting.popleft() if waiting else next(lines, None):
            offset, line = item
            if line is not None and not line.strip():
                continue
            fields = None if line is None else _fields(line, len(names), delimiter)
            if fields is None and line is not None and line.count('"') % 2:
                fields = _spanning(line, lines, waiting, len(names), delimiter)
            if fields is None:
                yield Record(offset, None, (line or "")[:RAW_LIMIT])
            else:
                yield Record(offset, dict(zip(names, fields)))


def jsonl_records(path: Path, start: int) -> Iterator[Record]:
    """One JSON object a line, from an offset on; blank lines do not count."""
    with open_bytes(path) as file:
        for offset, line in _lines(file, start):
            if line is None:
                yield Record(offset, None)
            elif line.strip("\ufeff \t\r\n"):
                values = _parse_json(line.removeprefix("\ufeff"))
                yield Record(offset, values, "" if values is not None else line[:RAW_LIMIT])


def json_records(path: Path, start: int) -> Iterator[Record]:
    """Objects of one JSON array, from an offset on. After damage nothing can be trusted: one record, then the end."""
    decoder = json.JSONDecoder()
    with open_bytes(path) as file:
        file.seek(start)
        window = _Window(file, start)
        window.more()
        window.skip(re.compile(r"\ufeff?\s*\[") if start == 0 else _GAP)
        while True:
            window.skip(_GAP)
            if window.at_end():
                if window.more():
                    continue
                yield Record(window.offset, None, "the file ends in the middle of the array")
                return
            if window.text[window.position] == "]":
                return
            try:
                value, end = decoder.raw_decode(window.text, window.position)
            except (ValueError, RecursionError):
                if len(window.text) - window.position < LINE_LIMIT and window.more():
                    continue
                yield Record(window.offset, None, window.text[window.position : window.position + RAW_LIMIT])
                return
            if end == len(window.text) and not isinstance(value, (dict, list)) and window.more():
                continue  # a number may go on in the next chunk
            raw = (
                "" if isinstance(value, dict) else window.text[window.position : min(end, window.position + RAW_LIMIT)]
            )
            yield Record(window.offset, value if isinstance(value, dict) else None, raw)
            window.advance(end)


class _Window:
    """A piece of a text file, with the byte offset of the current position."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self.file, self.offset = file, offset
        self.text, self.position = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def at_end(self) -> bool:
        return self.position >= len(self.text)

    def more(self) -> bool:
        """Read on; False at the end of the file (or where a packed file breaks off)."""
        left = self.text[self.position :]
        try:
            data = self.file.read(min(max(_CHUNK, len(left)), LINE_LIMIT))  # doubling: long elements cost linear time
        except (EOFError, OSError, zlib.error):
            data = b""
        if not data:
            return False
        self.text, self.position = left + self._decoder.decode(data), 0
        return True

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.position)
        if match:
            self.advance(match.end())

    def advance(self, end: int) -> None:
        self.offset += len(_encode(self.text[self.position : end]))
        self.position = end


def _lines(file: BinaryIO, start: int) -> Iterator[tuple[int, str | None]]:
    """Lines with their offsets; None for one that is too long, or where a packed file breaks off."""
    offset = start
    try:
        file.seek(start)
        while line := file.readline(LINE_LIMIT):
            size, whole = len(line), line
            if size == LINE_LIMIT and not line.endswith(b"\n"):
                while rest := file.readline(LINE_LIMIT):
                    size += len(rest)
                    if rest.endswith(b"\n"):
                        break
                yield offset, None
            else:
                yield offset, whole.decode("utf-8", "surrogateescape")
            offset += size
    except (EOFError, OSError, zlib.error):
        yield offset, None


def _fields(line: str, width: int, delimiter: str) -> list[str] | None:
    fields = _split(line, delimiter)
    if fields is not None and len(fields) == width:
        return fields
    if delimiter == "\t":  # most tsv files know no quoting at all
        plain = line.rstrip("\r\n").split("\t")
        return plain if len(plain) == width else None
    return None


def _spanning(
    line: str,
    lines: Iterator[tuple[int, str | None]],
    waiting: deque[tuple[int, str | None]],
    width: int,
    delimiter: str,
) -> list[str] | None:
    # An open quote means an odd number of quotes so far; in a sound record the first even count closes it.
    parts, quotes = [line], line.count('"')
    for count in range(RECORD_LINES):
        if count == len(waiting):
            if (item := next(lines, None)) is None:
                return None
            waiting.append(item)
        following = waiting[count][1]
        if following is None:
            return None
        parts.append(following)
        quotes += following.count('"')
        if quotes % 2 == 0:
            fields = _split("".join(parts), delimiter)
            if fields is None or len(fields) != width:
                return None
            for _ in range(count + 1):
                waiting.popleft()
            return fields
    return None


def _split(text: str, delimiter: str) -> list[str] | None:
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _parse_json(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _unique(names: list[str]) -> list[str]:
    unique: list[str] = []
    for position, name in enumerate(names):
        name = name.strip() or f"column_{position}"
        count = 2
        candidate = name
        while candidate in unique:
            candidate, count = f"{name}_{count}", count + 1
        unique.append(candidate)
    return unique
