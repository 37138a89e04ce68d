"""Near-duplicates: groups of images, of texts, and of pairs in which both are alike.

An image that stands there twice with the same text counts twice in training and leaks from train to test. The same
image with another text is no duplicate pair, but the two must never be each other's negatives (law 7), so groups of
images and of texts are kept as well. No matrix of all pairs is made: alikeness is looked up among nearest neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from noisycorr.clean.signals.sides import Side, first_neighbors, search_side
from noisycorr.data.columns import codes, rows_of
from noisycorr.data.noise.swaps import text_ids
from noisycorr.stats.index import Features, take_rows

WIDE = 20_000  # in larger clusters a centre is compared with rows two steps away only


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What counts as a near-duplicate, and which member of a group is kept.

    Attributes:
        image_threshold: Images with at least this cosine are near-duplicates.
        text_threshold: The same for texts; texts that are equal after normalisation always are.
        phash_distance: Images whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates as
            well, if their cosine is at least `phash_threshold`. The hash alone is not trusted: blank images share it.
        phash_threshold: Smallest cosine at which equal hashes count; see `phash_distance`.
        neighbors: Number of neighbours searched for each row; larger clusters are still found through one another.
        keeper: Which pair of a group is kept: best_score (highest score), largest (most pixels) or first.
        seed: Random seed of the approximate search on large sets.

    Raises:
        ValueError: If a threshold is outside [-1, 1], a count is out of range or `keeper` is another word.

    The defaults were chosen on copies made by JPEG quality 40, scaling to 60 %, cropping 5 % and brightness -20 % and
    +15 %, up to 200 images each of 60 to 256 px (embedded encoder). Found: 94 % of the copies of COCO and of Caltech
    photos (cropped ones 73 %, others 97 to 100 %), 92 % of fashion photos, 75 % of clip art, whose thin lines suffer
    most. Of all rows grouped with a copy, 100 %, 99 % and 96 % show the same original; clip art holds long series of
    its own that are rightly alike. Among the originals themselves 22 of 2,073 Caltech photos have a near-duplicate
    (by eye all 12 that were looked at are), none of 101 of COCO, and 120 of 3,000 fashion photos, which mostly show
    two articles of one make: in catalogues the look says less, and it takes equal texts to make duplicate pairs (14).
    Text: 0.98 joins "a photo of a cat" with "photo of a cat" and keeps "left arrow" (0.94) from "right arrow".
    """

    image_threshold: float = 0.95
    text_threshold: float = 0.98
    phash_distance: int = 2
    phash_threshold: float = 0.8
    neighbors: int = 10
    keeper: Literal["best_score", "largest", "first"] = "best_score"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("image_threshold", "text_threshold", "phash_threshold"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected -1 to 1")
        if not 0 <= self.phash_distance <= 64:
            raise ValueError(f"phash_distance is {self.phash_distance}, expected 0 to 64 bits")
        if self.neighbors < 1:
            raise ValueError(f"neighbors is {self.neighbors}, expected at least 1")
        if self.keeper not in ("best_score", "largest", "first"):
            raise ValueError(f'keeper is {self.keeper!r}, expected "best_score", "largest" or "first"')


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateGroups:
    """Who is like whom. A group is named by its smallest row; -1 is a row without near-duplicates.

    Attributes:
        image: int64 (n,): groups of images.
        text: int64 (n,): groups of texts.
        pair: int64 (n,): groups of pairs that are in one group of images and in one group of texts.
        score: float32 (n,) near_duplicate_score in [0, 1], lower = worse: 1 minus the smaller of the cosines to the
            nearest other image and to the nearest other text; at most 0.5 in a group of pairs, at least 0.5 elsewhere.
        method: How neighbours were found, and with which recall.
    """

    image: np.ndarray
    text: np.ndarray
    pair: np.ndarray
    score: np.ndarray
    method: str


def near_duplicates(
    image_features: Features,
    text_features: Features,
    image_hash: Sequence[str | None],
    image_phash: Sequence[int | None] | None,
    texts: Sequence[str | None],
    *,
    choice: Duplicates,
    threads: int | None = None,
    sides: tuple[Side, Side] | None = None,
) -> DuplicateGroups:
    """Find near-duplicates.

    A group is a star: everyone in it is a near-duplicate of its centre, the row with most near-duplicates. So
    likeness does not wander off along a chain, and two rows of a group are never further apart than two steps.

    Args:
        image_features: (n, d) or its parts, rows of any length; zeros for a missing image.
        text_features: (n, e) or its parts; zeros for a missing text.
        image_hash: n hashes of the encoded bytes; equal ones are the same image whatever its features. None = unknown.
        image_phash: n perceptual hashes as integers, or None for a row or for all where there was no picture.
        texts: The n texts as they came; blank ones are in no group.
        choice: What counts.
        threads: Of the neighbour search; None leaves the setting of faiss.
        sides: What `search_sides` found among images and among texts, or None to search now.

    Returns:
        Groups; same input, same groups.

    Raises:
        UsageError: If features have no shape (rows, numbers).
        ValueError: If the columns differ in length.
    """
    images, words = _parts(image_features), _parts(text_features)
    n = len(texts)
    lengths = {
        len(image_hash),
        sum(map(len, images)),
        sum(map(len, words)),
        n if image_phash is None else len(image_phash),
    }
    if lengths != {n}:
        raise ValueError(f"columns have {sorted(lengths | {n})} rows, expected the same number")
    bits = _Bits.of(image_phash, choice) if image_phash is not None else None
    if sides is None:
        sides = search_sides(images, words, codes(image_hash), text_ids(texts), choice.neighbors, seed=choice.seed,
                             threads=threads)  # fmt: skip
    found_image, found_text = (side.distinct for side in sides)
    image, near_image = _group(images, sides[0], choice.image_threshold, bits, choice.neighbors)
    text, near_text = _group(words, sides[1], choice.text_threshold, None, choice.neighbors)
    pair = _both(image, text)
    lone = 1 - np.fmin(near_image, near_text)
    score = np.where(pair >= 0, np.clip(lone, 0, 0.5), np.clip(lone, 0.5, 1)).astype(np.float32)
    method = "; ".join(
        f"{name}: {found.method}, recall {found.recall:.3f}"
        for name, found in (("images", found_image), ("texts", found_text))
    )
    return DuplicateGroups(image=image, text=text, pair=pair, score=score, method=method)


def keepers(
    group: np.ndarray, score: np.ndarray, area: np.ndarray, *, keeper: Literal["best_score", "largest", "first"]
) -> np.ndarray:
    """Which row of each group stays.

    Args:
        group: int64 (n,) of `DuplicateGroups`; -1 is a row alone.
        score: (n,) higher = better matched; NaN is lower than any.
        area: (n,) pixels, width * height; NaN is smaller than any.
        keeper: See `Duplicates`. "best_score" looks at the area next, "largest" at the score; then the first row wins.

    Returns:
        bool (n,): True for exactly one row of each group and for every row alone.
    """
    worth = {"best_score": (score, area), "largest": (area, score), "first": ()}[keeper]
    columns = [-np.nan_to_num(np.asarray(column, np.float64), nan=-np.inf) for column in worth]
    grouped = np.flatnonzero(group >= 0)
    order = grouped[np.lexsort([column[grouped] for column in (*columns[::-1], group)])]
    out = np.asarray(group) < 0
    out[order[np.unique(group[order], return_index=True)[1]]] = True
    return out


def group_names(groups: DuplicateGroups, uids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names that stay the same when rows are shuffled or read in other pieces.

    Args:
        groups: Of `near_duplicates`.
        uids: n stable identities.

    Returns:
        near_duplicate_group: object (n,): 16 hexadecimal digits, hashed from the kind and the smallest uid of the
        group; None alone. And group_kind: object (n,) "pair", "image", "text" (the first that applies) or None.
    """
    names, kinds = np.full(len(uids), None, object), np.full(len(uids), None, object)
    for kind in ("text", "image", "pair"):  # later ones win
        group = getattr(groups, kind)
        if (group < 0).all():
            continue
        smallest: dict[int, str] = {}
        rows = np.flatnonzero(group >= 0)
        for number, uid in zip(group[rows].tolist(), rows_of(uids, rows)):
            smallest[number] = min(smallest.get(number, uid), uid)
        digest = {
            number: hashlib.blake2b(f"{kind}\0{uid}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            for number, uid in smallest.items()
        }
        for row in rows.tolist():
            names[row], kinds[row] = digest[int(group[row])], kind
    return names, kinds


@dataclass(frozen=True, slots=True)
class _Bits:
    """Perceptual hashes and how they count."""

    value: np.ndarray  # uint64 (n,)
    known: np.ndarray  # bool (n,)
    distance: int
    threshold: float

    @staticmethod
    def of(phash: Sequence[int | None], choice: Duplicates) -> _Bits:
        known = np.fromiter((bits is not None for bits in phash), bool, len(phash))
        value = np.fromiter((0 if bits is None else bits for bits in phash), np.uint64, len(phash))
        return _Bits(value, known, choice.phash_distance, choice.phash_threshold)

    def agree(self, one: np.ndarray, other: np.ndarray, cosine: np.ndarray) -> np.ndarray:
        differing = np.unpackbits((self.value[one] ^ self.value[other]).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
        return self.known[one] & self.known[other] & (differing <= self.distance) & (cosine >= self.threshold)


def search_sides(
    images: list[np.ndarray], words: list[np.ndarray], image_code: np.ndarray, text_id: np.ndarray, k: int, *,
    seed: int, target_recall: float = 0.95, threads: int | None = None,
) -> tuple[Side, Side]:  # fmt: skip
    """Neighbours among images and among texts, for whatever asks for them: equal bytes and equal texts are copies.

    Args:
        images: Parts of (n, d) features.
        words: Parts of (n, e) features.
        image_code: int64 (n,) of `codes`: equal for images of equal bytes, -1 where they are not known.
        text_id: int64 (n,) of `text_ids`: equal for texts that are equal when normalised, -1 for blank ones.
        k: Neighbours of each row.
        seed: For the approximate search of large sets.
        target_recall: Of that search.
        threads: Of faiss; None leaves its setting.
    """
    image, text = (
        search_side(parts, code, k, seed=seed, target_recall=target_recall, threads=threads)
        for parts, code in ((images, image_code), (words, text_id))
    )
    return image, text


def _group(
    parts: list[np.ndarray], side: Side, threshold: float, bits: _Bits | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Groups over rows of one side; cosine to the nearest other row (0 = none)."""
    n, first, near = len(side.original), side.original, first_neighbors(side.distinct, k)
    one, place = np.nonzero(near.ids >= 0)
    other, cosine = near.ids[one, place], near.similarity[one, place]
    alike = cosine >= threshold
    if bits is not None:
        alike |= bits.agree(one, other, cosine)
    star = _stars(parts, n, one[alike], other[alike], threshold, bits)[first]
    _, least, back, sizes = np.unique(star, return_index=True, return_inverse=True, return_counts=True)
    group = np.where(sizes[back] > 1, least[back], -1)  # a group is named by its smallest row
    nearest = np.where(side.copied, 1.0, np.nan_to_num(near.similarity[first, 0], nan=0.0))
    return group, nearest


def _stars(
    parts: list[np.ndarray], n: int, one: np.ndarray, other: np.ndarray, threshold: float, bits: _Bits | None
) -> np.ndarray:
    """int64 (n,): the centre of each row's star; the row itself if it is alone.

    Clusters of linked rows are split greedily: the row with most links takes everyone who is like it, and so on.
    """
    weights = np.ones(2 * len(one), np.int8)
    graph = csr_array((weights, (np.concatenate([one, other]), np.concatenate([other, one]))), shape=(n, n))
    degree = np.diff(graph.indptr)
    _, label = connected_components(graph, directed=False)
    linked = np.flatnonzero(degree > 0)
    linked = linked[np.argsort(label[linked], kind="stable")]
    centre = np.arange(n)
    for cluster in np.split(linked, np.flatnonzero(np.diff(label[linked])) + 1) if len(linked) else []:
        if len(cluster) == 2:
            centre[cluster] = cluster[0]
            continue
        vectors = take_rows(parts, cluster)
        free = np.ones(len(cluster), bool)
        for hub in np.lexsort((cluster, -degree[cluster])).tolist():
            if not free[hub]:
                continue
            near = np.flatnonzero(free)
            if len(cluster) > WIDE:
                close = np.unique(graph[graph[[cluster[hub]]].indices].indices)
                near = np.searchsorted(cluster, close[np.isin(close, cluster[free])])
            cosine = vectors[near] @ vectors[hub]
            alike = cosine >= threshold
            if bits is not None:
                alike |= bits.agree(cluster[near], np.full(len(near), cluster[hub]), cosine)
            taken = np.append(near[alike], hub)
            centre[cluster[taken]], free[taken] = cluster[hub], False
    return centre


def _both(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Groups of rows that share both groups; -1 alone."""
    group = np.full(len(image), -1, np.int64)
    rows = np.flatnonzero((image >= 0) & (text >= 0))
    code = image[rows] * max(len(image), 1) + text[rows]
    _, least, back, sizes = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    group[rows] = np.where(sizes[back] > 1, rows[least[back]], -1)
    return group


def _parts(features: Features) -> list[np.ndarray]:
    return [features] if isinstance(features, np.ndarray) else list(features)
