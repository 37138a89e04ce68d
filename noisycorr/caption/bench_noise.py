"""Noise for `noisycorr bench caption`: texts of other pairs, stock phrases, concepts that no text describes well."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from noisycorr.caption.captioner.align import Encode
from noisycorr.clean.bench_sets import BenchSet
from noisycorr.clean.corpus import Corpus, swap_texts
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.stats.unit import unit

NOISES = ("random", "junk", "concept")
CONCEPTS = 24  # groups of texts of a set
JUNK = (
    "best price online", "free shipping", "click to enlarge", "image not available", "new arrival", "stock photo",
    "buy one get one free", "limited offer", "see more on our site", "sign up for news", "product image", "no title",
    "share this page", "related items", "customer favourite", "sold out", "view details", "add to basket",
    "photo of the day", "untitled document",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """Training pairs with noise.

    Attributes:
        corpus: n pairs.
        texts: Their n texts.
        wrong: bool (n,): the text is not that of the picture.
        poor: bool (t,): test pairs of concepts that all training texts describe badly; None where there are none.
    """

    corpus: Corpus
    texts: list[str | None]
    wrong: np.ndarray
    poor: np.ndarray | None = None


def put_noise(data: BenchSet, noise: str, ratio: float, seed: int, encode: Encode) -> Noisy:
    """A share of the pairs gets another text.

    Args:
        data: Clean pairs.
        noise: One of `NOISES`.
        ratio: Share of the pairs; of `concept` at least this, for whole concepts are taken.
        seed: Of what is drawn.
        encode: Texts to features.
    """
    if noise == "junk":
        return _junk(data, ratio, seed, encode)
    if noise == "concept":
        return _concepts(data, ratio, seed)
    found = RandomSwap(ratio=ratio, seed=seed)(data.texts, image_ids=data.train.shown)
    return Noisy(corpus=swap_texts(data.train, found.source_row), texts=list(found.texts), wrong=found.wrong)


def _junk(data: BenchSet, ratio: float, seed: int, encode: Encode) -> Noisy:
    """One of twenty stock phrases, the k-th with probability ~ 1/k."""
    rng = np.random.default_rng(seed)
    n = len(data.texts)
    rows = np.sort(rng.permutation(n)[: round(ratio * n)])
    weight = 1 / np.arange(1, len(JUNK) + 1)
    picked = rng.choice(len(JUNK), len(rows), p=weight / weight.sum())
    texts, wrong = list(data.texts), np.zeros(n, bool)
    wrong[rows] = True
    text, group = data.train.text.copy(), data.train.text_group.copy()
    if len(rows):
        text[rows] = encode(list(JUNK))[picked]
    group[rows] = group.max() + 1 + picked
    for row, phrase in zip(rows.tolist(), picked.tolist()):
        texts[row] = JUNK[phrase]
    return Noisy(corpus=dataclasses.replace(data.train, text=text, text_group=group), texts=texts, wrong=wrong)


def _concepts(data: BenchSet, ratio: float, seed: int) -> Noisy:
    """Concepts are groups of texts by meaning; of some, every picture gets the text of another one of the concept.

    So no well aligned pair shows these concepts, but what they are called can be learned from those that are there.
    """
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(data.train.usable)
    middle = data.train.text[usable].mean(0)
    count = min(CONCEPTS, len(usable))
    found = KMeans(count, n_init=1, random_state=seed).fit(unit(data.train.text[usable] - middle))
    taken: list[int] = []
    for concept in rng.permutation(count).tolist():
        if np.isin(found.labels_, taken).sum() >= ratio * len(usable):
            break
        taken.append(concept)
    source = np.arange(len(data.texts))
    for concept in taken:
        rows = rng.permutation(usable[found.labels_ == concept])
        source[rows] = np.roll(rows, 1)
    wrong = np.array([data.texts[row] != data.texts[other] for row, other in enumerate(source.tolist())])
    poor = np.isin(found.predict(unit(data.test.text - middle)), taken)
    return Noisy(corpus=swap_texts(data.train, source), texts=[data.texts[row] for row in source], wrong=wrong,
                 poor=poor)  # fmt: skip
