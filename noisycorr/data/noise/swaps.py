"""How texts change places: units that move together, derangements, near partners. The maths under `noise`."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from noisycorr.data.columns import codes
from noisycorr.runtime.errors import UsageError

CELL = 2048  # rows whose similarities are held at once when near partners are sought
REPAIRS = 20  # passes that look for a partner with another text


_ASCII_GAPS = {code: " " for code in range(128) if not chr(code).isalnum()}


@functools.lru_cache(maxsize=1)
def _gaps() -> re.Pattern[str]:
    """Runs of punctuation, spaces and control characters; not of symbols, since an emoji can be the whole text."""
    ascii_gaps = [chr(code) for code in range(128) if not chr(code).isalnum()]
    others = [chr(code) for code in range(128, 0xD800) if unicodedata.category(chr(code))[0] in "PZC"]
    return re.compile(f"[{re.escape(''.join(ascii_gaps + others))}]+")


def normalise_text(text: str | None) -> str:
    """The text as far as equality goes: NFKC, case folded, punctuation and white space collapsed to one space.

    Args:
        text: Anything; None counts as "".

    Returns:
        The normalised text. A text of punctuation alone keeps it ("?!" differs from "..."); "" for blank texts.
    """
    if not text:
        return ""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    folded = text.casefold()
    if folded.isascii():  # the same, four times as fast
        return " ".join(folded.translate(_ASCII_GAPS).split()) or folded.strip()
    return _gaps().sub(" ", folded).strip() or folded.strip()


def text_ids(texts: Sequence[str | None]) -> np.ndarray:
    """int64 (n,): equal numbers for texts that are equal when normalised, counted from 0; -1 for blank texts."""
    return codes(normalise_text(text) or None for text in texts)


def has_text(texts: Sequence[str | None]) -> np.ndarray:
    """bool (n,): the text holds something else than white space."""
    return np.fromiter((bool(text and text.strip()) for text in texts), bool, len(texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What moves as one: u units over the rows that have a text, each with its rows in order.

    Attributes:
        order: Rows of unit 0, then of unit 1, ...
        start: int64 (u,): where each unit begins in `order`.
        sizes: int64 (u,): rows of each unit.
        meaning: int64 (u,): equal for units whose normalised texts are equal.
        image: int64 (u,): equal for units that stand with the same image.
    """

    order: np.ndarray
    start: np.ndarray
    sizes: np.ndarray
    meaning: np.ndarray
    image: np.ndarray

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.sizes)

    @property
    def first(self) -> np.ndarray:
        """int64 (u,): the first row of each unit."""
        return self.order[self.start]

    @staticmethod
    def of(texts: Sequence[str | None], image_ids: np.ndarray | None, *, whole_images: bool) -> Units:
        """Units of single rows, or of all the rows of an image that have a text."""
        rows = np.flatnonzero(has_text(texts))
        image, meaning = image_numbers(image_ids, len(texts))[rows], text_ids(texts)[rows]
        if not whole_images:
            one = np.arange(len(rows))
            return Units(order=rows, start=one, sizes=np.ones_like(one), meaning=meaning, image=image)
        ids, first, sizes = np.unique(image[np.argsort(image, kind="stable")], return_index=True, return_counts=True)
        order = np.argsort(image, kind="stable")
        known: dict[tuple[int, ...], int] = {}
        said = [tuple(sorted(meaning[order[a : a + b]].tolist())) for a, b in zip(first, sizes)]
        same = np.array([known.setdefault(key, len(known)) for key in said], np.int64)
        return Units(order=rows[order], start=first, sizes=sizes, meaning=same, image=ids)

    def mean(self, features: np.ndarray) -> np.ndarray:
        """float32 (u, d): the direction of each unit's mean text feature, of length 1 (or 0)."""
        if not self.count:
            return np.zeros((0, features.shape[1]), np.float32)
        sums = np.add.reduceat(np.asarray(features[self.order], np.float32), self.start, axis=0)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    def clash(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """True where an exchange would leave the text right: the same text, or a text of the same image."""
        return (self.meaning[one] == self.meaning[other]) | (self.image[one] == self.image[other])


def image_numbers(image_ids: np.ndarray | None, n: int) -> np.ndarray:
    """int64 (n,): `image_ids` of any type as numbers; every row its own image if there are none.

    Raises:
        ValueError: If there are not n of them.
    """
    if image_ids is None:
        return np.arange(n)
    if len(image_ids) != n:
        raise ValueError(f"{len(image_ids)} image_ids for {n} texts")
    ids = np.asarray(image_ids)
    return np.unique(ids.astype(str) if ids.dtype == object else ids, return_inverse=True)[1].astype(np.int64)


def choose(rng: np.random.Generator, count: int, ratio: float, *, least: int) -> np.ndarray:
    """Exactly `round(ratio * count)` of 0..count-1, ascending.

    Raises:
        UsageError: If that is more than none and fewer than `least`.
    """
    size = round(ratio * count)
    if 0 < size < least:
        raise UsageError(
            f"Noise of ratio {ratio} would move {size} of {count} texts or images, and a swap needs {least}; "
            "use a larger ratio or more data."
        )
    return np.sort(rng.choice(count, size, replace=False))


def derange(rng: np.random.Generator, group: np.ndarray, units: Units) -> np.ndarray:
    """A partner for each unit of the group, none its own, and with another text wherever some passes can find one.

    Args:
        rng: Source of randomness.
        group: Distinct units (m,), m >= 2.
        units: All units.

    Returns:
        int64 (m,): a permutation of `group` without a fixed point.
    """
    ring = rng.permutation(len(group))
    take = np.empty_like(ring)
    take[ring] = np.roll(ring, -1)
    dry = 0
    for _ in range(REPAIRS):
        bad = np.flatnonzero(units.clash(group, group[take]))
        fixed = 0
        for a, b in zip(bad.tolist(), rng.integers(len(group), size=len(bad)).tolist()):
            x, y = take[a], take[b]
            if a == b or x == b or y == a:
                continue
            before = units.clash(group[[a, b]], group[[x, y]]).sum()
            if units.clash(group[[a, b]], group[[y, x]]).sum() < before:
                take[a], take[b], fixed = y, x, fixed + 1
        dry = 0 if fixed else dry + 1
        if not len(bad) or dry == 3:
            break
    return group[take]


def grouped(keys: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Chosen units by equal key, no group of one: single ones join a single one next to them in order of key.

    Args:
        keys: (u,) sortable.
        chosen: Units (m,), m = 0 or m >= 2.

    Returns:
        Disjoint groups of at least two, together all of `chosen`.
    """
    order = chosen[np.argsort(keys[chosen], kind="stable")]
    cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    runs = np.split(order, cuts) if len(order) else []
    out = [run for run in runs if len(run) > 1]
    singles = [run for run in runs if len(run) == 1]
    if len(singles) == 1:
        place = next(i for i, run in enumerate(runs) if len(run) == 1)
        out[max(place - 1, 0)] = np.concatenate([out[max(place - 1, 0)], singles[0]])
    elif singles:
        pool = np.concatenate(singles)
        out += np.split(pool, range(2, len(pool) - 1, 2))
    return out


def match_near(
    rng: np.random.Generator, vectors: np.ndarray, group: np.ndarray, units: Units, neighbors: int
) -> np.ndarray:
    """Swap each unit of the group with one of its nearest free ones.

    Args:
        rng: Source of randomness.
        vectors: float32 (m, d), rows of length 1.
        group: Distinct units (m,), m = 0 or m >= 2.
        units: All units.
        neighbors: A partner is drawn among this many nearest free units.

    Returns:
        int64 (m,): a permutation of `group` without a fixed point.
    """
    take = np.arange(len(group))
    rest = np.arange(len(group))
    while len(rest) > 1:
        after = np.concatenate([_pair_off(rng, vectors, cell, group, units, neighbors, take)
                                for cell in _cells(rng, vectors, rest)])  # fmt: skip
        if len(after) == len(rest):
            break
        rest = after
    if len(rest):  # what found no partner is shuffled together with some pairs that did
        others = rng.permutation(np.setdiff1d(np.arange(len(group)), rest))[: 2 * len(rest)]
        rows = np.unique(np.concatenate([rest, others, take[others]]))
        back = np.full(units.count, -1)
        back[group[rows]] = rows
        take[rows] = back[derange(rng, group[rows], units)]
    return group[take]


def _cells(rng: np.random.Generator, vectors: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rows into parts of at most CELL by halving along the line between two random ones."""
    stack = [rows]
    while stack:
        part = stack.pop()
        if len(part) <= CELL:
            yield part
            continue
        one, other = rng.choice(part, 2, replace=False)
        order = np.argsort(vectors[part] @ (vectors[one] - vectors[other]), kind="stable")
        stack += [part[order[len(part) // 2 :]], part[order[: len(part) // 2]]]


def _pair_off(
    rng: np.random.Generator,
    vectors: np.ndarray,
    cell: np.ndarray,
    group: np.ndarray,
    units: Units,
    neighbors: int,
    take: np.ndarray,
) -> np.ndarray:
    """Swap rows of a cell pairwise in `take`; return those left over."""
    similarity = vectors[cell] @ vectors[cell].T
    similarity[units.clash(group[cell][:, None], group[cell][None, :])] = -np.inf  # also every row with itself
    count = min(neighbors, len(cell))
    near = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    near.sort(axis=1)  # argpartition leaves them in no order worth relying on
    free = np.ones(len(cell), bool)
    for a in rng.permutation(len(cell)).tolist():
        options = near[a][free[near[a]] & np.isfinite(similarity[a, near[a]])] if free[a] else near[a][:0]
        if len(options):
            b = int(options[rng.integers(len(options))])
            take[cell[a]], take[cell[b]] = cell[b], cell[a]
            free[a] = free[b] = False
    return cell[free]


def swapped(units: Units, partner: np.ndarray, n: int) -> np.ndarray:
    """The row each text now comes from when unit i gets the texts of unit `partner[i]`.

    Args:
        units: All units.
        partner: int64 (u,): a permutation of the units.
        n: Number of rows.

    Returns:
        int64 (n,). Where sizes differ, texts are repeated in order, or the last ones are left out.
    """
    source = np.arange(n)
    owner = np.repeat(np.arange(units.count), units.sizes)
    place = np.arange(len(owner)) - units.start[owner]
    giver = partner[owner]
    source[units.order] = units.order[units.start[giver] + place % units.sizes[giver]]
    return source
