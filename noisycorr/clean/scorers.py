"""Scorers as plain functions on arrays, for people who bring their own embeddings: `nc.score`.

    score = nc.score.lemon(image, text)              # (n,), higher = better matched

Row i of `image` (n, d) and of `text` (n, e) is one pair; rows need not have length 1. Where images are compared with
texts both are of one joint space, d = e. A row of zeros, or with a number that is not finite or above 1e15, is missing:
its score is NaN. Nothing is learned from labels, and no scorer knows which pairs are wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from noisycorr.clean.signals.crossfit import cross_fit
from noisycorr.clean.signals.pipeline import Score, margins, neighborhoods
from noisycorr.clean.signals.view import PairEmbeddings, ShuffledPairs, own_cosine, shuffled_pairs, unit
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import neighbors
from noisycorr.stats.mixture import fit_null

LARGEST = 1e15  # whose squares can still be added in float32
ROWS = 1024  # rows of a matrix of similarities that are in memory at one time

Image = Float[np.ndarray, "n d"]
Text = Float[np.ndarray, "n e"]
Scores = Float[np.ndarray, " n"]
Ids = Int[np.ndarray, " n"]


def cosine(image: Image, text: Text) -> Scores:
    """Cosine of each image with its own text, in [-1, 1].

    Args:
        image: Features in a joint space.
        text: Features of the same width.

    Raises:
        UsageError: If the shapes do not fit.
    """
    view = _view(image, text, joint=True)
    return own_cosine(view.image, view.text)


def clip_score(image: Image, text: Text, *, scale: float = 2.5) -> Scores:
    """scale * max(cosine, 0) of each text with its image, in [0, scale].

    Args:
        image: Features in a joint space, of any encoder; rows of zeros score 0.
        text: Features of the texts.
        scale: 2.5 in the paper. Values of different encoders cannot be compared.

    Raises:
        UsageError: If the shapes differ.

    Source: CLIPScore (Hessel et al., EMNLP 2021). Differs: no prefix "A photo depicts": put it on before encoding.
    """
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    if image.shape != text.shape:
        raise UsageError(f"Images have shape {image.shape} and captions {text.shape}; expected the same joint space.")
    length = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    return scale * np.maximum((image * text).sum(1) / np.maximum(length, 1e-12), 0.0)


def margin(
    image: Image, text: Text, *, text_id: Ids | None = None, image_id: Ids | None = None, seed: int = 0
) -> Scores:
    """How much each image prefers its text to other texts, and the text its image to other images: mean log odds.

        1/2 [ (s_ii - s_ik) / T summed over k as a softmax does it, over texts k, and the same over images ],   T = 0.05

    Args:
        image: Features in a joint space.
        text: Features of the same width.
        text_id: Equal where texts are the same: they do not compete. By default equal rows are the same.
        image_id: Equal where pictures are the same or near-duplicates.
        seed: For the choice of up to 1,024 competitors on each side.

    Returns:
        In log odds; NaN where nobody competes.

    Raises:
        UsageError: If the shapes do not fit.

    Source: `noisycorr.clean.signals.similarity.margin`.
    """
    view = _view(image, text, joint=True, text_id=text_id, image_id=image_id, seed=seed)
    space = [unit(view.image[0])], [unit(view.text[0])]
    found = margins(space, view, _no_pairs(), np.zeros(view.n, np.int64), Score(seed=seed))
    return np.mean([signal.given for signal in found.values()], axis=0)


def csls(image: Image, text: Text, *, k: int = 10) -> Scores:
    """Cosine set against how crowded it is around the image and around the text, in [-4, 4].

        2 cos(x_i, y_i) - r_i - q_i

    with r_i the mean cosine of image i with the k texts nearest to it, its own among them, and q_i that of text i with
    the k images nearest to it. Generic texts and images, which are near to everything, lose their advantage.

    Args:
        image: Features in a joint space.
        text: Features of the same width.
        k: Neighbours, >= 1; 10 in the paper.

    Raises:
        UsageError: If the shapes do not fit or ``k`` < 1.

    Source: Cross-domain similarity local scaling (Conneau et al., ICLR 2018).
    """
    view = _view(image, text, joint=True)
    _at_least("k", k, 1)
    crowd = []
    for asking, asked in ((view.image[0], view.text[0]), (view.text[0], view.image[0])):
        found = neighbors(
            asked, min(k, max(view.n, 1)), seed=0, queries=asking, skip=~view.present, exact_below=len(asked)
        )
        crowd.append(_row_mean(found.similarity))
    return np.where(view.present, 2 * own_cosine(view.image, view.text) - crowd[0] - crowd[1], np.nan)


class NegClipTerms(NamedTuple):
    """What `negclip_loss` is made of, each (n,).

    Attributes:
        cosine: Of the pair, in [-1, 1].
        image: How much the image is like the texts of its batch: t log sum_j exp(cos(x_i, y_j) / t); low = specific.
        text: How much the text is like the images of its batch; low = specific.
    """

    cosine: np.ndarray
    image: np.ndarray
    text: np.ndarray


def negclip_loss(
    image: Image, text: Text, *, temperature: float = 0.01, batch_size: int = 32_768, rounds: int = 10, seed: int = 0
) -> Scores:
    """Minus the contrastive loss of each pair in random batches, in units of cosine, <= 0.

        cos_ii - t/2 [ log sum_j exp(cos_ij / t) + log sum_j exp(cos_ji / t) ],   mean over rounds

    Args:
        image: Features in a joint space.
        text: Features of the same width.
        temperature: t > 0; the one that the encoder was trained with, 0.01 for CLIP.
        batch_size: Pairs that compete, >= 1; a set that is smaller is one batch.
        rounds: How often the pairs are dealt into batches; one is enough where there is one batch.
        seed: Of the batches.

    Raises:
        UsageError: If the shapes do not fit or a number is out of its range.

    Source: negCLIPLoss (Wang et al., NeurIPS 2024), with its batch size and 10 rounds.
    """
    terms = negclip_terms(image, text, temperature=temperature, batch_size=batch_size, rounds=rounds, seed=seed)
    return terms.cosine - (terms.image + terms.text) / 2


def negclip_terms(
    image: Image, text: Text, *, temperature: float = 0.01, batch_size: int = 32_768, rounds: int = 10, seed: int = 0
) -> NegClipTerms:
    """The terms of `negclip_loss` apart: how well the two fit, and how specific each of them is.

    Args:
        image: As there, and so are the others.
        text: As there.
        temperature: As there.
        batch_size: As there.
        rounds: As there.
        seed: As there.

    Raises:
        UsageError: If the shapes do not fit or a number is out of its range.
    """
    view = _view(image, text, joint=True)
    if not temperature > 0:
        raise UsageError(f"`temperature` is {temperature}, expected more than 0.")
    _at_least("batch_size", batch_size, 1)
    _at_least("rounds", rounds, 1)
    rows = np.flatnonzero(view.present)
    rounds = rounds if len(rows) > batch_size else 1
    one, two = unit(view.image[0]), unit(view.text[0])
    terms = np.full((2, view.n), np.nan)
    terms[:, rows] = 0
    rng = np.random.default_rng([seed, 31])
    for _ in range(rounds):
        for batch in np.array_split(rng.permutation(rows), max(1, -(-len(rows) // batch_size))):
            terms[:, batch] += _crowding(one[batch], two[batch], temperature) / rounds
    return NegClipTerms(own_cosine(view.image, view.text).astype(np.float64), *terms)


def _crowding(image: np.ndarray, text: np.ndarray, temperature: float) -> np.ndarray:
    """t log sum exp(cos / t) of each row of a batch and of each column, (2, b)."""
    by_row, by_column = np.zeros(len(image)), np.full(len(text), -np.inf)
    for start in range(0, len(image), ROWS):
        sims = image[start : start + ROWS].astype(np.float64) @ text.T / temperature
        by_row[start : start + ROWS] = logsumexp(sims, axis=1)
        by_column = np.logaddexp(by_column, logsumexp(sims, axis=0))
    return temperature * np.stack([by_row, by_column])


def lemon(
    image: Image, text: Text, *, k: int = 30, beta: float = 5.0, gamma: float = 5.0, tau1: float = 0.1,
    tau2: float = 5.0,
) -> Scores:  # fmt: skip
    """Minus the distance of a pair, raised where similar images have other texts, or similar texts other images.

        - [ d(x_i, y_i) + beta s_n + gamma s_m ],   d = 1 - cosine
        s_n = 1/k sum_j d(y_i, y_j) exp(-tau1 d(x_i, x_j)) exp(-tau2 d(x_j, y_j)),   j the k images nearest to image i
        s_m = 1/k sum_j d(x_i, x_j) exp(-tau1 d(y_i, y_j)) exp(-tau2 d(x_j, y_j)),   j the k texts nearest to text i

    Args:
        image: Features in a joint space.
        text: Features of the same width.
        k: Neighbours, >= 1; all others where there are fewer.
        beta: Weight of s_n, >= 0.
        gamma: Weight of s_m, >= 0.
        tau1: How fast far neighbours lose weight, >= 0.
        tau2: How fast neighbours that do not fit their own partner lose weight, >= 0.

    Returns:
        <= 0; NaN where a side is missing. Missing pairs are no neighbours.

    Raises:
        UsageError: If the shapes do not fit or a number is out of its range.

    Source: LEMoN (Zhang et al., ICML 2025); the defaults are its fixed setting, which needs no labels.
    """
    view = _view(image, text, joint=True)
    _at_least("k", k, 1)
    for name, value in (("beta", beta), ("gamma", gamma), ("tau1", tau1), ("tau2", tau2)):
        _at_least(name, value, 0)
    own = 1 - own_cosine(view.image, view.text)
    trust = np.exp(-tau2 * np.nan_to_num(own))
    sides = unit(view.image[0]), unit(view.text[0])
    out = own.astype(np.float64)
    for weight, here, there in ((beta, *sides), (gamma, *sides[::-1])):
        found = neighbors(here, min(k, max(view.n - 1, 1)), seed=0, skip=~view.present)
        for start in range(0, view.n, ROWS):
            rows = slice(start, start + ROWS)
            ids = found.ids[rows]
            far = 1 - np.einsum("nd,nkd->nk", there[rows], there[np.maximum(ids, 0)])
            terms = far * np.exp(-tau1 * (1 - found.similarity[rows])) * trust[np.maximum(ids, 0)]
            out[rows] += weight * np.nan_to_num(_row_mean(np.where(ids >= 0, terms, np.nan)))
    return -out


def neighbor_agreement(
    image: Image, text: Text, *, k: int = 20, text_id: Ids | None = None, image_id: Ids | None = None, seed: int = 0
) -> Scores:
    """Do the texts of similar images say what this text says, and the images of similar texts show what this one shows?

    Needs no joint space: images are compared with images and texts with texts. Mean log odds of both sides.

    Args:
        image: Features of any encoder.
        text: Features of any other one.
        k: Neighbours that are asked, 1 to 200.
        text_id: Equal where texts are the same. By default equal rows are the same.
        image_id: Equal where pictures are the same or near-duplicates: they are no witnesses for each other.
        seed: For the choice of competitors, and for the approximate search in large sets.

    Returns:
        In log odds; NaN where there are no neighbours.

    Raises:
        UsageError: If the shapes do not fit or ``k`` is out of its range.

    Source: `noisycorr.clean.signals.neighbors`.
    """
    view = _view(image, text, text_id=text_id, image_id=image_id, seed=seed)
    _at_least("k", k, 1)
    if int(view.present.sum()) < 3:
        return np.full(view.n, np.nan)
    trust = np.ones(view.n, np.float32)
    found = neighborhoods(view, _no_pairs(), trust, Score(neighbors=k, seed=seed), {}, None)[0]
    return np.mean([signal.given for signal in found.values()], axis=0)


def crossfit(
    image: Image, text: Text, *, folds: int = 5, text_id: Ids | None = None, image_id: Ids | None = None, seed: int = 0
) -> Scores:
    """Cosine of both sides in a space that is learned on the pairs themselves, by heads that never saw the pair.

    Needs no joint space: any encoder of images goes with any encoder of texts. From about a hundred pairs on.

    Args:
        image: Features of any encoder.
        text: Features of any other one.
        folds: The pairs are dealt into so many, >= 2; each is scored by heads that learned on the others.
        text_id: Equal where texts are the same. By default equal rows are the same.
        image_id: Equal where pictures are the same or near-duplicates: they stay in one fold.
        seed: Of the folds.

    Returns:
        In [-1, 1]. Heads of different folds differ a little, so compare ranks rather than values across folds.

    Raises:
        UsageError: If the shapes do not fit, or there are fewer than four pairs a fold.

    Source: `noisycorr.clean.signals.crossfit`.
    """
    view = _view(image, text, text_id=text_id, image_id=image_id, seed=seed)
    _at_least("folds", folds, 2)
    if int(view.present.sum()) < 4 * folds:
        raise UsageError(f"{int(view.present.sum())} pairs cannot be dealt into {folds} folds (`folds`).")
    heads = cross_fit(view, folds=folds, weigh=lambda given, null: fit_null(given, null, seed=0)(given))
    return own_cosine([heads.image], [heads.text])


def shuffled_rows(
    image: Image, text: Text, *, count: int = 100_000, text_id: Ids | None = None, image_id: Ids | None = None,
    seed: int = 0,
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:  # fmt: skip
    """Rows of images and of texts that nobody put together: made wrong pairs, for `p_clean`.

    Args:
        image: Features.
        text: Features.
        count: About how many; never more than four for each pair.
        text_id: Equal where texts are the same. By default equal rows are the same.
        image_id: Equal where pictures are the same or near-duplicates.
        seed: Of the draws.

    Raises:
        UsageError: If the shapes do not fit.
    """
    view = _view(image, text, text_id=text_id, image_id=image_id, seed=seed)
    pairs = shuffled_pairs(view, np.zeros(view.n, np.int64), count=count)
    return pairs.image, pairs.text


def p_clean(score: Scores, null: Float[np.ndarray, " m"], *, seed: int = 0) -> Scores:
    """Probability that each pair is right, from its score and from scores of pairs that are wrong for sure.

        i, j = nc.score.shuffled_rows(image, text)
        p = nc.score.p_clean(nc.score.cosine(image, text), nc.score.cosine(image[i], text[j]))

    Args:
        score: Of the pairs, higher = better matched; NaN stays NaN.
        null: Of made wrong pairs, by the same scorer; at least 20 of both.
        seed: Of the interval of the noise rate, which is not given here.

    Returns:
        In [0, 1], never lower for a higher score; 1 for all where the two kinds of scores cannot be told apart.

    Source: `noisycorr.stats.mixture.fit_null`, which also estimates the noise rate.
    """
    score, null = np.asarray(score, np.float64), np.asarray(null, np.float64)
    if score.ndim != 1 or null.ndim != 1:
        raise UsageError(f"`score` has shape {score.shape} and `null` {null.shape}, expected one number for each pair.")
    return fit_null(score, null, seed=seed)(score)


def _view(
    image: np.ndarray, text: np.ndarray, *, joint: bool = False, text_id: np.ndarray | None = None,
    image_id: np.ndarray | None = None, seed: int = 0,
) -> PairEmbeddings:  # fmt: skip
    """Both sides checked, with missing rows as zeros."""
    sides = []
    for name, side in (("image", image), ("text", text)):
        rows = np.asarray(side)
        if rows.ndim != 2 or rows.dtype.kind not in "fiub" or not rows.shape[1]:
            raise UsageError(f"`{name}` has shape {rows.shape} of {rows.dtype}, expected numbers of shape (n, d).")
        sides.append(np.where((np.abs(rows) < LARGEST).all(1, keepdims=True), rows, 0).astype(np.float32))
    one, two = sides
    if len(one) != len(two) or (joint and one.shape[1] != two.shape[1]):
        raise UsageError(f"`image` has shape {one.shape} and `text` {two.shape}, expected "
                         + ("the same shape, of one joint space." if joint else "as many rows in both."))  # fmt: skip
    ids = [_ids(name, given, side) for name, given, side in (("text_id", text_id, two), ("image_id", image_id, one))]
    present = np.any(one != 0, axis=1) & np.any(two != 0, axis=1)
    return PairEmbeddings(image=[one], text=[two], text_id=ids[0], image_id=ids[1], present=present, seed=seed)


def _ids(name: str, given: np.ndarray | None, side: np.ndarray) -> np.ndarray:
    if given is None:
        return np.unique(side, axis=0, return_inverse=True)[1].reshape(-1) if len(side) else np.zeros(0, np.int64)
    if np.shape(given) != (len(side),):
        raise UsageError(f"`{name}` has shape {np.shape(given)}, expected one for each of {len(side)} pairs.")
    return np.unique(given, return_inverse=True)[1].reshape(-1)


def _no_pairs() -> ShuffledPairs:
    nothing = np.zeros(0, np.int64)
    return ShuffledPairs(nothing, nothing, nothing.astype(bool))


def _row_mean(values: np.ndarray) -> np.ndarray:
    """Mean of what is known in each row; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UsageError(f"`{name}` is {value}, expected at least {least:g}.")
