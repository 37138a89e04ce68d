"""Textual prototypes: what the definition of a class says, as one unit vector for each of its senses, and who fits it.

    prototypes = text_prototypes(features, owner)             # one row for each definition, whose class is owner[row]
    found = match(completed, prototypes, labels)              # own cosine, best class, and by how much it leads

A class may have several senses (several definitions); it fits as well as its best one. Nothing here is n x n or n x c
at once: classes are compared block by block.

Source: CAPro (Qin et al., NeurIPS 2023). Differs: plain cosine by default, which ranks right labels above wrong ones
better than its re-ranked distance (`score/rerank.py` has that); newlines become spaces instead of gluing words; no
dictionary of English words decides what is a word, because texts come in other languages, too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import unit_rows

BLOCK = 2_000_000  # cosines at once

_FILE = re.compile(r"\.(jpe?g|png|gif|webp|bmp)\b")
_TAG = re.compile(r"<[^<>]*>")
_ADDRESS = re.compile(
    r"https?\S+|www\.\S+|\b[\w-]+(\.[\w-]+)*\.(com|net|org|edu|gov|info|biz|de|uk|co|io|fr|jp|cn|ru)\b\S*"
)
_WORD = re.compile(r"[^\W_]+")
STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "in",
        "into",
        "is",
        "it",
        "its",
        "more",
        "most",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "or",
        "our",
        "out",
        "over",
        "she",
        "so",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "up",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "why",
        "will",
        "with",
        "you",
        "your",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prototypes:
    """Unit rows of all senses of all classes.

    Attributes:
        vectors: float32 (s, e): one row for each sense, in order of class.
        owner: int (s,): class of each sense, never falling.
        count: Number of classes c. A class without a sense has no row and is matched by nothing.
    """

    vectors: np.ndarray
    owner: np.ndarray
    count: int

    @property
    def defined(self) -> np.ndarray:
        """bool (c,): classes that have a sense."""
        return np.bincount(self.owner, minlength=self.count) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How well each row fits classes, by cosine in [-1, 1], higher = better.

    Attributes:
        own: float32 (n,): of its own class; NaN = unknown (no text near it, no label, or no definition).
        best: int64 (n,): the class that fits best; -1 = unknown.
        best_score: float32 (n,): how well that one fits; NaN = unknown.
        sense: int64 (n,): row of `Prototypes.vectors` that fits best within the own class; -1 = unknown.
    """

    own: np.ndarray
    best: np.ndarray
    best_score: np.ndarray
    sense: np.ndarray


def prepare_text(text: str | None, *, stop_words: bool = False) -> str:
    """A web text without what says nothing about the picture; "" where nothing is left.

    Lower case, HTML entities and tags, file endings, web addresses, digits and words of one letter go.

    Args:
        text: As it came in.
        stop_words: Keep English stop words; encoders of sentences do not need them.

    Source: CAPro, released `denoise_text`.
    """
    if not text:
        return ""
    plain = _TAG.sub(" ", html.unescape(text.lower()))
    plain = _FILE.sub(" ", _ADDRESS.sub(" ", plain))
    words = ("".join(sign for sign in word if not sign.isdigit()) for word in _WORD.findall(plain))
    return " ".join(w for w in words if (len(w) > 1 or not w.isascii()) and w and (stop_words or w not in STOP))


def text_prototypes(features: Float[np.ndarray, "s e"], owner: Int[np.ndarray, " s"], count: int) -> Prototypes:
    """Senses as unit vectors, in order of class; definitions that could not be encoded (zero rows) are left out.

    Args:
        features: Of the definitions.
        owner: Class of each, from 0.
        count: Number of classes.

    Raises:
        UsageError: If shapes do not fit, or not a single class has a definition.
    """
    if (
        features.ndim != 2
        or len(features) != len(owner)
        or (len(owner) and not 0 <= owner.min() <= owner.max() < count)
    ):
        raise UsageError(f"{len(owner)} owners below {count} were expected for definitions of shape {features.shape}.")
    vectors = unit_rows(features)
    some = np.flatnonzero(vectors.any(axis=1))
    if not len(some):
        raise UsageError("no class has a definition that could be encoded: give each class a name or a definition.")
    order = some[np.argsort(owner[some], kind="stable")]
    return Prototypes(vectors=vectors[order], owner=np.asarray(owner)[order].astype(np.int64), count=count)


def class_cosines(
    features: np.ndarray, prototypes: Prototypes, centre: np.ndarray | None = None
) -> Iterator[tuple[int, Float[np.ndarray, "k c"]]]:
    """Cosine of rows with every class, block by block; -inf for classes without a sense and rows of zeros.

    Args:
        features: (n, e), of any length.
        prototypes: The classes.
        centre: (e,) taken off both sides first, so that what all texts share does not count; None = nothing.

    Yields:
        First row of the block, and float32 (k, c): the best sense of each class.
    """
    vectors = prototypes.vectors if centre is None else unit_rows(prototypes.vectors - centre)
    starts = np.flatnonzero(np.r_[True, np.diff(prototypes.owner) > 0])
    size = max(1, BLOCK // max(len(vectors), 1))
    for first in range(0, len(features), size):
        rows = unit_rows(features[first : first + size])
        some = rows.any(axis=1)
        rows = rows if centre is None else unit_rows(rows - centre)
        out = np.full((len(rows), prototypes.count), -np.inf, np.float32)
        out[:, prototypes.owner[starts]] = np.maximum.reduceat(rows @ vectors.T, starts, axis=1)
        out[~some] = -np.inf
        yield first, out


def match(
    features: np.ndarray, prototypes: Prototypes, labels: Int[np.ndarray, " n"], centre: np.ndarray | None = None
) -> Match:
    """Cosine of each row with its own class, and the class that fits best.

    Args:
        features: (n, e): completed texts, or texts, or images of a joint space.
        prototypes: Of c classes.
        labels: (n,) class of each row, -1 = none.
        centre: As of `class_cosines`.
    """
    n = len(features)
    own, best_score = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    best, sense = np.full(n, -1), np.full(n, -1)
    for first, cosine in class_cosines(features, prototypes, centre):
        rows = slice(first, first + len(cosine))
        known = np.isfinite(cosine).any(axis=1)
        top = cosine.argmax(axis=1)
        best[rows] = np.where(known, top, -1)
        each = np.arange(len(cosine))
        best_score[rows] = np.where(known, cosine[each, top], np.nan)
        mine = labels[rows]
        value = cosine[each, np.maximum(mine, 0)]
        own[rows] = np.where((mine >= 0) & np.isfinite(value), value, np.nan)
    vectors = prototypes.vectors if centre is None else unit_rows(prototypes.vectors - centre)
    _senses(features, vectors, prototypes, labels, centre, np.isfinite(own), sense)
    return Match(own=own, best=best, best_score=best_score, sense=sense)


def _senses(features: np.ndarray, vectors: np.ndarray, prototypes: Prototypes, labels: np.ndarray,
            centre: np.ndarray | None, known: np.ndarray, out: np.ndarray) -> None:  # fmt: skip
    """The best sense of the own class, class by class."""
    ends = np.searchsorted(prototypes.owner, np.arange(prototypes.count + 1))
    order = np.argsort(labels, kind="stable")
    order = order[known[order]]
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(rows):
            first, last = ends[labels[rows[0]]], ends[labels[rows[0]] + 1]
            some = unit_rows(features[rows])
            some = some if centre is None else unit_rows(some - centre)
            out[rows] = first + np.argmax(some @ vectors[first:last].T, axis=1)
