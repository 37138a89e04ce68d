"""Hallucination guards: signs that a fluent text says what the picture does not show.

None of them knows the truth: each compares a proposed text with what the trusted neighbours of its picture say, or with
what is proposed for the same picture when it is disturbed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from noisycorr.caption.metrics import tokenize
from noisycorr.stats.unit import unit

STOP = frozenset({
    "a", "an", "the", "this", "that", "these", "those", "of", "in", "on", "at", "by", "for", "from", "to", "with",
    "without", "and", "or", "but", "not", "is", "are", "was", "were", "be", "been", "it", "its", "as", "into",
    "onto", "over", "under", "up", "down", "out", "off", "there", "here", "his", "her", "their", "our", "your",
    "my", "one", "some", "any", "each", "very",
})  # fmt: skip
LOWEST = 0.2  # share of the words that decide


def content_words(text: str) -> list[str]:
    """Words of the text that name something: no function words, numbers or single letters.

    Differs: the guard of the literature counts nouns; without a tagger these stand for them.
    """
    return [word for word in tokenize(text) if word not in STOP and len(word) > 1 and not word.isdigit()]


@dataclass(frozen=True, slots=True)
class WordRates:
    """In which share of trusted texts a word stands.

    Attributes:
        count: Texts that hold each word.
        texts: All texts.
    """

    count: Counter[str]
    texts: int


def word_rates(texts: Sequence[str]) -> WordRates:
    """Count each word once for each text."""
    count: Counter[str] = Counter()
    for text in texts:
        count.update(set(content_words(text)))
    return WordRates(count, len(texts))


def noun_overlap(text: str, neighbours: Sequence[str]) -> float:
    """Share of the text's content words that any neighbour's text holds, in [0, 1]; higher = better supported.

    NaN where the text has no content word or there are no neighbours.
    """
    words, held = set(content_words(text)), {word for other in neighbours for word in content_words(other)}
    return len(words & held) / len(words) if words and neighbours else math.nan


def lowest_pmi(text: str, neighbours: Sequence[str], rates: WordRates) -> float:
    """Mean pointwise mutual information, in nats, of the fifth of the content words that the picture supports least.

        PMI_w = log((neighbours with w + r_w) / (k + 1)) - log r_w,   r_w = (texts with w + 1) / (texts + 1)

    One neighbour's worth of the common rate is added: a word that stands in no neighbour's text gets -log(k + 1), and a
    word as frequent among neighbours as elsewhere 0.

    Args:
        text: Proposed.
        neighbours: Texts of k trusted images near to this one, the donor's left out.
        rates: Of words in all trusted texts.

    Returns:
        Higher = better supported; NaN without words or neighbours. Of at least one word.

    Source: min-k % (Shi et al., ICLR 2024) on conditional probabilities.
    Differs: the probabilities are rates among neighbours' texts; with a captioner they would be its own.
    """
    words, k = content_words(text), len(neighbours)
    if not words or not k:
        return math.nan
    near = Counter(word for other in neighbours for word in set(content_words(other)))
    values = []
    for word in words:
        rate = (rates.count[word] + 1) / (rates.texts + 1)
        values.append(math.log((near[word] + rate) / (k + 1)) - math.log(rate))
    lowest = sorted(values)[: max(1, math.floor(LOWEST * len(values)))]
    return sum(lowest) / len(lowest)


def steadiness(text: Float[np.ndarray, "m e"], disturbed: Sequence[Float[np.ndarray, "m e"]],
               mean: Float[np.ndarray, " e"]) -> Float[np.ndarray, " m"]:  # fmt: skip
    """Mean cosine of each text with those proposed for the disturbed picture, in [-1, 1]; higher = steadier.

    Args:
        text: Features of the proposed texts.
        disturbed: The same of proposals for pictures with noise on them; rows of zeros where there was none.
        mean: What all texts have in common; taken off first.

    Returns:
        (m,); NaN without a disturbed proposal.

    Source: the perturbation test for hallucinating models (Frieske and Shi, 2024), in its form without references.
    """
    own = unit(text - mean)
    total, count = np.zeros(len(text)), np.zeros(len(text))
    for other in disturbed:
        some = np.any(other != 0, axis=1)
        total += np.where(some, (own * unit(other - mean)).sum(1), 0)
        count += some
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def disturb(image: Float[np.ndarray, "m d"], *, noise: float, seed: int, turn: int,
            names: Sequence[int] | None = None) -> Float[np.ndarray, "m d"]:  # fmt: skip
    """Image features with Gaussian noise of ``noise`` times their length, in float32.

    With names of the rows, such as their numbers in a set, the noise of each is its own, whoever else is there.
    """
    rows = np.asarray(image, np.float32)
    if names is None:
        drawn = np.random.default_rng([seed, 47, turn]).normal(size=rows.shape).astype(np.float32)
    else:
        own = (np.random.default_rng([seed, 47, turn, name]).normal(size=rows.shape[1:]) for name in names)
        drawn = np.asarray([row.astype(np.float32) for row in own], np.float32).reshape(rows.shape)
    step = unit(drawn)
    return rows + noise * np.linalg.norm(rows, axis=1, keepdims=True) * step
