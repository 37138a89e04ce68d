"""Order of the data: a function of seed, epoch and stream alone, whatever workers or processes there are (law 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def stream_seed(*place: int | str) -> int:
    """A seed for one place in the training, such as (seed, "order", epoch); equal places give equal seeds, 63 bits."""
    text = "\0".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(n: int, *, seed: int, epoch: int, stream: str = "order") -> np.ndarray:
    """A permutation of n pairs.

    Args:
        n: Number of training pairs, all of them: which of them are trained on is filtered later, so that dropping one
            pair does not reorder the others.
        seed: Of the run.
        epoch: From 0.
        stream: Networks and passes that need orders of their own name them here.

    Returns:
        int64 (n,).
    """
    return np.random.default_rng(stream_seed(seed, stream, epoch)).permutation(n)


def split_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut rows into global batches of nearly equal size, in order.

    Nobody is left out, and no batch has a single pair, which would have no negative: batches have at most `batch_size`
    rows, or one more where it takes that.

    Args:
        rows: int64 (m,), m = 0 or m >= 2.
        batch_size: >= 2; the global number.

    Returns:
        Arrays of 2 rows or more; none for m = 0.

    Raises:
        ValueError: If there is a single row, or the batch size is below 2.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size is {batch_size}, expected at least 2: a pair alone has no negative")
    if len(rows) == 1:
        raise ValueError("one pair alone has no negative; at least 2 are needed")
    count = -(-len(rows) // batch_size)
    if count and len(rows) // count < 2:
        count = len(rows) // 2
    return list(np.array_split(rows, count)) if count else []


def active_rows(order: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of an order that are in any of the sets, bool (n,) each; all if no sets are given."""
    return order[np.any(np.stack(sets), axis=0)[order]] if len(sets) else order
