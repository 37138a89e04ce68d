"""Columns of many pairs that are gone through without being held: what a million rows are told by is numbers.

Texts and hashes stay in their files; a block of them at a time becomes Python objects (100 to 200 bytes each).
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa

BLOCK = 16384  # values that are Python objects at once
DIGEST = 16  # bytes that stand for a longer string: two of a billion are mistaken for each other once in 10^21 sets


class Column(Sequence[Any]):
    """A column of a table in pieces that reads like a list; going through it holds one piece at a time.

    Args:
        pieces: Each gives its piece of the n values in order, as often as it is asked.
        sizes: Values of each.
    """

    def __init__(self, pieces: Sequence[Callable[[], pa.ChunkedArray]], sizes: Sequence[int]) -> None:
        self.pieces = pieces
        self.starts = np.cumsum([0, *sizes])

    @staticmethod
    def of(values: pa.ChunkedArray) -> Column:
        """Of a column in memory."""
        return Column([lambda: values], [len(values)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.chunks():
            for start in range(0, len(chunk), BLOCK):
                yield from chunk.slice(start, BLOCK).to_pylist()

    def chunks(self) -> Iterator[pa.Array]:
        """The values as Arrow has them."""
        for piece in self.pieces:
            yield from piece().chunks

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return self.take(np.array([range(len(self))[row]]))[0]

    def take(self, rows: np.ndarray) -> list[Any]:
        """Values of rows (k,), in the order asked."""
        out = np.empty(len(rows), object)
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self.starts)
        for piece, start, one, two in zip(self.pieces, self.starts.tolist(), cuts, cuts[1:]):
            if two > one:
                here = order[one:two]
                out[here] = piece().take(pa.array(rows[here] - start, pa.int64())).to_pylist()
        return out.tolist()


def rows_of(values: Sequence[Any], rows: np.ndarray) -> list[Any]:
    """Values of rows (k,) of a list or a `Column`, in the order asked."""
    return values.take(rows) if isinstance(values, Column) else [values[row] for row in rows.tolist()]


def codes(values: Iterable[str | None]) -> np.ndarray:
    """Numbers in place of strings.

    Args:
        values: n strings; a lone surrogate in one is no harm.

    Returns:
        int64 (n,): equal for equal strings, counted from 0 in order of their first appearance; -1 for None.
    """
    if isinstance(values, Column):  # hashes: short, and never Python objects
        return _places(list(values.chunks()), pa.string())
    chunks: list[pa.Array] = []
    block: list[bytes | None] = []
    for value in values:
        block.append(None if value is None else _name(value.encode("utf-8", "surrogatepass")))
        if len(block) == BLOCK:
            chunks.append(pa.array(block, pa.binary()))
            block = []
    return _places([*chunks, pa.array(block, pa.binary())], pa.binary())


def _places(chunks: list[pa.Array], kind: pa.DataType) -> np.ndarray:
    """Where the values stand in the dictionary that all chunks share."""
    encoded = pa.chunked_array(chunks, kind).dictionary_encode()
    parts = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _name(raw: bytes) -> bytes:
    """A short string itself, a digest of another; the two differ in length."""
    return raw if len(raw) < DIGEST else hashlib.blake2b(raw, digest_size=DIGEST).digest()


def release(part: np.ndarray) -> None:
    """Give the pages of a memory map back, so that a pass over a large set does not keep all of it resident."""
    pages = getattr(part, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
