"""Retrieval quality: recall at k in both directions, with several texts per image, ties counted against the model.

Classification is retrieval among the texts of classes.

Similarities come in blocks, so that neither features nor set-to-set encoders ever need the whole matrix at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from noisycorr.stats.unit import unit

Blocks = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (image rows (a,), text rows (b,)) -> similarities (a, b)
KS = (1, 5, 10)


def feature_blocks(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "m d"]) -> Blocks:
    """Cosine similarities of features, a block at a time; a zero vector has similarity 0 to all."""

    # in double precision: equal rows must give equal similarities, whatever the shape of the block
    return lambda rows, columns: unit(image[rows], np.float64) @ unit(text[columns], np.float64).T


def mean_blocks(members: Sequence[Blocks]) -> Blocks:
    """An ensemble: the mean of its members' similarities, which should be on one scale.

    Raises:
        ValueError: If there are none.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")

    def block(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        total = np.asarray(members[0](rows, columns), np.float64)
        for member in members[1:]:
            total = total + np.asarray(member(rows, columns), np.float64)
        return total / len(members)

    return block


def retrieval_ranks(blocks: Blocks, image_of: Int[np.ndarray, " m"], images: int, *, chunk: int = 1024,
                    tolerance: float = 1e-9) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:  # fmt: skip
    """Rank of the first right text for each image, and of the right image for each text; 1 = best.

        rank = 1 + number of wrong candidates with similarity >= that of the (best) right one, less tolerance

    Args:
        blocks: Similarities of any image rows and text rows, higher = better matched. A NaN counts against the model.
        image_of: (m,) row of the image to which each text belongs.
        images: n, number of images. Those without a text are candidates only.
        chunk: Largest block is chunk by chunk. Results do not depend on it.
        tolerance: Similarities that are closer are tied, in units of similarity; it covers rounding that depends on
            the shape of a block. Give more where similarities were computed in single precision.

    Returns:
        Ranks of texts for each image (n,), 0 where it has no text; ranks of images for each text (m,).

    Raises:
        ValueError: If ``image_of`` points outside, or a block has the wrong shape.
    """
    image_of = np.asarray(image_of, np.int64)
    if image_of.ndim != 1 or (len(image_of) and not 0 <= image_of.min() <= image_of.max() < images):
        raise ValueError(f"image_of must be (m,) with rows 0 to {images - 1}")
    own = _own(blocks, image_of, images, chunk)
    best = np.full(images, np.nan)
    np.fmax.at(best, image_of, own)
    image_ranks = (np.bincount(image_of, minlength=images) > 0).astype(np.int64)
    text_ranks = np.ones(len(image_of), np.int64)
    for rows in _parts(np.arange(images), chunk):
        for columns in _parts(np.arange(len(image_of)), chunk):
            sims = _block(blocks, rows, columns)
            wrong = rows[:, None] != image_of[columns][None, :]
            image_ranks[rows] += (wrong & ~(sims < best[rows][:, None] - tolerance)).sum(1)
            text_ranks[columns] += (wrong & ~(sims < own[columns][None, :] - tolerance)).sum(0)
    image_ranks[np.bincount(image_of, minlength=images) == 0] = 0
    return image_ranks, text_ranks


def recall_at(ranks: Int[np.ndarray, " n"], k: int) -> float:
    """Share of queries of which the rank is at most k, in percent; NaN without queries. Ranks of 0 are no queries."""
    asked = np.asarray(ranks)[np.asarray(ranks) > 0]
    return float(100 * (asked <= k).mean()) if len(asked) else float("nan")


def fold_metrics(blocks: Blocks, image_of: Int[np.ndarray, " m"], images: int, *, folds: int = 5, chunk: int = 1024,
                 tolerance: float = 1e-9) -> dict[str, float]:  # fmt: skip
    """Recall at 1, 5 and 10 in both directions, their sum, and median ranks: means over parts of consecutive images.

    Each part has its own texts; five parts are COCO's 1K rule, one takes all images at once.

    Args:
        blocks: As in ``retrieval_ranks``: ``feature_blocks``, ``mean_blocks`` or your own.
        image_of: (m,) row of the image to which each text belongs.
        images: Number of images; parts differ by at most one. COCO: 5,000, in five parts of 1,000.
        folds: Number of parts, from 1 to ``images``.
        chunk: Largest block is chunk by chunk.
        tolerance: Similarities that are closer are tied.

    Returns:
        ``text_retrieval_recall@k`` (an image asks, any of its texts is right) and ``image_retrieval_recall@k`` (a text
        asks), in percent, higher = better; ``rSum`` of all six, in [0, 600]; ``text_retrieval_median_rank`` and
        ``image_retrieval_median_rank``, >= 1, lower = better. NaN without queries.

    Raises:
        ValueError: If ``folds`` lies outside 1 to ``images``.

    Source: the protocol of Flickr30K and COCO retrieval (VSE++, Faghri et al., BMVC 2018); names of CLIP_benchmark.
    Differs: ties count against the model; the usual arg-sort lets a constant model score anything from 0 to 600.
    """
    if not 1 <= folds <= images:
        raise ValueError(f"folds is {folds}, expected 1 to {images}")
    image_of = np.asarray(image_of, np.int64)
    parts = []
    for rows in np.array_split(np.arange(images), folds):
        texts = np.flatnonzero((image_of >= rows[0]) & (image_of <= rows[-1]))
        inner = _shift(blocks, rows, texts)
        ranks = retrieval_ranks(inner, image_of[texts] - rows[0], len(rows), chunk=chunk, tolerance=tolerance)
        parts.append(_metrics(*ranks))
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def classification_metrics(blocks: Blocks, label: Int[np.ndarray, " n"], classes: int, *, chunk: int = 1024,
                           tolerance: float = 1e-9) -> dict[str, float]:  # fmt: skip
    """Accuracy of the class whose text is most similar to an image, and of the five most similar.

        rank_i = 1 + number of wrong classes with similarity >= that of the right one, less tolerance

    Args:
        blocks: Similarities of any image rows and class rows, higher = better matched. A NaN counts against the model.
        label: (n,) class of each image.
        classes: c, number of classes.
        chunk: Most images at once.
        tolerance: Similarities that are closer are tied.

    Returns:
        ``acc1`` and ``acc5``, share of images of rank <= 1 and <= 5; ``mean_per_class_recall``, mean over the classes
        with images of the share of rank 1. In percent, higher = better; NaN without images.

    Raises:
        ValueError: If a label lies outside 0 to ``classes`` - 1, or a block has the wrong shape.

    Source: zero-shot classification of CLIP (Radford et al., ICML 2021); names of CLIP_benchmark.
    Differs: ties count against the model; figures are in percent.
    """
    label = np.asarray(label, np.int64)
    if label.ndim != 1 or (len(label) and not 0 <= label.min() <= label.max() < classes):
        raise ValueError(f"label must be (n,) with classes 0 to {classes - 1}")
    ranks = np.ones(len(label), np.int64)
    for rows in _parts(np.arange(len(label)), chunk):
        sims = _block(blocks, rows, np.arange(classes))
        own = sims[np.arange(len(rows)), label[rows]][:, None]
        ranks[rows] += (~(sims < own - tolerance)).sum(1) - 1
    first = np.bincount(label, weights=ranks <= 1, minlength=classes)
    count = np.bincount(label, minlength=classes)
    mean = float(100 * (first[count > 0] / count[count > 0]).mean()) if len(label) else float("nan")
    return {"acc1": recall_at(ranks, 1), "acc5": recall_at(ranks, 5), "mean_per_class_recall": mean}


def _metrics(image_ranks: np.ndarray, text_ranks: np.ndarray) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, ranks in (("text_retrieval", image_ranks), ("image_retrieval", text_ranks)):
        metrics.update({f"{name}_recall@{k}": recall_at(ranks, k) for k in KS})
    metrics["rSum"] = float(sum(metrics.values()))
    for name, ranks in (("text_retrieval", image_ranks), ("image_retrieval", text_ranks)):
        metrics[f"{name}_median_rank"] = float(np.median(ranks[ranks > 0])) if (ranks > 0).any() else float("nan")
    return metrics


def _own(blocks: Blocks, image_of: np.ndarray, images: int, chunk: int) -> np.ndarray:
    """Similarity of each text to its own image, from blocks of few images and their own texts."""
    own = np.full(len(image_of), np.nan)
    order = np.argsort(image_of, kind="stable")
    for columns in _parts(order, max(1, min(chunk, 64))):
        rows, place = np.unique(image_of[columns], return_inverse=True)
        own[columns] = _block(blocks, rows, columns)[place, np.arange(len(columns))]
    return own


def _block(blocks: Blocks, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    sims = np.asarray(blocks(rows, columns), np.float64)
    if sims.shape != (len(rows), len(columns)):
        raise ValueError(f"a block has shape {sims.shape}, expected {(len(rows), len(columns))}")
    return sims


def _parts(rows: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected >= 1")
    return (rows[start : start + chunk] for start in range(0, len(rows), chunk))


def _shift(blocks: Blocks, rows: np.ndarray, columns: np.ndarray) -> Blocks:
    return lambda inner, other: blocks(rows[inner], columns[other])
