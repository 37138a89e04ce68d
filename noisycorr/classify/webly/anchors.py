"""Whom to trust in training: texts completed through similar images, and the best matches of each class.

The formulas are those of the audit (`score/completion.py`, `score/anchors.py`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from noisycorr.classify.anchors import named_classes, select_anchors
from noisycorr.classify.completion import build_graph, complete_texts

SAME, REPEATS = 0.999, 0.9  # cosine of equal texts, and share of them from which texts are no evidence
SHARE = 0.3  # of a class that may be trusted at most: with all of a small class there would be nothing to clean


def complete_through_images(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n e"],
                            has_text: Bool[np.ndarray, " n"], *, k: int = 5) -> Float[np.ndarray, "n e"]:  # fmt: skip
    """Texts averaged over the k nearest images and the own text; unit rows, zeros where no text is known."""
    image = np.asarray(image, np.float32)
    return complete_texts(text, build_graph(image, min(k, len(image) - 1), seed=0), has_text)[0]


def text_classes(match: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"],
                 anchors: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:  # fmt: skip
    """The class that each text names, so surely that a label may be changed to it.

    As `named_classes`, from all matches.

    Args:
        match: Cosine of each completed text with the text of each class, NaN = unknown.
        label: As it came.
        anchors: 1 = trusted, of `trusted_rows`.

    Returns:
        int64 (n,), -1 = names none; classes that nobody is trusted of are never named.
    """
    own = match[np.arange(len(label)), label]
    known = np.isfinite(match).all(axis=1)
    best = np.where(known, np.where(known[:, None], match, -np.inf).argmax(axis=1), -1)
    return named_classes(best, match[np.arange(len(label)), best], own, label, anchors > 0, match.shape[1])


def trusted_rows(score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " n"]:
    """int8 (n,) 1 = among the `count` best known matches of its class, and never more than `SHARE` of it."""
    return select_anchors(score, label, k=count, share=SHARE).astype(np.int8)


def repeats_label(raw: np.ndarray) -> bool:
    """True if texts only repeat the label: they are no evidence for it.

    Args:
        raw: (n,) cosine of each text with the name or definition of its label; NaN = no text.
    """
    known = np.isfinite(raw)
    return bool(known.any() and (raw[known] > SAME).mean() >= REPEATS)
