"""What scorers see: embeddings and identities, never the truth (law 4).

Re-pairing is the common tool: a pair of image i and text j that nobody claimed to belong together shows how a wrong
pair scores. `shuffled_pairs` draws such pairs; every signal can score them the same way as the given ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from noisycorr.data.columns import release
from noisycorr.stats.unit import unit

BLOCK = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class PairEmbeddings:
    """Embeddings of n pairs, with who is who.

    Attributes:
        image: Parts of (n, d) image features in row order; zero rows where there is no image.
        text: Parts of (n, e) text features.
        text_id: int (n,): equal where the normalised texts are equal.
        image_id: int (n,): equal where the pictures are the same or near-duplicates.
        present: bool (n,): both features exist.
        seed: Of everything random.
        picture: int (n,): equal where the pictures are the same, copies only; None = as `image_id`. Near-duplicates can
            differ in what matters (flags, signs), so they are no witnesses of each other's texts.
    """

    image: Sequence[np.ndarray]
    text: Sequence[np.ndarray]
    text_id: np.ndarray
    image_id: np.ndarray
    present: np.ndarray
    seed: int
    picture: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.text_id)


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal on the given pairs and on re-paired ones; higher = better matched."""

    given: np.ndarray  # float32 (n,), NaN where it cannot be computed
    null: np.ndarray  # float32 (m,)


@dataclass(frozen=True, slots=True)
class ShuffledPairs:
    """Pairs of image `image[k]` and text `text[k]` that nobody claimed to belong together."""

    image: np.ndarray  # int (m,) rows
    text: np.ndarray  # int (m,) rows
    near: np.ndarray  # bool (m,): the text is a neighbour of the image's own text; drawn by `with_near_misses`


