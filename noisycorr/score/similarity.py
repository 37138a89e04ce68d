"""Margin of a pair against everything else: how far its similarity stands out for its image and for its text.

Generic texts are similar to every image and hub images to every text; a plain cosine lets them win. Standardising each
pair by its own row and its own column of similarities takes that advantage away.
"""

from __future__ import annotations

import numpy as np

from noisycorr.score.view import BLOCK, Repaired, Signal, unit

REFERENCES = 512


def margin(
    image: np.ndarray,
    text: np.ndarray,
    given: np.ndarray,
    null: np.ndarray,
    pairs: Repaired,
    fold: np.ndarray,
    seed: int,
) -> Signal:
    """Two-sided standardised similarity.

        margin_ij = (s_ij - mean_k s_ik) / std_k s_ik  +  (s_ij - mean_k s_kj) / std_k s_kj

    with the means over up to 512 random rows of the same fold, so cost is linear in n.

    Args:
        image: (n, d) features in the common space of their fold.
        text: (n, d).
        given: float32 (n,) similarity of each pair, NaN where missing.
        null: float32 (m,) similarity of the re-paired pairs.
        pairs: Which they are.
        fold: int (n,): only rows of one fold share a space.
        seed: For the choice of references.

    Returns:
        Margins of given and re-paired pairs, in standard deviations, higher = better matched; NaN where a fold holds
        fewer than two pairs. A re-paired pair is compared with what is usual for its image and its text, exactly as a
        given one.
    """
    n = len(given)
    stats = np.full((n, 4), np.nan, np.float32)  # mean and deviation over texts, then over images
    rng = np.random.default_rng([seed, 11])
    for part in np.unique(fold):
        rows = np.flatnonzero(fold == part)
        usable = rows[np.isfinite(given[rows])]
        if len(usable) < 2:
            continue
        chosen = np.sort(rng.choice(usable, min(REFERENCES, len(usable)), replace=False))
        others_image, others_text = unit(image[chosen]), unit(text[chosen])
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            stats[some, :2] = _mean_and_deviation(unit(image[some]) @ others_text.T)
            stats[some, 2:] = _mean_and_deviation(unit(text[some]) @ others_image.T)
    own = np.arange(n)
    return Signal(_standardise(given, stats, own, own), _standardise(null, stats, pairs.image, pairs.text))


def _mean_and_deviation(similarity: np.ndarray) -> np.ndarray:
    return np.stack([similarity.mean(1), np.maximum(similarity.std(1), 1e-4)], axis=1)


def _standardise(similarity: np.ndarray, stats: np.ndarray, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    by_image = (similarity - stats[image, 0]) / stats[image, 1]
    by_text = (similarity - stats[text, 2]) / stats[text, 3]
    return (by_image + by_text).astype(np.float32)
