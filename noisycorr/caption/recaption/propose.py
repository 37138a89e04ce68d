"""Pseudo-captions by retrieval: a picture without a right text borrows the text of a trusted picture.

Three ways to choose the donor, all model-free: the nearest image, the neighbour whose text says what the neighbours
have in common, and the pair of the most similar pseudo-class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Bool, Float, Int

from noisycorr.clean.signals.neighbors import POWER
from noisycorr.clean.signals.view import take
from noisycorr.stats.index import neighbors
from noisycorr.stats.unit import unit

Parts = Sequence[np.ndarray]
SPARE = 32  # neighbours that are asked for beyond k, in case some show the same picture
ROWS, TRUSTED = 512, 16384  # that are compared at once


@dataclass(frozen=True, slots=True)
class Donors:
    """Trusted pairs for each of m rows, most similar image first.

    Attributes:
        ids: int64 (m, k) rows of the set; -1 = none.
        weight: float32 (m, k): similarity of the images to the power of 4 times the trust in the pair; 0 = none.
    """

    ids: np.ndarray
    weight: np.ndarray


def find_donors(image: Parts, rows: Int[np.ndarray, " m"], trust: Float[np.ndarray, " n"],
                 group: Int[np.ndarray, " n"], *, k: int, same_image: bool, seed: int,
                 queries: Float[np.ndarray, "m d"] | None = None) -> Donors:  # fmt: skip
    """The k trusted pairs whose images are nearest.

    Args:
        image: Parts of (n, d) features.
        rows: Pairs that need a text; none of them should be trusted.
        trust: Probability that a pair is right; 0 = lends nothing.
        group: Equal for the same picture.
        k: Donors of each row, >= 1; fewer where there are no more.
        same_image: Let the same picture lend, too. Its text is right, but then the pair is there twice.
        seed: Of approximate search.
        queries: Other features to search with, or None for those of the rows.
    """
    asked = take(image, rows).astype(np.float32) if queries is None else queries
    near = neighbors(list(image), k + (0 if same_image else SPARE), seed=seed, queries=asked, skip=~(trust > 0))
    ids, sims = near.ids, np.maximum(np.nan_to_num(near.similarity), 0)
    bad = _bad(ids, rows, group, same_image)
    left = np.flatnonzero(bad.all(1) & (ids >= 0).any(1))
    if len(left):  # copies crowd out all others: few of each picture leave room
        few = _first_copies(group, np.flatnonzero(trust > 0))
        near = neighbors(list(image), ids.shape[1], seed=seed, queries=asked[left], skip=~few)
        ids[left], sims[left] = near.ids, np.maximum(np.nan_to_num(near.similarity), 0)
        bad[left] = _bad(near.ids, rows[left], group, same_image)
    order = np.argsort(bad, axis=1, kind="stable")[:, :k]
    ids, sims, bad = (np.take_along_axis(x, order, 1) for x in (ids, sims, bad))
    weight = np.where(bad, 0.0, np.maximum(sims, 1e-6) ** POWER * trust[np.maximum(ids, 0)])
    return Donors(np.where(bad, -1, ids), weight.astype(np.float32))


def _bad(ids: np.ndarray, rows: np.ndarray, group: np.ndarray, same_image: bool) -> np.ndarray:
    """bool (m, k): who lends nothing to a row: nobody, itself, and its own picture if that is so."""
    own = np.zeros_like(ids, bool) if same_image else group[np.maximum(ids, 0)] == group[rows][:, None]
    return np.asarray((ids < 0) | own | (ids == rows[:, None]))


def _first_copies(group: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """bool (n,): the first `SPARE` of these rows of each picture."""
    order = rows[np.argsort(group[rows], kind="stable")]
    _, start, count = np.unique(group[order], return_index=True, return_counts=True)
    out = np.zeros(len(group), bool)
    out[order[np.arange(len(order)) - np.repeat(start, count) < SPARE]] = True
    return out


def nearest_donor(donors: Donors) -> Int[np.ndarray, " m"]:
    """The donor with the nearest image; -1 = none. Source: SPS (IJCAI 2025) borrows so."""
    return donors.ids[:, 0].copy() if donors.ids.shape[1] else np.full(len(donors.ids), -1)


def agreeing_donor(donors: Donors, text: Parts, mean: Float[np.ndarray, " e"]) -> Int[np.ndarray, " m"]:
    """The donor whose text is nearest to what the texts of all k say together; -1 = none.

        c_i = unit(sum_k w_ik (t_k - mean)),   donor = argmax_k cos(t_k - mean, c_i)

    Args:
        donors: k of each row; ties go to the nearer image.
        text: Parts of (n, e) features.
        mean: What all texts have in common.

    Source: ours; the mean is the prototype of IN2R (ICML 2026), which is no text and cannot be written down.
    """
    out = np.full(len(donors.ids), -1, np.int64)
    for start in range(0, len(out), 2048):
        ids, weight = donors.ids[start : start + 2048], donors.weight[start : start + 2048]
        said = take(text, np.maximum(ids, 0).ravel()).astype(np.float32).reshape(*ids.shape, -1)
        weight = np.where((ids >= 0) & said.any(2), weight, 0)
        said = unit(said - mean)
        common = unit(np.einsum("mk,mke->me", weight, said))
        near = np.where(weight > 0, np.einsum("mke,me->mk", said, common), -np.inf)
        best = near.argmax(1)
        some = weight.any(1)
        out[start : start + 2048] = np.where(some, ids[np.arange(len(ids)), best], -1)
    return out


def class_donor(donors: Donors, of_trusted: Donors, trusted: Int[np.ndarray, " t"], text: Parts, image: Parts,
                 rows: Int[np.ndarray, " m"], group: Int[np.ndarray, " n"], *, classes: int, same_image: bool,
                 threshold: float, seed: int) -> Int[np.ndarray, " m"]:  # fmt: skip
    """The trusted pair whose image is most surely of the same pseudo-class; -1 = none.

        p_i = weighted share of each class among the donors of image i,   donor = argmax_j cos(p_i, p_j)

    Args:
        donors: k trusted neighbours of each of the m rows.
        of_trusted: Those of the t trusted pairs.
        trusted: Rows of the trusted pairs.
        text: Parts of (n, e) features; the classes are clusters of the trusted ones.
        image: Parts of (n, d) features; they decide between donors of equal class.
        rows: The m rows.
        group: int (n,): equal for the same picture.
        classes: Number of clusters, >= 2.
        same_image: Let the same picture lend.
        threshold: Cosine of classes below which nothing is borrowed.
        seed: Of the clusters.

    Source: PC2 (Duan et al., ACM MM 2024), pseudo-captions.
    Differs: classes are clusters of trusted texts and an image's come from its neighbours; PC2 trains a classifier on
    both sides. Ties in class go to the nearer image; PC2 takes the first of the batch.
    """
    classes = min(classes, max(2, len(trusted) // 8), len(trusted))
    said = unit(take(text, trusted))
    means = faiss.Kmeans(said.shape[1], classes, niter=15, seed=seed, spherical=True, min_points_per_centroid=1)
    means.train(said)
    label = np.full(len(group), -1)
    label[trusted] = means.index.search(said, 1)[1][:, 0]
    mine, theirs = (unit(_shares(one, label, classes)) for one in (donors, of_trusted))
    pictures = unit(take(image, rows))
    out, most, share = np.full(len(rows), -1, np.int64), np.full(len(rows), -np.inf), np.zeros(len(rows))
    for first in range(0, len(trusted), TRUSTED):
        lending = slice(first, first + TRUSTED)
        shown = unit(take(image, trusted[lending]))
        for start in range(0, len(rows), ROWS):
            some = np.arange(start, min(start + ROWS, len(rows)))
            near = mine[some] @ theirs[lending].T
            value = np.round(near, 3) + 1e-4 * (pictures[some] @ shown.T)
            if not same_image:
                value[group[rows[some]][:, None] == group[trusted[lending]][None]] = -np.inf
            best = value.argmax(1)
            at = np.arange(len(best))
            higher = value[at, best] > most[some]  # of equal ones the first
            now = some[higher]
            out[now], most[now] = trusted[lending][best[higher]], value[at, best][higher]
            share[now] = near[at, best][higher]
    return np.where(share >= threshold, out, -1)


def _shares(donors: Donors, label: np.ndarray, classes: int) -> np.ndarray:
    """float32 (m, classes): weighted counts of the donors' classes."""
    out = np.zeros((len(donors.ids), classes), np.float32)
    held = (donors.ids >= 0) & (donors.weight > 0)
    row, _ = np.nonzero(held)
    np.add.at(out, (row, label[donors.ids[held]]), donors.weight[held])
    return out


def trusted_rows(p_clean: Float[np.ndarray, " n"], kept: Bool[np.ndarray, " n"], *,
                 least: float) -> Float[np.ndarray, " n"]:  # fmt: skip
    """Trust in each pair as a donor: its p_clean if it is kept and that is at least ``least``, else 0."""
    p = np.nan_to_num(np.asarray(p_clean, np.float32))
    return np.where(kept & (p >= least), p, 0.0).astype(np.float32)
