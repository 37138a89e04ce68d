"""Summaries of a stream in bounded memory: counts of strings, moments of numbers, a fixed sample of rows.

Everything here is deterministic: which rows are sampled, and which strings are followed, depends on the data alone,
so that two reports of one run are equal byte by byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash

SAMPLE = 65_536  # rows looked at for medians and quantiles; a set with fewer rows is used whole


def clip(text: str, length: int = 200) -> str:
    """Shorten a string to at most `length` characters, the last of them "…" where something was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def in_sample(rows: np.ndarray, total: int, capacity: int = SAMPLE) -> np.ndarray:
    """Which rows belong to a fixed pseudo-random sample of about `capacity` rows (splitmix64 of the row number).

    Args:
        rows: (n,) row numbers, 0..total-1.
        total: Rows in the whole set. With total <= capacity every row is in the sample.
        capacity: Expected size of the sample.

    Returns:
        (n,) bool.
    """
    if total <= capacity:
        return np.ones(len(rows), bool)
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z < np.uint64(int(capacity / total * 2**64))


class FrequencySketch:
    """How often each string occurs. Exact up to `limit` different strings, then a Misra-Gries summary.

    Beyond the limit a count is a lower bound, at most `error` too small, and the number of different strings and the
    share of repeated ones are estimated from a sample of hashes that is uniform over the different strings.

    Args:
        limit: Different strings that are followed exactly.
        hashes: Size of the sample of hashes.
    """

    def __init__(self, limit: int = 20_000, hashes: int = 8192) -> None:
        self.limit, self.hashes = limit, hashes
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.error = 0
        self._sample: dict[int, int] = {}
        self._bits = 0  # a hash is sampled when its lowest `_bits` bits are zero

    @property
    def exact(self) -> bool:
        """True while no string was forgotten."""
        return self.error == 0

    def add(self, values: Iterable[str]) -> None:
        """Count strings. Strings of more than 200 characters should be clipped before."""
        batch = Counter(values)
        self.total += batch.total()
        self.counts.update(batch)
        for value, count in batch.items():
            code = xxhash.xxh3_64_intdigest(value.encode("utf-8", "surrogatepass"))
            if not code & ((1 << self._bits) - 1):
                self._sample[code] = self._sample.get(code, 0) + count
        while len(self._sample) > self.hashes:
            self._bits += 1
            mask = (1 << self._bits) - 1
            self._sample = {code: count for code, count in self._sample.items() if not code & mask}
        if len(self.counts) > self.limit:
            cut = sorted(self.counts.values(), reverse=True)[self.limit // 2]
            self.counts = Counter({value: count - cut for value, count in self.counts.items() if count > cut})
            self.error += cut

    def top(self, number: int) -> list[tuple[str, int]]:
        """The most frequent strings and their counts, most frequent first, ties in order of the string."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    def distinct(self) -> int:
        """Number of different strings; an estimate (about 1 % off) when not exact."""
        return len(self.counts) if self.exact else len(self._sample) << self._bits

    def repeated(self) -> int:
        """How many of the strings counted (with repetition) occur more than once; an estimate when not exact."""
        if self.exact:
            return sum(count for count in self.counts.values() if count > 1)
        rows = sum(self._sample.values())
        often = sum(count for count in self._sample.values() if count > 1)
        return round(self.total * often / rows) if rows else 0

    def frequencies(self) -> np.ndarray:
        """Counts of the different strings (all of them, or those of the sample), ascending."""
        return np.sort(np.fromiter((self.counts if self.exact else self._sample).values(), float))


class Numbers:
    """Moments of a stream of numbers, exact; median and quantiles from the rows of `in_sample`."""

    def __init__(self) -> None:
        self.count = self.missing = self.zeros = 0
        self.least, self.most = math.inf, -math.inf
        self.mean, self._square = 0.0, 0.0
        self._sample: list[np.ndarray] = []

    def add(self, values: np.ndarray, sampled: np.ndarray) -> None:
        """Add numbers; what is not finite counts as missing.

        Args:
            values: (n,) numbers.
            sampled: (n,) bool, which of them may be kept for quantiles.
        """
        values = values.astype(np.float64)
        good = np.isfinite(values)
        self.missing += int((~good).sum())
        self._sample.append(values[good & sampled])
        values = values[good]
        if not len(values):
            return
        n, mean = len(values), float(values.mean())
        delta, total = mean - self.mean, self.count + n
        self._square += float(((values - mean) ** 2).sum()) + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total
        self.zeros += int((values == 0).sum())
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    def sample(self) -> np.ndarray:
        """The sampled numbers, ascending."""
        self._sample = [np.sort(np.concatenate(self._sample))] if self._sample else []
        return self._sample[0] if self._sample else np.zeros(0)

    def result(self) -> dict[str, Any]:
        """JSON: count, missing, zeros, min, max, mean, std (n - 1), median and the 5 % to 95 % quantiles."""
        out: dict[str, Any] = {"count": self.count, "missing": self.missing, "zeros": self.zeros}
        if not self.count:
            return out
        out |= {"min": self.least, "max": self.most, "mean": self.mean}
        out["std"] = math.sqrt(self._square / (self.count - 1)) if self.count > 1 else 0.0
        sample = self.sample()
        if len(sample):
            marks = np.quantile(sample, [0.05, 0.25, 0.5, 0.75, 0.95])
            out["quantiles"] = dict(zip(("5%", "25%", "50%", "75%", "95%"), map(float, marks)))
            out["median"] = float(marks[2])
            out["quantiles_from"] = len(sample)
        return out


def gini(frequencies: np.ndarray) -> float | None:
    """Gini coefficient of counts: 0 = all equally frequent, towards 1 = a few hold everything. None if empty.

    Args:
        frequencies: (n,) counts >= 0, ascending.
    """
    n, total = len(frequencies), float(frequencies.sum())
    if not n or total <= 0:
        return None
    return float((2 * np.arange(1, n + 1) - n - 1) @ frequencies / (n * total))


def decile_ratio(frequencies: np.ndarray) -> float | None:
    """Mean count of the most frequent tenth over that of the least frequent tenth; None with fewer than 10 values.

    Args:
        frequencies: (n,) counts > 0, ascending.
    """
    tenth = len(frequencies) // 10
    if not tenth:
        return None
    return float(frequencies[-tenth:].mean() / frequencies[:tenth].mean())


def plain(value: Any) -> Any:
    """A value that JSON can hold: NumPy numbers become Python's, NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