def shuffled_pairs(view: PairEmbeddings, fold: np.ndarray, *, count: int = 100_000) -> ShuffledPairs:
    """Draw wrong pairs: image and text of different rows of one fold, which no row of the set puts together.

    Args:
        view: The pairs.
        fold: int (n,): both rows come from the same fold, so that heads which saw neither can score the pair.
        count: About how many; never more than four for each row.

    Returns:
        Rows of images and texts. Fewer than asked where texts repeat much; none if all texts are equal.
    """
    rng = np.random.default_rng([view.seed, 17])
    image, text = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in np.unique(fold[view.present]):
        rows = np.flatnonzero(view.present & (fold == part))
        wanted = min(4 * len(rows), max(1, count * len(rows) // max(1, int(view.present.sum()))))
        image.append(rows[rng.integers(len(rows), size=wanted)])
        text.append(rows[rng.integers(len(rows), size=wanted)])
    one, two = np.concatenate(image), np.concatenate(text)
    good = _unclaimed(view, one, two)
    return ShuffledPairs(one[good], two[good], np.zeros(int(good.sum()), bool))


def with_near_misses(
    pairs: ShuffledPairs, view: PairEmbeddings, fold: np.ndarray, *, limit: int = 20_000
) -> ShuffledPairs:
    """Add wrong pairs that look right: an image with one of the ten texts that are most like its own, but another one.

    They teach the combination of signals to tell small differences. They do not calibrate: how much of the noise is of
    this kind cannot be known without labels.

    Args:
        pairs: Pairs drawn at random.
        view: The pairs.
        fold: int (n,): both rows come from the same fold.
        limit: Distinct texts that are searched, and pairs that are drawn, at most; drawn at random.

    Returns:
        The given pairs and at most two near misses for each row.
    """
    rng = np.random.default_rng([view.seed, 23])
    rows = np.flatnonzero(view.present)
    texts = rows[np.unique(view.text_id[rows], return_index=True)[1]]
    texts = np.sort(rng.choice(texts, limit, replace=False)) if len(texts) > limit else texts
    if len(texts) < 2:
        return pairs
    image = np.sort(rng.choice(rows, min(2 * len(rows), limit)))
    near = _similar_texts(view, image, texts, rng)
    by_text = np.lexsort((view.text_id[rows], fold[rows]))  # rows of one fold and text stand together
    wide = int(view.text_id.max()) + 1  # present rows have ids from 0
    place = (fold[rows] * wide + view.text_id[rows])[by_text]
    wanted = fold[image] * wide + view.text_id[near]
    low, high = np.searchsorted(place, wanted, "left"), np.searchsorted(place, wanted, "right")
    found = high > low
    text = rows[by_text[np.minimum(low + (rng.random(len(low)) * (high - low)).astype(np.int64), len(rows) - 1)]]
    good = found & _unclaimed(view, image, text)
    mark = np.concatenate([pairs.near, np.ones(int(good.sum()), bool)])
    return ShuffledPairs(np.concatenate([pairs.image, image[good]]), np.concatenate([pairs.text, text[good]]), mark)


def _unclaimed(view: PairEmbeddings, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """bool (m,): other picture and other text, and no row of the set shows this picture with this text."""
    width = int(view.text_id.max()) + 2 if view.n else 1  # ids begin at -1
    claimed = view.image_id.astype(np.int64) * width + view.text_id
    out = (view.text_id[image] != view.text_id[text]) & (view.image_id[image] != view.image_id[text])
    return out & ~np.isin(view.image_id[image].astype(np.int64) * width + view.text_id[text], claimed)


def _similar_texts(view: PairEmbeddings, image: np.ndarray, texts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int (k,): for each row one of the ten texts that are most like its own, equal ones left out."""
    others = unit(take(view.text, texts))
    count = min(10, len(texts) - 1)
    out = np.empty(len(image), np.int64)
    for start in range(0, len(image), 1024):
        some = image[start : start + 1024]
        like = unit(take(view.text, some)) @ others.T
        like[view.text_id[some][:, None] == view.text_id[texts][None]] = -2
        best = np.argpartition(-like, count - 1, axis=1)[:, :count]
        out[start : start + 1024] = texts[best[np.arange(len(some)), rng.integers(count, size=len(some))]]
    return out


def blocks(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows in float32) for blocks of at most 16,384 rows, in order."""
    first = 0
    for part in parts:
        for start in range(0, len(part), BLOCK):
            yield first + start, np.asarray(part[start : start + BLOCK], np.float32)
        release(part)
        first += len(part)


def take(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows (k, d) in their stored precision, in the order asked."""
    starts = np.cumsum([0] + [len(part) for part in parts])
    out = np.empty((len(rows), parts[0].shape[1]), parts[0].dtype)
    where = np.searchsorted(starts, rows, side="right") - 1
    for number, part in enumerate(parts):
        mine = np.flatnonzero(where == number)
        if len(mine):
            order = mine[np.argsort(rows[mine], kind="stable")]  # in file order: memory maps like it
            out[order] = part[rows[order] - starts[number]]
            release(part)
    return out


def pair_cosine(image: Sequence[np.ndarray], text: Sequence[np.ndarray], pairs: ShuffledPairs) -> np.ndarray:
    """float32 (m,): cosine of image `pairs.image[k]` and text `pairs.text[k]`; d must agree."""
    out = np.empty(len(pairs.image), np.float32)
    for start in range(0, len(out), BLOCK):
        rows = slice(start, start + BLOCK)
        out[rows] = (unit(take(image, pairs.image[rows])) * unit(take(text, pairs.text[rows]))).sum(1)
    return out


def own_cosine(image: Sequence[np.ndarray], text: Sequence[np.ndarray]) -> np.ndarray:
    """float32 (n,): cosine of each image with its own text; NaN where either is missing."""
    out = []
    for (_, one), (_, two) in zip(blocks(image), blocks(text)):
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            out.append((np.einsum("nd,nd->n", one, two) / np.where(lengths > 0, lengths, np.nan)).astype(np.float32))
    return np.concatenate(out) if out else np.zeros(0, np.float32)
